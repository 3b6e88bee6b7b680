"""Random changes to training images, each a pure function of (seed, epoch, index).

An `Augment` takes (batch, seed, epoch, indices) and returns a new batch; example `indices[i]` of
the data set is row i of the batch. Its randomness comes from a counter-based generator with the
index as the counter, so the result does not depend on the order of the examples, on the batch
size, or on which process or thread asks.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ds_pipeline.errors import DataError, nearest
from ds_pipeline.source import Batch, Indices

Augment: TypeAlias = Callable[[Batch, int, int, Indices], Batch]

IMAGE_LEVEL = ("none", "basic")
BATCH_LEVEL = ("none", "cutout")

_BASIC_TAG = 0x4241
_CUTOUT_TAG = 0x4355


def random_bits(tag: int, seed: int, epoch: int, indices: Indices, draws: int) -> np.ndarray:
    """`draws` words of 64 random bits for each example: SplitMix64 at the counter `index`.

    Args:
        tag: keeps different users of the same (seed, epoch) apart.
        seed: at least 0.
        epoch: at least 0.
        indices: [b], the examples' places in the data set.
        draws: words an example.

    Returns:
        uint64 [draws, b].

    Example:
        >>> both = random_bits(1, seed=0, epoch=0, indices=np.array([3, 7]), draws=2)
        >>> one = random_bits(1, seed=0, epoch=0, indices=np.array([7]), draws=2)
        >>> bool((both[:, 1:] == one).all())
        True

    References:
        Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    keys = np.random.SeedSequence((seed, epoch, tag)).generate_state(draws, np.uint64)
    counters = np.asarray(indices).astype(np.uint64)[None, :]
    bits = keys[:, None] + counters * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = bits ^ (bits >> np.uint64(31))
    return result


