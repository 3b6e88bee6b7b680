"""Mirror images, and random windows of padded images."""

import cv2
import numpy as np
import numpy.typing as npt

from ds_pipeline.augment.kinds import Augment
from ds_pipeline.augment.random import below, random_bits
from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, Indices

_BASIC_TAG = 0x4241
_FLIP_TAG = 0x464C


def flipped(images: np.ndarray, flip: npt.NDArray[np.bool_]) -> np.ndarray:
    """Copy images and mirror some of them left to right.

    Args:
        images: [b, h, w, c], uint8 or float32.
        flip: [b], True where the image is mirrored.
    """
    result = images.copy(order="C")
    chosen = np.flatnonzero(flip)
    if len(chosen):
        rows = result[chosen]
        height, width, channels = rows.shape[1:]
        result[chosen] = cv2.flip(rows.reshape(-1, width, channels), 1).reshape(rows.shape)
    return result


def shifted_crop(
    images: np.ndarray,
    top: Indices,
    left: Indices,
    flip: npt.NDArray[np.bool_],
    pad: int,
) -> np.ndarray:
    """Flip some images, pad all by reflection, and cut a window of the old size from each.

    All images' rows are padded as those of one tall image; then whole rows of the windows are
    copied, those above and below an image from inside it.

    Args:
        images: [b, h, w, c], uint8 or float32.
        top: [b], first row of the window in the padded image, 0 to 2 * pad.
        left: [b], its first column, 0 to 2 * pad.
        flip: [b], True where the image is mirrored, left to right, before padding.
        pad: pixels on each side, less than h and w.

    Returns:
        [b, h, w, c], a copy.
    """
    count, height, width, channels = images.shape
    if not count:
        return images.copy()
    tall = flipped(images, flip).reshape(count * height, width, channels)
    padded = cv2.copyMakeBorder(tall, 0, 0, pad, pad, cv2.BORDER_REFLECT_101)
    rows = _reflect(np.arange(height)[None, :] + top[:, None] - pad, height)
    rows += (np.arange(count) * height)[:, None]
    pixel = channels * images.itemsize
    windows = _windows(padded, width * pixel, pixel)
    chosen: np.ndarray = windows[rows * (width + 2 * pad) + left[:, None]]
    return chosen.view(images.dtype).reshape(images.shape)


def basic(shape: tuple[int, ...], pad: int = 4) -> Augment:
    """Mirror half of the time, then cut a random window of the image padded by reflection.

    Args:
        shape: of the images, (h, w, c).
        pad: pixels on each side, default 4.

    Raises:
        DataError: the images are too small to be padded by so much.
    """
    if min(shape[:2]) <= pad:
        raise DataError(
            f"image_level_augmentations 'basic' pads by {pad} pixels and needs images of at least "
            f"{pad + 1} x {pad + 1}, these are {shape[0]} x {shape[1]}; use 'none', or a smaller "
            "dataset.padding"
        )

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        bits = random_bits(_BASIC_TAG, seed, epoch, indices, draws=3)
        top, left = below(bits[0], 2 * pad + 1), below(bits[1], 2 * pad + 1)
        flip = below(bits[2], 2).astype(bool)
        return {**batch, "input": shifted_crop(batch["input"], top, left, flip, pad)}

    return augment


def random_flip(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
    """Mirror images left to right, each with probability 1/2: an `Augment`."""
    flip = below(random_bits(_FLIP_TAG, seed, epoch, indices, draws=1)[0], 2).astype(bool)
    return {**batch, "input": flipped(batch["input"], flip)}


def _windows(array: np.ndarray, size: int, step: int) -> np.ndarray:
    """View an array's memory as overlapping items of `size` bytes, one every `step` bytes."""
    flat = array.reshape(-1).view(np.uint8)
    item = flat[:size].view(np.dtype((np.void, size)))
    count = (len(flat) - size) // step + 1
    return np.lib.stride_tricks.as_strided(item, (count,), (step,), writeable=False)


def _reflect(indices: Indices, length: int) -> Indices:
    """Mirror indices outside 0..length-1 back at the first and the last one."""
    indices = np.abs(indices)
    return np.where(indices >= length, 2 * (length - 1) - indices, indices)
