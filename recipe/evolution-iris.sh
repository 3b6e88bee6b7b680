#!/usr/bin/env bash
# How gradients evolve on Iris (config/evolution_iris.py).
#
#   bash recipe/evolution-iris.sh [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/evolution-iris.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment evolution_iris "$@"