def below(bits: np.ndarray, high: int) -> Indices:
    """Integers from 0 to high - 1 from random words; the bias is under high / 2**32."""
    return (((bits >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def shifted_crop(
    images: np.ndarray,
    top: Indices,
    left: Indices,
    flip: npt.NDArray[np.bool_],
    pad: int,
) -> np.ndarray:
    """Flips some images, pads all by reflection, and cuts a window of the old size from each.

    Nothing is padded in fact: the window's pixels are looked up in the image, all in one gather.

    Args:
        images: [b, h, w, c], any dtype.
        top: [b], first row of the window in the padded image, 0 to 2 * pad.
        left: [b], its first column, 0 to 2 * pad.
        flip: [b], True where the image is mirrored, left to right, before padding.
        pad: pixels on each side, less than h and w.

    Returns:
        [b, h, w, c], a copy.

    Example:
        >>> image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
        >>> corner = shifted_crop(image, np.array([0]), np.array([1]), np.array([False]), pad=1)
        >>> corner[0, :, :, 0].tolist()
        [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
    """
    count, height, width, _ = images.shape
    rows = _reflect(np.arange(height)[None, :] + top[:, None] - pad, height)
    columns = _reflect(np.arange(width)[None, :] + left[:, None] - pad, width)
    columns = np.where(flip[:, None], width - 1 - columns, columns)
    rows += (np.arange(count) * height)[:, None]
    places = (rows * width)[:, :, None] + columns[:, None, :]
    windows: np.ndarray = _pixels(images).reshape(-1).take(places).view(images.dtype)
    return windows.reshape(images.shape)


def erased(
    images: np.ndarray, centre_row: Indices, centre_column: Indices, size: int, fill: np.ndarray
) -> np.ndarray:
    """A copy of the images with a square of `fill` around a centre, cut off at the border.

    Rows centre - size // 2 to centre - size // 2 + size - 1, and columns alike.

    Args:
        images: [b, h, w, c].
        centre_row: [b], 0 to h - 1.
        centre_column: [b], 0 to w - 1.
        size: side of the square in pixels.
        fill: [c], in the images' dtype.

    Example:
        >>> images = np.ones((1, 4, 4, 1), np.uint8)
        >>> erased(images, np.array([0]), np.array([3]), 2, np.zeros(1, np.uint8))[0, :, :, 0]
        array([[1, 1, 0, 0],
               [1, 1, 1, 1],
               [1, 1, 1, 1],
               [1, 1, 1, 1]], dtype=uint8)
    """
    rows = _within(centre_row - size // 2, size, images.shape[1])
    columns = _within(centre_column - size // 2, size, images.shape[2])
    result = images.copy(order="C")
    filling = _pixels(fill.astype(images.dtype)[None, None, None, :])
    _pixels(result)[rows[:, :, None] & columns[:, None, :]] = filling[0, 0, 0]
    return result


def basic(shape: tuple[int, ...], pad: int = 4) -> Augment:
    """A mirror image half of the time, then a random window of the image padded by reflection.

    Args:
        shape: of the images, (h, w, c).
        pad: pixels on each side, default 4.

    Raises:
        DataError: the images are too small to be padded by so much.

    Example:
        >>> batch = {"image": np.ones((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
        >>> basic((8, 8, 1))(batch, 0, 0, np.arange(2))["image"].shape
        (2, 8, 8, 1)
    """
    if min(shape[:2]) <= pad:
        raise DataError(
            f"image_level_augmentations 'basic' pads by {pad} pixels and needs images of at least "
            f"{pad + 1} x {pad + 1}, these are {shape[0]} x {shape[1]}; use 'none'"
        )

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        bits = random_bits(_BASIC_TAG, seed, epoch, indices, draws=3)
        top, left = below(bits[0], 2 * pad + 1), below(bits[1], 2 * pad + 1)
        flip = below(bits[2], 2).astype(bool)
        return {**batch, "image": shifted_crop(batch["image"], top, left, flip, pad)}

    return augment


def cutout(shape: tuple[int, ...], size: int, mean: np.ndarray, dtype: np.dtype) -> Augment:
    """Erases a square at a random place of each image.

    The centre is uniform over the pixels and the square is cut off at the border, as published.
    The published code writes zeros into normalised images; on raw values that is the mean. For
    integer images it is rounded, so an erased pixel normalises to at most 0.5 / std from 0.

    Args:
        shape: of the images, (h, w, c).
        size: side of the square in pixels.
        mean: [c], in the units of the raw values.
        dtype: of the images.

    Raises:
        DataError: the square always covers the whole image.

    Example:
        >>> batch = {"image": np.ones((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
        >>> augment = cutout((8, 8, 1), 4, np.zeros(1), np.dtype(np.uint8))
        >>> int(augment(batch, 0, 0, np.arange(2))["image"].min())
        0

    References:
        DeVries, Taylor: Improved Regularization of Convolutional Neural Networks with Cutout,
        arXiv 1708.04552.
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
        return {**batch, "image": erased(batch["image"], row, column, size, fill)}

    return augment


def chain(steps: Sequence[Augment]) -> Augment | None:
    """The augmentations one after the other; None where there are none.

    Example:
        >>> chain([]) is None
        True
    """
    if not steps:
        return None

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        for step in steps:
            batch = step(batch, seed, epoch, indices)
        return batch

    return augment


def get_augment(
    image_level: str,
    batch_level: str,
    *,
    shape: tuple[int, ...],
    mean: np.ndarray,
    dtype: np.dtype,
    cutout_size: int = 16,
) -> Augment | None:
    """The augmentation with these two names, or None for two times 'none'.

    Args:
        image_level: 'none' or 'basic'.
        batch_level: 'none' or 'cutout'.
        shape: of the images, (h, w, c).
        mean: [c], in the units of the raw values.
        dtype: of the images.
        cutout_size: pixels, default 16.

    Raises:
        DataError: an unknown name, or images that are too small for it.

    Example:
        >>> get_augment("none", "none", shape=(8, 8, 1), mean=np.zeros(1),
        ...             dtype=np.dtype(np.uint8)) is None
        True
    """
    _check_name("image_level_augmentations", image_level, IMAGE_LEVEL)
    _check_name("batch_level_augmentations", batch_level, BATCH_LEVEL)
    steps: list[Augment] = []
    if image_level == "basic":
        steps.append(basic(shape))
    if batch_level == "cutout":
        steps.append(cutout(shape, cutout_size, mean, dtype))
    return chain(steps)


def _check_name(key: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise DataError(
            f"unknown dataset.{key} {name!r}; allowed: {', '.join(allowed)}{nearest(name, allowed)}"
        )


def _pixels(images: np.ndarray) -> np.ndarray:
    """[b, h, w, c] as [b, h, w] opaque items of c values, a view where the memory allows it.

    NumPy then copies a pixel whole, many times faster than with the channel axis left over.
    """
    pixel = np.dtype((np.void, images.shape[-1] * images.itemsize))
    return np.ascontiguousarray(images).view(pixel)[..., 0]


def _reflect(places: Indices, length: int) -> Indices:
    """Places outside 0..length-1 mirrored back at the first and the last place."""
    places = np.abs(places)
    return np.where(places >= length, 2 * (length - 1) - places, places)


def _within(first: Indices, size: int, length: int) -> np.ndarray:
    """[b, length], True from `first` on, for `size` places."""
    places = np.arange(length)[None, :]
    return (places >= first[:, None]) & (places < first[:, None] + size)
