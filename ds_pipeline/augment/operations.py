"""The operations of AutoAugment and RandAugment on batches of uint8 images.

Each takes images [b, h, w, c] with 1 or 3 channels (red, green, blue) and, where it has a
parameter, an array [b] with one value an image, and returns new images: the same pixels as
Pillow gives for one image, to the integer. Images are changed by few calls into OpenCV and NumPy,
which release Python's lock, so that two threads augment two batches at the same time.
"""

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np

from ds_pipeline.augment.erase import erased
from ds_pipeline.source import Indices

# The loader's threads take a batch each: threads inside a call would only wait for one another,
# and a worker process that was forked would wait for ever for those of its parent.
cv2.setNumThreads(0)

GRAY = 128
"""The value with which geometric operations and their cutout fill, as in the published code."""

# Pillow's weights of red, green and blue in luminance, in 1 / 65536 (ITU-R 601-2).
_LUMINANCE = np.array([[19595, 38470, 7471]], np.float32)
# Pillow's ImageFilter.SMOOTH.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
# Of whole pixels there is one map; the second holds fractions.
_NO_MAP = np.empty((0, 0), np.uint16)
# Coordinate maps of one size of images: AutoAugment's longest policy has some 40 of them.
_KEPT_MAPS = 64


def invert(images: np.ndarray) -> np.ndarray:
    """Return 255 - x."""
    return 255 - images


