#!/usr/bin/env bash
# How gradients evolve on CIFAR-100 (config/evolution_cifar100.py).
# First, once: bash recipe/prepare_data.sh cifar100 DATA_DIR
#
#   bash recipe/evolution-cifar100.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/evolution-cifar100.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment evolution_cifar100 "$@"
