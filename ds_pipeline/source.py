"""Random access to examples, whatever they are stored in."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ds_pipeline.errors import DataError

Batch: TypeAlias = dict[str, Any]
Indices: TypeAlias = npt.NDArray[np.int64]

_SPLIT_TAG = 0x5370
_CHUNK_EXAMPLES = 1024
# Of statistics, whose sums are float64: 32 MiB.
_CHUNK_VALUES = 2**22
# Of a constant channel: what is divided by it is 0, also where it varies in other examples.
CONSTANT = float(np.finfo(np.float32).max)
_NOISE_ULPS = 8


class EncodedImage(NamedTuple):
    """An image as its file holds it.

    Attributes:
        data: the bytes of a JPEG or PNG.
        where: the file, or the record in it, for messages.
    """

    data: bytes
    where: str


class Source(Protocol):
    """Examples 0 to len(source) - 1, read in batches, in any order, from any thread."""

    def __len__(self) -> int: ...

    def batch(self, indices: Indices) -> Batch:
        """Return `{"input": [b, ...], "label": [b, ...]}` of these examples.

        The inputs are a uint8, float32 or float64 array, or a list of `EncodedImage`; labels are
        int32 classes [b], float32 targets [b], or of a forecast float32 [b, horizon, channels].
        """
        ...

    def labels(self) -> np.ndarray:
        """Return all labels in order, [n, ...]; may read all data."""
        ...


class InMemorySource:
    """Examples in two arrays.

    Args:
        inputs: [n, ...], uint8, float32 or float64; raw values, kept as they are.
        labels: [n]; whole numbers are classes, kept as int32; others are targets of a
            regression, kept as float32.

    Raises:
        DataError: the two differ in length, or there are no examples.

    Example:
        >>> source = InMemorySource(np.zeros((5, 8, 8, 1), np.uint8), np.arange(5))
        >>> source.batch(np.array([4, 2]))["label"]
        array([4, 2], dtype=int32)
    """

    def __init__(self, inputs: np.ndarray, labels: npt.ArrayLike) -> None:
        self.inputs = inputs
        targets = np.asarray(labels)
        is_class = np.issubdtype(targets.dtype, np.integer)
        self._labels = targets.astype(np.int32 if is_class else np.float32)
        if len(self.inputs) != len(self._labels):
            raise DataError(f"{len(self.inputs)} inputs and {len(self._labels)} labels")
        if not len(self._labels):
            raise DataError("a source needs at least one example, this one has none")

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Indices) -> Batch:
        """Return the examples at these indices, copied."""
        return {"input": self.inputs[indices], "label": self._labels[indices]}

    def labels(self) -> np.ndarray:
        """Return all labels in order, [n], int32 or float32."""
        return self._labels


class View:
    """Another source's examples, with batches that are changed by a function or by a subclass.

    Args:
        source: where the examples are.
        change: takes a batch and returns a new one.
    """

    def __init__(self, source: Source, change: Callable[[Batch], Batch] | None = None) -> None:
        self.source = source
        self.change = change

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Indices) -> Batch:
        """Return the examples at these indices, changed."""
        batch = self.source.batch(indices)
        return batch if self.change is None else self.change(batch)

    def labels(self) -> np.ndarray:
        """Return all labels in order, [n]."""
        return self.source.labels()


class SubsetSource(View):
    """Some of another source's examples, in the given order, without a copy of them.

    Args:
        source: where the examples are; of a subset, its own source is taken.
        indices: [m], into `source`.

    Example:
        >>> source = InMemorySource(np.zeros((5, 8, 8, 1), np.uint8), np.arange(5))
        >>> SubsetSource(source, np.array([1, 3])).batch(np.array([1]))["label"]
        array([3], dtype=int32)
    """

    def __init__(self, source: Source, indices: Indices) -> None:
        self.indices: Indices = np.asarray(indices, np.int64)
        if isinstance(source, SubsetSource):
            self.indices = source.indices[self.indices]
            source = source.source
        super().__init__(source)

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Indices) -> Batch:
        """Return the examples at these indices of the subset."""
        return self.source.batch(self.indices[indices])

    def labels(self) -> np.ndarray:
        """Return all labels in order, [m]."""
        return self.source.labels()[self.indices]


def chunks(source: Source) -> Iterator[Batch]:
    """Yield all examples in order, some at a time: fewer where they are large."""
    values = np.size(source.batch(np.zeros(1, np.int64))["input"])
    step = max(1, min(_CHUNK_EXAMPLES, _CHUNK_VALUES // values))
    for start in range(0, len(source), step):
        yield source.batch(np.arange(start, min(start + step, len(source))))


def split_indices(
    kind: str,
    labels: np.ndarray,
    fraction: float,
    seed: int,
    key: str = "dataset.validation_fraction",
) -> tuple[Indices, Indices]:
    """Split into two disjoint sets of indices, as dataset.split says.

    Args:
        kind: "stratified", see `stratified_split`, or "shuffled", see `shuffled_split`.
        labels: [n], integers, or floats.
        fraction: share of the second set, between 0 and 1.
        seed: of the shuffle, at least 0.
        key: config key of the fraction, for messages.
    """
    split = shuffled_split if kind == "shuffled" else stratified_split
    return split(labels, fraction, seed, key)


def shuffled_split(
    labels: np.ndarray, fraction: float, seed: int, key: str = "dataset.validation_fraction"
) -> tuple[Indices, Indices]:
    """Split all indices, shuffled by Python's `random`, into the first and the rest, in that order.

    The same as keras.utils.split_dataset(data, left_size=1 - fraction, shuffle=True, seed=seed).

    Args:
        labels: [n]; only counted.
        fraction: share of the second set, between 0 and 1.
        seed: of the shuffle, at least 0.
        key: config key of the fraction, for messages.

    Example:
        >>> shuffled_split(np.zeros(5), 0.4, seed=13)
        (array([1, 0, 3]), array([4, 2]))
    """
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    count = round(len(order) * (1 - fraction))
    _check_both(len(order), len(order) - count, fraction, key)
    return np.array(order[:count], np.int64), np.array(order[count:], np.int64)


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, key: str = "dataset.validation_fraction"
) -> tuple[Indices, Indices]:
    """Split into two disjoint sets of indices, the second of round(fraction * n) examples.

    Each class has its share in both to within one example; of float labels, which are no
    classes, any are drawn.

    Args:
        labels: [n], integers, or floats.
        fraction: share of the second set, between 0 and 1.
        seed: of the shuffle, at least 0.
        key: config key of the fraction, for messages.

    Returns:
        (first, second), each sorted.

    Raises:
        DataError: a set would be empty.
    """
    total = len(labels)
    count = round(total * fraction)
    _check_both(total, count, fraction, key)
    second = np.zeros(total, bool)
    second[stratified_draw(labels, count, (seed, _SPLIT_TAG))] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def _check_both(total: int, count: int, fraction: float, key: str) -> None:
    if not 0 < count < total:
        raise DataError(
            f"a share of {fraction} of {total} examples leaves one split empty; change {key}"
        )


def stratified_draw(labels: np.ndarray, count: int, seed: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Draw the indices of `count` examples; each class has its share to within one example.

    The examples are shuffled, sorted by label, and taken at even distances. Float labels are
    targets of a regression, and all of one class here.

    Args:
        labels: [n], integers, or floats.
        count: 1 to n.
        seed: of the shuffle, whole numbers of at least 0.
    """
    if np.issubdtype(labels.dtype, np.floating):
        labels = np.zeros(len(labels), np.int32)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    positions = ((np.arange(count) + 0.5) * (len(labels) / count)).astype(np.int64)
    return by_label[positions]


