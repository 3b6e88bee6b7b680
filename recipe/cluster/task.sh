#!/usr/bin/env bash
# One process of a cluster's job: python -m gnp.main.main with the arguments, from the checkout.
#
# Where SIGTERM to one of the processes stopped all of them before the end, with everything saved, a
# scheduler must know that there is more to do: each returns GNP_STOPPED then, here 75 where that is
# not set. SIGUSR1 stops it too, since mpirun hands that one on. GNP_PYTHON is the Python of the
# environment.
set -uo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 1
export GNP_STOPPED="${GNP_STOPPED:-75}"
process=""
# The program may have been sent SIGTERM itself: under a scheduler it heeds one only.
trap '[[ -z "$process" ]] || kill -s TERM "$process" 2>/dev/null || true' TERM USR1

(
  trap '' USR1
  exec "${GNP_PYTHON:-.venv/bin/python}" -P -m gnp.main.main "$@"
) &
process=$!
wait "$process"
status=$?
while kill -0 "$process" 2>/dev/null; do # a signal ended the waiting, not yet the program
  wait "$process"
  status=$?
done
exit "$status"
