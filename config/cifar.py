r"""A wide residual network on CIFAR-10, with the gradient-norm penalty.

    python -m gnp.main.main --config=config/cifar.py --working_dir=runs/cifar \
        --config.dataset.data_dir=DATA_DIR

The network is that of the paper on wide residual networks, with shortcut convolutions of 1 x 1; the
penalty's authors have another variant (config/original.py). The hyperparameters are those of the
penalty's experiments on CIFAR (arXiv 2202.03599): r 0.1, alpha 0.8, learning rate 0.1 with a
cosine, L2 1e-3, gradients clipped at 5, batch 256, 200 epochs. Another network:
--config.model.model_name=WideResNet_28_10. CIFAR-100: --config.dataset.dataset_name=cifar100
--config.dataset.num_classes=100.

Meant for an accelerator (docs/performance.md has the seconds of a step). The paper trains
WideResNet_28_10. To expect: 5.9% test error after --config.total_epochs=30 in bfloat16
(two seeds on one H100, docs/results.md); the 200 epochs have not been run.
"""

import ml_collections

from config import original


def get_config() -> ml_collections.ConfigDict:
    """Return the authors' recipe with a smaller network and the penalty as this code does it."""
    config = original.get_config("wideresnet_cifar")
    config.model.model_name = "WideResNet_16_4"
    del config.model.model_params["variant"]
    config.gnp.norm_perturbations = False
    config.gnp.sync_perturbations = True
    config.hybrid_config.p = 0.5
    return config
