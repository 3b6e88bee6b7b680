r"""Photographs in class folders, such as ImageNet: random crops at any scale, 224 x 224 pixels.

    python -m gnp.main.main --config=config/imagenet_folder.py --working_dir=runs/imagenet \
        --config.dataset.data_dir=DIR

DIR holds train/CLASS/*.JPEG and val/CLASS/*.JPEG, with any classes. Evaluation sees the center of
each photograph, seven eighths of its shorter side. With a policy after the crop:
--config.dataset.image_level_augmentations=autoaugment, or randaugment.

Meant for an accelerator; no result of this config has been measured yet. Other networks:
--config.model.model_name=ResNet50, ViT_S16, Swin_Tiny.
"""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """ResNet18 on photographs."""
    config = default.get_config()
    config.dataset.dataset_name = "image_folder"
    config.dataset.image_size = 224
    config.dataset.num_channels = 3
    config.dataset.image_level_augmentations = "inception"
    config.model.model_name = "ResNet18"
    config.batch_size = 256
    config.total_epochs = 30
    config.opt.opt_type = "Momentum"
    config.base_lr = 0.1
    config.lr_schedule_type = "cosine"
    config.warmup_epochs = 2.0
    config.l2_regularization = 1e-4
    config.no_weight_decay_on_bn = True
    return config
