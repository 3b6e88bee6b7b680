"""Every operation against Pillow, to the integer."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_image

from ds_pipeline.augment.operations import OPERATIONS, cutout_gray, solarize_add

Picture = Image.Image


def gray(image: Picture) -> int | tuple[int, ...]:
    return 128 if image.mode == "L" else (128, 128, 128)


def affine(image: Picture, *matrix: float) -> Picture:
    # Pillow's NEAREST is its default; the published code names none.
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=gray(image))


PILLOW: dict[str, Callable[[Picture, float], Picture]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "Rotate": lambda image, degrees: image.rotate(degrees, fillcolor=gray(image)),
    "ShearX": lambda image, slope: affine(image, 1, slope, 0, 0, 1, 0),
    "ShearY": lambda image, slope: affine(image, 1, 0, 0, slope, 1, 0),
    "TranslateX": lambda image, pixels: affine(image, 1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda image, pixels: affine(image, 1, 0, 0, 0, 1, pixels),
}

FACTORS = [0.0, 0.1, 0.28, 0.46, 0.64, 0.82, 1.0, 1.18, 1.36, 1.54, 1.72, 1.9, 2.5]
SLOPES = [sign * 0.03 * level for sign in (-1, 1) for level in range(11)]
SHIFTS = [float(pixels) for pixels in (0, 1, -1, 5, -7, 13, 31, -32, 40, 225, -225)]
VALUES: dict[str, list[float]] = {
    "AutoContrast": [0.0],
    "Equalize": [0.0],
    "Invert": [0.0],
    "Posterize": [float(bits) for bits in range(1, 9)],
    "Solarize": [float(threshold) for threshold in (0, 1, 25, 76, 128, 230, 255, 256)],
    "Color": FACTORS,
    "Contrast": FACTORS,
    "Brightness": FACTORS,
    "Sharpness": FACTORS,
    "Rotate": [*(1.5 * step for step in range(-20, 21)), 45.0, 90.0, -90.0, 180.0],
    "ShearX": SLOPES,
    "ShearY": SLOPES,
    "TranslateX": SHIFTS,
    "TranslateY": SHIFTS,
}


@functools.cache
def batches() -> tuple[np.ndarray, ...]:
    """Noise, photographs, digits and corner cases, of 1 and 3 channels."""
    rng = np.random.default_rng(0)
    photograph = load_sample_image("china.jpg")
    patches = [
        photograph[row : row + 32, column : column + 32]
        for row, column in zip(rng.integers(0, 395, 12), rng.integers(0, 608, 12), strict=True)
    ]
    digits = (load_digits().images[:6, :, :, None] * 15).astype(np.uint8)
    flat = np.zeros((2, 6, 5, 3), np.uint8)
    flat[1] = 255
    return (
        rng.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8),
        rng.integers(60, 200, (4, 17, 23, 1)).astype(np.uint8),
        (rng.integers(0, 3, (6, 5, 4, 3)) * 100).astype(np.uint8),
        rng.integers(0, 256, (3, 2, 2, 3)).astype(np.uint8),
        rng.integers(0, 256, (3, 1, 1, 1)).astype(np.uint8),
        np.stack(patches),
        photograph[None, 100:324, 100:340],
        load_sample_image("flower.jpg")[None, ::3, ::3],
        digits,
        flat,
    )


def pillow(image: np.ndarray) -> Picture:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def expected(name: str, images: np.ndarray, values: list[float]) -> np.ndarray:
    results = [
        np.asarray(PILLOW[name](pillow(image), value)).reshape(image.shape)
        for image, value in zip(images, values, strict=True)
    ]
    return np.stack(results)


@pytest.mark.parametrize("name", list(PILLOW))
def test_an_operation_gives_pillows_pixels(name: str) -> None:
    for images in batches():
        for start in range(0, len(VALUES[name]), len(images)):
            # Each image with a value of its own, so that none may get its neighbor's.
            values = np.resize(np.roll(VALUES[name], -start), len(images)).tolist()
            before = images.copy()
            found = OPERATIONS[name](images, np.array(values))
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected(name, images, values))
            np.testing.assert_array_equal(images, before)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(PILLOW)),
    images=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])).flatmap(
        lambda shape: arrays(np.uint8, (2, *shape))
    ),
    share=st.floats(0, 1),
)
def test_any_image_and_any_value(name: str, images: np.ndarray, share: float) -> None:
    low, high = min(VALUES[name]), max(VALUES[name])
    value = low + share * (high - low)
    if name in ("Posterize", "Solarize", "TranslateX", "TranslateY"):
        value = float(round(value))
    found = OPERATIONS[name](images, np.full(2, value))
    np.testing.assert_array_equal(found, expected(name, images, [value] * 2))


def test_solarize_add_is_its_definition() -> None:
    images = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (3, 1, 1, 3))
    found = solarize_add(images, np.array([0, 33, 110]))
    for image, result, addition in zip(images, found, (0, 33, 110), strict=True):
        wanted = [min(255, x + addition) if x < 128 else x for x in image.ravel().tolist()]
        assert result.ravel().tolist() == wanted


def test_cutout_is_a_gray_square() -> None:
    images = np.zeros((2, 6, 6, 3), np.uint8)
    found = cutout_gray(images, np.array([2.0, 4.0]), np.array([3, 0]), np.array([3, 5]))
    first, second = (np.argwhere(image[..., 0] == 128).tolist() for image in found)
    assert first == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert second == [[row, column] for row in (0, 1) for column in (3, 4, 5)]
    assert set(np.unique(found)) == {0, 128}


def test_images_that_are_not_contiguous() -> None:
    images = batches()[5][:, ::-1, ::2]
    for name in PILLOW:
        values = [VALUES[name][0]] * len(images)
        found = OPERATIONS[name](images, np.array(values))
        np.testing.assert_array_equal(found, expected(name, images.copy(), values))
