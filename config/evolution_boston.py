r"""How gradients evolve on Boston Housing: a perceptron that predicts prices.

    bash recipe/evolution-boston.sh --config.dataset.data_dir=boston_housing.csv
    python -m gnp.main.main --config=config/evolution_boston.py \
        --working_dir=runs/evolution_boston \
        --config.dataset.data_dir=boston_housing.csv

100 epochs, batch 32, Adam at 0.05, one hidden layer of 64, as published; the file is a table with
a header whose column medv is the price. A fifth of the houses is the test set.
To expect: mean absolute errors of 2.2 to 2.7 on the test set (three seeds), each in seconds.
docs/evolution.md says what it records.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """The run on Boston Housing."""
    config = default.get_config()
    config.dataset.dataset_name = "csv"
    config.dataset.target = "medv"
    config.dataset.task = "regression"
    config.loss = "squared_error"
    config.model.model_name = "EvolutionBostonMLP"
    config.model.model_params.widths = (64,)
    config.batch_size = 32
    config.total_epochs = 100
    config.opt.opt_type = "Adam"
    config.base_lr = 0.05
    config.lr_schedule_type = "constant"
    config.record.gradients = True
    return config
