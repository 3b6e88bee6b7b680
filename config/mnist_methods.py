r"""Two thousand examples of MNIST, on which the methods of docs/methods.md are compared.

    python -m gnp.main.main --config=config/mnist_methods.py --working_dir=runs/mnist_methods \
        --config.dataset.data_dir=DATA_DIR

The tutorial's CNN, batch 64, 20 epochs, Nesterov momentum 0.9 at 0.05 with a cosine, no weight
decay; evaluated once, on all 10,000 test examples: 2.61% test error (five seeds), 24 seconds on two
cores, 13 of them training. The whole table:
python -m gnp.bench.methods --data_dir=DATA_DIR --out=runs/methods
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """Plain training; what the methods change is in gnp/bench/methods.py."""
    config = default.get_config()
    config.dataset.dataset_name = "mnist"
    config.dataset.image_size = 28
    config.dataset.num_classes = 10
    config.dataset.num_channels = 1
    config.dataset.subset = 2000
    config.model.model_name = "MnistTutorialCNN"
    config.batch_size = 64
    config.total_epochs = 20
    config.evaluate_every_n_epochs = 20
    config.save_ckpt_every_n_epochs = 20
    config.opt.opt_type = "Momentum"
    config.base_lr = 0.05
    config.lr_schedule_type = "cosine"
    return config
