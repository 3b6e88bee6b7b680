#!/usr/bin/env bash
# The recipes of the experiments: each sources this file and names its config.
#
#   bash recipe/NAME.sh [--working_dir=DIR] [--config.KEY=VALUE ...]
#   SEEDS="0 1 2" bash recipe/NAME.sh ...    one run a seed, in DIR/seed-0, DIR/seed-1, DIR/seed-2
#   OPTIMIZER=SGD bash recipe/riemannian-svhn.sh ...    or AdamG; SGDG without it
#
# DIR is runs/NAME in the checkout (of a Riemannian experiment runs/NAME-OPTIMIZER) unless
# --working_dir names another; a later argument overrides an earlier one. The config file says what
# to expect and where the data are; those of TFDS are prepared once, for example by
# `bash recipe/prepare_data.sh cifar10 DATA_DIR`, and named by --config.dataset.data_dir=DATA_DIR.
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

experiment() { # CONFIG [ARGUMENT...]: a file in config/ with its argument
  local config="$1" name directory seed optimizer="${OPTIMIZER:-SGDG}"
  shift
  name="$(basename -- "$0" .sh)"
  if [[ "$config" == *,OPTIMIZER ]]; then
    case "$optimizer" in
      SGD | SGDG | AdamG) optimizer="$(tr '[:upper:]' '[:lower:]' <<<"$optimizer")" ;;
      *)
        printf 'OPTIMIZER="%s": use SGD, SGDG or AdamG\n' "$optimizer" >&2
        exit 2
        ;;
    esac
    config="${config%OPTIMIZER}$optimizer"
    name="$name-$optimizer"
  fi
  directory="$(working_dir "$ROOT/runs/$name" "$@")"
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
  exec "$PYTHON" -P -m gnp.main.main --config="$ROOT/config/$config" "$@" \
    --working_dir="$directory"
}

# A signal ends the run that is at work, which saves, and starts no other.
child=""
stopped=""
stop() { # SIGNAL
  stopped="$1"
  [[ -z "$child" ]] || kill -s "$1" "$child" 2>/dev/null || true
}

run_and_wait() { # CONFIG DIR [ARGUMENT...]; goes on only where the run came to its end
  local status=0
  trap 'stop TERM' TERM
  trap 'stop INT' INT
  run "$@" &
  child=$!
  wait "$child" || status=$?
  if [[ -n "$stopped" ]]; then # that ended the waiting, not yet the run
    status=0
    wait "$child" || status=$?
    exit "$status"
  fi
  [[ "$status" == 0 ]] || exit "$status"
}

run_seeds() { # CONFIG DIR [ARGUMENT...]
  local config="$1" directory="$2" seed
  shift 2
  for seed in $SEEDS; do
    printf 'seed %s: %s\n' "$seed" "$directory/seed-$seed"
    run_and_wait "$config" "$directory/seed-$seed" "$@" \
      --config.init_seeds="$seed" --config.seeds="$seed"
  done
}
