#!/usr/bin/env bash
# SAMformer on ETTh1, the published table: four horizons, with SAM, with the penalty at alpha = 0.8
# and without, five seeds each; 60 runs of half a minute to four minutes on two cores, and a report.
#
#   bash recipe/samformer-etth1.sh --config.dataset.data_dir=ETTh1.csv [--working_dir=DIR] [--jobs=N]
#
# A sweep (recipe/sweep.sh, whose options it has): the same command goes on where it was.
set -euo pipefail

# Horizon:radius. Each radius is the one of 0.3, 0.5, 0.7 and 0.9 with the smallest validation loss
# with SAM, seed 100.
methods=""
for each in 96:0.5 192:0.5 336:0.5 720:0.7; do
  for method in "${each#*:},1" "${each#*:},0.8" 0,0; do
    methods+="${methods:+,}(${each%:*},$method)"
  done
done
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/sweep.sh" samformer \
  "dataset.horizon,gnp.r,gnp.alpha=$methods" seeds=0,1,2,3,4 "$@"
