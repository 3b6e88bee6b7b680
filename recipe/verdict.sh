#!/usr/bin/env bash
# Compares the methods at equal cost, on several tasks, and says which cheap one does as well as the
# full penalty, and where plain training for longer does.
#
#   bash recipe/verdict.sh [--data_dir=DIR] [--out=DIR] [--quick] [--jobs=N]
#
# The same command goes on where it was. The head of gnp/bench/verdict.py says the rest; --help
# prints it.
set -euo pipefail
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

exec "$PYTHON" -P -m gnp.bench.verdict "$@"
