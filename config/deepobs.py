r"""Fashion-MNIST as DeepOBS trains it, to compare optimizers: its test problem fmnist_2c2d.

    python -m gnp.main.main --config=config/deepobs.py:sgd --working_dir=runs/fashion \
        --config.dataset.data_dir=DIR

DIR holds the four files of Fashion-MNIST (docs/data.md). The argument is the optimizer: sgd,
momentum or adam, each with the learning rate that DeepOBS' tuning found for it, as in the file
names of its baselines (https://github.com/fsschneider/DeepOBS; Schneider, Balles, Hennig, ICLR
2019, https://arxiv.org/abs/1903.05499): batch 128, 100 epochs at a constant rate, pixels from 0 to
1, no augmentation and no regularization, ten seeds. With the penalty: --config.gnp.r=0.05
--config.gnp.alpha=0.8.

Published test accuracy, mean and deviation over the seeds: 92.27 +- 0.18% (sgd), 92.14 +- 0.21%
(momentum), 92.34 +- 0.29% (adam). docs/results.md says what was run here.
"""

import ml_collections

from config import default
from config.schema import pick

# Of the grid from 1e-5 to 1e2, five values for each power of ten.
LEARNING_RATES = {"sgd": 10**-0.8, "momentum": 10**-2.6, "adam": 10**-3.6}


def get_config(optimizer: str = "sgd") -> ml_collections.ConfigDict:
    """Return the run of an optimizer.

    Example:
        >>> round(get_config("momentum").base_lr, 6)
        0.002512
    """
    config = default.get_config()
    config.dataset.dataset_name = "idx"
    config.dataset.image_size = 28
    config.dataset.num_classes = 10
    config.dataset.num_channels = 1
    config.dataset.mean = (0.0,)
    config.dataset.std = (1.0,)
    config.model.model_name = "DeepOBS2c2d"
    config.batch_size = 128
    config.total_epochs = 100
    config.base_lr = LEARNING_RATES[pick(optimizer, tuple(LEARNING_RATES))]
    config.lr_schedule_type = "constant"
    config.save_ckpt_every_n_epochs = 10
    match optimizer:
        case "sgd":
            config.opt.opt_type = "SGD"
        case "momentum":
            config.opt.opt_type = "Momentum"
            config.opt.opt_params.momentum = 0.99
            config.opt.opt_params.nesterov = False
        case "adam":
            config.opt.opt_type = "Adam"
            config.opt.opt_params.eps_uncorrected = True  # TensorFlow's epsilon
    return config
