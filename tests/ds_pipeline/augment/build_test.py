"""The augmentations by name: order, purity, and what is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import Batch, DataError
from ds_pipeline.augment import (
    BATCH_LEVEL,
    IMAGE_LEVEL,
    Augment,
    basic,
    chain,
    get_augment,
    get_erase,
    get_mix,
)
from ds_pipeline.augment.crops import random_flip
from ds_pipeline.augment.keras import keras
from ds_pipeline.augment.kinds import in_slices
from ds_pipeline.augment.policy import autoaugment, randaugment

UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
MEAN = np.array([120.4, 99.5, 3.0])
ON_PIXELS = tuple(name for name in IMAGE_LEVEL if name not in ("none", "inception"))


def batch_of(images: np.ndarray) -> Batch:
    return {"input": images, "label": np.zeros(len(images), np.int32)}


def noise(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape)).astype(np.uint8)


def steps_of(image_level: str, batch_level: str = "none") -> Augment:
    shape = (12, 12, 3)
    steps = [
        get_augment(image_level, shape=shape, dtype=UINT8),
        get_erase(batch_level, shape=shape, mean=MEAN, dtype=UINT8, cutout_size=4),
    ]
    found = chain([step for step in steps if step is not None])
    assert found is not None
    return found


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(ON_PIXELS),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
    indices=st.lists(st.integers(0, 10**7), min_size=2, max_size=12, unique=True),
)
def test_an_example_depends_on_seed_epoch_and_index_only(
    name: str, seed: int, epoch: int, indices: list[int]
) -> None:
    augment = steps_of(name, "cutout")
    places = np.array(indices)
    images = noise(len(places), (12, 12, 3))
    together = augment(batch_of(images), seed, epoch, places)["input"]
    back = slice(None, None, -1)
    reversed_ = augment(batch_of(images[back]), seed, epoch, places[back])
    np.testing.assert_array_equal(together[back], reversed_["input"])
    alone = augment(batch_of(images[:1]), seed, epoch, places[:1])
    np.testing.assert_array_equal(together[:1], alone["input"])


@pytest.mark.parametrize("name", ON_PIXELS)
def test_seed_epoch_and_index_matter(name: str) -> None:
    augment, images = steps_of(name), batch_of(noise(60, (12, 12, 3)))
    found = [
        augment(images, seed, epoch, np.arange(first, first + 60))["input"]
        for seed, epoch, first in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 60))
    ]
    assert all((found[0] != other).any() for other in found[1:])
    assert found[0].dtype == np.uint8 and found[0].shape == (60, 12, 12, 3)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_a_large_block_is_made_of_small_ones(name: str) -> None:
    shape = (32, 32, 3)
    augment = get_augment(name, shape=shape, dtype=UINT8)
    assert augment is not None
    images, indices = noise(600, shape), np.random.default_rng(0).permutation(600)
    whole = augment(batch_of(images), 1, 2, indices)
    assert set(whole) == {"input", "label"}
    for start in (0, 40, 250, 599):
        part = slice(start, start + 7)
        small = augment(batch_of(images[part]), 1, 2, indices[part])["input"]
        np.testing.assert_array_equal(whole["input"][part], small)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("basic", lambda s: [basic(s, 2)]),
        ("autoaugment", lambda s: [autoaugment(s, "svhn"), basic(s, 2)]),
        ("aa-only", lambda s: [autoaugment(s, "svhn")]),
        ("randaugment", lambda s: [randaugment(s, 1, 5.0), random_flip]),
        ("keras", lambda s: [keras(s)]),
    ],
)
def test_the_order_of_the_steps(name: str, steps: Any) -> None:
    shape = (12, 12, 3)
    found = get_augment(
        name,
        shape=shape,
        dtype=UINT8,
        policy="svhn",
        padding=2,
        randaugment_layers=1,
        randaugment_magnitude=5.0,
    )
    expected = chain(steps(shape))
    assert found is not None and expected is not None
    batch, indices = batch_of(noise(80, shape)), np.arange(80)
    np.testing.assert_array_equal(
        found(batch, 0, 0, indices)["input"], expected(batch, 0, 0, indices)["input"]
    )


def test_slices_hold_entire_images_however_large() -> None:
    def add_index(batch: Batch, seed: int, epoch: int, indices: np.ndarray) -> Batch:
        assert len(indices) == 1
        return {**batch, "input": batch["input"] + indices[:, None].astype(np.uint8)}

    found = in_slices(add_index)({"input": np.zeros((3, 10**6), np.uint8)}, 0, 0, np.arange(3))
    assert found["input"][:, -1].tolist() == [0, 1, 2]


def test_what_belongs_to_each_batch_level() -> None:
    keys: dict[str, Any] = {"shape": (12, 12, 3), "mean": MEAN, "dtype": UINT8, "cutout_size": 4}
    erases = {name for name in BATCH_LEVEL if get_erase(name, **keys) is not None}
    mixes = {name for name in BATCH_LEVEL if get_mix(name, num_classes=3) is not None}
    assert erases == {"cutout", "mixcut"}
    assert mixes == {"mixup", "mixcut", "cutmix"}


def test_mixcut_erases_the_mixed_floats_with_the_exact_mean() -> None:
    shape = (12, 12, 3)
    mix = get_mix("mixcut", num_classes=3, shape=shape)
    erase = get_erase("mixcut", shape=shape, mean=MEAN, dtype=UINT8, cutout_size=4)
    assert mix is not None and erase is not None
    batch = {**batch_of(noise(20, shape)), "label": np.arange(20) % 3}
    mixed = mix(batch, {key: value[::-1] for key, value in batch.items()}, 0, 0)
    found = erase(mixed, 0, 0, np.arange(20))
    assert found["input"].dtype == np.float32
    holes = (found["input"] == MEAN.astype(np.float32)).all(axis=-1)
    assert (holes.sum(axis=(1, 2)) >= 4).all() and (holes.sum(axis=(1, 2)) <= 16).all()
    np.testing.assert_array_equal(found["input"][~holes], mixed["input"][~holes])
    assert found["label"].shape == (20, 3)


def test_images_of_one_channel() -> None:
    for name in ON_PIXELS:
        augment = get_augment(name, shape=(28, 28, 1), dtype=UINT8)
        assert augment is not None
        found = augment(batch_of(noise(100, (28, 28, 1))), 0, 0, np.arange(100))["input"]
        assert found.shape == (100, 28, 28, 1)


def refusal(call: Any, *args: Any, **keys: Any) -> str:
    with pytest.raises(DataError) as raised:
        call(*args, **keys)
    message = str(raised.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "keys", "message"),
    [
        ("basik", (8, 8, 3), UINT8, {}, "did you mean 'basic'"),
        ("autoagument", (8, 8, 3), UINT8, {}, "did you mean 'autoaugment'"),
        ("basic", (4, 8, 3), UINT8, {}, "at least 5 x 5"),
        ("autoaugment", (8, 3, 3), UINT8, {}, "at least 5 x 5"),
        ("inception", (32, 32, 3), UINT8, {}, "is for encoded photographs"),
        ("autoaugment", (8, 8, 3), FLOAT32, {}, "uint8 images of 1 or 3 channels"),
        ("aa-only", (8, 8, 1), FLOAT32, {}, "these are float32"),
        ("randaugment", (8, 8, 4), UINT8, {}, "these are uint8 of 4"),
        ("keras", (8, 8, 5), UINT8, {}, "up to 4 channels, these have 5"),
        ("aa-only", (8, 8, 3), UINT8, {"policy": "cifr"}, "did you mean 'cifar'"),
        *((name, (13,), FLOAT32, {}, "is for images") for name in IMAGE_LEVEL[1:]),
        *((name, (500, 1), FLOAT32, {}, "is for images") for name in IMAGE_LEVEL[1:]),
    ],
)
def test_image_levels_that_cannot_be(
    name: str, shape: tuple[int, ...], dtype: np.dtype, keys: dict[str, Any], message: str
) -> None:
    assert message in refusal(get_augment, name, shape=shape, dtype=dtype, **keys)


@pytest.mark.parametrize(
    ("name", "shape", "size", "message"),
    [
        ("cuttout", (8, 8, 3), 4, "did you mean 'cutout'"),
        ("cutout", (8, 8, 3), 16, "use one below 8"),
        ("mixcut", (8, 8, 3), 15, "use one below 8"),
        ("cutout", (13,), 4, "is for images"),
        ("mixcut", (500, 1), 4, "is for images"),
    ],
)
def test_erasing_that_cannot_be(name: str, shape: tuple[int, ...], size: int, message: str) -> None:
    keys: dict[str, Any] = {"shape": shape, "mean": MEAN, "dtype": UINT8, "cutout_size": size}
    assert message in refusal(get_erase, name, **keys)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("mixip", {"num_classes": 3}, "did you mean 'mixup'"),
        ("mixup", {"num_classes": 1}, "no classes"),
        ("cutmix", {"num_classes": 3, "shape": (13,)}, "is for images"),
        ("mixcut", {"num_classes": 3, "shape": (500, 1)}, "is for images"),
    ],
)
def test_mixing_that_cannot_be(name: str, keys: dict[str, Any], message: str) -> None:
    assert message in refusal(get_mix, name, **keys)


def test_mixup_is_for_any_classification() -> None:
    assert get_mix("mixup", num_classes=2, shape=(13,)) is not None
