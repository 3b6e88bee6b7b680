#!/usr/bin/env bash
# Every experiment's recipe, as it is, for two steps and an evaluation: do they start, and train?
#
#   bash recipe/all-smoke.sh [RECIPE ...]    such as riemannian-svhn; all without any
#
# The data are generated in the shape and type that each config asks for: nothing is downloaded. The
# networks are the published ones, but for PyramidNet 272, in whose place one of depth 20 is
# compiled; with GNP_SMOKE_PUBLISHED=1 it is itself, which takes ten minutes and 15 GB of memory.
set -euo pipefail

folder="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
chosen=""
for name in "$@"; do
  if [[ ! -f "$folder/$name.sh" ]] || ! grep -q '^experiment ' "$folder/$name.sh"; then
    printf '%s is no recipe of an experiment: those are in %s and call `experiment`\n' "$name" "$folder" >&2
    exit 2
  fi
  # A Riemannian recipe has a test an optimizer.
  chosen+="${chosen:+ or }[$name] or [$name-SGD] or [$name-SGDG] or [$name-AdamG]"
done
exec bash "$folder/test.sh" --slow "$folder/../tests/recipe/all_smoke_test.py" -v --durations=0 \
  -k "two_steps${chosen:+ and ($chosen)}"
