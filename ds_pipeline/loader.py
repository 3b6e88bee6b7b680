"""Makes batches ahead: grain's threads in this process, or its worker processes.

What grain leaves open is here: errors of a worker that arrive whole, workers that neither hear
Ctrl-C nor outlive their parent, and a word where no batch comes.
"""

import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker, util
from multiprocessing.pool import ThreadPool, rebuild_exc  # type: ignore[attr-defined]
from typing import Any

import grain
import numpy as np
from absl import flags

from ds_pipeline.errors import DataError
from ds_pipeline.order import Blocks
from ds_pipeline.source import Batch

# Decoding releases Python's lock, so threads serve up to this many cores.
_MOST_THREADS = 4
# What pickle's manual lists, and what the error's own class raises where it wants other arguments.
_NO_PICKLE = (
    pickle.PickleError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# Without a batch: until it is said, and, after a signal, until it is no longer waited for.
STALL_SECONDS = 60.0
PATIENCE_SECONDS = 5.0
# In grain's message.
_KILLED = re.compile(r"terminated unexpectedly with (exit code -?\d+)")

Make = Callable[[int, int], list[Batch]]


class StalledError(DataError):
    """A signal was to end the program, which was waiting for a batch; the batch was given up."""


def never() -> bool:
    """Return False: no signal is to end the program."""
    return False


def usable_cores() -> int:
    """Count the cores for this process: fewer than the machine's under taskset or in a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(encoded: bool) -> int:
    """Return the count of worker processes that suits this machine.

    None for data in memory: threads make more batches than a step can use, and processes would
    each hold a copy. None for encoded images on up to 4 cores: JPEG decoding and resizing release
    Python's lock, so threads keep all cores busy, without the seconds that processes take to start
    and the copies of what they send. On more cores the rest of the work, which holds that lock,
    would be the limit: all but two, which are left to the training's own process.

    Args:
        encoded: images are decoded when they are read.
    """
    cores = usable_cores()
    return cores - 2 if encoded and cores > _MOST_THREADS else 0


def prefetched(
    make: Make, blocks: Blocks, workers: int, stop: Callable[[], bool]
) -> Generator[Batch, None, None]:
    """Yield the batches of all blocks in order, a few blocks made ahead.

    Args:
        make: returns the batches of the steps of a block; with workers it is pickled.
        blocks: which steps are made at a time.
        workers: processes; 0: threads of this one.
        stop: tells whether a signal is to end the program.

    Raises:
        DataError: a worker was killed. StalledError: see `stop`. And what `make` raises.
    """
    if not len(blocks):
        return
    indices = grain.MapDataset.range(len(blocks))
    if workers:
        yield from _from_workers(indices.map(_InWorker(make, blocks)), workers, stop)
        return
    threads = 2 if blocks.size > 1 else min(max(2, usable_cores()), _MOST_THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    iterator = iter(indices.map(_InThread(make, blocks)).to_iter_dataset(options))
    watch = _Watch(never)
    try:
        for block in watch.over(iterator):
            yield from block
    finally:
        iterator.close()
        watch.end()


def _from_workers(
    data: Any, workers: int, stop: Callable[[], bool]
) -> Generator[Batch, None, None]:
    if not flags.FLAGS.is_parsed():
        # grain reads flags of its own, and fails outside absl's app: github.com/google/grain 1355.
        flags.FLAGS.mark_as_parsed()
    # One block at a time in each process: the processes are what is parallel.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    iterator = iter(data.to_iter_dataset(reading).mp_prefetch(options, _begin_worker))
    watch = _Watch(stop)
    try:
        for block in watch.over(_started(iterator)):
            # Without grain's subclass of arrays that ends shared memory; it stays the base.
            yield from ({key: np.array(value) for key, value in b.items()} for b in block)
    except RuntimeError as error:
        if watch.gave_up:
            raise StalledError(
                "ended by a signal while no batch came from the worker processes"
            ) from None
        killed = _KILLED.search(str(error))
        if not killed:
            raise
        raise DataError(
            f"a worker process that reads data was killed ({killed[1]}); where memory or /dev/shm "
            "ran out, set dataset.workers to less, or to 0"
        ) from None
    finally:
        watch.hurry()
        iterator.close()
        watch.end()


class _Watch:
    """Says so where no batch comes, and gives up the workers where the program is to end.

    Args:
        stop: tells whether it is to end.

    Attributes:
        gave_up: the workers were killed because of that.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.gave_up = False
        self._stop = stop
        self._others = set(multiprocessing.active_children())
        self._since: float | None = None
        self._hurried: float | None = None
        self._ended = threading.Event()
        # A program that ends by an error may come to its own end first, and wait for them there.
        self._at_exit = util.Finalize(None, self.hurry, exitpriority=2)
        threading.Thread(target=self._watch, daemon=True).start()

    def over(self, blocks: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the blocks, each of which is waited for."""
        while True:
            self._since = time.monotonic()
            block = next(blocks, None)
            self._since = None
            if block is None:
                return
            yield block

    def end(self) -> None:
        """End the watch."""
        self._ended.set()
        self._at_exit.cancel()

    def hurry(self) -> None:
        """Kill workers that do not come to their end soon; grain waits 25 seconds for each."""
        self._hurried = time.monotonic()

    def _watch(self) -> None:
        told = None
        while not self._ended.wait(min(0.5, STALL_SECONDS / 4)):
            now, since = time.monotonic(), self._since
            if self._hurried is not None:
                self._kill(only_stopped=now - self._hurried < PATIENCE_SECONDS)
            elif since is not None:
                if now - since > STALL_SECONDS and told != since:
                    told = since
                    line = f"no batch for {now - since:.0f} s; waiting for {self._awaited()}"
                    print(f"warning: {line}", file=sys.stderr, flush=True)
                if now - since > PATIENCE_SECONDS and self._stop():
                    self.gave_up = True
                    self._kill(only_stopped=False)

    def _kill(self, only_stopped: bool) -> None:
        for worker in self._workers():
            if not only_stopped or _is_stopped(worker.pid):
                worker.kill()

    def _workers(self) -> list[Any]:
        return [each for each in multiprocessing.active_children() if each not in self._others]

    def _awaited(self) -> str:
        workers = self._workers()
        stopped = [worker.pid for worker in workers if _is_stopped(worker.pid)]
        if stopped:
            numbers = " ".join(map(str, stopped))
            return f"worker processes that are stopped; to let them go on: kill -CONT {numbers}"
        if workers:
            numbers = ", ".join(str(worker.pid) for worker in workers)
            return f"the worker processes {numbers}, which read data"
        return "the threads that read data"


def _is_stopped(process: int) -> bool:
    """Tell whether a process was stopped by a signal; False where the system does not say."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def _started(iterator: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """Iterate, with workers started by a thread that blocks SIGINT and SIGTERM.

    What starts there inherits that from its first moment: Ctrl-C and a job's end, which reach all
    processes at once, are left to this process, which may still need batches to come to its end.
    """
    _start_tracker()
    # Its thread is a daemon, so the end of the program does not wait for workers that start.
    with ThreadPool(1, _block_signals) as pool:
        block = pool.apply_async(next, (iterator, None)).get()
    while block is not None:  # `yield from` would close the iterator, before the watch hurries it
        yield block
        block = next(iterator, None)


def _block_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _start_tracker() -> None:
    """Start the process that removes shared memory which others left.

    Now, since its start would unblock the signals, and without its warning, since what is still
    under way when a run ends, or a worker is killed, is no mistake.
    """
    old = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{old},{quiet}" if old else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        if old is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = old


def _begin_worker(index: int, count: int) -> None:
    """Prepare a worker before it reads: no accelerator, and an end with its parent."""
    del index, count
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True)
class _InThread:
    """Makes the block of an index, with errors that reach the reader whole."""

    make: Make
    blocks: Blocks

    def __call__(self, index: int) -> list[Batch]:
        # Out of a generator, a StopIteration comes as an error; grain would end the data there.
        return next(self._made(index))

    def _made(self, index: int) -> Iterator[list[Batch]]:
        yield self.make(*self.blocks[index])


class _InWorker(_InThread):
    """Makes it in another process."""

    def __call__(self, index: int) -> list[Batch]:
        try:
            return super().__call__(index)
        except BaseException as error:
            raise _Sent(error) from error


class _Sent(Exception):
    """An error on its way from a worker: pickle turns it into that error again.

    Its cause is then the traceback in the worker, which pickle would drop.
    """

    def __init__(self, error: BaseException) -> None:
        self.text = "".join(traceback.format_exception(error))
        self.error = error
        if not (isinstance(error, Exception) and _can_be_sent(error)):
            # A queue, or grain, would drop it, and the reader wait forever.
            self.error = RuntimeError(f"{type(error).__name__}: {error}")

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_exc, (self.error, self.text)


def _can_be_sent(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except _NO_PICKLE:
        return False
    return True
