r"""How gradients evolve on Iris: a perceptron on four numbers.

    bash recipe/evolution-iris.sh
    python -m gnp.main.main --config=config/evolution_iris.py \
        --working_dir=runs/evolution_iris

100 epochs, batch 15, SGD at 0.01, one hidden layer of 8, as published. The 150 flowers come with
scikit-learn: nothing is downloaded. A fifth of them is the test set.
To expect: 6.67, 13.33 and 20.00% test error with seeds 0, 1, 2, each in seconds.
docs/evolution.md says what it records.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """The run on Iris."""
    config = default.get_config()
    config.dataset.dataset_name = "iris"
    config.dataset.num_classes = 3
    config.model.model_name = "EvolutionIrisMLP"
    config.model.model_params.widths = (8,)
    config.batch_size = 15
    config.total_epochs = 100
    config.opt.opt_type = "SGD"
    config.base_lr = 0.01
    config.lr_schedule_type = "constant"
    config.record.gradients = True
    return config
