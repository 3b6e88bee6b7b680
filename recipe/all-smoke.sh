#!/usr/bin/env bash
# Every experiment's recipe, as it is, for two steps on tiny generated data of its shape and type.
#
#   bash recipe/all-smoke.sh [RECIPE ...]    RECIPE: such as riemannian-svhn; all without any
#
# Nothing is downloaded. The head of recipe/all_smoke.py says the rest; --help prints it.
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

exec "$PYTHON" -P -m recipe.all_smoke "$@"
