#!/usr/bin/env bash
# Trains a small network on digits of which 40% have wrong labels, without the penalty and with it,
# and sets the two side by side: about a minute on two cores after set-up. The same command again
# goes on where it was stopped.
#
#   bash recipe/quickstart.sh [--working_dir=DIR] [--config.KEY=VALUE ...]
#
# The runs are DIR/plain and DIR/penalized, the picture is DIR/comparison.png; DIR is
# runs/quickstart in the checkout unless --working_dir names another.
set -euo pipefail
if [[ -n "${SEEDS:-}" ]]; then
  printf 'SEEDS="%s": this trains one seed; several: %s\n' "$SEEDS" \
    "bash recipe/sweep.sh digits-noise 'gnp.r,gnp.alpha=(0,0),(0.1,1)' seeds=0,1,2" >&2
  exit 2
fi
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"

directory="$(working_dir "$ROOT/runs/quickstart" "$@")"
if [[ " $*" == *" --help"* ]]; then
  run digits_noise.py "$directory" "$@"
fi
run_and_wait digits_noise.py "$directory/plain" "$@" --config.gnp.r=0 --config.gnp.alpha=0
run_and_wait digits_noise.py "$directory/penalized" "$@"
exec "$PYTHON" -P -m gnp.analysis.compare "$directory/plain" "$directory/penalized" \
  --out="$directory/comparison.png"
