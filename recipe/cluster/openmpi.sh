#!/usr/bin/env bash
# Trains in several processes that Open MPI starts. Change:
#
#   NP=4 HOSTS=node1:2,node2:2   how many processes, and where (default: 2 on this machine)
#   PORT=8476                    a free port of the first machine
#
#   NP=4 HOSTS=node1:2,node2:2 bash recipe/cluster/openmpi.sh --config=config/digits.py --working_dir=/shared/runs/digits
#
# Checkout, environment and run directory must be on a file system that all machines share. Each
# process takes the GPU of its number on its machine. SIGTERM or Ctrl-C to this script saves and
# ends all, with 0; the same command goes on.
set -uo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 1
hosts="${HOSTS:-localhost:${NP:-2}}"
first="${hosts%%,*}"
export GNP_COORDINATOR="${first%%:*}:${PORT:-8476}"
export GNP_PYTHON="${GNP_PYTHON:-$PWD/.venv/bin/python}" # of the environment of recipe/setup.sh
export GNP_STOPPED=0 # mpirun takes any other code for a failure, and ends those that still save
# Open MPI 5 does not say where process 0 is, so this does; each process fills in its number.
# shellcheck disable=SC2016
task='export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-$OMPI_COMM_WORLD_LOCAL_RANK}"
exec bash recipe/cluster/task.sh "$@" --coordinator_address="$GNP_COORDINATOR" \
  --num_processes="$OMPI_COMM_WORLD_SIZE" --process_id="$OMPI_COMM_WORLD_RANK"'

# After SIGTERM and Ctrl-C mpirun ends its processes by force within a second, which saving may
# take. SIGUSR1 it hands on. It gets a session of its own, as a terminal sends Ctrl-C to all of one.
job=""
trap '[[ -z "$job" ]] || kill -s USR1 "$job"' TERM INT
setsid mpirun -n "${NP:-2}" --host "$hosts" --bind-to none \
  -x GNP_COORDINATOR -x GNP_PYTHON -x GNP_STOPPED bash -c "$task" task "$@" &
job=$!
wait "$job"
status=$?
while kill -0 "$job" 2>/dev/null; do # a signal ended the waiting, not yet mpirun
  wait "$job"
  status=$?
done
exit "$status"
