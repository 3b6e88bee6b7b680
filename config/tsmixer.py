"""TSMixer, a forecast by layers over time and over channels, as SAMformer's authors compare it.

    python -m gnp.main.main --config=config/tsmixer.py --working_dir=runs/tsmixer \
        --config.dataset.data_dir=ETTh1.csv --config.dataset.horizon=96

Two blocks with RevIN, dropout 0.9 and 64 hidden units (Chen et al., 2023,
https://arxiv.org/abs/2303.06053), the rest as in config/samformer.py. Plain training:
--config.gnp.r=0 --config.gnp.alpha=0. Not yet trained here: neither its errors nor its time are
known to us, and gnp.r=1 is a guess.
"""

import ml_collections

from config import samformer


def get_config() -> ml_collections.ConfigDict:
    """Return TSMixer's run."""
    config = samformer.get_config()
    config.model.model_name = "TSMixer"
    config.gnp.r = 1.0
    return config
