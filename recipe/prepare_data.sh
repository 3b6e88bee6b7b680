#!/usr/bin/env bash
# Prepares a TFDS data set, so that gnp can read it without TensorFlow.
#
#     bash recipe/prepare_data.sh NAME [DATA_DIR]
#
# NAME: a TFDS name, such as cifar10, emnist/letters or mnist:3.0.1.
# DATA_DIR: where prepared sets lie, relative to where you are; default: TFDS_DATA_DIR, else
#     ~/tensorflow_datasets. Hand the same folder to gnp: --config.dataset.data_dir=DATA_DIR
#
# TensorFlow is needed only here, so it gets an environment of its own, about 2 GB:
# .venv-tensorflow beside this folder, or GNP_TF_VENV. PYTHON: the interpreter that creates it.
# A set that is already prepared is left as it is. Exit code 0: the set is there.
set -euo pipefail

ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="${GNP_TF_VENV:-$ROOT/.venv-tensorflow}"
REQUIREMENTS=(
    "tensorflow-cpu>=2.19,<3"
    "tensorflow-datasets>=4.9.9,<5"
    "importlib_resources"
    "array_record>=0.7"
)

fail() {
    echo "prepare_data: $1" >&2
    exit "${2:-1}"
}

usage="usage: bash recipe/prepare_data.sh NAME [DATA_DIR]"
case "${1:-}" in
    -h | --help)
        echo "$usage"
        exit 0
        ;;
esac
if (($# < 1 || $# > 2)); then
    fail "$usage" 2
fi
NAME="$1"
DATA_DIR="${2:-${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}}"

# The stamp is written last: an interrupted installation is completed by the next call.
STAMP="$VENV/gnp-requirements"
if [[ ! -f "$STAMP" || "$(cat "$STAMP")" != "${REQUIREMENTS[*]}" ]]; then
    echo "installing TensorFlow and TFDS in $VENV (once, some minutes)"
    "${PYTHON:-python3}" -m venv "$VENV" ||
        fail "no virtual environment could be made in $VENV with ${PYTHON:-python3} (on Debian: apt-get install python3-venv)"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "${REQUIREMENTS[@]}" ||
        fail "TensorFlow and TFDS could not be installed in $VENV; the same command tries again"
    echo "${REQUIREMENTS[*]}" >"$STAMP"
fi

export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
export CUDA_VISIBLE_DEVICES=""
exec "$VENV/bin/python" "$ROOT/recipe/prepare_data.py" "$NAME" "$DATA_DIR"
