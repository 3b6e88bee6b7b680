r"""Vision transformers on CIFAR-10 whose penalty begins after the warmup, as published.

    bash recipe/vit-cifar-basic-grwarmup.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/vit_cifar_basic_grwarmup.py \
        --working_dir=runs/vit-cifar-basic-grwarmup --config.dataset.data_dir=DATA_DIR

Plain steps during 40 epochs in which the learning rate grows, then alpha 1 (zero warmup). The other
strategies: --config.gr_warmup_strategy=lambda, or r; the penalty from the first step on: none.
Without a penalty: --config.gnp.r=0 --config.gnp.alpha=0. The other sizes:
--config.model.model_name=ViT_TI4, ViT_B4.

Published test error on CIFAR-10, in percent (arXiv 2406.09723):

    size   Adam    with the penalty   zero warmup
    Ti     14.82   13.92              13.61
    S      12.07   12.40              10.68
    B      10.83   12.36               9.42

Settings: recipes/vit-cifar-basic-grwarmup.sh of https://github.com/zhaoyang-0204/gnp. Its
hours are not known to us. Not yet trained here.
"""

import ml_collections

from config import vit_cifar_basic


def get_config() -> ml_collections.ConfigDict:
    """The published run of ViT-S with zero warmup."""
    config = vit_cifar_basic.get_config()
    config.warmup_epochs = 40.0
    config.gr_warmup_strategy = "zero"
    config.gnp.alpha = 1.0
    return config
