"""AutoAugment and RandAugment: draw the operations of each image of a batch."""

import numpy as np

from ds_pipeline.augment.kinds import Augment
from ds_pipeline.augment.operations import OPERATIONS, cutout_gray
from ds_pipeline.augment.policies import POLICIES, RANDAUGMENT, SIGNED, Policy, parameter
from ds_pipeline.augment.random import below, random_bits, signs, uniform
from ds_pipeline.source import Batch, Indices

_AUTOAUGMENT_TAG = 0x4141
_RANDAUGMENT_TAG = 0x5241
# Whether to apply it, its sign, and the row and column of Cutout's center.
_DRAWS_A_STEP = 4

_NAMES = (*OPERATIONS, "Cutout", "Identity")
_CODES = {name: code for code, name in enumerate(_NAMES)}
_IDENTITY = _CODES["Identity"]


def autoaugment(shape: tuple[int, ...], policy: str | Policy) -> Augment:
    """Apply one sub-policy an image: its two operations in turn, each with its probability.

    Args:
        shape: of the images, (h, w, c), uint8 with 1 or 3 channels.
        policy: a name from `POLICIES`, or your own policy.

    References:
        Cubuk, Zoph, Mane, Vasudevan, Le: AutoAugment: Learning Augmentation Policies from Data,
        arXiv 1805.09501, 2018.
    """
    subpolicies, published = POLICIES[policy] if isinstance(policy, str) else policy
    codes = np.array([[_CODES[name] for name, _, _ in pair] for pair in subpolicies])
    chances = np.array([[chance for _, chance, _ in pair] for pair in subpolicies])
    values = np.array(
        [[_parameter(name, v, shape, published) for name, _, v in pair] for pair in subpolicies]
    )
    draws = 1 + 2 * _DRAWS_A_STEP

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        bits = random_bits(_AUTOAUGMENT_TAG, seed, epoch, indices, draws)
        chosen = below(bits[0], len(subpolicies))
        images = batch["input"].copy(order="C")
        for half in (0, 1):
            mine = bits[1 + half * _DRAWS_A_STEP :][:_DRAWS_A_STEP]
            applied = uniform(mine[0]) < chances[chosen, half]
            operations = np.where(applied, codes[chosen, half], _IDENTITY)
            _apply(images, operations, values[chosen, half], mine[1:])
        return {**batch, "input": images}

    return augment


def randaugment(shape: tuple[int, ...], layers: int, magnitude: float) -> Augment:
    """Apply `layers` operations an image, drawn with replacement from the paper's fourteen.

    Args:
        shape: of the images, (h, w, c), uint8 with 1 or 3 channels.
        layers: operations an image, N in the paper.
        magnitude: their common level, 0 to 10, M in the paper.

    References:
        Cubuk, Zoph, Shlens, Le: RandAugment: Practical automated data augmentation with a reduced
        search space, arXiv 1909.13719, 2019.
    """
    codes = np.array([_CODES[name] for name in RANDAUGMENT])
    values = np.array([_parameter(name, magnitude, shape, False) for name in RANDAUGMENT])

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        bits = random_bits(_RANDAUGMENT_TAG, seed, epoch, indices, layers * _DRAWS_A_STEP)
        images = batch["input"].copy(order="C")
        for layer in range(layers):
            mine = bits[layer * _DRAWS_A_STEP :][:_DRAWS_A_STEP]
            chosen = below(mine[0], len(codes))
            _apply(images, codes[chosen], values[chosen], mine[1:])
        return {**batch, "input": images}

    return augment


def _parameter(operation: str, level: float, shape: tuple[int, ...], published: bool) -> float:
    side = shape[0] if operation == "TranslateY" else shape[1]
    return parameter(operation, level, side, published)


def _apply(images: np.ndarray, operations: Indices, values: np.ndarray, bits: np.ndarray) -> None:
    """Change images in place, all those with the same operation together.

    Codes of operations and their parameters, without sign, are [b], the random bits [3, b].
    """
    for code in np.unique(operations).tolist():
        name = _NAMES[code]
        if name == "Identity":
            continue
        rows = np.flatnonzero(operations == code)
        mine, level = images[rows], values[rows]
        if name in SIGNED:
            level *= signs(bits[0, rows])
        if name == "Cutout":
            row, column = below(bits[1, rows], mine.shape[1]), below(bits[2, rows], mine.shape[2])
            images[rows] = cutout_gray(mine, level, row, column)
        else:
            images[rows] = OPERATIONS[name](mine, level)
