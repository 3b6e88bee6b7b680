"""Encoded photographs to pixels: decoded, cut and resized in one go.

A JPEG is decoded by libjpeg-turbo (simplejpeg), at a half, a quarter or an eighth of its size where
the window that is wanted is that much larger than the result. Everything else goes through Pillow.
"""

import functools
import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
import PIL
import PIL.Image
import simplejpeg  # type: ignore[import-untyped]

from ds_pipeline.augment import Augment, random_bits
from ds_pipeline.augment.random import uniform
from ds_pipeline.errors import DataError, one_line
from ds_pipeline.source import Batch, EncodedImage, Indices, View

_INCEPTION_TAG = 0x494E
_ATTEMPTS = 10
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
# Of the shorter side that evaluation keeps: 224 of 256 pixels, and in proportion for other sizes.
_MARGIN = 32
_JPEG_START = b"\xff\xd8\xff"
# Pillow refuses larger images too.
_MOST_PIXELS = 178_956_970
_PNG_START = b"\x89PNG\r\n\x1a\n"
# All that Pillow raised for 250,000 JPEG and PNG files damaged in many ways. SyntaxError,
# IndexError and struct.error (Pillow 11) are of PNG chunks.
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, IndexError, struct.error, PIL.Image.DecompressionBombError,
)  # fmt: skip

# Pillow's warnings name no file, and what they tell of is harmless: damage is an exception.
warnings.filterwarnings("ignore", module=r"PIL\.")
# The loader's threads and processes share the cores already.
cv2.setNumThreads(0)


class ImageError(ValueError):
    """Bytes are no image that can be decoded; says why, in one line."""


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def decode_image(encoded: EncodedImage) -> np.ndarray:
    """Decode a JPEG or PNG to pixels, uint8 [h, w, 3].

    - Grayscale: the same value in all three channels.
    - 16 bits a channel: the upper 8 of them.
    - A palette: its colors.
    - Alpha: left out; a transparent pixel has the color that is stored with it.
    - CMYK: (255 - c)(255 - k) / 255, and so for m and y; taken to be stored inverted, as Adobe
      does it.
    - EXIF orientation: ignored, as the published ImageNet pipelines do.
    - Color profiles: ignored.
    - A JPEG with damage that Pillow steps over, such as stray bytes: as Pillow decodes it.

    Args:
        encoded: the image's bytes, and where they come from.

    Raises:
        DataError: not a JPEG or PNG, empty, truncated or too damaged.
    """
    return _decode(encoded, 1)[0]


def image_size(encoded: EncodedImage) -> tuple[int, int]:
    """Read (height, width) in pixels, from the header alone.

    Raises:
        DataError: the header cannot be read, or the image is too large.
    """
    header = _jpeg_header(encoded)
    if header is None:
        try:
            with _open(encoded.data) as image:
                header = image.height, image.width
        except ImageError as error:
            raise _undecodable(encoded, error) from error
    if header[0] * header[1] > _MOST_PIXELS:
        raise DataError(
            f"{encoded.where}: {header[1]} x {header[0]} pixels are too many, at most "
            f"{_MOST_PIXELS} can be decoded; make the image smaller"
        )
    return header


