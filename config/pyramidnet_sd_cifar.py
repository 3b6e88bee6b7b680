r"""PyramidNet 272-200 with ShakeDrop on CIFAR-10 with the gradient-norm penalty, as published.

    bash recipe/pyramidnet-sd-cifar.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/pyramidnet_sd_cifar.py \
        --working_dir=runs/pyramidnet-sd-cifar --config.dataset.data_dir=DATA_DIR

AutoAugment, mixup and cutout, 1800 epochs. CIFAR-100 as in config/wideresnet_cifar.py. Settings:
recipes/pyramidnet-sd-cifar.sh of https://github.com/zhaoyang-0204/gnp. The paper's errors are not
at hand and its hours are not known to us (docs/published.md). Not yet trained here.
"""

import ml_collections

from config import wideresnet_cifar


def get_config() -> ml_collections.ConfigDict:
    """The published run on CIFAR-10."""
    config = wideresnet_cifar.get_config()
    config.dataset.image_level_augmentations = "autoaugment"
    config.dataset.batch_level_augmentations = "mixcut"
    config.model.model_name = "PyramidNet_272_200_ShakeDrop"
    config.batch_size = 128
    config.total_epochs = 1800
    config.base_lr = 0.05
    config.l2_regularization = 5e-4
    return config
