#!/usr/bin/env bash
# shellcheck disable=SC1091
source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh" # says how it is called
experiment evolution.py:mnist "$@"
