"""The augmentations that a config names."""

from collections.abc import Sequence

import numpy as np

from ds_pipeline.augment.crops import basic, random_flip
from ds_pipeline.augment.erase import cutout
from ds_pipeline.augment.keras import keras
from ds_pipeline.augment.kinds import Augment, Mix, chain, in_slices
from ds_pipeline.augment.mix import cutmix, mixup
from ds_pipeline.augment.policies import POLICIES
from ds_pipeline.augment.policy import autoaugment, randaugment
from ds_pipeline.errors import DataError
from ds_pipeline.splits import unknown_name

IMAGE_LEVEL = ("none", "basic", "autoaugment", "aa-only", "randaugment", "keras", "inception")
BATCH_LEVEL = ("none", "cutout", "mixup", "mixcut", "cutmix")

_UINT8_ONLY = ("autoaugment", "aa-only", "randaugment")
# OpenCV's border fill.
_MOST_CHANNELS = 4


def get_augment(
    image_level: str,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype,
    policy: str = "cifar",
    padding: int = 4,
    randaugment_layers: int = 2,
    randaugment_magnitude: float = 9.0,
) -> Augment | None:
    """Build the augmentation of single images with this name, or None for 'none'.

    Args:
        image_level: one of `IMAGE_LEVEL`. autoaugment: the policy, then basic; aa-only: the policy
            alone; randaugment: its operations, then a mirror image half of the time.
        shape: of an example; of images, (h, w, c).
        dtype: of the images.
        policy: of autoaugment and aa-only, one of `POLICIES`.
        padding: of basic and autoaugment, pixels on each side, default 4.
        randaugment_layers: operations an image, default 2.
        randaugment_magnitude: 0 to 10, default 9.

    Raises:
        DataError: an unknown name, or data that it is not for.
    """
    _check_name("image_level_augmentations", image_level, IMAGE_LEVEL)
    if image_level == "none":
        return None
    key = f"image_level_augmentations '{image_level}'"
    _check_images(key, shape)
    if image_level == "inception":
        raise DataError(
            f"{key} is for encoded photographs (image_folder, imagenet2012), and these images are "
            f"pixels of {shape[0]} x {shape[1]} already; use 'basic', 'randaugment' or 'none'"
        )
    if image_level in _UINT8_ONLY and (dtype != np.uint8 or shape[-1] not in (1, 3)):
        raise DataError(
            f"{key} is for uint8 images of 1 or 3 channels, these are {dtype} of {shape[-1]}; use "
            "'basic' or 'none'"
        )
    if image_level == "keras" and shape[-1] > _MOST_CHANNELS:
        raise DataError(
            f"{key} is for images of up to {_MOST_CHANNELS} channels, these have {shape[-1]}; "
            "use 'basic' or 'none'"
        )
    steps: list[Augment] = []
    if image_level == "keras":
        steps = [keras(shape)]
    elif image_level == "randaugment":
        steps = [randaugment(shape, randaugment_layers, randaugment_magnitude), random_flip]
    elif image_level in ("autoaugment", "aa-only"):
        _check_name("autoaugment_policy", policy, tuple(POLICIES))
        steps = [autoaugment(shape, policy)]
    if image_level in ("basic", "autoaugment"):
        steps.append(basic(shape, padding))
    augment = chain(steps)
    return None if augment is None else in_slices(augment)


def get_erase(
    batch_level: str,
    *,
    shape: tuple[int, ...],
    mean: np.ndarray,
    dtype: np.dtype,
    cutout_size: int = 16,
) -> Augment | None:
    """Build the augmentation after mixing: cutout for 'cutout' and 'mixcut', or None.

    Args:
        batch_level: one of `BATCH_LEVEL`.
        shape: of an example; of images, (h, w, c).
        mean: [c], in the units of the raw values.
        dtype: of the images before mixing, which makes them float32.
        cutout_size: pixels, default 16.

    Raises:
        DataError: an unknown name, or images that are too small.
    """
    _check_name("batch_level_augmentations", batch_level, BATCH_LEVEL)
    if batch_level not in ("cutout", "mixcut"):
        return None
    _check_images(f"batch_level_augmentations '{batch_level}'", shape)
    if batch_level == "mixcut":
        dtype = np.dtype(np.float32)
    return cutout(shape, cutout_size, mean, dtype)


def get_mix(
    batch_level: str,
    *,
    num_classes: int,
    mixup_alpha: float = 1.0,
    cutmix_alpha: float = 1.0,
    shape: tuple[int, ...] | None = None,
) -> Mix | None:
    """Build the mixing of pairs of examples, for 'mixup', 'mixcut' and 'cutmix', or None.

    Args:
        batch_level: one of `BATCH_LEVEL`.
        num_classes: of the labels; 1 for regression, where nothing is mixed.
        mixup_alpha: above 0, default 1.
        cutmix_alpha: above 0, default 1.
        shape: of an example; with it, inputs that are not images are refused at once.

    Raises:
        DataError: an unknown name, no classes, or data that it is not for.
    """
    _check_name("batch_level_augmentations", batch_level, BATCH_LEVEL)
    if batch_level not in ("mixup", "mixcut", "cutmix"):
        return None
    key = f"batch_level_augmentations '{batch_level}'"
    if num_classes < 2:
        raise DataError(f"{key} mixes class labels, and these data have no classes; use 'none'")
    if shape is not None and batch_level != "mixup":
        _check_images(key, shape)
    if batch_level == "cutmix":
        return cutmix(num_classes, cutmix_alpha)
    return mixup(num_classes, mixup_alpha)


def _check_name(key: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise DataError(unknown_name(f"unknown dataset.{key}", name, allowed))


def _check_images(key: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise DataError(
            f"{key} is for images, height x width x channels; these examples are of shape {shape}; "
            "use 'none'"
        )
