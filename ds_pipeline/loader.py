"""Batches in the order that training and evaluation need them, prefetched by grain's threads."""

import functools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import grain
import numpy as np

from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, Indices, Source

if TYPE_CHECKING:
    from ds_pipeline.dataset import Dataset

_ORDER_TAG = 0x4F52
_THREADS = 2
_PREFETCHED_BATCHES = 4


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """The order of an epoch's examples: a permutation that depends on (seed, epoch) only.

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
    """Whole batches in an epoch: n // batch_size.

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
) -> Generator[Batch, None, None]:
    """This process' share of the batches of steps start_step to total_steps - 1.

    With s = n // batch_size steps an epoch, step t takes rows (t mod s) * batch_size onwards of
    the order of epoch t // s; the n - s * batch_size last of that order rest for the epoch. Each
    batch is a function of (seed, t) alone, so a run resumes anywhere, and processes take
    consecutive slices of the same global batch.

    Args:
        dataset: the train source and the augmentation.
        batch_size: examples a step, over all processes.
        seed: of the order and the augmentation, at least 0.
        start_step: first step, counted from the beginning of the training.
        total_steps: step at which the training ends.
        process_index: of this process, from 0.
        process_count: processes, default 1.

    Returns:
        A generator of `{"image": [b, ...], "label": int32 [b]}`, b = batch_size / process_count.
        Its `close()` stops the threads; its end does so too. An error while a batch is read
        is raised here, at that batch.

    Raises:
        DataError: the batch is larger than the data or does not divide among the processes.

    Example:
        >>> from ds_pipeline.dataset import from_arrays
        >>> images, labels = np.zeros((10, 8, 8, 1), np.uint8), np.arange(10)
        >>> data = from_arrays("ten", (images, labels), (images, labels))
        >>> [len(batch["label"]) for batch in train_batches(data, 4, 0, 0, 3)]
        [4, 4, 4]
    """
    source, augment = dataset.train, dataset.augment
    _check_positive(process_count=process_count)
    if seed < 0 or start_step < 0 or not 0 <= process_index < process_count:
        raise DataError(
            f"seed {seed}, start_step {start_step} and process_index {process_index} must be at "
            f"least 0, and the last less than process_count {process_count}"
        )
    rows = _process_rows(batch_size, process_index, process_count)
    steps_per_epoch = count_steps(dataset, batch_size)
    # Two: threads may be on both sides of the boundary between epochs.
    order = functools.lru_cache(maxsize=2)(functools.partial(epoch_order, len(source), seed))

    def make(step: int) -> Batch:
        epoch, place = divmod(step, steps_per_epoch)
        indices = order(epoch)[place * batch_size + rows]
        batch = source.batch(indices)
        return batch if augment is None else augment(batch, seed, epoch, indices)

    return _prefetched(make, start_step, total_steps)


def evaluation_batches(
    source: Source, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Generator[Batch, None, None]:
    """This process' share of batches that hold every example once, in order.

    The last batch is filled up with copies of the last example, whose mask is 0.

    Args:
        source: the examples.
        batch_size: examples a batch, over all processes; may exceed the number of examples.
        process_index: of this process, from 0.
        process_count: processes, default 1.

    Returns:
        A generator, as `train_batches` gives, with "mask": float32 [b], 1 for examples that count.

    Raises:
        DataError: the batch does not divide among the processes.

    Example:
        >>> from ds_pipeline.source import InMemorySource
        >>> source = InMemorySource(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 2])
        >>> [batch["mask"].tolist() for batch in evaluation_batches(source, 2)]
        [[1.0, 1.0], [1.0, 0.0]]
    """
    _check_positive(batch_size=batch_size, process_count=process_count)
    rows = _process_rows(batch_size, process_index, process_count)
    count = len(source)

    def make(step: int) -> Batch:
        places = step * batch_size + rows
        batch = source.batch(np.minimum(places, count - 1))
        return {**batch, "mask": (places < count).astype(np.float32)}

    return _prefetched(make, 0, -(-count // batch_size))


def _prefetched(
    make: Callable[[int], Batch], start: int, stop: int
) -> Generator[Batch, None, None]:
    """make(start), ..., make(stop - 1), a few of them made ahead in threads."""
    if stop <= start:
        return
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCHED_BATCHES)
    iterator = iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _process_rows(batch_size: int, process_index: int, process_count: int) -> Indices:
    """Places in the global batch that belong to this process."""
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
