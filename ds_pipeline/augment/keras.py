"""Flips, rotation and zoom with the meaning of Keras' preprocessing layers, in one step."""

import cv2
import numpy as np

from ds_pipeline.augment.kinds import Augment
from ds_pipeline.augment.random import random_bits, signs, uniform
from ds_pipeline.source import Batch, Indices

_TAG = 0x4B45
_ROTATION = 0.3
_ZOOM = 0.2


def keras(shape: tuple[int, ...]) -> Augment:
    """Build RandomFlip("horizontal_and_vertical"), RandomRotation(0.3), RandomZoom(0.2) of Keras.

    Each axis is mirrored half of the time; the angle is uniform in +-0.3 turns; height and width
    are scaled by the same factor, uniform in 0.8..1.2. Pixels are interpolated bilinearly, and
    what lies outside is the image mirrored at its edge, the border pixel twice. Keras takes three
    steps, each with its own interpolation; this takes one, which blurs less, and mirrors the image
    itself where Keras mirrors the rotated one.

    Args:
        shape: of the images, (h, w, c), uint8 or float32, up to 4 channels.
    """
    height, width = shape[:2]

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        bits = random_bits(_TAG, seed, epoch, indices, draws=4)
        angle = (uniform(bits[2]) * 2 - 1) * _ROTATION * 2 * np.pi
        zoom = 1 + (uniform(bits[3]) * 2 - 1) * _ZOOM
        matrices = _matrices(height, width, signs(bits[0]), signs(bits[1]), angle, zoom)
        return {**batch, "input": warped(batch["input"], matrices)}

    return augment


def warped(images: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Take pixel p of each image from A p + t of it, bilinear, mirrored outside.

    Args:
        images: [b, h, w, c], uint8 or float32, up to 4 channels.
        matrices: float64 [b, 2, 3], (A | t), for points (x, y) with the first pixel's center at 0.
    """
    height, width = images.shape[1:3]
    result = np.empty(images.shape, images.dtype)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for image, matrix, target in zip(images, matrices, result, strict=True):
        cv2.warpAffine(image, matrix, (width, height), target, flags, cv2.BORDER_REFLECT)
    return result


def _matrices(
    height: int,
    width: int,
    mirror_x: np.ndarray,
    mirror_y: np.ndarray,
    angle: np.ndarray,
    zoom: np.ndarray,
) -> np.ndarray:
    """Return [b, 2, 3]: zoom, rotation and mirroring in turn, around the center of the image."""
    cosine, sine = np.cos(angle) * zoom, np.sin(angle) * zoom
    matrices = np.empty((len(angle), 2, 3))
    matrices[:, 0, 0], matrices[:, 0, 1] = mirror_x * cosine, -mirror_x * sine
    matrices[:, 1, 0], matrices[:, 1, 1] = mirror_y * sine, mirror_y * cosine
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    matrices[:, :, 2] = center[None, :] - matrices[:, :, :2] @ center
    return matrices
