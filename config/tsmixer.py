"""TSMixer, a forecast by layers over time and over channels, as SAMformer's authors compare it.

    python -m gnp.main.main --config=config/tsmixer.py --working_dir=runs/tsmixer \
        --config.dataset.data_dir=ETTh1.csv --config.dataset.horizon=96

Two blocks with RevIN, dropout 0.9 and 64 hidden units (Chen et al., 2023,
https://arxiv.org/abs/2303.06053), the rest as in config/samformer.py. Plain training:
--config.gnp.r=0 --config.gnp.alpha=0. gnp.r=0.7 is what SAMformer's authors' script takes for
TSMixer, too (run_script.sh, https://github.com/romilbert/samformer, commit 3e25cd8).

On ETTh1 at horizon 96, test_loss is 0.365 (0.361 plain; one seed), after 5 to 10 minutes of a core:
here SAM gains little, or nothing; docs/results.md has four horizons.
"""

import ml_collections

from config import samformer


def get_config() -> ml_collections.ConfigDict:
    """Return TSMixer's run."""
    config = samformer.get_config()
    config.model.model_name = "TSMixer"
    config.gnp.r = 0.7
    return config
