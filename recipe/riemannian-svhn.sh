#!/usr/bin/env bash
# SGD, SGD-G or Adam-G on SVHN, as in the Riemannian paper (config/riemannian_svhn_*.py).
# First, once: bash recipe/prepare_data.sh svhn_cropped DATA_DIR
#
#   bash recipe/riemannian-svhn.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] ...
#   OPTIMIZER=SGD bash recipe/riemannian-svhn.sh ...    or AdamG; SGDG without it
#   SEEDS="0 1 2 3 4" bash recipe/riemannian-svhn.sh ...    one run a seed, as published
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

riemannian svhn "$@"
