"""Cutout against a slow loop over its definition."""

import numpy as np
import pytest

from ds_pipeline import Batch, DataError
from ds_pipeline.augment import cutout, erased

UINT8 = np.dtype(np.uint8)
MEAN = np.array([120.4, 99.5, 3.0])


def batch_of(images: np.ndarray) -> Batch:
    return {"input": images, "label": np.zeros(len(images), np.int32)}


def slow_erased(
    image: np.ndarray, row: int, column: int, size: int, fill: np.ndarray
) -> np.ndarray:
    result = image.copy()
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            inside_y = row - size // 2 <= y < row - size // 2 + size
            inside_x = column - size // 2 <= x < column - size // 2 + size
            if inside_y and inside_x:
                result[y, x] = fill
    return result


@pytest.mark.parametrize("size", [1, 3, 4, 9])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_erased_square_is_where_its_definition_says(size: int, dtype: type) -> None:
    height, width = 6, 7
    centers = [(row, column) for row in range(height) for column in range(width)]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(centers), height, width, 3)).astype(dtype)
    rows, columns = (np.array(values) for values in zip(*centers, strict=True))
    found = erased(images, rows, columns, size, MEAN)
    for image, result, (row, column) in zip(images, found, centers, strict=True):
        expected = slow_erased(image, row, column, size, MEAN.astype(dtype))
        np.testing.assert_array_equal(result, expected)


def test_each_image_may_have_its_own_size() -> None:
    images = np.ones((4, 6, 6, 3), np.uint8)
    sizes, places = np.array([0, 1, 2, 5]), np.full(4, 2)
    found = erased(images, places, places, sizes, np.zeros(3))
    assert (found[..., 0] == 0).sum(axis=(1, 2)).tolist() == [0, 1, 4, 25]


def test_cutout_fills_with_the_mean_at_every_place() -> None:
    count, size = 2000, 4
    batch = batch_of(np.full((count, 8, 8, 3), 255, np.uint8))
    augment = cutout((8, 8, 3), size, MEAN, UINT8)
    found = augment(batch, 0, 0, np.arange(count))["input"]
    assert {tuple(pixel) for pixel in found.reshape(-1, 3).tolist()} == {
        (255, 255, 255),
        (120, 100, 3),
    }
    erased_share = (found[..., 0] == 120).mean(axis=0)
    # A row is hit by the centers from one above it to two below it, as far as there are any.
    centers = np.array([3, 4, 4, 4, 4, 4, 3, 2])
    np.testing.assert_allclose(erased_share, np.outer(centers, centers) / 64, atol=0.05)
    assert (batch["input"] == 255).all()


def test_float_images_are_filled_with_the_exact_mean() -> None:
    batch = batch_of(np.zeros((50, 8, 8, 3), np.float32))
    augment = cutout((8, 8, 3), 4, MEAN, np.dtype(np.float32))
    found = augment(batch, 0, 0, np.arange(50))["input"]
    np.testing.assert_array_equal(found.max(axis=(0, 1, 2)), MEAN.astype(np.float32))


@pytest.mark.parametrize("size", [15, 16])
def test_a_square_that_always_covers_all_is_refused(size: int) -> None:
    cutout((8, 8, 3), 14, MEAN, UINT8)
    with pytest.raises(DataError, match="use one below 8"):
        cutout((8, 8, 3), size, MEAN, UINT8)
