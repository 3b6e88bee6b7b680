"""Augmentation against slow loops over its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import Batch, DataError
from ds_pipeline.augment import (
    basic,
    below,
    cutout,
    erased,
    get_augment,
    random_bits,
    shifted_crop,
)

UINT8 = np.dtype(np.uint8)
MEAN = np.array([120.4, 99.5, 3.0])


def batch_of(images: np.ndarray) -> Batch:
    return {"image": images, "label": np.zeros(len(images), np.int32)}


def images_of(count: int, height: int, width: int, channels: int, dtype: type) -> np.ndarray:
    rng = np.random.default_rng(count + height)
    return rng.integers(0, 256, (count, height, width, channels)).astype(dtype)


def slow_crop(image: np.ndarray, top: int, left: int, flip: bool, pad: int) -> np.ndarray:
    image = image[:, ::-1] if flip else image
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(8, 8, 1), (6, 9, 3), (5, 5, 4)])
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


@pytest.mark.parametrize("size", [1, 3, 4, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_erased_square_is_where_its_definition_says(size: int, dtype: type) -> None:
    height, width = 6, 7
    centres = [(row, column) for row in range(height) for column in range(width)]
    images = images_of(len(centres), height, width, 3, dtype)
    rows, columns = (np.array(values) for values in zip(*centres, strict=True))
    found = erased(images, rows, columns, size, MEAN)
    for image, result, (row, column) in zip(images, found, centres, strict=True):
        expected = image.copy()
        for y in range(height):
            for x in range(width):
                inside_y = row - size // 2 <= y < row - size // 2 + size
                inside_x = column - size // 2 <= x < column - size // 2 + size
                if inside_y and inside_x:
                    expected[y, x] = MEAN.astype(dtype)
        np.testing.assert_array_equal(result, expected)


def test_basic_draws_every_window_and_flip_about_equally_often() -> None:
    count = 9 * 9 * 2 * 100
    # The pixel's value tells where it came from: (row, column) in an image without symmetry.
    image = np.arange(144, dtype=np.uint8).reshape(1, 12, 12, 1)
    batch = batch_of(np.repeat(image, count, axis=0))
    found = basic((12, 12, 1))(batch, 3, 1, np.arange(count))["image"]
    _, frequencies = np.unique(found.reshape(count, -1), axis=0, return_counts=True)
    assert len(frequencies) == 162
    assert 60 < frequencies.min() <= frequencies.max() < 150


def test_cutout_fills_with_the_mean_at_every_place() -> None:
    count, size = 2000, 4
    batch = batch_of(np.full((count, 8, 8, 3), 255, np.uint8))
    augment = cutout((8, 8, 3), size, MEAN, UINT8)
    found = augment(batch, 0, 0, np.arange(count))["image"]
    assert {tuple(pixel) for pixel in found.reshape(-1, 3).tolist()} == {
        (255, 255, 255),
        (120, 100, 3),
    }
    erased_share = (found[..., 0] == 120).mean(axis=0)
    # A row is hit by the centres from one above it to two below it, as far as there are any.
    centres = np.array([3, 4, 4, 4, 4, 4, 3, 2])
    np.testing.assert_allclose(erased_share, np.outer(centres, centres) / 64, atol=0.05)
    assert (batch["image"] == 255).all()


def test_float_images_are_filled_with_the_exact_mean() -> None:
    batch = batch_of(np.zeros((50, 8, 8, 3), np.float32))
    augment = cutout((8, 8, 3), 4, MEAN, np.dtype(np.float32))
    found = augment(batch, 0, 0, np.arange(50))["image"]
    np.testing.assert_array_equal(found.max(axis=(0, 1, 2)), MEAN.astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
    indices=st.lists(st.integers(0, 10**7), min_size=2, max_size=8, unique=True),
)
def test_an_example_depends_on_seed_epoch_and_index_only(
    seed: int, epoch: int, indices: list[int]
) -> None:
    augment = get_augment("basic", "cutout", shape=(8, 8, 3), mean=MEAN, dtype=UINT8, cutout_size=4)
    assert augment is not None
    places = np.array(indices)
    images = images_of(len(places), 8, 8, 3, np.uint8)
    together = augment(batch_of(images), seed, epoch, places)["image"]
    back = slice(None, None, -1)
    reversed_ = augment(batch_of(images[back]), seed, epoch, places[back])
    np.testing.assert_array_equal(together[back], reversed_["image"])
    alone = augment(batch_of(images[:1]), seed, epoch, places[:1])
    np.testing.assert_array_equal(together[:1], alone["image"])


def test_seed_epoch_index_and_tag_all_matter() -> None:
    indices = np.arange(100)
    streams = [
        random_bits(1, 0, 0, indices, 2),
        random_bits(2, 0, 0, indices, 2),
        random_bits(1, 1, 0, indices, 2),
        random_bits(1, 0, 1, indices, 2),
        random_bits(1, 0, 0, indices + 100, 2),
    ]
    words = np.concatenate([stream.ravel() for stream in streams])
    assert len(np.unique(words)) == len(words)


def test_random_integers_are_uniform() -> None:
    values = below(random_bits(7, 0, 0, np.arange(90_000), 1)[0], 9)
    counts = np.bincount(values, minlength=9)
    # 10,000 each, with a deviation of 94.
    assert len(counts) == 9 and (abs(counts - 10_000) < 500).all()


@pytest.mark.parametrize(
    ("image_level", "batch_level", "shape", "size", "message"),
    [
        ("basik", "none", (8, 8, 3), 4, "did you mean 'basic'"),
        ("none", "cut", (8, 8, 3), 4, "did you mean 'cutout'"),
        ("basic", "none", (4, 8, 3), 4, "at least 5 x 5"),
        ("none", "cutout", (8, 8, 3), 16, "use one below 8"),
        ("none", "cutout", (8, 8, 3), 15, "use one below 8"),
    ],
)
def test_what_cannot_be_done_is_a_line(
    image_level: str, batch_level: str, shape: tuple[int, int, int], size: int, message: str
) -> None:
    with pytest.raises(DataError, match=message) as raised:
        get_augment(image_level, batch_level, shape=shape, mean=MEAN, dtype=UINT8, cutout_size=size)
    assert "\n" not in str(raised.value)
