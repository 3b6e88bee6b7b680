"""The composed warp against scipy's interpolation in float64, and its distributions."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from ds_pipeline.augment import keras as module
from ds_pipeline.augment.keras import keras, warped


def reference(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bilinear, mirrored at the edge, in float64."""
    height, width, channels = image.shape
    y, x = np.mgrid[:height, :width]
    places = [row[0] * x + row[1] * y + row[2] for row in matrix[::-1]]
    layers = [
        map_coordinates(image[..., c].astype(np.float64), places, order=1, mode="reflect")
        for c in range(channels)
    ]
    return np.stack(layers, axis=-1)


@pytest.mark.parametrize("shape", [(32, 32, 3), (20, 31, 1), (9, 9, 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.uint8, 0.51), (np.float32, 0.01)])
def test_pixels_are_those_of_a_float64_warp(
    shape: tuple[int, int, int], dtype: type, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, *shape)).astype(dtype)
    matrices: list[np.ndarray] = []

    def keep(images: np.ndarray, given: np.ndarray) -> np.ndarray:
        matrices.extend(given)
        return warped(images, given)

    monkeypatch.setattr(module, "warped", keep)
    batch = {"input": images, "label": np.zeros(12, np.int32)}
    found = keras(shape)(batch, 0, 0, np.arange(12))["input"]
    assert found.dtype == dtype
    for image, result, matrix in zip(images, found, matrices, strict=True):
        np.testing.assert_allclose(result, reference(image, matrix), atol=tolerance, rtol=0)


def drawn(shape: tuple[int, int, int], count: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    kept: list[np.ndarray] = []

    def keep(images: np.ndarray, matrices: np.ndarray) -> np.ndarray:
        kept.append(matrices)
        return images

    monkeypatch.setattr(module, "warped", keep)
    keras(shape)({"input": np.zeros((count, 1, 1, 1))}, 0, 0, np.arange(count))
    return kept[0]


def test_flips_angles_and_zooms_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = drawn((10, 20, 3), 20_000, monkeypatch)
    linear = matrices[:, :, :2]
    determinant = np.linalg.det(linear)
    zoom = np.sqrt(np.abs(determinant))
    assert zoom.min() >= 0.8 and zoom.max() <= 1.2
    assert np.histogram(zoom, bins=8, range=(0.8, 1.2))[0].min() > 2300
    # Up to 108 degrees; a turn by 180 more is both mirrors.
    assert 0.48 < (determinant < 0).mean() < 0.52
    plain = matrices[determinant > 0]
    angle = np.degrees(np.arctan2(plain[:, 1, 0], plain[:, 0, 0]))
    # Not mirrored at all: 20 degrees; mirrored twice: 200 and more. Both meet in 72 to 108.
    middle = np.abs(angle) < 72
    assert abs(middle.mean() - 1 / 3) < 0.03
    # A similarity: the rows are at right angles.
    np.testing.assert_allclose((linear[:, 0] * linear[:, 1]).sum(axis=-1), 0, atol=1e-12)


def test_the_center_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = drawn((10, 21, 3), 100, monkeypatch)
    moved = matrices @ np.array([10.0, 4.5, 1.0])
    np.testing.assert_allclose(moved, np.tile([10.0, 4.5], (100, 1)), atol=1e-12)


def test_known_turns() -> None:
    image = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    quarter = module._matrices(3, 3, *(np.array([v]) for v in (1.0, 1.0, np.pi / 2, 1.0)))
    mirror = module._matrices(3, 3, *(np.array([v]) for v in (-1.0, 1.0, 0.0, 1.0)))
    upside = module._matrices(3, 3, *(np.array([v]) for v in (1.0, -1.0, 0.0, 1.0)))
    turned = warped(image[None], quarter)[0]
    assert any(np.allclose(turned, np.rot90(image, k), atol=1e-4) for k in (1, 3))
    np.testing.assert_allclose(warped(image[None], mirror)[0], image[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(warped(image[None], upside)[0], image[::-1], atol=1e-4)
