r"""WideResNet_16_4 on SVHN with SGD-G, as in the Riemannian paper.

    bash recipe/riemannian-svhn.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/riemannian_svhn_sgdg.py \
        --working_dir=runs/riemannian-svhn-sgdg --config.dataset.data_dir=DATA_DIR

The other published networks: --config.model.model_name=WideResNet_22_8;
VGG13Riemannian and VGG19Riemannian with --config.model.model_params.dropout_rate=0.

Published test error, median of five runs, in percent: VGG-13 1.74, VGG-19 1.81, WRN-16-4 1.67,
WRN-22-8 1.63 (arXiv 1709.09603; docs/published.md has the other optimizers'). config/riemannian.py
has the settings. Its hours are not known to us. Not yet trained here.
"""

import ml_collections

from config import riemannian


def get_config() -> ml_collections.ConfigDict:
    """The published run."""
    return riemannian.svhn("SGDG")
