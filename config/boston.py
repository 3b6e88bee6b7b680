r"""House prices in Boston, a regression from a CSV file.

    python -m gnp.main.main --config=config/boston.py --working_dir=runs/boston \
        --config.dataset.data_dir=DIR/boston_housing.csv

506 districts, 13 numbers each, the median price in thousands of dollars (medv) to predict by two
layers of 64. Another table: --config.dataset.target=COLUMN; classes instead of numbers:
--config.dataset.task=classification --config.loss=softmax_cross_entropy. A few seconds on
two cores; mean absolute error 2.50 on the test set with seed 0.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """Return the house-price run."""
    config = default.get_config()
    config.dataset.dataset_name = "csv"
    config.dataset.target = "medv"
    config.dataset.task = "regression"
    config.model.model_name = "EvolutionBostonMLP"
    config.loss = "squared_error"
    config.batch_size = 16
    config.total_epochs = 80
    config.evaluate_every_n_epochs = 10
    config.save_ckpt_every_n_epochs = 40
    config.opt.opt_type = "RMSProp"
    config.base_lr = 1e-3
    config.lr_schedule_type = "constant"
    return config
