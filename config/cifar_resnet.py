r"""A residual network of 20 to 110 layers on CIFAR-10, trained as it was published.

    python -m gnp.main.main --config=config/cifar_resnet.py:20 --working_dir=runs/cifar-resnet20 \
        --config.dataset.data_dir=DATA_DIR

The argument is the depth: 20 (also without one), 32, 44, 56 or 110. He et al., 2016, section 4.2
(https://arxiv.org/abs/1512.03385): batch 128, momentum 0.9, weight decay 1e-4, learning rate 0.1,
a tenth of it after 32,000 and 48,000 steps, 64,000 steps in all, which are 82, 123 and 164 epochs
of 390 steps; crops and mirror images. Their crops have zeros at the edges, here the reflected
image. Their 110 layers train at 0.01 until the training error is below 80%, some 400 steps; here
the rate grows over the first epoch. Images are normalized by ImageNet's mean and deviation, as for
the weights below.

Published test error: 8.75, 7.51, 7.17, 6.97 and 6.43%, hours unknown to us. Not yet trained here.

The published weights of https://github.com/akamaster/pytorch_resnet_cifar10, evaluated; each depth
has its published test error, 8.27, 7.37, 6.90 and 6.61% for 20, 32, 44 and 56:

    python -m gnp.main.main --config=config/cifar_resnet.py:20 --mode=eval \
        --config.model.pretrained=cifar10_resnet20.safetensors --config.dataset.data_dir=DATA_DIR
"""

import ml_collections

from config import default
from config.schema import pick

DEPTHS = ("20", "32", "44", "56", "110")


def get_config(depth: str = "20") -> ml_collections.ConfigDict:
    """Return the published run of a depth.

    Example:
        >>> get_config("56").model.model_name
        'CifarResNet56'
    """
    config = default.get_config()
    config.dataset.dataset_name = "cifar10"
    config.dataset.image_size = 32
    config.dataset.num_classes = 10
    config.dataset.num_channels = 3
    config.dataset.image_level_augmentations = "basic"
    config.dataset.mean = (0.485, 0.456, 0.406)
    config.dataset.std = (0.229, 0.224, 0.225)
    config.model.model_name = f"CifarResNet{pick(depth, DEPTHS)}"
    config.batch_size = 128
    config.total_epochs = 164
    config.opt.opt_type = "Momentum"
    config.opt.opt_params.nesterov = False
    config.base_lr = 0.1
    config.lr_schedule_type = "stepped"
    config.lr_schedule_params.boundaries = (82.0, 123.0)
    config.lr_schedule_params.factor = 0.1
    config.warmup_epochs = 1.0 if depth == "110" else 0.0
    config.l2_regularization = 1e-4  # of weights, biases, scales and offsets
    return config
