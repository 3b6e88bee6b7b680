r"""How gradients evolve on MNIST: a small CNN, every epoch's gradients recorded.

    bash recipe/evolution-mnist.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/evolution_mnist.py --working_dir=runs/evolution_mnist \
        --config.dataset.data_dir=DATA_DIR

10 epochs, batch 256, SGD at 0.01, as published. To expect: 2.8 to 3.1% test error (three
seeds), in 9 to 24 minutes on one core of an AMD EPYC, beside other work. docs/evolution.md
shows what it records.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """The published run on MNIST."""
    config = default.get_config()
    config.dataset.dataset_name = "mnist"
    config.dataset.image_size = 28
    config.dataset.num_classes = 10
    config.dataset.num_channels = 1
    config.model.model_name = "EvolutionMnistCNN"
    config.batch_size = 256
    config.total_epochs = 10
    config.opt.opt_type = "SGD"
    config.base_lr = 0.01
    config.lr_schedule_type = "constant"
    config.record.gradients = True
    return config
