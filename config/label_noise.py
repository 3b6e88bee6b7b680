r"""Residual networks on CIFAR-10 with wrong training labels: the largest published effect of SAM.

    python -m gnp.main.main --config=config/label_noise.py:small --working_dir=runs/label-noise \
        --config.dataset.data_dir=DATA_DIR
    bash recipe/label-noise-cifar10.sh --config.dataset.data_dir=DATA_DIR    # as published
    SIZE=small bash recipe/label-noise-cifar10.sh --config.dataset.data_dir=DATA_DIR

The recipe compares methods; this is plain training. The argument is the size: full (also without
one), 32 layers, all 50,000 images and 200 epochs, as published; small, 20 layers, 10,000 images and
40 epochs, for two cores. Of the training labels 40% are replaced by another class (20%:
--config.dataset.label_noise=0.2). Momentum 0.9, batches of 128, a cosine from 0.1, weight decay
5e-4, crops and mirror images: the settings of https://github.com/SamsungLabs/ASAM on CIFAR-10 but
for its label smoothing of 0.1. Those of the published label noise experiments were not at hand.

Labels that people gave, in place of those that are replaced at random:
--config.dataset.label_noise=0 --config.dataset.labels_file=FILE.npz
--config.dataset.labels_array=NAME.

Published test accuracies, hours and what was run here: docs/published.md, docs/results.md.
"""

import ml_collections

from config import cifar_resnet
from config.schema import pick


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """Return the run of a size.

    Example:
        >>> get_config("small").model.model_name
        'CifarResNet20'
    """
    is_small = pick(size, ("full", "small")) == "small"
    config = cifar_resnet.get_config("20" if is_small else "32")
    config.dataset.label_noise = 0.4
    config.total_epochs = 200
    config.lr_schedule_type = "cosine"
    config.l2_regularization = 5e-4
    config.save_ckpt_every_n_epochs = 10
    if is_small:
        config.dataset.subset = 10_000
        config.total_epochs = 40
        config.evaluate_every_n_epochs = 2  # the test set is as large as the training set
    return config
