r"""WideResNet_16_4 on SVHN with Adam-G, as in the Riemannian paper.

    OPTIMIZER=AdamG bash recipe/riemannian-svhn.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/riemannian_svhn_adamg.py \
        --working_dir=runs/riemannian-svhn-adamg --config.dataset.data_dir=DATA_DIR

The other published networks: --config.model.model_name=WideResNet_22_8;
VGG13Riemannian and VGG19Riemannian with --config.model.model_params.dropout_rate=0.

Published test error, median of five runs, in percent: VGG-13 1.72, VGG-19 1.77, WRN-16-4 1.61,
WRN-22-8 1.55 (arXiv 1709.09603; docs/published.md has the other optimizers'). config/riemannian.py
has the settings. Its hours are not known to us. Not yet trained here.
"""

import ml_collections

from config import riemannian


def get_config() -> ml_collections.ConfigDict:
    """The published run."""
    return riemannian.svhn("AdamG")