def posterize(images: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Keep the highest `bits` bits of each value, 1 to 8."""
    masks = (0xFF << (8 - np.asarray(bits, np.int64))) & 0xFF
    return images & masks.astype(np.uint8)[:, None, None, None]


def solarize(images: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Return 255 - x for values of at least `threshold`, 0 to 256."""
    levels = np.arange(256)[None, :]
    tables = np.where(levels < np.asarray(threshold)[:, None], levels, 255 - levels)
    return _look_up(images, tables)


def solarize_add(images: np.ndarray, addition: np.ndarray) -> np.ndarray:
    """Return min(255, x + addition) for values below 128; the others stay."""
    levels = np.arange(256)[None, :]
    added = levels + np.asarray(addition)[:, None]
    return _look_up(images, np.where(levels < 128, added, levels))


def autocontrast(images: np.ndarray) -> np.ndarray:
    """Stretch each channel of each image to 0..255."""
    low, high = (values[:, None, :].astype(np.float64) for values in _extremes(images))
    flat = high <= low
    scale = np.where(flat, 1.0, 255.0 / np.where(flat, 1.0, high - low))
    offset = np.where(flat, 0.0, -low * scale)
    return _look_up(images, np.arange(256.0)[None, :, None] * scale + offset)


def equalize(images: np.ndarray) -> np.ndarray:
    """Spread the values of each channel of each image to a nearly flat histogram."""
    counts = _histograms(images)
    pixels = images.shape[1] * images.shape[2]
    # The highest value that occurs does not count.
    highest = _extremes(images)[1][:, None, :].astype(np.int64)
    step = (pixels - np.take_along_axis(counts, highest, axis=1)) // 255
    flat = step == 0
    # Exact in float64, and many times faster than a division of integers.
    spread = np.cumsum(counts, axis=1, dtype=np.float64)
    spread += step // 2 - counts
    spread /= np.where(flat, 1, step)
    return _look_up(images, np.where(flat, np.arange(256.0)[None, :, None], spread))


def color(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Move away from (factor > 1) or toward (< 1) the gray image; at 0, gray."""
    if images.shape[-1] == 1:
        return images.copy()
    tall = _luminance(images).reshape(-1, images.shape[2])
    gray = cv2.cvtColor(tall, cv2.COLOR_GRAY2RGB).reshape(images.shape)
    return _blended(gray, images, factor)


def contrast(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Move away from (factor > 1) or toward (< 1) the mean luminance."""
    gray = _luminance(images)
    mean = np.floor(gray.mean(axis=(1, 2), dtype=np.float64) + 0.5)[:, None]
    levels = np.arange(256, dtype=np.uint8)[None, :]
    return _look_up(images, _blended(mean, levels, factor))


def brightness(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return `factor` times x."""
    levels = np.arange(256, dtype=np.uint8)[None, :]
    return _look_up(images, _blended(np.zeros((1, 1), np.uint8), levels, factor))


def sharpness(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Move away from (factor > 1) or toward (< 1) the smoothed image; the border stays."""
    height, width, channels = images.shape[1:]
    # All in one call, as a tall image: what crosses from one to the next is border only. No
    # multiple of 1 / 13 lies halfway between two integers, so rounding errors do no harm.
    tall = np.ascontiguousarray(images).reshape(-1, width, channels)
    smooth = cv2.filter2D(tall, cv2.CV_8U, _SMOOTH).reshape(images.shape)
    for border in (0, height - 1):
        smooth[:, border] = images[:, border]
    for border in (0, width - 1):
        smooth[:, :, border] = images[:, :, border]
    return _blended(smooth, images, factor)


def rotate(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Rotate counter-clockwise around the center, to the nearest pixel, gray outside."""
    height, width = images.shape[1:3]
    return _transformed(images, [_rotation(angle, height, width) for angle in degrees.tolist()])


def sheared_or_moved(images: np.ndarray, values: np.ndarray, row: int, column: int) -> np.ndarray:
    """Take each pixel from where it is by `values` further, the nearest one, gray outside.

    Args:
        images: [b, h, w, c].
        values: [b].
        row: of the affine matrix (x', y') = M (x, y, 1), 0 for x' and 1 for y'.
        column: of it, in which the value is added: 0 to 2; 2 are pixels, the others slopes.
    """
    matrices = np.tile(np.eye(2, 3), (len(images), 1, 1))
    matrices[:, row, column] += values
    return _transformed(images, [tuple(each) for each in matrices.reshape(-1, 6).tolist()])


def cutout_gray(
    images: np.ndarray, size: np.ndarray, center_row: Indices, center_column: Indices
) -> np.ndarray:
    """Draw a gray square of `size` pixels a side around a center, cut off at the border."""
    fill = np.full(images.shape[-1], GRAY, np.uint8)
    return erased(images, center_row, center_column, size.astype(np.int64), fill)


OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "AutoContrast": lambda images, _: autocontrast(images),
    "Equalize": lambda images, _: equalize(images),
    "Invert": lambda images, _: invert(images),
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "Rotate": rotate,
    "ShearX": functools.partial(sheared_or_moved, row=0, column=1),
    "ShearY": functools.partial(sheared_or_moved, row=1, column=0),
    "TranslateX": functools.partial(sheared_or_moved, row=0, column=2),
    "TranslateY": functools.partial(sheared_or_moved, row=1, column=2),
}
"""(images, values) -> images, under the papers' names; without Cutout, which needs a position."""


def _look_up(images: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Replace each image's values by its table's: tables [b, 256], or [b, 256, c] by channel.

    The tables' values are clipped and rounded down.
    """
    result = np.empty(images.shape, np.uint8)
    tables = np.clip(tables, 0, 255).astype(np.uint8)[:, None]
    for image, table, target in zip(images, tables, result, strict=True):
        cv2.LUT(image, table, target)
    return result


def _extremes(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and largest value of each channel of each image, uint8 [b, c] each.

    Both halves of all images are compared until one pixel is left: long rows, where NumPy's
    reduction would run over three values at a time.
    """
    count, height, width, channels = images.shape
    low = high = images.reshape(count, -1)
    pixels = height * width
    while pixels > 1:
        half = (pixels + 1) // 2 * channels
        low = np.minimum(low[:, :half], low[:, -half:])
        high = np.maximum(high[:, :half], high[:, -half:])
        pixels = (pixels + 1) // 2
    return low, high


def _histograms(images: np.ndarray) -> np.ndarray:
    """Count each value in each channel of each image, int64 [b, 256, c]."""
    channels = images.shape[-1]
    counts = [
        cv2.calcHist([image], [channel], None, [256], [0, 256])
        for image in images
        for channel in range(channels)
    ]
    stacked = np.array(counts).reshape(len(images), channels, 256)
    return np.ascontiguousarray(stacked.transpose(0, 2, 1)).astype(np.int64)


def _luminance(images: np.ndarray) -> np.ndarray:
    """Convert to gray as Pillow does, uint8 [b, h, w]."""
    if images.shape[-1] == 1:
        return images[..., 0]
    # Whole numbers below 2**24: float32 holds them exactly, in whatever order they are added.
    weighted = np.asarray(
        cv2.transform(images.reshape(-1, 1, 3).astype(np.float32), _LUMINANCE), np.float32
    )
    weighted += 32768
    weighted *= np.float32(1 / 65536)
    return weighted.astype(np.uint8).reshape(images.shape[:3])


def _blended(first: np.ndarray, second: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Clip first + factor * (second - first) and cut it to integers, as Pillow does.

    The factor is [b], and the two of them hold values from 0 to 255, [b, ...] or [1, ...].
    """
    start = first.astype(np.float32)
    result = second.astype(np.float32) - start
    result = result * factor.astype(np.float32).reshape(-1, *(1,) * (result.ndim - 1))
    result += start
    return np.clip(result, 0, 255, out=result).astype(np.uint8)


_Matrix = tuple[float, ...]


def _transformed(images: np.ndarray, matrices: list[_Matrix]) -> np.ndarray:
    """Take pixel (x, y) of each image from (a x + b y + c, d x + e y + f), the nearest pixel."""
    height, width, channels = images.shape[1:]
    result = np.empty(images.shape, np.uint8)
    gray = (GRAY,) * channels
    for image, matrix, target in zip(images, matrices, result, strict=True):
        pixels = _source_pixels(matrix, height, width)
        cv2.remap(image, pixels, _NO_MAP, cv2.INTER_NEAREST, target, cv2.BORDER_CONSTANT, gray)
    return result


@functools.lru_cache(maxsize=_KEPT_MAPS)
def _source_pixels(matrix: _Matrix, height: int, width: int) -> np.ndarray:
    """Return the pixel from which each one comes, int16 [h, w, 2] with x first.

    Pillow counts from the pixels' centers in steps of 1 / 65536 and rounds down; so does this,
    which makes the two equal.
    """
    a, b, c, d, e, f = matrix
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    column = (_fixed(c + (a + b) / 2) + _fixed(a) * x + _fixed(b) * y) >> 16
    row = (_fixed(f + (d + e) / 2) + _fixed(d) * x + _fixed(e) * y) >> 16
    pixels = np.empty((height, width, 2), np.int16)
    pixels[..., 0] = np.clip(column, -1, width)
    pixels[..., 1] = np.clip(row, -1, height)
    return pixels


def _fixed(value: float) -> int:
    return math.floor(value * 65536 + 0.5)


def _rotation(degrees: float, height: int, width: int) -> _Matrix:
    """Return the matrix of Pillow's `Image.rotate`."""
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    first = (cosine, sine, cosine * -x + sine * -y + x)
    return (*first, -sine, cosine, -sine * -x + cosine * -y + y)
