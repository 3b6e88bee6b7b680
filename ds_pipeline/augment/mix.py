"""Mixup and CutMix: pairs of examples, and of their labels, become one."""

import math

import numpy as np

from ds_pipeline.augment.kinds import Mix, small_slices
from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch

_MIXUP_TAG = 0x4D55
_CUTMIX_TAG = 0x434D


def mixup(num_classes: int, alpha: float = 1.0) -> Mix:
    """Mix pairs to w x + (1 - w) x', and their labels likewise, with one weight w a batch.

    w = max(v, 1 - v), v ~ Beta(alpha, alpha), from (seed, step), as the SAM and GNP authors' code
    has it. In the paper each pair has a weight of its own.

    Args:
        num_classes: of the labels.
        alpha: above 0, default 1.

    Returns:
        A `Mix` that gives float32 inputs and labels float32 [b, num_classes].

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization,
        arXiv 1710.09412, 2017.
    """

    def mix(batch: Batch, partners: Batch, seed: int, step: int) -> Batch:
        drawn = np.random.default_rng((seed, step, _MIXUP_TAG)).beta(alpha, alpha)
        weight = np.float32(max(drawn, 1 - drawn))
        mixed = np.empty(batch["input"].shape, np.float32)
        for rows in small_slices(mixed):
            mixed[rows] = batch["input"][rows]
            mixed[rows] *= weight
            other = partners["input"][rows].astype(np.float32)
            other *= 1 - weight
            mixed[rows] += other
        label = mixed_labels(batch["label"], partners["label"], weight, num_classes)
        return {**batch, "input": mixed, "label": label}

    return mix


def cutmix(num_classes: int, alpha: float = 1.0) -> Mix:
    """Take a rectangle of each image from its partner, and that share of the label.

    One rectangle a batch, from (seed, step): sides sqrt(1 - v) of the image's, v ~ Beta(alpha,
    alpha), rounded down; the center uniform over the pixels; cut off at the border. The label has
    the weight of the pixels that are left.

    Args:
        num_classes: of the labels.
        alpha: above 0, default 1.

    Returns:
        A `Mix` that keeps the inputs' dtype and gives labels float32 [b, num_classes].

    Raises:
        DataError: when it is called, inputs that are not images [b, h, w, c].

    References:
        Yun, Han, Oh, Chun, Choe, Yoo: CutMix: Regularization Strategy to Train Strong Classifiers
        with Localizable Features, arXiv 1905.04899, 2019.
    """

    def mix(batch: Batch, partners: Batch, seed: int, step: int) -> Batch:
        images = batch["input"]
        if images.ndim != 4:
            raise DataError(
                "batch_level_augmentations 'cutmix' is for images, height x width x channels; "
                f"these inputs are of shape {images.shape[1:]}; use 'mixup' or 'none'"
            )
        height, width = images.shape[1:3]
        top, bottom, left, right = _rectangle(height, width, alpha, seed, step)
        mixed = images.copy()
        mixed[:, top:bottom, left:right] = partners["input"][:, top:bottom, left:right]
        share = np.float32(1 - (bottom - top) * (right - left) / (height * width))
        label = mixed_labels(batch["label"], partners["label"], share, num_classes)
        return {**batch, "input": mixed, "label": label}

    return mix


def mixed_labels(
    labels: np.ndarray, partners: np.ndarray, weight: np.float32, num_classes: int
) -> np.ndarray:
    """Return weight * one_hot(labels) + (1 - weight) * one_hot(partners).

    Returns:
        float32 [b, num_classes].
    """
    rows = np.arange(len(labels))
    result = np.zeros((len(labels), num_classes), np.float32)
    result[rows, labels] = weight
    result[rows, partners] += np.float32(1) - weight
    return result


def _rectangle(
    height: int, width: int, alpha: float, seed: int, step: int
) -> tuple[int, int, int, int]:
    """Return the first row, the row after the last, the first column, the one after the last."""
    generator = np.random.default_rng((seed, step, _CUTMIX_TAG))
    side = math.sqrt(1 - generator.beta(alpha, alpha))
    rows, columns = int(height * side), int(width * side)
    top = int(generator.integers(height)) - rows // 2
    left = int(generator.integers(width)) - columns // 2
    return max(top, 0), min(top + rows, height), max(left, 0), min(left + columns, width)