def decode_window(encoded: EncodedImage, window: Window, size: int) -> np.ndarray:
    """Decode a window of an image, resized to size x size.

    Args:
        encoded: the image.
        window: what is cut out, inside the image.
        size: side of the result in pixels.

    Returns:
        uint8 [size, size, 3].

    Raises:
        DataError: as `decode_image`.
    """
    factor = next(f for f in (8, 4, 2, 1) if f == 1 or min(window[2:]) >= f * size)
    pixels, factor = _decode(encoded, factor)
    bottom = min(-(-(window.top + window.height) // factor), pixels.shape[0])
    right = min(-(-(window.left + window.width) // factor), pixels.shape[1])
    return resize(pixels[window.top // factor : bottom, window.left // factor : right], size)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image to size x size, without aliasing.

    Enlarged by bicubic interpolation. Shrunk by a factor s from 1 to 2, it is smoothed by
    ((s - 1) / 4, 1 - (s - 1) / 2, (s - 1) / 4) first, which comes closer to Pillow's bicubic
    filter than OpenCV's mean over areas does, in a third of its time. What is left above 2 is such
    a mean.

    Args:
        image: uint8 [h, w, 3].
        size: side of the result.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = image.shape[:2]
    rows, columns = max(1, height // size), max(1, width // size)
    if max(rows, columns) > 1:
        smaller = (width // columns, height // rows)
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        height, width = image.shape[:2]
    if max(height, width) > size:
        across, down = _smoothing(width / size), _smoothing(height / size)
        image = cv2.sepFilter2D(image, -1, across, down)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)


def inception_crop(size: int) -> Augment:
    """Cut a random window of each encoded image, resize it, and mirror half of the time.

    The window's share of the area is uniform from 0.08 to 1 and its aspect ratio log-uniform from
    3/4 to 4/3. Where ten attempts do not fit into the image it is the window of `center_crop`.

    Args:
        size: side of the result in pixels.

    Returns:
        An augmentation of batches whose "input" is a list of `EncodedImage`; it gives
        uint8 [b, size, size, 3].

    References:
        Szegedy and others: Going Deeper with Convolutions, CVPR 2015, section 6.
    """
    return functools.partial(_inception, size)


def center_crop(size: int, fraction: float | None = None) -> Callable[[Batch], Batch]:
    """Cut the centered square of each encoded image and resize it, as for evaluation.

    Args:
        size: side of the result in pixels.
        fraction: side of the square over the image's shorter side; None: size / (size + 32),
            which is 224 / 256 for 224.

    Returns:
        A function of batches whose "input" is a list of `EncodedImage`; it gives
        uint8 [b, size, size, 3].
    """
    return functools.partial(_center, size, fraction or _fraction(size))


class DecodedSource(View):
    """A source of encoded images whose batches are decoded, such as by `center_crop`."""


def inception_windows(heights: Indices, widths: Indices, bits: np.ndarray) -> list[Window]:
    """Return the windows of `inception_crop`; a height of 0: no attempt fits.

    Args:
        heights: [b], of the images in pixels.
        widths: [b].
        bits: uint64 [22, b], random.
    """
    areas = (heights * widths)[None, :] * _between(bits[:_ATTEMPTS], *_AREA)
    aspects = np.exp(_between(bits[_ATTEMPTS : 2 * _ATTEMPTS], *np.log(_ASPECT)))
    high = np.rint(np.sqrt(areas / aspects)).astype(np.int64)
    wide = np.rint(np.sqrt(areas * aspects)).astype(np.int64)
    fits = (high > 0) & (wide > 0) & (high <= heights[None, :]) & (wide <= widths[None, :])
    first, examples = fits.argmax(axis=0), np.arange(len(heights))
    found = fits[first, examples]
    high = np.where(found, high[first, examples], 0)
    wide = np.where(found, wide[first, examples], 0)
    tops = (uniform(bits[-2]) * (heights - high + 1)).astype(np.int64)
    lefts = (uniform(bits[-1]) * (widths - wide + 1)).astype(np.int64)
    rows = np.stack([tops, lefts, high, wide], axis=1).tolist()
    return [Window(*row) for row in rows]


def center_window(height: int, width: int, fraction: float) -> Window:
    """Return the centered square whose side is `fraction` of the shorter side."""
    side = max(1, round(fraction * min(height, width)))
    return Window((height - side) // 2, (width - side) // 2, side, side)


def _inception(size: int, batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
    images: list[EncodedImage] = batch["input"]
    bits = random_bits(_INCEPTION_TAG, seed, epoch, indices, draws=2 * _ATTEMPTS + 3)
    sizes = np.array([image_size(image) for image in images], np.int64).reshape(-1, 2)
    windows = inception_windows(sizes[:, 0], sizes[:, 1], bits[1:])
    flips = bits[0] >> np.uint64(63)
    result = np.empty((len(images), size, size, 3), np.uint8)
    for row, (image, window) in enumerate(zip(images, windows, strict=True)):
        if not window.height:
            window = center_window(int(sizes[row, 0]), int(sizes[row, 1]), _fraction(size))
        pixels = decode_window(image, window, size)
        # NumPy copies a mirrored view 30 times more slowly.
        result[row] = cv2.flip(pixels, 1) if flips[row] else pixels
    return {**batch, "input": result}


def _center(size: int, fraction: float, batch: Batch) -> Batch:
    images: list[EncodedImage] = batch["input"]
    result = np.empty((len(images), size, size, 3), np.uint8)
    for row, image in enumerate(images):
        window = center_window(*image_size(image), fraction)
        result[row] = decode_window(image, window, size)
    return {**batch, "input": result}


def _fraction(size: int) -> float:
    return size / (size + _MARGIN)


def _between(bits: np.ndarray, low: float, high: float) -> np.ndarray:
    """Turn random words into float64 from low up to high."""
    return low + (high - low) * uniform(bits)


def _smoothing(scale: float) -> np.ndarray:
    """Return three weights for shrinking by a factor up to 2; one where nothing shrinks."""
    if scale <= 1:
        return np.ones(1)
    side = (scale - 1) / 4
    return np.array([side, 1 - 2 * side, side])


def _jpeg_header(encoded: EncodedImage) -> tuple[int, int] | None:
    """Read (height, width) of a JPEG whose colors simplejpeg converts; None: one for Pillow."""
    if not encoded.data.startswith(_JPEG_START):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded.data)
    except ValueError:
        return None
    return (height, width) if colors in ("Gray", "YCbCr", "RGB") else None


def _decode(encoded: EncodedImage, factor: int) -> tuple[np.ndarray, int]:
    """Return (pixels, their reduction): `factor`, or 1 where the format does not allow it."""
    height, width = image_size(encoded)
    if _jpeg_header(encoded) is not None:
        try:
            pixels = simplejpeg.decode_jpeg(
                encoded.data, min_height=-(-height // factor), min_width=-(-width // factor)
            )
        except ValueError:
            pass  # Pillow tells harmless damage from a truncated file.
        else:
            return pixels, factor
    try:
        with load_image(encoded.data) as image:
            return _as_rgb(image), 1
    except ImageError as error:
        raise _undecodable(encoded, error) from error


def load_image(data: bytes) -> PIL.Image.Image:
    """Decode a JPEG or PNG by Pillow; what else Pillow could open is not tried.

    Raises:
        ImageError: it is neither, empty, truncated or too damaged.
    """
    image = _open(data)
    try:
        image.load()
    except _PILLOW_ERRORS as error:
        raise ImageError(one_line(error)) from error
    if image.mode == "P" and image.palette is None:  # Pillow would make it black
        raise ImageError("its palette is missing")
    return image


def _open(data: bytes) -> PIL.Image.Image:
    if not data:
        raise ImageError("it is empty, 0 bytes")
    try:
        return PIL.Image.open(BytesIO(without_metadata(data)), formats=("JPEG", "PNG"))
    except PIL.UnidentifiedImageError:
        # Its own message is the address of the BytesIO.
        raise ImageError(f"{len(data)} bytes that are no whole JPEG or PNG") from None
    except _PILLOW_ERRORS as error:
        raise ImageError(one_line(error)) from error


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without the chunks that do not change its pixels; other data as they are.

    Decoders unpack color profiles and texts, and refuse an image whose are large or damaged.
    """
    if not data.startswith(_PNG_START):
        return data
    kept, start = [_PNG_START], len(_PNG_START)
    while start < len(data):
        kind = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _as_rgb(image: PIL.Image.Image) -> np.ndarray:
    if not image.mode.startswith("I"):
        return np.asarray(image.convert("RGB"))
    # 16 bits, which Pillow's conversion would cut off at 255.
    gray = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _undecodable(encoded: EncodedImage, error: ImageError) -> DataError:
    return DataError(
        f"{encoded.where}: the image cannot be decoded ({error}); replace or remove it"
    )
