r"""How gradients evolve on CIFAR-100: a CNN of four convolutions.

    bash recipe/evolution-cifar100.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/evolution_cifar100.py \
        --working_dir=runs/evolution_cifar100 \
        --config.dataset.data_dir=DATA_DIR

15 epochs and batch 1024 are as published. The network is that of CIFAR-10; the published one has
batch norms between its dense layers, with Adam at 0.005. Without them this one takes Adam's usual
0.001.
docs/evolution.md says what it records. Not yet trained here; its hours are not known to us.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """The run on CIFAR-100."""
    config = default.get_config()
    config.dataset.dataset_name = "cifar100"
    config.dataset.image_size = 32
    config.dataset.num_channels = 3
    config.dataset.num_classes = 100
    config.model.model_name = "EvolutionCifarCNN"
    config.batch_size = 1024
    config.total_epochs = 15
    config.opt.opt_type = "Adam"
    config.base_lr = 0.001
    config.lr_schedule_type = "constant"
    config.record.gradients = True
    return config
