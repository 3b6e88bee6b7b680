r"""How gradients evolve on CIFAR-10: a CNN of four convolutions.

    bash recipe/evolution-cifar10.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/evolution_cifar10.py \
        --working_dir=runs/evolution_cifar10 \
        --config.dataset.data_dir=DATA_DIR

15 epochs, batch 1024, SGD at 0.05, as published. The network is that of a well-known Keras
example; the published one has two convolutions and batch norms more.
To expect: 45.8 to 47.8% test error (three seeds), in 46 minutes on one core of an AMD EPYC, beside
other work.
docs/evolution.md says what it records.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """The run on CIFAR-10."""
    config = default.get_config()
    config.dataset.dataset_name = "cifar10"
    config.dataset.image_size = 32
    config.dataset.num_channels = 3
    config.dataset.num_classes = 10
    config.model.model_name = "EvolutionCifarCNN"
    config.batch_size = 1024
    config.total_epochs = 15
    config.opt.opt_type = "SGD"
    config.base_lr = 0.05
    config.lr_schedule_type = "constant"
    config.record.gradients = True
    return config