def channel_statistics(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of each channel over all pixels of all examples.

    A channel that is constant, or varies by no more than rounding does, gets a deviation so large
    that it normalizes to 0.

    Args:
        source: examples with "input" [b, ..., c].

    Returns:
        (mean, std), float64 [c] each, in the units of the raw values.
    """
    # The first chunk's mean as the origin: no cancellation where the mean is far from 0.
    origin: np.ndarray | None = None
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for batch in chunks(source):
        raw = batch["input"].reshape(-1, batch["input"].shape[-1])
        values = raw.astype(np.float64)
        if origin is None:
            origin = values.mean(axis=0)
        values -= origin
        count += len(values)
        total = total + values.sum(axis=0)
        squares = squares + np.square(values).sum(axis=0)
    assert origin is not None  # a source has at least one example
    shift = total / count
    mean = origin + shift
    std = np.sqrt(np.maximum(squares / count - np.square(shift), 0))
    return mean, np.where(is_constant(mean, std, raw.dtype), CONSTANT, std)


def is_constant(mean: Any, std: Any, dtype: np.dtype) -> Any:
    """Tell where values deviate from their mean by no more than rounding to their type does."""
    rounding = np.finfo(dtype if np.issubdtype(dtype, np.floating) else np.float64).eps
    return std <= _NOISE_ULPS * rounding * np.abs(mean)


def lossless(values: npt.NDArray[np.float64]) -> np.ndarray:
    """Return values as float32 where that changes nothing, even when they are standardized.

    A channel may lose 1e-5 of its deviation, by the rounding of the values and of their mean.

    Args:
        values: [n, ..., c], float64.

    Example:
        >>> [lossless(np.array(x)).dtype.name for x in ([[0.1], [2]], [[1e12], [1e12 + 1]])]
        ['float32', 'float64']
        >>> lossless(1.7e9 + np.arange(4000.0)[:, None]).dtype.name  # a twentieth of the deviation
        'float64'
    """
    with np.errstate(over="ignore", invalid="ignore"):  # infinite where float32 is too small
        small = values.astype(np.float32)
        rows = values.reshape(-1, values.shape[-1])
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        lost = np.abs(small.reshape(rows.shape) - rows).max(axis=0)
        lost += np.abs(mean.astype(np.float32) - mean)
    fits = np.isfinite(lost) & ((lost <= 1e-5 * std) | is_constant(mean, std, rows.dtype))
    return small if fits.all() else values
