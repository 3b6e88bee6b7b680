"""Batches: every example once, resuming, shares of processes, mixing, padding, bad arguments."""

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import DataError, Dataset, evaluation_batches, order, train_batches
from ds_pipeline.augment import basic, chain, cutout
from ds_pipeline.dataset import from_arrays
from ds_pipeline.order import epoch_order
from ds_pipeline.source import Batch, Indices


def numbered(count: int, augmented: bool = False) -> Dataset:
    """Example i has the label i."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    augment = chain([basic((8, 8, 1)), cutout((8, 8, 1), 3, np.zeros(1), images.dtype)])
    arrays = (images, np.arange(count))
    return from_arrays("numbered", arrays, arrays, augment if augmented else None)


def mixed(count: int, workers: int = 0) -> Dataset:
    """With all that may change a batch."""
    return dataclasses.replace(
        numbered(count), augment=basic((8, 8, 1)), mix=blend(count), erase=dim, workers=workers
    )


def blend(classes: int) -> Any:
    def mix(batch: Batch, partners: Batch, seed: int, step: int) -> Batch:
        weight = np.random.default_rng((seed, step)).uniform(0.5, 1)
        inputs = weight * batch["input"] + (1 - weight) * partners["input"]
        label = weight * np.eye(classes)[batch["label"]]
        label += (1 - weight) * np.eye(classes)[partners["label"]]
        return {"input": inputs.astype(np.float32), "label": label.astype(np.float32)}

    return mix


def dim(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
    """Each example by a factor of its own."""
    factors = ((indices + 1000 * epoch + seed) % 17 / 17).astype(np.float32)
    return {**batch, "input": batch["input"] * factors[:, None, None, None]}


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert type(one[key]) is np.ndarray and one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


def counted(data: Dataset) -> tuple[Dataset, list[Indices]]:
    """The same data, and the indices of each read."""
    reads: list[Indices] = []

    class Counting:
        def __len__(self) -> int:
            return len(data.train)

        def batch(self, indices: Indices) -> Batch:
            reads.append(indices)
            return data.train.batch(indices)

        def labels(self) -> np.ndarray:
            return data.train.labels()

    return dataclasses.replace(data, train=Counting()), reads


def labels_of(data: Dataset, *args: Any, **kwargs: Any) -> list[list[int]]:
    return [batch["label"].tolist() for batch in train_batches(data, *args, **kwargs)]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 40), seed=st.integers(0, 1000))
def test_an_epoch_holds_every_example_once_up_to_the_remainder(
    count: int, batch_size: int, seed: int
) -> None:
    data = numbered(count)
    if batch_size > count:
        with pytest.raises(DataError, match="larger than the"):
            train_batches(data, batch_size, seed, 0, 1)
        return
    steps = count // batch_size
    batches = labels_of(data, batch_size, seed, 0, 2 * steps)
    for epoch in (0, 1):
        seen = [n for batch in batches[epoch * steps : (epoch + 1) * steps] for n in batch]
        assert len(seen) == steps * batch_size == len(set(seen))
        assert seen == epoch_order(count, seed, epoch)[: steps * batch_size].tolist()


@pytest.mark.parametrize("start", [1, 6, 7, 11, 20])
def test_resuming_gives_the_tail(start: int) -> None:
    data = numbered(23, augmented=True)
    whole = list(train_batches(data, 3, 5, 0, 20))
    tail = list(train_batches(data, 3, 5, start, 20))
    assert len(whole) == 20 and len(tail) == 20 - start
    for expected, found in zip(whole[start:], tail, strict=True):
        np.testing.assert_array_equal(found["input"], expected["input"])
        np.testing.assert_array_equal(found["label"], expected["label"])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batch(processes: int) -> None:
    data = numbered(30, augmented=True)
    whole = list(train_batches(data, 8, 1, 0, 5))
    shares = [
        list(train_batches(data, 8, 1, 0, 5, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    for step, expected in enumerate(whole):
        for key in ("input", "label"):
            found = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(found, expected[key])


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_mix_with_the_global_batch(processes: int) -> None:
    data = mixed(30)
    whole = list(train_batches(data, 12, 1, 0, 5))
    shares = [list(train_batches(data, 12, 1, 0, 5, i, processes)) for i in range(processes)]
    joined = [
        {key: np.concatenate([share[step][key] for share in shares]) for key in whole[0]}
        for step in range(5)
    ]
    assert_equal(joined, whole)


def test_the_partner_is_the_global_batch_read_backwards() -> None:
    count, batch_size, seed = 10, 5, 3
    plain = dataclasses.replace(numbered(count), augment=basic((8, 8, 1)))
    whole = dataclasses.replace(plain, mix=blend(count), erase=dim)
    pairs = zip(
        train_batches(plain, batch_size, seed, 0, 4),
        train_batches(whole, batch_size, seed, 0, 4),
        strict=True,
    )
    for step, (batch, found) in enumerate(pairs):
        back = {key: value[::-1] for key, value in batch.items()}
        expected = blend(count)(batch, back, seed, step)
        assert_equal([found], [dim(expected, seed, step // 2, batch["label"])])


def test_one_process_reads_nothing_twice() -> None:
    data, reads = counted(mixed(30))
    list(train_batches(data, 10, 0, 0, 3))
    assert sorted(np.concatenate(reads).tolist()) == list(range(30))


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("examples", [1, 7, 16, 10_000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, start: int, examples: int) -> None:
    data = mixed(23)
    expected = [batch for i in range(start, 60) for batch in train_batches(data, 2, 5, i, i + 1)]
    monkeypatch.setattr(order, "_BLOCK_EXAMPLES", examples)
    assert_equal(list(train_batches(data, 2, 5, start, 60)), expected)


def test_blocks_made_ahead_are_few() -> None:
    data, reads = counted(numbered(1000))
    batches = train_batches(data, 10, 0, 0, 10**9)
    next(batches)
    time.sleep(0.2)
    batches.close()
    assert len(reads) <= 4 and max(map(len, reads)) == 1000


def test_augmentation_changes_with_the_epoch_and_not_with_the_place() -> None:
    data = numbered(6, augmented=True)
    batches = list(train_batches(data, 6, 0, 0, 2))
    by_label = [
        {int(n): batch["input"][i] for i, n in enumerate(batch["label"])} for batch in batches
    ]
    assert any((by_label[0][n] != by_label[1][n]).any() for n in range(6))
    # Another batch size puts the same examples elsewhere; epoch 0 has the same images.
    small = list(train_batches(data, 2, 0, 0, 3))
    for batch in small:
        for label, image in zip(batch["label"], batch["input"], strict=True):
            np.testing.assert_array_equal(image, by_label[0][int(label)])


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 30), batch_size=st.sampled_from([2, 4, 6, 16, 64]))
def test_evaluation_counts_every_example_once(count: int, batch_size: int) -> None:
    source = numbered(count).evaluation
    shares = [list(evaluation_batches(source, batch_size, i, 2)) for i in range(2)]
    assert len(shares[0]) == len(shares[1]) == -(-count // batch_size)
    seen: list[int] = []
    for left, right in zip(*shares, strict=True):
        for batch in (left, right):
            assert len(batch["label"]) == len(batch["input"]) == batch_size // 2
            assert batch["mask"].dtype == np.float32
            seen += batch["label"][batch["mask"] == 1].tolist()
    assert sum(float(b["mask"].sum()) for share in shares for b in share) == count
    assert seen == list(range(count))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 11}, "batch_size 11 is larger than the 10 training examples"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"batch_size": 3, "process_count": 2}, "does not divide among 2 processes"),
        ({"seed": -1}, "seed -1"),
        ({"process_index": 1}, "process_index 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: dict[str, int], message: str) -> None:
    defaults = {"batch_size": 4, "seed": 0, "start_step": 0, "total_steps": 1}
    with pytest.raises(DataError, match=message) as raised:
        train_batches(numbered(10), **{**defaults, **arguments})
    assert "\n" not in str(raised.value)


def test_nothing_is_left_to_do() -> None:
    assert labels_of(numbered(10), 5, 0, 4, 4) == []
