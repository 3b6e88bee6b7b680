"""SAMformer on a generated series: what the penalty does to a forecast, in a minute, no download.

    python -m gnp.main.main --config=config/forecast_quick.py --working_dir=runs/quick/sam
    python -m gnp.main.main --config=config/forecast_quick.py --working_dir=runs/quick/plain \
        --config.gnp.r=0 --config.gnp.alpha=0
    python -m gnp.analysis.forecast runs/quick/sam runs/quick/plain --out=runs/quick

To expect, with seed 0: test_loss 0.648 with SAM and 0.723 without, after 28 and 17 s on two cores.
The series has seven channels of two sines each under noise with a memory
(ds_pipeline/forecast.py: generated_series). The rest is as in config/samformer.py, with twenty
epochs and shorter windows.
"""

import ml_collections

from config import samformer


def get_config() -> ml_collections.ConfigDict:
    """Return the quick run."""
    config = samformer.get_config()
    config.dataset.lookback = 256
    config.dataset.horizon = 48
    config.total_epochs = 20
    return config
