#!/usr/bin/env bash
# Prepares data sets, so that gnp can read them without TensorFlow.
#
#     bash recipe/prepare_data.sh [--data_dir=DIR] NAME... [DIR]
#
# NAME: a TFDS name, such as cifar10, emnist/letters or mnist:3.0.1 (tfds/NAME is the same);
#     all: those of the recipes (mnist, cifar10, cifar100, svhn_cropped, horses_or_humans, iris);
#     FordA or ucr/NAME, boston_housing, forecast (ETT and other series), image_folder,
#     imagenet2012: what to download by hand and where to put it; once it is there, the command
#     that trains on it.
# DIR: where the data lie, relative to where you are. The last of several words is DIR where it is
#     no data set that is known. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets. Hand the same
#     folder to gnp: --config.dataset.data_dir=DIR
#
# Sizes, times and licenses are printed first. A set that is already prepared is skipped. After an
# interruption the same command goes on: downloads are kept, the set that was being written is
# written anew. One set that fails does not stop the others.
#
# TensorFlow is needed only here, so it gets an environment of its own, about 2 GB:
# .venv-tensorflow beside this folder, or GNP_TF_VENV. PYTHON: the interpreter that creates it.
# Exit code 0: all are there; 1: something failed or is to be downloaded by hand; 2: a wrong name.
set -euo pipefail

ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="${GNP_TF_VENV:-$ROOT/.venv-tensorflow}"
REQUIREMENTS=(
    "tensorflow-cpu>=2.19,<3"
    "tensorflow-datasets>=4.9.9,<5"
    "importlib_resources"
    "array_record>=0.7"
    "scipy>=1.11,<2" # svhn_cropped comes in MATLAB's format
)
NEEDS_TENSORFLOW=75

fail() {
    echo "prepare_data: $1" >&2
    exit 1
}

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi

# Wrong words and what is downloaded by hand need no TensorFlow.
PYTHON="${PYTHON:-python3}"
command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON; set PYTHON to a Python 3.11 or newer"
status=0
"$PYTHON" "$ROOT/recipe/prepare_data.py" --without_tensorflow "$@" || status=$?
((status == NEEDS_TENSORFLOW)) || exit "$status"

# The stamp is written last: an interrupted installation is completed by the next call.
STAMP="$VENV/gnp-requirements"
if [[ ! -f "$STAMP" || "$(cat "$STAMP")" != "${REQUIREMENTS[*]}" ]]; then
    echo "installing TensorFlow and TFDS in $VENV (once, some minutes)"
    "$PYTHON" -m venv "$VENV" ||
        fail "no virtual environment could be made in $VENV with $PYTHON (on Debian: apt-get install python3-venv)"
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check "${REQUIREMENTS[@]}" ||
        fail "TensorFlow and TFDS could not be installed in $VENV; the same command tries again"
    echo "${REQUIREMENTS[*]}" >"$STAMP"
fi

export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
export TF_ENABLE_ONEDNN_OPTS=0 # its notice, which the line above does not silence
export CUDA_VISIBLE_DEVICES=""
exec "$VENV/bin/python" "$ROOT/recipe/prepare_data.py" "$@"
