"""Mixup and CutMix against their formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import Batch, DataError
from ds_pipeline.augment.mix import _rectangle, cutmix, mixup


def batches(count: int, shape: tuple[int, ...], classes: int) -> tuple[Batch, Batch]:
    rng = np.random.default_rng(count)
    first, second = (
        {
            "input": rng.integers(0, 256, (count, *shape)).astype(np.uint8),
            "label": rng.integers(0, classes, count).astype(np.int32),
        }
        for _ in range(2)
    )
    return first, second


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**7),
    alpha=st.floats(0.1, 10),
    shape=st.sampled_from([(8, 8, 3), (7, 5, 1), (13,), (20, 2)]),
)
def test_mixup_is_its_formula(seed: int, step: int, alpha: float, shape: tuple[int, ...]) -> None:
    batch, partners = batches(6, shape, 4)
    mixed = mixup(4, alpha)(batch, partners, seed, step)
    assert mixed["input"].dtype == mixed["label"].dtype == np.float32
    one_hot = np.eye(4)
    np.testing.assert_array_equal(mixed["label"].sum(axis=1), 1)
    differ = batch["label"] != partners["label"]
    weight = mixed["label"][np.flatnonzero(differ)[0], batch["label"][differ][0]]
    assert 0.5 <= weight <= 1
    np.testing.assert_allclose(
        mixed["label"],
        weight * one_hot[batch["label"]] + (1 - weight) * one_hot[partners["label"]],
        atol=1e-6,
    )
    expected = weight * batch["input"].astype(float) + (1 - weight) * partners["input"]
    np.testing.assert_allclose(mixed["input"], expected, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**7),
    alpha=st.floats(0.1, 10),
    shape=st.sampled_from([(8, 8, 3), (7, 5, 1), (1, 9, 3)]),
)
def test_cutmix_labels_weigh_the_pixels(
    seed: int, step: int, alpha: float, shape: tuple[int, ...]
) -> None:
    batch, partners = batches(5, shape, 4)
    # No pixel of one is a pixel of the other.
    batch["input"] |= 1
    partners["input"] &= 254
    mixed = cutmix(4, alpha)(batch, partners, seed, step)
    assert mixed["input"].dtype == np.uint8 and mixed["label"].dtype == np.float32
    np.testing.assert_array_equal(mixed["label"].sum(axis=1), 1)
    own = (mixed["input"] == batch["input"]).all(axis=-1)
    other = (mixed["input"] == partners["input"]).all(axis=-1)
    assert (own ^ other).all() and (own == own[:1]).all()
    # The partner's part is one rectangle.
    assert other[0].sum() == other[0].any(axis=1).sum() * other[0].any(axis=0).sum()
    share = own[0].mean()
    one_hot = np.eye(4)
    expected = share * one_hot[batch["label"]] + (1 - share) * one_hot[partners["label"]]
    np.testing.assert_allclose(mixed["label"], expected, atol=1e-6)


def test_float_images_stay_float_in_cutmix() -> None:
    batch, partners = batches(3, (6, 6, 1), 4)
    floats = [{**each, "input": each["input"].astype(np.float32)} for each in (batch, partners)]
    assert cutmix(4)(*floats, 0, 0)["input"].dtype == np.float32


def test_the_old_batches_stay() -> None:
    for make in (mixup, cutmix):
        batch, partners = batches(3, (6, 6, 1), 4)
        before = {key: value.copy() for key, value in batch.items()}
        make(4)(batch, partners, 0, 1)
        for key, value in before.items():
            np.testing.assert_array_equal(batch[key], value)


def test_mixups_weight_follows_the_beta_distribution() -> None:
    first = {"input": np.ones((1, 1, 1, 1), np.uint8), "label": np.array([0])}
    second = {"input": np.zeros((1, 1, 1, 1), np.uint8), "label": np.array([1])}
    uniform, steep = (
        [float(mixup(2, alpha)(first, second, 0, step)["input"].item()) for step in range(2000)]
        for alpha in (1.0, 0.2)
    )
    # max(v, 1 - v) of a uniform v is uniform in 0.5..1; a small alpha gives weights near 1.
    assert np.histogram(uniform, bins=5, range=(0.5, 1))[0].min() > 320
    assert np.mean(steep) > 0.88


def test_cutmixs_areas_and_centres_are_uniform() -> None:
    cut = np.array([_rectangle(100, 100, 1.0, 0, step) for step in range(2000)])
    height, width = cut[:, 1] - cut[:, 0], cut[:, 3] - cut[:, 2]
    assert (height >= 0).all() and (width >= 0).all() and cut.min() >= 0 and cut.max() <= 100
    # Those that no border has cut have the sides of an area drawn between 0 and 1.
    inside = (cut[:, 0] > 0) & (cut[:, 1] < 100) & (cut[:, 2] > 0) & (cut[:, 3] < 100)
    np.testing.assert_array_equal(height[inside], width[inside])
    # A pixel of the middle is hit more often than one of a corner.
    middle = ((cut[:, 0] <= 50) & (cut[:, 1] > 50) & (cut[:, 2] <= 50) & (cut[:, 3] > 50)).mean()
    corner = ((cut[:, 0] == 0) & (cut[:, 2] == 0) & (cut[:, 1] > 0) & (cut[:, 3] > 0)).mean()
    # The center is within side / 2 of it on both axes: mean of side**2, and of (side / 2)**2.
    assert abs(middle - 0.5) < 0.06 and abs(corner - 0.125) < 0.04


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_one_weight_from_seed_and_step(make: type) -> None:
    batch, partners = batches(6, (8, 8, 3), 4)
    mix = make(4)
    label = mix(batch, partners, 1, 2)["label"]
    np.testing.assert_array_equal(mix(batch, partners, 1, 2)["label"], label)
    assert (mix(batch, partners, 1, 3)["label"] != label).any()
    assert (mix(batch, partners, 2, 2)["label"] != label).any()
    # A part of the batch is mixed as in the whole: processes may take one each.
    half = [{key: value[3:] for key, value in each.items()} for each in (batch, partners)]
    for key, value in mix(*half, 1, 2).items():
        np.testing.assert_array_equal(value, mix(batch, partners, 1, 2)[key][3:])


def test_cutmix_refuses_what_is_no_image() -> None:
    batch, partners = batches(3, (13,), 4)
    with pytest.raises(DataError, match=r"these inputs are of shape \(13,\)"):
        cutmix(4)(batch, partners, 0, 0)
