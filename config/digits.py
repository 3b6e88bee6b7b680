"""A small CNN on scikit-learn's digits, with the gradient-norm penalty.

    python -m gnp.main.main --config=config/digits.py --working_dir=runs/digits

The 1,797 images of 8 x 8 pixels come with scikit-learn: nothing is downloaded. Under a minute
on two cores, half of it compiling; test error 0.84% with seed 0, at most 1.67% over seeds 0 to 3.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """Return the digits run."""
    config = default.get_config()
    config.dataset.dataset_name = "digits"
    config.dataset.image_size = 8
    config.dataset.num_classes = 10
    config.dataset.num_channels = 1
    config.model.model_name = "DigitsCNN"
    config.model.model_params.dropout_rate = 0.5
    config.batch_size = 64
    config.total_epochs = 30
    config.opt.opt_type = "Momentum"
    config.base_lr = 0.05
    config.lr_schedule_type = "cosine"
    config.warmup_epochs = 1.0
    config.gnp.r = 0.05
    config.gnp.alpha = 0.8
    return config
