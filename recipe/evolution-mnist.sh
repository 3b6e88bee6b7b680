#!/usr/bin/env bash
# How gradients evolve on MNIST (config/evolution_mnist.py).
# First, once: bash recipe/prepare_data.sh mnist DATA_DIR
#
#   bash recipe/evolution-mnist.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/evolution-mnist.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment evolution_mnist "$@"
