r"""VGG16 with batch norm on ImageNet with the gradient-norm penalty, as published.

    bash recipe/vggbn-imagenet.sh --config.dataset.data_dir=DIR
    python -m gnp.main.main --config=config/vggbn_imagenet.py --working_dir=runs/vggbn-imagenet \
        --config.dataset.data_dir=DIR

The data are those of config/resnet_imagenet.py. Settings: recipes/vggbn-imagenet.sh of
https://github.com/zhaoyang-0204/gnp. The paper's errors are not at hand and its hours are not known
to us (docs/published.md). Not yet trained here.
"""

import ml_collections

from config import resnet_imagenet


def get_config() -> ml_collections.ConfigDict:
    """The published run."""
    config = resnet_imagenet.get_config()
    config.model.model_name = "VGG16BN"
    config.model.model_params.head = "imagenet"
    config.batch_size = 256
    config.base_lr = 0.1
    return config
