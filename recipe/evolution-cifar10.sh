#!/usr/bin/env bash
# How gradients evolve on CIFAR-10 (config/evolution_cifar10.py).
# First, once: bash recipe/prepare_data.sh cifar10 DATA_DIR
#
#   bash recipe/evolution-cifar10.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/evolution-cifar10.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment evolution_cifar10 "$@"
