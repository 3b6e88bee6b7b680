#!/usr/bin/env bash
# What the recipes of the experiments share; they source it and call `experiment`.
#
#   experiment CONFIG [--working_dir=DIR] [ARGUMENT ...]
#
# It trains config/CONFIG.py and hands on the arguments, of which a later one overrides an earlier.
# DIR is runs/CONFIG in the checkout, with - for _, unless --working_dir names another.
# SEEDS="0 1 2": one run a seed, one after the other, in DIR/seed-0, DIR/seed-1, DIR/seed-2.
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

SEED_KEYS=(init_seeds seeds) # the config keys that a seed sets; sweep.sh's `seeds=` too

experiment() { # CONFIG [ARGUMENT...]
  local config="$1" directory seed
  shift
  directory="$(working_dir "$ROOT/runs/${config//_/-}" "$@")"
  for seed in ${SEEDS:-}; do
    if [[ ! "$seed" =~ ^[0-9]+$ ]]; then
      printf 'SEEDS="%s": "%s" is not a whole number; use for example SEEDS="0 1 2"\n' "$SEEDS" "$seed" >&2
      exit 2
    fi
  done
  if [[ -z "${SEEDS:-}" ]]; then
    run "$config" "$directory" "$@"
  fi
  run_seeds "$config" "$directory" "$@"
}

working_dir() { # DEFAULT [ARGUMENT...]: what the last --working_dir says
  local directory="$1" previous="" argument
  shift
  for argument in "$@"; do
    case "$argument" in
      --working_dir=* | -working_dir=*) directory="${argument#*=}" ;;
    esac
    case "$previous" in
      --working_dir | -working_dir) directory="$argument" ;;
    esac
    previous="$argument"
  done
  printf '%s\n' "$directory"
}

run() { # CONFIG DIR [ARGUMENT...]; the last of two equal flags counts
  local config="$1" directory="$2"
  shift 2
  exec "$PYTHON" -P -m gnp.main.main --config="$ROOT/config/$config.py" "$@" \
    --working_dir="$directory"
}

# A signal ends the seed that runs, which saves, and starts no other.
child=""
stopped=""
stop() { # SIGNAL
  stopped="$1"
  [[ -z "$child" ]] || kill -s "$1" "$child" 2>/dev/null || true
}

run_seeds() { # CONFIG DIR [ARGUMENT...]
  local config="$1" directory="$2" seed status keys
  shift 2
  trap 'stop TERM' TERM
  trap 'stop INT' INT
  for seed in $SEEDS; do
    printf 'seed %s: %s\n' "$seed" "$directory/seed-$seed"
    keys=("${SEED_KEYS[@]/#/--config.}")
    run "$config" "$directory/seed-$seed" "$@" "${keys[@]/%/=$seed}" &
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
}

riemannian() { # DATASET [ARGUMENT...]: with the optimizer that OPTIMIZER names
  local dataset="$1" optimizer="${OPTIMIZER:-SGDG}"
  shift
  case "$optimizer" in
    SGD | SGDG | AdamG) experiment "riemannian_${dataset}_$(tr '[:upper:]' '[:lower:]' <<<"$optimizer")" "$@" ;;
    *)
      printf 'OPTIMIZER="%s": use SGD, SGDG or AdamG\n' "$optimizer" >&2
      exit 2
      ;;
  esac
}
