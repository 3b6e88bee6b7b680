#!/usr/bin/env bash
# Trains a config for every combination of some keys' values and seeds, and reports.
#
#   bash recipe/sweep.sh CONFIG KEY=VALUE,VALUE... [--working_dir=DIR] [--jobs=N] [--config.KEY=VALUE ...]
#
# The same command goes on where it was. The head of recipe/sweep.py says the rest; --help prints it.
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

if [[ -n "${SEEDS:-}" ]]; then
  printf 'SEEDS="%s" is for the recipes; here it is seeds=%s\n' "$SEEDS" "${SEEDS// /,}" >&2
  exit 2
fi
exec "$PYTHON" -P -m recipe.sweep "$@"
