#!/usr/bin/env bash
# Trains the tutorial's network on MNIST (config/mnist_tutorial.py). First, once:
# bash recipe/prepare_data.sh mnist DATA_DIR
#
#   bash recipe/mnist-tutorial.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] ...
#   SEEDS="0 1 2" bash recipe/mnist-tutorial.sh ...    one run a seed, in DIR/seed-0, DIR/seed-1, ...
#
# DIR is runs/mnist-tutorial in the checkout unless --working_dir names another.
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

directory="$ROOT/runs/mnist-tutorial"
previous=""
for argument in "$@"; do
  case "$argument" in
    --working_dir=* | -working_dir=*) directory="${argument#*=}" ;;
  esac
  case "$previous" in
    --working_dir | -working_dir) directory="$argument" ;;
  esac
  previous="$argument"
done

run() { # DIR [ARGUMENT...]; the last of two equal flags counts
  local directory="$1"
  shift
  exec "$PYTHON" -P -m gnp.main.main --config="$ROOT/config/mnist_tutorial.py" "$@" \
    --working_dir="$directory"
}

for seed in ${SEEDS:-}; do
  if [[ ! "$seed" =~ ^[0-9]+$ ]]; then
    printf 'SEEDS="%s": "%s" is not a whole number; use for example SEEDS="0 1 2"\n' "$SEEDS" "$seed" >&2
    exit 2
  fi
done

if [[ -z "${SEEDS:-}" ]]; then
  run "$directory" "$@"
fi

# A signal ends the seed that runs, which saves, and starts no other.
child=""
stopped=""
stop() { # SIGNAL
  stopped="$1"
  [[ -z "$child" ]] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'stop TERM' TERM
trap 'stop INT' INT

for seed in $SEEDS; do
  printf 'seed %s: %s\n' "$seed" "$directory/seed-$seed"
  run "$directory/seed-$seed" "$@" --config.init_seeds="$seed" --config.seeds="$seed" &
  child=$!
  status=0
  wait "$child" || status=$?
  if [[ -n "$stopped" ]]; then # that ended the waiting, not yet the run
    status=0
    wait "$child" || status=$?
    exit "$status"
  fi
  [[ "$status" == 0 ]] || exit "$status"
done
