#!/usr/bin/env bash
# The Keras example of gradient centralization (config/gc_horses_or_humans.py).
#
#   bash recipe/gc-horses-or-humans.sh --config.dataset.data_dir=DIR [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/gc-horses-or-humans.sh ...    one run a seed
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

experiment gc_horses_or_humans "$@"
