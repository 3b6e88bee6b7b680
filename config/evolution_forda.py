r"""How gradients evolve on FordA: a 1-D CNN on the noise of engines.

    bash recipe/evolution-forda.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/evolution_forda.py \
        --working_dir=runs/evolution_forda \
        --config.dataset.data_dir=DATA_DIR

Batch 32, Adam at 1e-4, as published; 100 epochs to be quick, where the published run takes 500
(--config.total_epochs=500). DATA_DIR is the folder of the UCR sets.
docs/evolution.md says what it records. Not yet trained here; its hours are not known to us.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """The run on FordA."""
    config = default.get_config()
    config.dataset.dataset_name = "ucr/FordA"
    config.dataset.num_classes = 2
    config.model.model_name = "EvolutionFordACNN"
    config.batch_size = 32
    config.total_epochs = 100
    config.opt.opt_type = "Adam"
    config.base_lr = 0.0001
    config.lr_schedule_type = "constant"
    config.record.gradients = True
    return config
