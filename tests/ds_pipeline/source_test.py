"""Sources, splits and statistics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import DataError, InMemorySource, SubsetSource
from ds_pipeline.source import channel_statistics, stratified_draw, stratified_split


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 100),
)
def test_split_is_disjoint_complete_and_stratified(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    size = round(len(labels) * fraction)
    if not 0 < size < len(labels):
        with pytest.raises(DataError, match="leaves one split empty"):
            stratified_split(labels, fraction, seed)
        return
    first, second = stratified_split(labels, fraction, seed)
    assert len(second) == size
    assert sorted([*first, *second]) == list(range(len(labels)))
    shares = np.bincount(labels[second], minlength=len(counts))
    assert (abs(shares - np.array(counts) * size / len(labels)) < 1.0001).all()


def test_split_depends_on_the_seed() -> None:
    labels = np.arange(100) % 10
    same, again, other = (stratified_split(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert same == again != other


def test_statistics_are_those_of_all_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 3, 2)).astype(np.uint8)
    images[..., 1] //= 3
    mean, std = channel_statistics(InMemorySource(images, np.zeros(2500, int)))
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2)), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float64


def test_statistics_far_from_zero_do_not_cancel() -> None:
    images = (1e6 + np.random.default_rng(0).normal(size=(50, 4, 4, 1))).astype(np.float32)
    _, std = channel_statistics(InMemorySource(images, np.zeros(50, int)))
    np.testing.assert_allclose(std, images.astype(np.float64).std(axis=(0, 1, 2)), rtol=1e-5)


def test_subset_reads_through() -> None:
    source = InMemorySource(np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1), np.arange(10))
    subset = SubsetSource(source, np.array([7, 2, 5]))
    batch = subset.batch(np.array([2, 0]))
    assert len(subset) == 3
    assert batch["label"].tolist() == [5, 7]
    np.testing.assert_array_equal(batch["input"], source.inputs[[5, 7]])


def test_a_subset_of_a_subset_reads_the_whole() -> None:
    source = InMemorySource(np.zeros((10, 2), np.float32), np.arange(10))
    subset = SubsetSource(SubsetSource(source, np.array([7, 2, 5])), np.array([2, 0]))
    assert subset.source is source and subset.labels().tolist() == [5, 7]


def test_targets_of_a_regression_are_drawn_at_random() -> None:
    targets = np.random.default_rng(0).normal(size=200).astype(np.float32)
    source = InMemorySource(np.zeros((200, 2), np.float32), targets)
    assert source.labels().dtype == source.batch(np.arange(3))["label"].dtype == np.float32
    draws = [sorted(stratified_draw(targets, 50, (seed,)).tolist()) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 50
    # Not by their size, which would take 25 of the smaller half each time.
    low = targets < np.median(targets)
    counts = [low[stratified_draw(targets, 50, (seed,))].sum() for seed in range(20)]
    assert np.ptp(counts) > 4


def test_in_memory_batches_are_copies() -> None:
    source = InMemorySource(np.zeros((3, 2, 2, 1), np.uint8), np.arange(3))
    source.batch(np.arange(3))["input"][:] = 1
    assert source.inputs.max() == 0


def test_in_memory_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="3 inputs and 2 labels"):
        InMemorySource(np.zeros((3, 2, 2, 1), np.uint8), np.arange(2))
    with pytest.raises(DataError, match="at least one example"):
        InMemorySource(np.zeros((0, 2, 2, 1), np.uint8), np.arange(0))
