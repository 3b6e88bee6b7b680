"""Crops and mirror images against slow loops over their definition."""

import numpy as np
import pytest

from ds_pipeline import Batch, DataError
from ds_pipeline.augment import basic, shifted_crop
from ds_pipeline.augment.crops import flipped, random_flip


def batch_of(images: np.ndarray) -> Batch:
    return {"input": images, "label": np.zeros(len(images), np.int32)}


def images_of(count: int, height: int, width: int, channels: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(count + height)
    return rng.integers(0, 256, (count, height, width, channels)).astype(dtype)


def slow_crop(image: np.ndarray, top: int, left: int, flip: bool, pad: int) -> np.ndarray:
    image = image[:, ::-1] if flip else image
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(8, 8, 1), (6, 9, 3), (5, 5, 4), (5, 7, 6)])
def test_every_crop_is_one_of_the_reflect_padded_image(
    shape: tuple[int, int, int], dtype: type
) -> None:
    pad = 4
    choices = [
        (top, left, flip)
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
        for flip in (False, True)
    ]
    images = images_of(len(choices), *shape, dtype)
    tops, lefts, flips = (np.array(values) for values in zip(*choices, strict=True))
    found = shifted_crop(images, tops, lefts, flips, pad)
    assert found.dtype == dtype
    for image, row, (top, left, flip) in zip(images, found, choices, strict=True):
        np.testing.assert_array_equal(row, slow_crop(image, top, left, flip, pad))


def test_crop_reads_images_that_are_not_contiguous() -> None:
    images = images_of(4, 8, 8, 3, np.uint8)[:, ::-1]
    zeros = np.zeros(4, np.int64)
    found = shifted_crop(images, zeros + 4, zeros + 4, np.zeros(4, bool), 4)
    np.testing.assert_array_equal(found, images)


def test_no_images_give_no_images() -> None:
    batch = batch_of(np.zeros((0, 8, 8, 3), np.uint8))
    found = basic((8, 8, 3))(batch, 0, 0, np.arange(0))
    assert found["input"].shape == (0, 8, 8, 3)


def test_the_old_images_stay() -> None:
    images = images_of(50, 8, 8, 3, np.uint8)
    before = images.copy()
    indices = np.arange(50)
    assert (basic((8, 8, 3))(batch_of(images), 0, 0, indices)["input"] != before).any()
    assert (random_flip(batch_of(images), 0, 0, indices)["input"] != before).any()
    np.testing.assert_array_equal(images, before)


def test_flipped_images_are_mirrored_and_the_others_are_not() -> None:
    images = images_of(20, 5, 6, 3, np.uint8)
    flip = np.arange(20) % 3 == 0
    expected = np.where(flip[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(flipped(images, flip), expected)


def test_half_of_the_images_are_flipped() -> None:
    images = np.tile(np.array([0, 1], np.uint8).reshape(1, 1, 2, 1), (10_000, 1, 1, 1))
    found = random_flip(batch_of(images), 0, 0, np.arange(10_000))["input"]
    assert 4800 < found[:, 0, 0, 0].sum() < 5200


def test_basic_draws_every_window_and_flip_about_equally_often() -> None:
    count = 9 * 9 * 2 * 100
    # The pixel's value tells where it came from: (row, column) in an image without symmetry.
    image = np.arange(144, dtype=np.uint8).reshape(1, 12, 12, 1)
    batch = batch_of(np.repeat(image, count, axis=0))
    found = basic((12, 12, 1))(batch, 3, 1, np.arange(count))["input"]
    _, frequencies = np.unique(found.reshape(count, -1), axis=0, return_counts=True)
    assert len(frequencies) == 162
    assert 60 < frequencies.min() <= frequencies.max() < 150


def test_images_too_small_to_be_padded_are_refused() -> None:
    with pytest.raises(DataError, match="at least 5 x 5"):
        basic((4, 8, 3))
