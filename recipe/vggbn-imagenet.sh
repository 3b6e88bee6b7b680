#!/usr/bin/env bash
# VGG16 with batch norm on ImageNet with the gradient-norm penalty (config/vggbn_imagenet.py).
#
#   bash recipe/vggbn-imagenet.sh --config.dataset.data_dir=DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/vggbn-imagenet.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment vggbn_imagenet "$@"
