"""Batches in the order that training and evaluation need them, made ahead by grain.

Threads of this process make them, or worker processes. A batch is a function of (seed, step) alone,
so both give the same ones. Small examples are made in blocks of several batches, since NumPy's and
grain's cost a call would otherwise be larger than that of the work.
"""

import functools
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker, util
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, Indices, Source

if TYPE_CHECKING:
    from ds_pipeline.augment import Augment, Mix
    from ds_pipeline.dataset import Dataset

_ORDER_TAG = 0x4F52
# A block has about so many examples, and at most so many values: 16 MiB as float32.
_BLOCK_EXAMPLES = 1024
_BLOCK_VALUES = 4 * 2**20
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


class StalledError(DataError):
    """A signal was to end the program, which was waiting for a batch; the batch was given up."""


def _never() -> bool:
    return False


def default_workers(encoded: bool) -> int:
    """Return the count of worker processes that suits this machine.

    None for data in memory: threads make more batches than a step can use, and processes would
    each hold a copy. None for encoded images on up to 4 cores: JPEG decoding and resizing release
    Python's lock, so threads keep all cores busy, without the seconds that processes take to start
    and the copies of what they send. On more cores the rest of the work, which holds that lock,
    would be the limit: all but two, which are left to the training's own process.

    Args:
        encoded: images are decoded when they are read.

    Example:
        >>> default_workers(encoded=False)
        0
    """
    cores = usable_cores()
    return cores - 2 if encoded and cores > _MOST_THREADS else 0


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """Return the order of an epoch's examples, a permutation from (seed, epoch) alone.

    Args:
        count: examples.
        seed: at least 0.
        epoch: at least 0.

    Example:
        >>> sorted(epoch_order(4, seed=0, epoch=0).tolist())
        [0, 1, 2, 3]
    """
    return np.random.default_rng((seed, epoch, _ORDER_TAG)).permutation(count)


def count_steps(dataset: "Dataset", batch_size: int) -> int:
    """Count the full batches in an epoch: n // batch_size.

    Args:
        dataset: its train source is counted.
        batch_size: examples a step, over all processes.

    Raises:
        DataError: there is not even one.

    Example:
        >>> from ds_pipeline.dataset import from_arrays
        >>> images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)
        >>> count_steps(from_arrays("ten", (images, labels), (images, labels)), 4)
        2
    """
    _check_positive(batch_size=batch_size)
    if batch_size > len(dataset.train):
        raise DataError(
            f"batch_size {batch_size} is larger than the {len(dataset.train)} training examples of "
            f"'{dataset.name}'; use at most {len(dataset.train)}"
        )
    return len(dataset.train) // batch_size


def train_batches(
    dataset: "Dataset",
    batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    stop: Callable[[], bool] = _never,
) -> Generator[Batch, None, None]:
    """Yield this process' share of the batches of steps start_step to total_steps - 1.

    With s = n // batch_size steps an epoch, step t takes rows (t mod s) * batch_size onwards of
    the order of epoch t // s; the n - s * batch_size last of that order rest for the epoch. Each
    batch is a function of (seed, t) alone, so a run resumes anywhere, and processes take
    consecutive slices of the same global batch. `dataset.augment` changes each example,
    `dataset.mix` then mixes it with its partner, the global batch read backwards, and
    `dataset.erase` changes the result.

    Args:
        dataset: the train source, its augmentations, and the count of workers.
        batch_size: examples a step, over all processes.
        seed: of the order and the augmentation, at least 0.
        start_step: first step, counted from the beginning of the training.
        total_steps: step at which the training ends.
        process_index: of this process, from 0.
        process_count: processes, default 1.
        stop: tells whether a signal is to end the program, which then waits no longer for a worker
            that gives nothing; default: never.

    Returns:
        A generator of `{"input": [b, ...], "label": [b, ...]}`, b = batch_size / process_count.
        Its `close()` stops the threads or workers; its end does so too. An error while a batch is
        read is raised here, at that batch or a few before it.

    Raises:
        DataError: the batch is larger than the data or does not divide among the processes; while
            it runs, damaged data, or a worker that was killed. StalledError: see `stop`.

    Example:
        >>> from ds_pipeline.dataset import from_arrays
        >>> images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)
        >>> data = from_arrays("ten", (images, labels), (images, labels))
        >>> [len(batch["label"]) for batch in train_batches(data, 4, 0, 0, 3)]
        [4, 4, 4]
    """
    _check_positive(process_count=process_count)
    if seed < 0 or start_step < 0 or not 0 <= process_index < process_count:
        raise DataError(
            f"seed {seed}, start_step {start_step} and process_index {process_index} must be at "
            f"least 0, and the last less than process_count {process_count}"
        )
    steps_per_epoch = count_steps(dataset, batch_size)
    make = _Training(
        source=dataset.train,
        augment=dataset.augment,
        mix=dataset.mix,
        erase=dataset.erase,
        seed=seed,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        rows=_process_rows(batch_size, process_index, process_count),
    )
    size = _block_steps(dataset.shape, len(make.rows))
    blocks = _Blocks(start_step, total_steps, steps_per_epoch, size)
    return _prefetched(make, blocks, dataset.workers, stop)


