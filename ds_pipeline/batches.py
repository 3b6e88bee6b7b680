"""Batches for training and evaluation, made ahead by the loader."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from ds_pipeline.augment import Augment, Mix
from ds_pipeline.dataset import Dataset
from ds_pipeline.errors import DataError
from ds_pipeline.loader import never, prefetched
from ds_pipeline.order import Blocks, Order, block_steps, process_rows
from ds_pipeline.source import Batch, Indices, Source


def count_steps(dataset: Dataset, batch_size: int) -> int:
    """Count the batches in an epoch: n // batch_size, and one where a smaller last one is kept.

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
    if batch_size < 1:
        raise DataError(f"batch_size {batch_size} must be at least 1")
    if batch_size > len(dataset.train):
        raise DataError(
            f"batch_size {batch_size} is larger than the {len(dataset.train)} training examples of "
            f"'{dataset.name}'; use at most {len(dataset.train)}"
        )
    return _order(dataset, batch_size, seed=0).steps_per_epoch


def _order(dataset: Dataset, batch_size: int, seed: int) -> Order:
    return Order(len(dataset.train), batch_size, seed, dataset.shuffle, dataset.keep_last_batch)


def train_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    start_step: int,
    total_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    stop: Callable[[], bool] = never,
) -> Generator[Batch, None, None]:
    """Yield this process' share of the batches of steps start_step to total_steps - 1.

    Each batch is a function of (seed, step) alone, as `ds_pipeline.order` says, so a run resumes
    anywhere, and processes take consecutive slices of the same global batch. `dataset.augment`
    changes each example, `dataset.mix` then mixes it with its partner, the global batch read
    backwards, and `dataset.erase` changes the result.

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
        A generator of `{"input": [b, ...], "label": [b, ...]}`, b = batch_size / process_count;
        less in a smaller last batch of an epoch, where `dataset.keep_last_batch` keeps it.
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
    if seed < 0 or start_step < 0:
        raise DataError(f"seed {seed} and start_step {start_step} must be at least 0")
    steps_per_epoch = count_steps(dataset, batch_size)
    rows = process_rows(batch_size, process_index, process_count)
    make = _Training(
        source=dataset.train,
        augment=dataset.augment,
        mix=dataset.mix,
        erase=dataset.erase,
        order=_order(dataset, batch_size, seed),
        process_index=process_index,
        process_count=process_count,
    )
    size = block_steps(dataset.shape, len(rows))
    blocks = Blocks(start_step, total_steps, steps_per_epoch, size)
    return prefetched(make, blocks, dataset.workers, stop)


def evaluation_batches(
    source: Source,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    workers: int = 0,
    stop: Callable[[], bool] = never,
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
    make = _Evaluation(source, batch_size, process_rows(batch_size, process_index, process_count))
    steps = -(-len(source) // batch_size)
    return prefetched(make, Blocks(0, steps, steps, 1), workers, stop)


@dataclass(frozen=True, eq=False)
class _Training:
    """Makes the training batches of some steps of one epoch; can be pickled."""

    source: Source
    augment: Augment | None
    mix: Mix | None
    erase: Augment | None
    order: Order
    process_index: int
    process_count: int

    def __call__(self, first: int, last: int) -> list[Batch]:
        epoch, seed = first // self.order.steps_per_epoch, self.order.seed
        indices, block = self._read(first, last, epoch, self._rows)
        share = self.order.batch_size // self.process_count
        if self.mix is None:
            if self.erase is not None:
                block = self.erase(block, seed, epoch, indices)
            return _cut(block, share)
        batches = _cut(block, share)
        for i, partners in enumerate(self._partners(first, last, epoch, batches)):
            batch = self.mix(batches[i], partners, seed, first + i)
            if self.erase is not None:
                own = indices[i * share : (i + 1) * share]
                batch = self.erase(batch, seed, epoch, own)
            batches[i] = batch
        return batches

    def _partners(
        self, first: int, last: int, epoch: int, batches: Sequence[Batch]
    ) -> Sequence[Batch]:
        if self.process_count == 1:
            return [{key: value[::-1] for key, value in batch.items()} for batch in batches]
        block = self._read(first, last, epoch, lambda size: size - 1 - self._rows(size))[1]
        return _cut(block, self.order.batch_size // self.process_count)

    def _rows(self, size: int) -> Indices:
        return process_rows(size, self.process_index, self.process_count)

    def _read(
        self, first: int, last: int, epoch: int, rows: Callable[[int], Indices]
    ) -> tuple[Indices, Batch]:
        """Read (indices, augmented examples) of these rows of the global batches, in order."""
        indices = self.order.indices(first, last, rows)
        batch = self.source.batch(indices)
        if self.augment is not None:
            batch = self.augment(batch, self.order.seed, epoch, indices)
        return indices, batch


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Makes the evaluation batch of a step; can be pickled."""

    source: Source
    batch_size: int
    rows: Indices

    def __call__(self, first: int, last: int) -> list[Batch]:
        assert last == first + 1
        indices = first * self.batch_size + self.rows
        batch = self.source.batch(np.minimum(indices, len(self.source) - 1))
        return [{**batch, "mask": (indices < len(self.source)).astype(np.float32)}]


def _cut(block: Batch, rows: int) -> list[Batch]:
    """Split a block into batches of so many rows, the last maybe of less, without a copy."""
    starts = range(0, len(block["label"]), rows)
    return [{key: value[i : i + rows] for key, value in block.items()} for i in starts]
