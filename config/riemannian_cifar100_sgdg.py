r"""WideResNet_28_10 on CIFAR-100 with SGD-G, as in the Riemannian paper.

    bash recipe/riemannian-cifar100.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/riemannian_cifar100_sgdg.py \
        --working_dir=runs/riemannian-cifar100-sgdg --config.dataset.data_dir=DATA_DIR

The other published networks: --config.model.model_name=WideResNet_40_10;
VGG13Riemannian and VGG19Riemannian with --config.model.model_params.dropout_rate=0.

Published test error, median of five runs, in percent: VGG-13 25.29, VGG-19 25.79, WRN-28-10 18.19,
WRN-40-10 18.04 (arXiv 1709.09603; docs/published.md has the other optimizers').
config/riemannian.py has the settings. Its hours are not known to us. Not yet trained here.
"""

import ml_collections

from config import riemannian


def get_config() -> ml_collections.ConfigDict:
    """The published run."""
    return riemannian.cifar("SGDG", 100)
