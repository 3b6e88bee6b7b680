#!/usr/bin/env bash
# Runs the tests.
#
#   bash recipe/test.sh [--slow] [PYTEST ARGUMENT ...]
#
# --slow adds the tests marked slow. XLA leaves most optimizations out; with JAX_DISABLE_MOST_OPTIMIZATIONS=0
# all tests are compiled as a user's run is, which takes longer.
# Files and folders named here are the caller's; without any, all tests and the examples in the docstrings run. -n 0 runs them in one process.
# GNP_DATA_DIR names a folder of prepared TFDS data sets, beside which `weights` may lie; the tests that read one skip without it.
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

options=(-n 2 --dist worksteal)
paths=("$ROOT/tests" "$ROOT/config" "$ROOT/ds_pipeline" "$ROOT/gnp" "$ROOT/model" "$ROOT/optimizer")
arguments=()
for argument in "$@"; do
  if [[ "$argument" == --slow ]]; then
    options+=(-m "") # replaces the "not slow" of pyproject.toml
    continue
  fi
  if [[ "$argument" != -* && -e "${argument%%::*}" ]]; then
    paths=()
  fi
  arguments+=("$argument")
done

# Most of a test's time is compilation, and most of that optimization.
export JAX_DISABLE_MOST_OPTIMIZATIONS="${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}"
if [[ "$JAX_DISABLE_MOST_OPTIMIZATIONS" == 1 ]] && compgen -G "${PYTHON%/bin/*}/lib/python*/site-packages/jaxlib-0.10.*" > /dev/null; then
  # This way to compile fused operations takes half as long; later versions abort on the flag. What the caller set wins.
  export XLA_FLAGS="--xla_cpu_use_fusion_emitters=false${XLA_FLAGS:+ $XLA_FLAGS}"
fi
# The results of compilations are kept between processes and runs, for a week.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
mkdir -p -- "$JAX_COMPILATION_CACHE_DIR"
find "$JAX_COMPILATION_CACHE_DIR" -type f -mtime +7 -exec rm -f {} +

exec "$PYTHON" -P -m pytest -c "$ROOT/pyproject.toml" --rootdir="$ROOT" "${options[@]}" \
  ${paths[@]+"${paths[@]}"} ${arguments[@]+"${arguments[@]}"}
