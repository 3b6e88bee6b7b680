#!/usr/bin/env bash
# Trains on all machines of a Cloud TPU slice. Change, or set when you call it:
#
#   TPU=my-tpu ZONE=us-central2-b   the slice, as `gcloud compute tpus tpu-vm list` shows it
#   GNP_DIR=gnp                     the checkout on each machine, relative to its home; this script
#                                   does not copy it there
#
#   TPU=my-tpu ZONE=us-central2-b bash recipe/cluster/tpu_pod.sh --config=config/digits.py --working_dir=/mnt/shared/runs/digits
#
# Each machine runs the same command; GNP_DISTRIBUTED has jax ask the cloud for the others. The run directory must be
# on storage that all of them mount (Filestore, or a bucket through gcsfuse). The first call sets up
# the environment. After a preemption, make the slice anew and give the same command: it goes on.
set -euo pipefail

if [[ -z "${TPU:-}" || -z "${ZONE:-}" ]]; then
  printf 'TPU and ZONE are needed: TPU=my-tpu ZONE=us-central2-b bash recipe/cluster/tpu_pod.sh ...\n' >&2
  exit 2
fi
# Quoted here, as the other shell takes the command apart again.
printf -v arguments ' %q' "$@"
printf -v directory '%q' "${GNP_DIR:-gnp}"
# shellcheck disable=SC2016
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  cd $directory &&
  python=\"\$(GNP_JAX=tpu bash recipe/setup.sh)\" &&
  GNP_DISTRIBUTED=1 exec \"\$python\" -P -m gnp.main.main$arguments"