def evaluation_batches(
    source: Source,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    workers: int = 0,
    stop: Callable[[], bool] = _never,
) -> Generator[Batch, None, None]:
    """Yield this process' share of batches that hold every example once, in order.

    The last batch is filled up with copies of the last example, whose mask is 0.

    Args:
        source: the examples.
        batch_size: examples a batch, over all processes; may exceed the examples.
        process_index: of this process, from 0.
        process_count: processes, default 1.
        workers: processes that read, default 0: threads of this one.
        stop: as in `train_batches`.

    Returns:
        A generator, as `train_batches` gives, with "mask": float32 [b], 1 for examples that count.

    Raises:
        DataError: the batch does not divide among the processes; as it runs, damaged data, or a
            worker that was killed.

    Example:
        >>> from ds_pipeline.source import InMemorySource
        >>> source = InMemorySource(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 2])
        >>> [batch["mask"].tolist() for batch in evaluation_batches(source, 2)]
        [[1.0, 1.0], [1.0, 0.0]]
    """
    _check_positive(batch_size=batch_size, process_count=process_count)
    rows = _process_rows(batch_size, process_index, process_count)
    steps = -(-len(source) // batch_size)
    make = _Evaluation(source, batch_size, rows)
    return _prefetched(make, _Blocks(0, steps, steps, 1), workers, stop)


@dataclass(frozen=True, eq=False)
class _Training:
    """Makes the training batches of some steps of one epoch; can be pickled."""

    source: Source
    augment: "Augment | None"
    mix: "Mix | None"
    erase: "Augment | None"
    seed: int
    batch_size: int
    steps_per_epoch: int
    rows: Indices

    def __call__(self, first: int, last: int) -> list[Batch]:
        indices, block = self._read(first, last, self.rows)
        epoch = first // self.steps_per_epoch
        if self.mix is None:
            if self.erase is not None:
                block = self.erase(block, self.seed, epoch, indices)
            return _cut(block, len(self.rows))
        batches = _cut(block, len(self.rows))
        for i, partners in enumerate(self._partners(first, last, batches)):
            batch = self.mix(batches[i], partners, self.seed, first + i)
            if self.erase is not None:
                own = indices[i * len(self.rows) : (i + 1) * len(self.rows)]
                batch = self.erase(batch, self.seed, epoch, own)
            batches[i] = batch
        return batches

    def _partners(self, first: int, last: int, batches: Sequence[Batch]) -> list[Batch]:
        rows = self.batch_size - 1 - self.rows
        if np.array_equal(rows[::-1], self.rows):
            return [{key: value[::-1] for key, value in batch.items()} for batch in batches]
        return _cut(self._read(first, last, rows)[1], len(rows))

    def _read(self, first: int, last: int, rows: Indices) -> tuple[Indices, Batch]:
        """Read (indices, augmented examples) of these rows of the global batches, in order."""
        epoch, step = divmod(first, self.steps_per_epoch)
        starts = np.arange(step, step + last - first)[:, None] * self.batch_size
        order = _kept_order(len(self.source), self.seed, epoch)
        indices: Indices = order[(starts + rows[None, :]).ravel()]
        batch = self.source.batch(indices)
        if self.augment is not None:
            batch = self.augment(batch, self.seed, epoch, indices)
        return indices, batch


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Makes evaluation batches; can be pickled."""

    source: Source
    batch_size: int
    rows: Indices

    def __call__(self, first: int, last: int) -> list[Batch]:
        starts = np.arange(first, last)[:, None] * self.batch_size
        indices = (starts + self.rows[None, :]).ravel()
        batch = self.source.batch(np.minimum(indices, len(self.source) - 1))
        mask = (indices < len(self.source)).astype(np.float32)
        return _cut({**batch, "mask": mask}, len(self.rows))


@dataclass(frozen=True)
class _Blocks:
    """Steps start to stop - 1 in blocks of `size` steps at most, none over an epoch's end."""

    start: int
    stop: int
    steps_per_epoch: int
    size: int

    def __len__(self) -> int:
        return self._block(self.stop - 1) - self._block(self.start) + 1

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return (first step, step after the last)."""
        epoch, block = divmod(self._block(self.start) + index, self._blocks_per_epoch)
        begin = epoch * self.steps_per_epoch
        first = begin + block * self.size
        last = min(first + self.size, begin + self.steps_per_epoch)
        return max(first, self.start), min(last, self.stop)

    @property
    def _blocks_per_epoch(self) -> int:
        return -(-self.steps_per_epoch // self.size)

    def _block(self, step: int) -> int:
        """Return the index of the block that holds a step."""
        epoch, step = divmod(step, self.steps_per_epoch)
        return epoch * self._blocks_per_epoch + step // self.size


def _block_steps(shape: tuple[int, ...], rows: int) -> int:
    """Count the steps in a block; 1 where a batch is large already, as one of photographs is."""
    examples = min(_BLOCK_EXAMPLES, _BLOCK_VALUES // max(1, int(np.prod(shape))))
    return max(1, examples // rows)


def _cut(block: Batch, rows: int) -> list[Batch]:
    """Split a block into batches of so many rows, without a copy."""
    starts = range(0, len(block["label"]), rows)
    return [{key: value[i : i + rows] for key, value in block.items()} for i in starts]


@functools.lru_cache(maxsize=2)  # blocks on both sides of the boundary between epochs
def _kept_order(count: int, seed: int, epoch: int) -> Indices:
    order = epoch_order(count, seed, epoch)
    order.setflags(write=False)
    return order


def _prefetched(
    make: Callable[[int, int], list[Batch]],
    blocks: _Blocks,
    workers: int,
    stop: Callable[[], bool],
) -> Generator[Batch, None, None]:
    """Yield the batches of all blocks in order, a few blocks made ahead."""
    if blocks.stop <= blocks.start:
        return
    indices = grain.MapDataset.range(len(blocks))
    if workers:
        yield from _from_workers(indices.map(_InWorker(make, blocks)), workers, stop)
        return
    threads = 2 if blocks.size > 1 else min(max(2, usable_cores()), _MOST_THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    iterator = iter(indices.map(_InThread(make, blocks)).to_iter_dataset(options))
    watch = _Watch(_never)
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

    make: Callable[[int, int], list[Batch]]
    blocks: _Blocks

    def __call__(self, index: int) -> list[Batch]:
        # Out of a generator, a StopIteration comes as an error; grain would end the data there.
        return next(self._made(index))

    def _made(self, index: int) -> Iterator[list[Batch]]:
        yield self.make(*self.blocks[index])


class _InWorker(_InThread):
    """Makes it in another process."""

    def __call__(self, index: int) -> list[Batch]:
        with _Sending():
            return super().__call__(index)


class _Sending:
    """Raises what is raised inside it as a `_Sent`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if error is not None:
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
        return _received, (self.error, self.text)


def _received(error: BaseException, text: str) -> BaseException:
    error.__cause__ = WorkerTraceback(text)
    return error


class WorkerTraceback(Exception):
    """The traceback of an error in a worker process; the cause of that error in this one."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _can_be_sent(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except _NO_PICKLE:
        return False
    return True


def usable_cores() -> int:
    """Count the cores for this process: fewer than the machine's under taskset or in a job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _process_rows(batch_size: int, process_index: int, process_count: int) -> Indices:
    """Return the rows of the global batch that belong to this process."""
    if batch_size % process_count:
        raise DataError(
            f"batch_size {batch_size} does not divide among {process_count} processes; "
            f"use a multiple of {process_count}"
        )
    share = batch_size // process_count
    return np.arange(process_index * share, (process_index + 1) * share)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise DataError(f"{name} {value} must be at least 1")
