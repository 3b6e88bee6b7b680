#!/usr/bin/env bash
# A small vision transformer on CIFAR-10 with the gradient-norm penalty (config/vit_cifar_basic.py).
# First, once: bash recipe/prepare_data.sh cifar10 DATA_DIR
#
#   bash recipe/vit-cifar-basic.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/vit-cifar-basic.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment vit_cifar_basic "$@"
