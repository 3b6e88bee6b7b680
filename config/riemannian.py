"""What the experiments of the Riemannian paper share: SGD, SGD-G and Adam-G on small images.

Cho and Lee, 2017: https://arxiv.org/abs/1709.09603, with the settings of their code,
https://github.com/MinhyungCho/riemannian-batch-normalization. docs/published.md has their errors.
The configs are riemannian_DATASET_OPTIMIZER.py. How their code augments SVHN is not known to us:
here it is as in the paper on wide residual networks (https://arxiv.org/abs/1605.07146), not
augmented, with pixels from 0 to 1.
"""

import ml_collections

from config import default

# The learning rates on CIFAR: of the optimizer (SGD), or of the Euclidean group.
_RATES = {"Momentum": 0.1, "SGDG": 0.01, "AdamG": 0.01}
_GRASSMANN_RATES = {"SGDG": 0.2, "AdamG": 0.05}
_DECAY = 5e-4


def cifar(opt_type: str, num_classes: int) -> ml_collections.ConfigDict:
    """WideResNet_28_10 on CIFAR.

    Args:
        opt_type: Momentum (SGD with Nesterov momentum), SGDG or AdamG.
        num_classes: 10 or 100.

    Example:
        >>> cifar("SGDG", 100).opt.learning_rate_grassmann
        0.2
    """
    config = _small_images(opt_type, rate=1.0)
    config.dataset.dataset_name = f"cifar{num_classes}"
    config.dataset.num_classes = num_classes
    config.dataset.image_level_augmentations = "basic"
    config.model.model_name = "WideResNet_28_10"
    config.model.model_params.dropout_rate = 0.3
    config.total_epochs = 200
    config.lr_schedule_params.boundaries = (60.0, 120.0, 160.0)
    config.lr_schedule_params.factor = 0.2
    return config


def svhn(opt_type: str) -> ml_collections.ConfigDict:
    """WideResNet_16_4 on SVHN with its extra part.

    Args:
        opt_type: Momentum (SGD with Nesterov momentum), SGDG or AdamG.

    Example:
        >>> svhn("AdamG").opt.learning_rate_grassmann
        0.005
    """
    config = _small_images(opt_type, rate=0.1)
    config.dataset.dataset_name = "svhn_cropped"
    config.dataset.train_split = "train+extra"
    config.dataset.num_classes = 10
    config.dataset.mean = (0.0,)
    config.dataset.std = (1.0,)
    config.model.model_name = "WideResNet_16_4"
    config.model.model_params.dropout_rate = 0.4
    config.total_epochs = 160
    config.lr_schedule_params.boundaries = (60.0, 120.0)
    config.lr_schedule_params.factor = 0.1
    return config


def _small_images(opt_type: str, rate: float) -> ml_collections.ConfigDict:
    """What all have in common; `rate` multiplies the learning rates of CIFAR."""
    config = default.get_config()
    config.dataset.image_size = 32
    config.dataset.num_channels = 3
    config.batch_size = 128
    config.lr_schedule_type = "stepped"
    config.opt.opt_type = opt_type
    config.base_lr = _scaled(_RATES[opt_type], rate)
    if opt_type == "Momentum":
        config.l2_regularization = _DECAY  # of weights, biases, scales and offsets
    else:
        config.l2_by_kind.weight = _DECAY  # of the Euclidean group's weights alone
        config.opt.learning_rate_grassmann = _scaled(_GRASSMANN_RATES[opt_type], rate)
        config.opt.omega = 0.1
        config.opt.opt_params.grad_clip = 0.1
    return config


def _scaled(value: float, factor: float) -> float:
    """The product as it is written: 0.1 * 0.1 is not 0.01 to the last bit."""
    return float(f"{value * factor:g}")
