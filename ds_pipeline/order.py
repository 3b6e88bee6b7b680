"""Which example comes when: a pure function of (seed, step).

Step t of a training is step t mod s of epoch t // s, where an epoch has s = n // batch_size steps,
and one more where the examples that are left make a smaller batch; else they rest for that epoch.
It takes rows (t mod s) * batch_size onwards of the epoch's permutation of the n examples, so a run
resumes at any step. Of a batch's rows each process has a slice. What is random in an example comes
from (seed, epoch, index of the example), and in a batch as a whole from (seed, step).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ds_pipeline.errors import DataError
from ds_pipeline.source import Indices

_ORDER_TAG = 0x4F52
# A block has about so many examples, and at most so many values: 16 MiB as float32.
_BLOCK_EXAMPLES = 1024
_BLOCK_VALUES = 4 * 2**20


@functools.lru_cache(maxsize=2)  # blocks on both sides of the boundary between epochs
def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """Return the order of an epoch's examples, a read-only permutation from (seed, epoch) alone.

    Args:
        count: examples.
        seed: at least 0.
        epoch: at least 0.
    """
    order = np.random.default_rng((seed, epoch, _ORDER_TAG)).permutation(count)
    order.setflags(write=False)
    return order


def process_rows(batch_size: int, process_index: int, process_count: int) -> Indices:
    """Return the rows of the global batch that belong to a process.

    Raises:
        DataError: the batch does not divide among the processes, or a number is out of range.
    """
    for name, value in (("batch_size", batch_size), ("process_count", process_count)):
        if value < 1:
            raise DataError(f"{name} {value} must be at least 1")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index {process_index} must be from 0 to {process_count - 1}")
    if batch_size % process_count:
        raise DataError(
            f"batch_size {batch_size} does not divide among {process_count} processes; "
            f"use a multiple of {process_count}"
        )
    share = batch_size // process_count
    return np.arange(process_index * share, (process_index + 1) * share)


@dataclass(frozen=True)
class Order:
    """The examples of each step.

    Args:
        count: examples.
        batch_size: examples a step, over all processes.
        seed: at least 0.
        shuffle: each epoch has a permutation of its own; False: each goes from 0 to count - 1.
        keep_last_batch: what is left over makes a last, smaller batch; False: it rests.

    Example:
        >>> order = Order(5, 2, 0, shuffle=False, keep_last_batch=True)
        >>> order.steps_per_epoch, order.indices(1, 3, np.arange)
        (3, array([2, 3, 4]))
    """

    count: int
    batch_size: int
    seed: int
    shuffle: bool = True
    keep_last_batch: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Count the batches of an epoch."""
        full, left = divmod(self.count, self.batch_size)
        return full + (self.keep_last_batch and left > 0)

    def indices(self, first: int, last: int, rows: Callable[[int], Indices]) -> Indices:
        """Return the examples of steps first to last - 1 of one epoch, step by step.

        Args:
            first: step, counted from the beginning of the training.
            last: likewise; in the same epoch as last - 1.
            rows: size of a global batch -> the rows that are wanted.
        """
        epoch, step = divmod(first, self.steps_per_epoch)
        starts = range(step * self.batch_size, self.count, self.batch_size)[: last - first]
        wanted = np.concatenate(
            [start + rows(min(self.batch_size, self.count - start)) for start in starts]
        )
        return epoch_order(self.count, self.seed, epoch)[wanted] if self.shuffle else wanted


@dataclass(frozen=True)
class Blocks:
    """Steps start to stop - 1 in blocks (first, last) of `size` steps at most.

    The borders are at multiples of `size` from an epoch's beginning, and at its end.
    """

    start: int
    stop: int
    steps_per_epoch: int
    size: int

    def __len__(self) -> int:
        if self.stop <= self.start:
            return 0
        return self._block(self.stop - 1) - self._block(self.start) + 1

    def __getitem__(self, index: int) -> tuple[int, int]:
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


def block_steps(shape: tuple[int, ...], rows: int) -> int:
    """Count the steps in a block; 1 where a batch is large already, as one of photographs is.

    Small examples are made in blocks of several batches, since NumPy's and grain's cost a call
    would otherwise be larger than that of the work.
    """
    examples = min(_BLOCK_EXAMPLES, _BLOCK_VALUES // max(1, int(np.prod(shape))))
    return max(1, examples // rows)
