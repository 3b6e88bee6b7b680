"""Cutout: a square of each image is erased."""

import numpy as np

from ds_pipeline.augment.kinds import Augment
from ds_pipeline.augment.random import below, random_bits
from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, Indices

_CUTOUT_TAG = 0x4355


def erased(
    images: np.ndarray,
    center_row: Indices,
    center_column: Indices,
    size: int | Indices,
    fill: np.ndarray,
) -> np.ndarray:
    """Copy images and fill a square around a center of each, cut off at the border.

    The square has rows center - size // 2 to center - size // 2 + size - 1; likewise columns.

    Args:
        images: [b, h, w, c].
        center_row: [b], 0 to h - 1.
        center_column: [b], 0 to w - 1.
        size: side of the square in pixels, one or [b].
        fill: [c], in the images' dtype.
    """
    size = np.broadcast_to(size, center_row.shape)
    rows = _within(center_row - size // 2, size, images.shape[1])
    columns = _within(center_column - size // 2, size, images.shape[2])
    result = images.copy(order="C")
    filling = _pixels(fill.astype(images.dtype)[None, None, None, :])
    _pixels(result)[rows[:, :, None] & columns[:, None, :]] = filling[0, 0, 0]
    return result


def cutout(shape: tuple[int, ...], size: int, mean: np.ndarray, dtype: np.dtype) -> Augment:
    """Erase a square at a random position of each image.

    The center is uniform over the pixels and the square is cut off at the border, as published.
    The published code writes zeros into normalized images; on raw values that is the mean. For
    integer images it is rounded, so an erased pixel normalizes to at most 0.5 / std from 0. Each
    image has a position of its own, as in the paper; the SAM and GNP authors' code draws one for
    the whole batch.

    Args:
        shape: of the images, (h, w, c).
        size: side of the square in pixels.
        mean: [c], in the units of the raw values.
        dtype: of the images.

    Raises:
        DataError: the square always covers the whole image.

    References:
        DeVries, Taylor: Improved Regularization of Convolutional Neural Networks with Cutout,
        arXiv 1708.04552, 2017.
    """
    if size >= 2 * max(shape[:2]) - 1:
        raise DataError(
            f"dataset.cutout_size {size} covers the whole {shape[0]} x {shape[1]} image "
            f"wherever it falls; use one below {max(shape[:2])}"
        )
    fill = np.rint(mean).astype(dtype) if np.issubdtype(dtype, np.integer) else mean.astype(dtype)

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        bits = random_bits(_CUTOUT_TAG, seed, epoch, indices, draws=2)
        row, column = below(bits[0], shape[0]), below(bits[1], shape[1])
        return {**batch, "input": erased(batch["input"], row, column, size, fill)}

    return augment


def _pixels(images: np.ndarray) -> np.ndarray:
    """View [b, h, w, c] as [b, h, w] opaque items of c values; a copy where memory requires it.

    NumPy then copies a pixel whole, many times faster than with the channel axis left over.
    """
    pixel = np.dtype((np.void, images.shape[-1] * images.itemsize))
    return np.ascontiguousarray(images).view(pixel)[..., 0]


def _within(first: Indices, size: Indices, length: int) -> np.ndarray:
    """Return [b, length], True from `first` on, for `size` entries."""
    index = np.arange(length)[None, :]
    return (index >= first[:, None]) & (index < (first + size)[:, None])
