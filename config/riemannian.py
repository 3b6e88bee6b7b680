r"""The experiments of the Riemannian paper: SGD, SGD-G and Adam-G on small images.

    OPTIMIZER=AdamG bash recipe/riemannian-cifar10.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/riemannian.py:cifar10,adamg \
        --working_dir=runs/riemannian-cifar10-adamg --config.dataset.data_dir=DATA_DIR

The argument is DATASET,OPTIMIZER: cifar10, cifar100 or svhn (recipe/riemannian-cifar10.sh,
recipe/riemannian-cifar100.sh, recipe/riemannian-svhn.sh) and sgd, sgdg or adamg. The network is
WideResNet_28_10, on SVHN WideResNet_22_8, as in the authors' commands. The other published ones:
--config.model.model_name=WideResNet_40_10, on SVHN WideResNet_16_4; VGG13Riemannian and
VGG19Riemannian with --config.model.model_params.dropout_rate=0.

Cho and Lee, 2017: https://arxiv.org/abs/1709.09603, with the settings of their code,
https://github.com/MinhyungCho/riemannian-batch-normalization: networks, groups, costs and steps are
those of its graph, by tests/gnp/training/riemannian_published_test.py. CIFAR is augmented by crops
and mirror images; SVHN is not, its pixels go from 0 to 1. Their batches go on from one order of the
examples into the next; here an epoch leaves out the few that fill no batch, so that 200 epochs of
CIFAR are 78,000 steps, not 78,125. Published test error, median of five runs, in percent:

                CIFAR-10             CIFAR-100                          SVHN
                SGD   SGD-G Adam-G   SGD    SGD-G  Adam-G               SGD   SGD-G Adam-G
    VGG-13      5.88  5.87  6.05     26.17  25.29  24.89    VGG-13      1.78  1.74  1.72
    VGG-19      6.49  5.92  6.02     27.62  25.79  25.59    VGG-19      1.94  1.81  1.77
    WRN-28-10   3.89  3.85  3.78     18.66  18.19  18.30    WRN-16-4    1.64  1.67  1.61
    WRN-40-10   3.72  3.72  3.80     18.39  18.04  17.85    WRN-22-8    1.64  1.63  1.55

Their hours are not known to us. Not yet trained here.
"""

import ml_collections

from config import default
from config.schema import pick

DATASETS = ("cifar10", "cifar100", "svhn")
OPTIMIZERS = {"sgd": "Momentum", "sgdg": "SGDG", "adamg": "AdamG"}
# The learning rates on CIFAR: of the optimizer (SGD, with Nesterov momentum), or of the Euclidean
# group. On SVHN all rates are a tenth of these.
_RATES = {"Momentum": 0.1, "SGDG": 0.01, "AdamG": 0.01}
_DECAY = 5e-4


def get_config(names: str = "") -> ml_collections.ConfigDict:
    """Return the published run of DATASET,OPTIMIZER.

    Example:
        >>> get_config("svhn,adamg").opt.learning_rate_grassmann
        0.005
    """
    pick(names, [f"{dataset},{optimizer}" for dataset in DATASETS for optimizer in OPTIMIZERS])
    dataset, optimizer = names.split(",")
    opt_type = OPTIMIZERS[optimizer]
    config = default.get_config()
    config.dataset.image_size = 32
    config.dataset.num_channels = 3
    config.batch_size = 128
    config.lr_schedule_type = "stepped"
    config.model.model_params.variant = "riemannian"
    if dataset == "svhn":
        config.dataset.dataset_name = "svhn_cropped"
        config.dataset.train_split = "train+extra"
        config.dataset.num_classes = 10
        config.dataset.mean = (0.0,)
        config.dataset.std = (1.0,)
        config.model.model_name = "WideResNet_22_8"
        config.model.model_params.dropout_rate = 0.4
        config.total_epochs = 160
        config.lr_schedule_params.boundaries = (60.0, 120.0)
        config.lr_schedule_params.factor = 0.1
    else:
        config.dataset.dataset_name = dataset
        config.dataset.num_classes = int(dataset.removeprefix("cifar"))
        config.dataset.image_level_augmentations = "basic"
        config.model.model_name = "WideResNet_28_10"
        config.model.model_params.dropout_rate = 0.3
        config.total_epochs = 200
        config.lr_schedule_params.boundaries = (60.0, 120.0, 160.0)
        config.lr_schedule_params.factor = 0.2
    divisor = 10 if dataset == "svhn" else 1
    config.opt.opt_type = opt_type
    config.base_lr = _RATES[opt_type] / divisor
    if opt_type == "Momentum":
        config.l2_regularization = _DECAY  # of weights, biases, scales and offsets
    else:
        config.l2_by_kind.weight = _DECAY  # of the Euclidean group's weights alone
        config.opt.learning_rate_grassmann = default.GRASSMANN_RATES[opt_type] / divisor
        config.opt.omega = 0.1
        config.opt.opt_params.grad_clip = 0.1
    return config
