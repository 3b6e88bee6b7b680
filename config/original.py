r"""What the authors' code of the gradient-norm penalty trains with where no flag says otherwise.

    python -m gnp.main.main --config=config/original.py --working_dir=runs/original \
        --config.dataset.data_dir=DATA_DIR --config.gnp.r=0.1 --config.gnp.alpha=0.8

It takes the place of their config/train_config.py behind a command line that was written for their
repository, https://github.com/zhaoyang-0204/gnp; docs/from_the_original.md says what differs. The
recipes of the penalty are deltas over it. It differs from config/default.py in that the normalised
gradient is mixed, each device has a perturbation of its own and gradients are clipped at 5.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """WideResNet_28_10 on CIFAR-10, without a penalty until gnp.r and gnp.alpha are given."""
    config = default.get_config()
    config.dataset.dataset_name = "cifar10"
    config.dataset.image_level_augmentations = "basic"
    config.model.model_name = "WideResNet_28_10"
    config.batch_size = 256
    config.total_epochs = 200
    config.opt.opt_type = "Momentum"
    config.base_lr = 0.1
    config.lr_schedule_type = "cosine"
    config.l2_regularization = 1e-3
    config.gradient_clipping = 5.0
    config.gnp.norm_perturbations = True
    config.gnp.sync_perturbations = False
    config.hybrid_config.p = 0.0
    return config
