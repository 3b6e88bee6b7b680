#!/usr/bin/env bash
# ResNet50 on ImageNet with the gradient-norm penalty (config/resnet_imagenet.py).
#
#   bash recipe/resnet-imagenet.sh --config.dataset.data_dir=DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/resnet-imagenet.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment resnet_imagenet "$@"
