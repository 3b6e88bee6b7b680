r"""ResNet50 on CIFAR-10 with the gradient-norm penalty, as published.

    bash recipe/resnet-cifar.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/resnet_cifar.py --working_dir=runs/resnet-cifar \
        --config.dataset.data_dir=DATA_DIR

Everything but the network is that of config/wideresnet_cifar.py, CIFAR-100 too. Settings:
recipes/resnet-cifar.sh of https://github.com/zhaoyang-0204/gnp. The paper's errors are not at hand
and its hours are not known to us (docs/published.md). Not yet trained here.
"""

import ml_collections

from config import wideresnet_cifar


def get_config() -> ml_collections.ConfigDict:
    """The published run on CIFAR-10."""
    config = wideresnet_cifar.get_config()
    config.model.model_name = "ResNet50"
    return config
