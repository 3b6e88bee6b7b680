#!/usr/bin/env bash
# The network of a tutorial on custom training loops, on MNIST (config/mnist_tutorial.py).
# First, once: bash recipe/prepare_data.sh mnist DATA_DIR
#
#   bash recipe/mnist-tutorial.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/mnist-tutorial.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment mnist_tutorial "$@"
