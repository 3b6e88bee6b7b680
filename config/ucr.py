r"""A time series of the UCR archive: FordA, noise of a car's engine with or without a fault.

    python -m gnp.main.main --config=config/ucr.py --working_dir=runs/forda \
        --config.dataset.data_dir=DIR

DIR holds FordA/FordA_TRAIN.tsv and FordA/FordA_TEST.tsv: 3,601 and 1,320 series of 500 values. Any
other set of the archive: --config.dataset.dataset_name=ucr/NAME, such as ucr/Computers, or
ucr/BasicMotions, whose six channels are in .ts files.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """Return the FordA run."""
    config = default.get_config()
    config.dataset.dataset_name = "ucr/FordA"
    config.model.model_name = "EvolutionFordACNN"
    config.batch_size = 32
    config.total_epochs = 20
    config.opt.opt_type = "Adam"
    config.base_lr = 1e-3
    config.lr_schedule_type = "cosine"
    return config
