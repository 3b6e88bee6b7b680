#!/usr/bin/env bash
# CIFAR-10 with wrong training labels: SGD, SAM, the penalty at alpha = 0.8, ASAM, centralization,
# and the penalty with it, three seeds each, at 20, 40, 60 and 80% wrong labels; and a report.
#
#   bash recipe/label-noise-cifar10.sh --config.dataset.data_dir=DATA_DIR [--working_dir=DIR] [--jobs=N]
#   SIZE=small bash recipe/label-noise-cifar10.sh ...    a smaller network and set, 40% wrong labels
#
# A sweep (recipe/sweep.sh, whose options it has): the same command goes on where it was.
# config/label_noise.py says what is trained.
set -euo pipefail

size="${SIZE:-full}"
case "$size" in
  full) noise=0.2,0.4,0.6,0.8 ;;
  small) noise=0.4 ;;
  *)
    printf 'SIZE="%s": use full or small\n' "$size" >&2
    exit 2
    ;;
esac
# The radius of ASAM is its authors' on CIFAR-10; that of the others the penalty's authors' there.
methods='(0,0,False,none),(0.1,1,False,none),(0.1,0.8,False,none),(0.5,1,True,none)'
methods+=',(0,0,False,all),(0.1,0.8,False,all)'
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/sweep.sh" "label_noise:$size" seeds=0,1,2 \
  "dataset.label_noise=$noise" "gnp.r,gnp.alpha,gnp.adaptive,opt.centralize=$methods" "$@"
