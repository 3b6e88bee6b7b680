#!/usr/bin/env bash
# Trains the small network of config/digits.py with the gradient-norm penalty: about a minute on
# two cores. The same command again goes on where the run was stopped.
#
#   bash recipe/quickstart.sh [--working_dir=DIR] [--config.KEY=VALUE ...]
#
# The run directory is runs/quickstart in the checkout unless --working_dir names another.
set -euo pipefail
if [[ -n "${SEEDS:-}" ]]; then
  printf 'SEEDS="%s": this trains one seed; several: %s\n' "$SEEDS" \
    'bash recipe/sweep.sh config/digits.py seeds=0,1,2' >&2
  exit 2
fi
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

exec "$PYTHON" -P -m gnp.main.main \
  --config="$ROOT/config/digits.py" --working_dir="$ROOT/runs/quickstart" "$@"
