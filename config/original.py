r"""The authors' code of the gradient-norm penalty: what it trains, and its recipes.

    python -m gnp.main.main --config=config/original.py --working_dir=runs/original \
        --config.dataset.data_dir=DATA_DIR --config.gnp.r=0.1 --config.gnp.alpha=0.8

Without an argument it is what their code trains where no flag says otherwise, and takes the place
of their config/train_config.py behind a command line that was written for their repository,
https://github.com/zhaoyang-0204/gnp; docs/from_the_original.md says what differs. It differs from
config/default.py in that the normalized gradient is mixed, each device has a perturbation of its
own and gradients are clipped at 5.

With an argument it is one of their recipes, which have the same name there (the paper is arXiv
2202.03599). The paper's errors are not at hand and its hours are not known to us
(docs/published.md). None of them has been trained here yet.

    bash recipe/wideresnet-cifar.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/original.py:wideresnet_cifar \
        --working_dir=runs/wideresnet-cifar --config.dataset.data_dir=DATA_DIR

The networks are the authors' own, `model_params.variant=gnp` (docs/models.md).

    argument                  recipe
    wideresnet_cifar          recipe/wideresnet-cifar.sh: WideResNet_28_10
    resnet_cifar              recipe/resnet-cifar.sh: ResNet50
    wideresnet_ss_cifar       recipe/wideresnet-ss-cifar.sh: 2 x 96 Shake-Shake, 1800 epochs
    pyramidnet_sd_cifar       recipe/pyramidnet-sd-cifar.sh: PyramidNet 272-200 with ShakeDrop,
                              AutoAugment, mixup and cutout, 1800 epochs
    vit_cifar_basic           recipe/vit-cifar-basic.sh: a small vision transformer, 300 epochs
    vit_cifar_heavy           recipe/vit-cifar-heavy.sh: the same with mixup, 1200 epochs. A comment
                              there reports a test error below 5%, and 12.29% with the augmentation
                              of the paper
    vit_cifar_basic_grwarmup  recipe/vit-cifar-basic-grwarmup.sh: the penalty begins after a warmup
    resnet_imagenet           recipe/resnet-imagenet.sh: ResNet50
    vggbn_imagenet            recipe/vggbn-imagenet.sh: VGG16 with batch norm

CIFAR is CIFAR-10; CIFAR-100: --config.dataset.dataset_name=cifar100
--config.dataset.num_classes=100. Plain training: --config.gnp.r=0 --config.gnp.alpha=0. SAM:
--config.gnp.alpha=1. ImageNet's DATA_DIR holds train/CLASS/*.JPEG and val/CLASS/*.JPEG; it gets
random crops at any scale with flips, 224 x 224 pixels, which their code does whatever its flags
say.

Their ViT_S16 cuts 32 x 32 pixels into patches of 4 x 4: here that is ViT_S4. Adam of their code of
2022, with vit_cifar_basic and vit_cifar_heavy, clips the gradient again, at 2, behind the clipping
at 5: the same as clipping it at 2. That of 2024, with vit_cifar_basic_grwarmup, is Optax's: it
clips at 5 alone, and so would the other two today (--config.gradient_clipping=5).

vit_cifar_basic_grwarmup takes plain steps during 40 epochs in which the learning rate grows, then
alpha 1 (zero warmup). The other strategies: --config.gr_warmup_strategy=lambda, or r; the penalty
from the first step on: none. The other sizes: --config.model.model_name=ViT_TI4, ViT_B4. Published
test error on CIFAR-10, in percent (arXiv 2406.09723):

    size   Adam    with the penalty   zero warmup
    Ti     14.82   13.92              13.61
    S      12.07   12.40              10.68
    B      10.83   12.36               9.42
"""

import ml_collections

from config import default
from config.schema import pick

RECIPES = (
    *("wideresnet_cifar", "resnet_cifar", "wideresnet_ss_cifar", "pyramidnet_sd_cifar"),
    *("vit_cifar_basic", "vit_cifar_heavy", "vit_cifar_basic_grwarmup"),
    *("resnet_imagenet", "vggbn_imagenet"),
)


def get_config(recipe: str = "none") -> ml_collections.ConfigDict:
    """Return a recipe, or WideResNet_28_10 on CIFAR-10 without a penalty."""
    pick(recipe, ("none", *RECIPES))
    config = default.get_config()
    config.dataset.dataset_name = "cifar10"
    config.dataset.image_level_augmentations = "basic"
    config.model.model_name = "WideResNet_28_10"
    config.model.model_params.variant = "gnp"
    config.batch_size = 256
    config.total_epochs = 200
    config.opt.opt_type = "Momentum"
    config.base_lr = 0.1
    config.lr_schedule_type = "cosine"
    config.l2_regularization = 1e-3
    config.gradient_clipping = 5.0
    config.gnp.norm_perturbations = True
    config.gnp.sync_perturbations = False
    config.hybrid_config.p = 0.0
    if "cifar" in recipe:
        config.dataset.image_size = 32
        config.dataset.num_classes = 10
        config.dataset.num_channels = 3
        config.gnp.r = 0.1
        config.gnp.alpha = 0.8
    if "imagenet" in recipe:
        config.dataset.dataset_name = "image_folder"
        config.dataset.image_size = 224
        config.dataset.num_classes = 1000
        config.dataset.num_channels = 3
        config.dataset.image_level_augmentations = "inception"
        config.total_epochs = 100
        config.l2_regularization = 1e-4
        config.gnp.r = 0.05
        config.gnp.alpha = 0.8
    if "vit" in recipe:
        config.model.model_name = "ViT_S4"
        config.total_epochs = 300
        config.opt.opt_type = "Adam"
        config.opt.opt_params.weight_decay = 0.3
        config.base_lr = 1e-3
        config.l2_regularization = 0.0
        config.gradient_clipping = 2.0
    match recipe:
        case "resnet_cifar":
            config.model.model_name = "ResNet50"
        case "wideresnet_ss_cifar":
            config.model.model_name = "WideResNet_2_96_ShakeShake"
            config.model.model_params.backward_noise = True
            config.total_epochs = 1800
        case "pyramidnet_sd_cifar":
            config.dataset.image_level_augmentations = "autoaugment"
            config.dataset.batch_level_augmentations = "mixcut"
            config.model.model_name = "PyramidNet_272_200_ShakeDrop"
            config.model.model_params.backward_noise = True
            config.batch_size = 128
            config.total_epochs = 1800
            config.base_lr = 0.05
            config.l2_regularization = 5e-4
        case "vit_cifar_heavy":
            config.dataset.batch_level_augmentations = "mixup"
            config.total_epochs = 1200
            config.opt.opt_params.weight_decay = 0.03
            config.base_lr = 5e-4
        case "vit_cifar_basic_grwarmup":
            config.gradient_clipping = 5.0
            config.warmup_epochs = 40.0
            config.gr_warmup_strategy = "zero"
            config.gnp.alpha = 1.0
        case "resnet_imagenet":
            config.model.model_name = "ResNet50"
            config.batch_size = 512
            config.base_lr = 0.2
        case "vggbn_imagenet":
            config.model.model_name = "VGG16BN"
    return config
