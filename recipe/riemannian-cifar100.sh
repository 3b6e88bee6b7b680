#!/usr/bin/env bash
# SGD, SGD-G or Adam-G on CIFAR-100, as in the Riemannian paper (config/riemannian_cifar100_*.py).
# First, once: bash recipe/prepare_data.sh cifar100 DATA_DIR
#
#   bash recipe/riemannian-cifar100.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] ...
#   OPTIMIZER=SGD bash recipe/riemannian-cifar100.sh ...    or AdamG; SGDG without it
#   SEEDS="0 1 2 3 4" bash recipe/riemannian-cifar100.sh ...    one run a seed, as published
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

riemannian cifar100 "$@"
