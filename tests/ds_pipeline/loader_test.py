"""The order, the shares, resuming, padding, workers, and clean ends."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import (
    DataError,
    Dataset,
    StalledError,
    evaluation_batches,
    loader,
    train_batches,
)
from ds_pipeline.augment import basic, chain, cutout
from ds_pipeline.dataset import from_arrays
from ds_pipeline.decode import DecodedSource
from ds_pipeline.loader import default_workers, epoch_order
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
    monkeypatch.setattr(loader, "_BLOCK_EXAMPLES", examples)
    assert_equal(list(train_batches(data, 2, 5, start, 60)), expected)


@settings(max_examples=100, deadline=None)
@given(
    start=st.integers(0, 40),
    length=st.integers(1, 40),
    epoch=st.integers(1, 12),
    size=st.integers(1, 15),
)
def test_blocks_hold_every_step_once(start: int, length: int, epoch: int, size: int) -> None:
    blocks = loader._Blocks(start, start + length, epoch, size)
    found = [blocks[i] for i in range(len(blocks))]
    steps = [step for block in found for step in range(*block)]
    assert steps == list(range(start, start + length))
    for first, last in found:
        assert 0 < last - first <= size and first // epoch == (last - 1) // epoch


@pytest.mark.parametrize(
    ("shape", "rows", "steps"),
    [
        ((32, 32, 3), 64, 16),
        ((8, 8, 1), 2000, 1),
        ((224, 224, 3), 64, 1),
        ((13,), 32, 32),
        ((), 1, 1024),
    ],
)
def test_a_block_is_large_for_small_examples_alone(
    shape: tuple[int, ...], rows: int, steps: int
) -> None:
    assert loader._block_steps(shape, rows) == steps


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


def test_an_error_while_reading_reaches_the_consumer() -> None:
    data = numbered(10)

    class Broken:
        reads = 0

        def __len__(self) -> int:
            return 10

        def batch(self, indices: Indices) -> Batch:
            if 7 in indices:
                raise DataError("example 7 is damaged")
            return data.train.batch(indices)

        def labels(self) -> np.ndarray:
            return data.train.labels()

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


@pytest.mark.slow
def test_workers_give_the_same_evaluation() -> None:
    source = numbered(23).evaluation
    expected = list(evaluation_batches(source, 4, 1, 2))
    assert_equal(list(evaluation_batches(source, 4, 1, 2, workers=2)), expected)


def broken(ending: str) -> Dataset:
    """Two workers, one of which meets its end at example 7."""
    data = numbered(10)

    class Broken:
        def __len__(self) -> int:
            return 10

        def batch(self, indices: Indices) -> Batch:
            if 7 in indices:
                if ending == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if ending == "damaged":
                    raise DataError("a.jpg is damaged")
                raise_odd_error()
            return data.train.batch(indices)

        def labels(self) -> np.ndarray:
            return data.train.labels()

    return dataclasses.replace(data, train=Broken(), workers=2)


def raise_odd_error() -> None:
    raise KeyError(lambda: "no pickle of this")


_KILLED = r"was killed \(exit code -9\); .* set dataset.workers to less"


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("damaged", DataError, "^a.jpg is damaged"),
        pytest.param("killed", DataError, _KILLED, marks=pytest.mark.slow),
        pytest.param("odd", RuntimeError, "^KeyError: ", marks=pytest.mark.slow),
    ],
)
def test_what_ends_a_worker_reaches_the_consumer(
    ending: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        list(train_batches(broken(ending), 1, 0, 0, 1000))
    assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()
    if ending == "odd":
        assert "in raise_odd_error" in shown(raised.value)


class WrongShape(Exception):
    """An error that pickle can send, and not load with its message alone."""

    def __init__(self, wanted: int, found: int) -> None:
        super().__init__(f"{found} instead of {wanted}")


def misspelled(image: np.ndarray) -> None:
    image.shpae  # type: ignore[attr-defined]  # noqa: B018


def exhausted(_: np.ndarray) -> None:
    next(iter(()))


def nested(image: np.ndarray) -> None:
    try:
        misspelled(image)
    except AttributeError as error:
        raise ValueError("no such image") from error


def of_a_class(_: np.ndarray) -> None:
    raise WrongShape(2, 3)


def leaving(_: np.ndarray) -> None:
    raise SystemExit(3)


def shown(error: BaseException) -> str:
    """Return what Python prints of an error that nobody catches."""
    return "".join(traceback.format_exception(error))


_BUGS = [
    (misspelled, AttributeError, "no attribute 'shpae'"),
    (exhausted, RuntimeError, "raised StopIteration"),
    (nested, ValueError, "no such image"),
]
_BUGS_IN_WORKERS = [
    *_BUGS,
    (of_a_class, RuntimeError, "WrongShape: 3 instead of 2"),
    (leaving, RuntimeError, "SystemExit: 3"),
]


@pytest.mark.parametrize(("bug", "error", "message"), _BUGS)
@pytest.mark.parametrize("place", ["augment", "batch"])
def test_a_bug_shows_its_own_traceback(
    place: str, bug: Any, error: type[Exception], message: str
) -> None:
    assert_shown(place, bug, error, message, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "error", "message"), _BUGS_IN_WORKERS)
def test_a_bug_in_a_worker_shows_its_own_traceback(
    bug: Any, error: type[Exception], message: str
) -> None:
    assert_shown("augment", bug, error, message, workers=2)


def test_a_bug_in_a_worker_is_not_told_as_damage() -> None:
    """One that is not slow: in reading and decoding."""
    assert_shown("batch", nested, ValueError, "no such image", workers=1)


def assert_shown(
    place: str, bug: Any, error: type[Exception], message: str, *, workers: int
) -> None:
    """A bug in an augmentation, or where examples are read and decoded, as its user sees it."""
    data = numbered(10)

    def augment(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        bug(batch["input"])
        return batch

    def decode(batch: Batch) -> Batch:
        bug(batch["input"])
        return batch

    if place == "augment":
        buggy = dataclasses.replace(data, augment=augment, workers=workers)
    else:
        buggy = dataclasses.replace(data, train=DecodedSource(data.train, decode), workers=workers)
    with pytest.raises(error, match=message) as raised:
        list(train_batches(buggy, 5, 0, 0, 100))
    assert type(raised.value) is error
    text = shown(raised.value)
    assert f"in {bug.__name__}\n" in text and "loader.py" in text
    assert ("in misspelled\n" in text) == (bug in (misspelled, nested))


@pytest.mark.slow
def test_closing_stops_the_workers() -> None:
    batches = train_batches(mixed(23, workers=2), 2, 5, 0, 10**9)
    next(batches), next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iterator[Batch]]:
    """Batches whose two workers are stopped; a second without one is a stall."""
    signals: list[int] = []
    batches = train_batches(mixed(23, workers=2), 2, 5, 0, 10**9, stop=lambda: bool(signals))
    next(batches)
    monkeypatch.setattr(loader, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(loader, "PATIENCE_SECONDS", 1.5)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
    threading.Timer(3, lambda: signals.append(1)).start()
    yield batches
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()


@pytest.mark.slow
def test_workers_that_are_stopped_are_told_and_given_up_at_a_signal(
    stopped: Iterator[Batch], capfd: pytest.CaptureFixture[str]
) -> None:
    numbers = [worker.pid for worker in multiprocessing.active_children()]
    started = time.monotonic()
    with pytest.raises(StalledError, match="ended by a signal"):
        for _ in range(100):
            next(stopped)
    assert time.monotonic() - started < 15
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: no batch for ")
    assert all(str(number) in lines[0] for number in numbers)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_closing_does_not_wait_for_workers_that_are_stopped(
    stopped: Generator[Batch, None, None],
) -> None:
    started = time.monotonic()
    stopped.close()
    assert time.monotonic() - started < 15
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_program_ends_though_its_workers_are_stopped(
    tmp_path: Path, gnp_environment: dict[str, str]
) -> None:
    program = _ENDLESS.replace(
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)",
        "[os.kill(each.pid, 19) for each in multiprocessing.active_children()]; sys.exit(3)",
    )
    (tmp_path / "program.py").write_text(f"import os, sys\n{program}")
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=gnp_environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (3, "")
    assert time.monotonic() - started < 25


def test_threads_that_give_nothing_are_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "STALL_SECONDS", 0.4)

    def slow(batch: Batch, seed: int, epoch: int, indices: Indices) -> Batch:
        time.sleep(1.5)
        return batch

    data = dataclasses.replace(numbered(10), augment=slow)
    assert len(list(train_batches(data, 5, 0, 0, 2))) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines and all("waiting for the threads that read data" in line for line in lines)


_ENDLESS = """
import dataclasses
import multiprocessing
import numpy as np
from ds_pipeline import train_batches
from ds_pipeline.dataset import from_arrays
if __name__ == "__main__":
    arrays = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)
    data = dataclasses.replace(from_arrays("x", arrays, arrays), workers=2)
    try:
        for number, batch in enumerate(train_batches(data, 2, 0, 0, 10**9)):
            if number == 10:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    except KeyboardInterrupt:
        raise SystemExit(130)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_workers_end_with_their_parent(
    tmp_path: Path, gnp_environment: dict[str, str], number: signal.Signals
) -> None:
    """Also where a signal reaches all processes at once, as Ctrl-C does; without a word."""
    (tmp_path / "program.py").write_text(_ENDLESS)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        env=gnp_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    try:
        assert len(workers) == 2
        if number is signal.SIGKILL:
            parent.kill()
        else:
            os.killpg(parent.pid, number)
        _, stderr = parent.communicate(timeout=60)
    except BaseException:
        os.killpg(parent.pid, signal.SIGKILL)
        raise
    assert stderr == ""
    assert parent.returncode == (130 if number is signal.SIGINT else -number)
    for _ in range(1000):
        if not any(is_running(worker) for worker in workers):
            return
        time.sleep(0.01)
    raise AssertionError("workers are left")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_that_suit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 0), (4, 0), (5, 3), (16, 14)):
        monkeypatch.setattr(loader, "usable_cores", lambda cores=cores: cores)
        assert (default_workers(encoded=True), default_workers(encoded=False)) == (expected, 0)
