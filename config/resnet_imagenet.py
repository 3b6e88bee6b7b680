r"""ResNet50 on ImageNet with the gradient-norm penalty, as published.

    bash recipe/resnet-imagenet.sh --config.dataset.data_dir=DIR
    python -m gnp.main.main --config=config/resnet_imagenet.py \
        --working_dir=runs/resnet-imagenet --config.dataset.data_dir=DIR

DIR holds train/CLASS/*.JPEG and val/CLASS/*.JPEG. Random crops at any scale with flips, 224 x 224
pixels, which the authors' code does whatever its flags say.

Settings: recipes/resnet-imagenet.sh of https://github.com/zhaoyang-0204/gnp; the paper is arXiv
2202.03599. The paper's errors are not at hand and its hours are not known to us
(docs/published.md). Not yet trained here.
"""

import ml_collections

from config import original


def get_config() -> ml_collections.ConfigDict:
    """The published run."""
    config = original.get_config()
    config.dataset.dataset_name = "image_folder"
    config.dataset.image_size = 224
    config.dataset.num_classes = 1000
    config.dataset.num_channels = 3
    config.dataset.image_level_augmentations = "inception"
    config.model.model_name = "ResNet50"
    config.batch_size = 512
    config.total_epochs = 100
    config.base_lr = 0.2
    config.l2_regularization = 1e-4
    config.gnp.r = 0.05
    config.gnp.alpha = 0.8
    return config
