"""The order, the shares, resuming, padding, and clean ends."""

import dataclasses
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import DataError, Dataset, evaluation_batches, train_batches
from ds_pipeline.augment import get_augment
from ds_pipeline.dataset import from_arrays
from ds_pipeline.loader import epoch_order


def numbered(count: int, augmented: bool = False) -> Dataset:
    """Example i has the label i."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    augment = get_augment(
        "basic",
        "cutout",
        shape=(8, 8, 1),
        mean=np.zeros(1),
        dtype=images.dtype,
        cutout_size=3,
    )
    arrays = (images, np.arange(count))
    return from_arrays("numbered", arrays, arrays, augment if augmented else None)


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


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [
        epoch_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_order(50, 0, 0).tolist()


@pytest.mark.parametrize("start", [1, 6, 7, 11, 20])
def test_resuming_gives_the_tail(start: int) -> None:
    data = numbered(23, augmented=True)
    whole = list(train_batches(data, 3, 5, 0, 20))
    tail = list(train_batches(data, 3, 5, start, 20))
    assert len(whole) == 20 and len(tail) == 20 - start
    for expected, found in zip(whole[start:], tail, strict=True):
        np.testing.assert_array_equal(found["image"], expected["image"])
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
        for key in ("image", "label"):
            found = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(found, expected[key])


def test_augmentation_changes_with_the_epoch_and_not_with_the_place() -> None:
    data = numbered(6, augmented=True)
    batches = list(train_batches(data, 6, 0, 0, 2))
    by_label = [
        {int(n): batch["image"][i] for i, n in enumerate(batch["label"])} for batch in batches
    ]
    assert any((by_label[0][n] != by_label[1][n]).any() for n in range(6))
    # Another batch size puts the same examples elsewhere; epoch 0 has the same images.
    small = list(train_batches(data, 2, 0, 0, 3))
    for batch in small:
        for label, image in zip(batch["label"], batch["image"], strict=True):
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
            assert len(batch["label"]) == len(batch["image"]) == batch_size // 2
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


def test_an_error_while_reading_reaches_the_consumer() -> None:
    data = numbered(10)

    class Broken:
        reads = 0

        def __len__(self) -> int:
            return 10

        def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
            if 7 in indices:
                raise DataError("example 7 is damaged")
            return data.train.batch(indices)

    broken = dataclasses.replace(data, train=Broken())
    with pytest.raises(DataError, match="example 7 is damaged"):
        list(train_batches(broken, 1, 0, 0, 10))
    assert_no_reading_threads()


def test_closing_stops_the_threads() -> None:
    batches = train_batches(numbered(10), 2, 0, 0, 1000)
    next(batches)
    batches.close()
    assert_no_reading_threads()


def assert_no_reading_threads() -> None:
    for _ in range(500):
        names = [thread.name for thread in threading.enumerate()]
        if not any("grain-prefetch" in name for name in names):
            return
        time.sleep(0.01)
    raise AssertionError(f"threads are left: {names}")


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "raise KeyError('x')", "import os"])
def test_a_process_ends_with_batches_left(ending: str) -> None:
    program = (
        "import numpy as np\n"
        "from ds_pipeline import train_batches\n"
        "from ds_pipeline.dataset import from_arrays\n"
        "arrays = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)\n"
        "batches = train_batches(from_arrays('x', arrays, arrays), 2, 0, 0, 10**9)\n"
        "next(batches)\n"
        f"{ending}\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    expected = {"raise SystemExit(3)": 3, "raise KeyError('x')": 1, "import os": 0}[ending]
    assert result.returncode == expected, result.stderr
