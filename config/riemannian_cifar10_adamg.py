r"""WideResNet_28_10 on CIFAR-10 with Adam-G, as in the Riemannian paper.

    OPTIMIZER=AdamG bash recipe/riemannian-cifar10.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/riemannian_cifar10_adamg.py \
        --working_dir=runs/riemannian-cifar10-adamg --config.dataset.data_dir=DATA_DIR

The other published networks: --config.model.model_name=WideResNet_40_10;
VGG13Riemannian and VGG19Riemannian with --config.model.model_params.dropout_rate=0.

Published test error, median of five runs, in percent: VGG-13 6.05, VGG-19 6.02, WRN-28-10 3.78,
WRN-40-10 3.80 (arXiv 1709.09603; docs/published.md has the other optimizers'). config/riemannian.py
has the settings. Its hours are not known to us. Not yet trained here.
"""

import ml_collections

from config import riemannian


def get_config() -> ml_collections.ConfigDict:
    """The published run."""
    return riemannian.cifar("AdamG", 10)
