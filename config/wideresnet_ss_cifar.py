r"""The 2 x 96 Shake-Shake network on CIFAR-10 with the gradient-norm penalty, as published.

    bash recipe/wideresnet-ss-cifar.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/wideresnet_ss_cifar.py \
        --working_dir=runs/wideresnet-ss-cifar --config.dataset.data_dir=DATA_DIR

1800 epochs; else as config/wideresnet_cifar.py, CIFAR-100 too. Settings:
recipes/wideresnet-ss-cifar.sh of https://github.com/zhaoyang-0204/gnp. The paper's errors are not
at hand and its hours are not known to us (docs/published.md). Not yet trained here.
"""

import ml_collections

from config import wideresnet_cifar


def get_config() -> ml_collections.ConfigDict:
    """The published run on CIFAR-10."""
    config = wideresnet_cifar.get_config()
    config.model.model_name = "WideResNet_2_96_ShakeShake"
    config.total_epochs = 1800
    return config
