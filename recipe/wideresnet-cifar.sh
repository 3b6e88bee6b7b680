#!/usr/bin/env bash
# WideResNet_28_10 on CIFAR-10 with the gradient-norm penalty (config/wideresnet_cifar.py).
# First, once: bash recipe/prepare_data.sh cifar10 DATA_DIR
#
#   bash recipe/wideresnet-cifar.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/wideresnet-cifar.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment wideresnet_cifar "$@"
