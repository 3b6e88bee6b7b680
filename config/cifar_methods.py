r"""Two thousand images of CIFAR-10, on which docs/results.md compares the methods.

    python -m gnp.main.main --config=config/cifar_methods.py --working_dir=runs/cifar-methods \
        --config.dataset.data_dir=DATA_DIR

WideResNet_10_1, batch 64, 25 epochs, Nesterov momentum 0.9 at 0.1 with a cosine, crops and flips,
5e-4 of L2 on weights; evaluated once, on all 10,000 test images. To expect: 41.28% test error
(three seeds), 190 to 221 s of training with two runs at a time on two cores. docs/results.md has
the command for the other methods.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """Plain training."""
    config = default.get_config()
    config.dataset.dataset_name = "cifar10"
    config.dataset.image_size = 32
    config.dataset.num_classes = 10
    config.dataset.num_channels = 3
    config.dataset.image_level_augmentations = "basic"
    config.dataset.subset = 2000
    config.model.model_name = "WideResNet_10_1"
    config.batch_size = 64
    config.total_epochs = 25
    config.evaluate_every_n_epochs = 25
    config.save_ckpt_every_n_epochs = 5
    config.opt.opt_type = "Momentum"
    config.base_lr = 0.1
    config.lr_schedule_type = "cosine"
    config.l2_by_kind.weight = 5e-4
    return config
