r"""Horses or humans, from an image folder with the augmentation of the Keras example.

    python -m gnp.main.main --config=config/horses_or_humans.py --working_dir=runs/horses \
        --config.dataset.data_dir=DIR

DIR holds train/horses, train/humans, test/horses and test/humans: 1,027 and 256 pictures of
300 x 300 pixels. The network and the loss are those of the example for gradient centralization,
which --config.opt.centralize=all switches on. The set as TFDS prepares it:
--config.dataset.dataset_name=horses_or_humans.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """The horses-or-humans run."""
    config = default.get_config()
    config.dataset.dataset_name = "image_folder"
    config.dataset.image_size = 300
    config.dataset.num_classes = 2
    config.dataset.num_channels = 3
    # Pixels from 0 to 1, as in the example.
    config.dataset.mean = (0.0,)
    config.dataset.std = (1.0,)
    config.dataset.image_level_augmentations = "keras"
    config.model.model_name = "HorsesOrHumansCNN"
    config.loss = "sigmoid_cross_entropy"
    config.batch_size = 128
    config.total_epochs = 10
    config.opt.opt_type = "RMSProp"
    config.base_lr = 1e-4
    config.lr_schedule_type = "constant"
    return config
