r"""Two thousand images of MNIST or CIFAR-10, on which the methods are compared; plain training.

    python -m gnp.main.main --config=config/methods.py:mnist --working_dir=runs/mnist-methods \
        --config.dataset.data_dir=DATA_DIR

Batch 64, Nesterov momentum 0.9 with a cosine; evaluated once, on all 10,000 test images.

mnist: the tutorial's CNN, 20 epochs at 0.05, no weight decay. To expect: 2.61% test error (five
seeds), 24 seconds on two cores, 13 of them training. The whole table of docs/methods.md:
python -m gnp.bench.methods --data_dir=DATA_DIR --out=runs/methods

cifar: WideResNet_10_1, 25 epochs at 0.1, crops and flips, 5e-4 of L2 on weights. To expect: 41.28%
test error (three seeds), 190 to 221 s of training with two runs at a time on two cores.
docs/results.md has the command for the other methods.
"""

import ml_collections

from config import default
from config.schema import pick


def get_config(data: str = "") -> ml_collections.ConfigDict:
    """Return plain training; what the methods change is in gnp/bench/methods.py."""
    config = default.get_config()
    config.dataset.num_classes = 10
    config.dataset.subset = 2000
    config.batch_size = 64
    config.opt.opt_type = "Momentum"
    config.lr_schedule_type = "cosine"
    if pick(data, ("mnist", "cifar")) == "mnist":
        config.dataset.dataset_name = "mnist"
        config.dataset.image_size = 28
        config.dataset.num_channels = 1
        config.model.model_name = "MnistTutorialCNN"
        config.total_epochs = 20
        config.save_ckpt_every_n_epochs = 20
        config.base_lr = 0.05
    else:
        config.dataset.dataset_name = "cifar10"
        config.dataset.image_size = 32
        config.dataset.num_channels = 3
        config.dataset.image_level_augmentations = "basic"
        config.model.model_name = "WideResNet_10_1"
        config.total_epochs = 25
        config.save_ckpt_every_n_epochs = 5
        config.base_lr = 0.1
        config.l2_by_kind.weight = 5e-4
    config.evaluate_every_n_epochs = config.total_epochs
    return config
