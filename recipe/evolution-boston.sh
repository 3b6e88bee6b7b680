#!/usr/bin/env bash
# How gradients evolve on Boston Housing (config/evolution_boston.py).
#
#   bash recipe/evolution-boston.sh --config.dataset.data_dir=FILE.csv [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/evolution-boston.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment evolution_boston "$@"
