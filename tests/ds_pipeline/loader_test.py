"""Workers and threads: errors that arrive, stalls, and clean ends."""

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

from ds_pipeline import (
    DataError,
    Dataset,
    StalledError,
    evaluation_batches,
    loader,
    train_batches,
)
from ds_pipeline.decode import DecodedSource
from ds_pipeline.loader import default_workers
from ds_pipeline.source import Batch, Indices
from tests.ds_pipeline.batches_test import assert_equal, mixed, numbered
from tests.marks import quick_first


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [
        "raise KeyError('x')",
        pytest.param("raise SystemExit(3)", marks=pytest.mark.slow),
        pytest.param("import os", marks=pytest.mark.slow),
    ],
)
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


def broken(ending: str, workers: int) -> Dataset:
    """Workers, one of which meets its end at example 7."""
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

    return dataclasses.replace(data, train=Broken(), workers=workers)


def raise_odd_error() -> None:
    raise KeyError(lambda: "no pickle of this")


_KILLED = r"was killed \(exit code -9\); .* set dataset.workers to less"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "error", "message", "workers"),
    quick_first(
        [
            ("damaged", DataError, "^a.jpg is damaged", 1),
            ("damaged", DataError, "^a.jpg is damaged", 2),
            ("killed", DataError, _KILLED, 2),
            ("odd", RuntimeError, "^KeyError: ", 2),
        ]
    ),
)
def test_what_ends_a_worker_reaches_the_consumer(
    ending: str, error: type[Exception], message: str, workers: int
) -> None:
    with pytest.raises(error, match=message) as raised:
        list(train_batches(broken(ending, workers), 1, 0, 0, 1000))
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


@pytest.mark.slow
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
        "[os.kill(each.pid, 19) for each in multiprocessing.active_children()]; "
        "print('stopped', flush=True); sys.exit(3)",
    )
    (tmp_path / "program.py").write_text(f"import os, sys\n{program}")
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        env=gnp_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "stopped\n"
        started = time.monotonic()
        _, stderr = process.communicate(timeout=100)
    assert (process.returncode, stderr) == (3, "")
    assert time.monotonic() - started < 25


@pytest.mark.slow
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
import signal
import numpy as np
from ds_pipeline import train_batches
from ds_pipeline.dataset import from_arrays
if __name__ == "__main__":
    # A shell that runs the tests in the background has it ignored, which a child inherits.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
