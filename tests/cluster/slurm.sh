#!/usr/bin/env bash
# A SLURM cluster of this machine alone: controller, daemon and authentication in one folder.
#
#   bash tests/cluster/slurm.sh start DIR PORT    then: export SLURM_CONF=DIR/slurm.conf
#   bash tests/cluster/slurm.sh stop DIR
#
# Needs Debian's package slurm-wlm. The partition `low` can be preempted by `high`: its jobs have
# SIGTERM 60 s before they must go. PORT and the next one must be free. DIR's path must be short.
set -euo pipefail

PATH="$PATH:/usr/sbin:/sbin"
dir="$2"

start() { # PORT
  local host user
  host="$(hostname -s)"
  user="$(id -un)"
  mkdir -p "$dir"/{munge,state,spool}
  chmod 700 "$dir/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
  munged --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --force
  cat >"$dir/slurm.conf" <<END
ClusterName=gnp
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmdPort=$(($1 + 1))
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=5,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF
END
  export SLURM_CONF="$dir/slurm.conf"
  slurmctld
  slurmd
  for _ in {1..60}; do
    if sinfo --noheader --states=idle --format=%N 2>/dev/null | grep -q .; then return; fi
    sleep 0.5
  done
  cat "$dir"/slurm*.log >&2
  return 1
}

stop() {
  local file
  for file in "$dir/slurmd.pid" "$dir/slurmctld.pid" "$dir/munge/pid"; do
    if [[ -s "$file" ]]; then kill "$(cat "$file")" 2>/dev/null || true; fi
  done
}

case "$1" in
  start) start "$3" ;;
  stop) stop ;;
  *)
    printf 'start or stop, not %s\n' "$1" >&2
    exit 2
    ;;
esac
