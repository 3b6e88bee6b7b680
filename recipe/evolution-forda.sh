#!/usr/bin/env bash
# How gradients evolve on FordA (config/evolution_forda.py).
#
#   bash recipe/evolution-forda.sh --config.dataset.data_dir=DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/evolution-forda.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment evolution_forda "$@"
