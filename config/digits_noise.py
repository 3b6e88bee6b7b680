"""config/digits.py with wrong labels: what the penalty is for.

    bash recipe/quickstart.sh
    python -m gnp.main.main --config=config/digits_noise.py --working_dir=runs/digits-noise

Of the training labels 40% are replaced by another class, and the network trains for 60 epochs.
"""

import ml_collections

from config import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the digits run with label noise."""
    config = digits.get_config()
    config.dataset.label_noise = 0.4
    config.total_epochs = 60
    config.save_ckpt_every_n_epochs = 10  # saving takes as long as training on so few images
    config.gnp.r = 0.1
    config.gnp.alpha = 1.0
    return config
