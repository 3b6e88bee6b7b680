"""Numbers about a data set: values, labels, image sizes, and the speed of its pipeline."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import ds_pipeline
from ds_pipeline.decode import DecodedSource, center_crop, image_size
from ds_pipeline.source import EncodedImage
from ds_pipeline.table import StandardizedSource

# Statistics read at most so many bytes of examples, evenly spread over the split; decoding
# encoded images costs more, so fewer are read of them.
_STATISTICS_BYTES = 2**30
_ENCODED_EXAMPLES = 2000
_CHUNK_BYTES = 2**25


class Statistics(NamedTuple):
    """Mean, deviation and extremes of each channel, or of each column of a table.

    Attributes:
        examples: that were read.
        mean: float64 [c].
        std: float64 [c].
        low: float64 [c], the smallest.
        high: float64 [c], the largest.
    """

    examples: int
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def measure(source: ds_pipeline.Source) -> Statistics:
    """Return mean, deviation and extremes along the last axis, over (at most 1 GiB of) examples.

    Parts are combined by the formula of Chan, Golub and LeVeque.

    Args:
        source: with inputs [b, ..., c].

    Example:
        >>> inputs = np.array([[1, 10], [3, 10]], np.float32)
        >>> result = measure(ds_pipeline.InMemorySource(inputs, [0, 1]))
        >>> result.mean.tolist(), result.std.tolist(), result.high.tolist()
        ([2.0, 10.0], [1.0, 0.0], [3.0, 10.0])

    References:
        Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances, 1979.
    """
    one = source.batch(np.zeros(1, np.int64))["input"]
    most = min(len(source), max(1, _STATISTICS_BYTES // one.nbytes))
    if isinstance(source, DecodedSource):
        most = min(most, _ENCODED_EXAMPLES)
    indices = evenly(len(source), most)
    count, mean, squares = 0, np.zeros(one.shape[-1]), np.zeros(one.shape[-1])
    low, high = np.full(one.shape[-1], np.inf), np.full(one.shape[-1], -np.inf)
    rows = max(1, _CHUNK_BYTES // (8 * one.size))
    for part in _with_bar([indices[i : i + rows] for i in range(0, most, rows)], "reading"):
        inputs = source.batch(part)["input"]
        values = inputs.reshape(-1, inputs.shape[-1]).astype(np.float64)
        low = np.minimum(low, values.min(axis=0))
        high = np.maximum(high, values.max(axis=0))
        part_mean = values.mean(axis=0)
        difference, total = part_mean - mean, count + len(values)
        squares += np.square(values - part_mean[None]).sum(axis=0)
        squares += np.square(difference) * (count * len(values) / total)
        mean += difference * (len(values) / total)
        count = total
    return Statistics(most, mean, np.sqrt(squares / count), low, high)


def image_sizes(source: ds_pipeline.Source) -> npt.NDArray[np.int64]:
    """Return heights and widths of (at most 2,000) encoded images, from their headers, [n, 2].

    Raises:
        DataError: a header cannot be read.
    """
    indices = evenly(len(source), _ENCODED_EXAMPLES)
    sizes = []
    for part in _with_bar([indices[i : i + 64] for i in range(0, len(indices), 64)], "headers"):
        sizes += [image_size(image) for image in encoded(source).batch(part)["input"]]
    return np.array(sizes, np.int64)


def speed(
    dataset: ds_pipeline.Dataset, split: str, batch_size: int, seed: int, seconds: float
) -> dict[str, Any]:
    """Return the examples a second that the pipeline gives when nothing else is done.

    Args:
        dataset: what is read.
        split: train or evaluation.
        batch_size: examples a batch; at most those that there are.
        seed: of order and augmentation.
        seconds: how long, after the first batches.

    Returns:
        batch_size, workers, seconds to the first batch, seconds measured, examples a second.
    """
    size = min(batch_size, len(dataset.train if split == "train" else dataset.evaluation))
    batches = _endless(dataset, split, size, seed)
    begin = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(3):  # not those that were made while the first was waited for
        next(batches)
    count, begin, shown = 0, time.perf_counter(), 0.0
    bar = tqdm(
        total=seconds, desc="measuring the speed", leave=False, disable=None,
        bar_format="{desc} {bar} {n:.1f} of {total:.0f} s",
    )  # fmt: skip
    with bar:
        while (passed := time.perf_counter() - begin) < seconds:
            bar.update(passed - shown)
            shown = passed
            next(batches)
            count += size
    batches.close()
    return {
        "batch_size": size,
        "workers": dataset.workers,
        "first_batch_seconds": first,
        "seconds": passed,
        "examples_per_second": count / passed,
    }


def _endless(dataset: ds_pipeline.Dataset, split: str, size: int, seed: int) -> Any:
    if split == "train":
        return ds_pipeline.train_batches(dataset, size, seed, 0, 2**31)

    def again() -> Iterator[Any]:
        while True:
            yield from ds_pipeline.evaluation_batches(
                dataset.evaluation, size, workers=dataset.workers
            )

    return again()


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most so many of count indices, evenly spread.

    Example:
        >>> evenly(10, 5).tolist(), evenly(2, 5).tolist()
        ([1, 3, 5, 7, 9], [0, 1])
    """
    taken = min(count, most)
    return ((np.arange(taken) + 0.5) * (count / taken)).astype(np.int64)


def encoded(source: ds_pipeline.Source) -> ds_pipeline.Source:
    """Return the source of the encoded images, before they are decoded."""
    return source.source if isinstance(source, DecodedSource) else source


def decoded(source: ds_pipeline.Source, shape: Sequence[int]) -> ds_pipeline.Source:
    """Return a source of raw values: encoded images as they are evaluated, others as stored."""
    if isinstance(source, StandardizedSource):
        return source.source
    if is_encoded(source) and not isinstance(source, DecodedSource):
        return DecodedSource(source, center_crop(shape[0]))
    return source


def is_encoded(source: ds_pipeline.Source) -> bool:
    """Tell whether a source holds JPEGs or PNGs, decoded on the way or not."""
    inputs = encoded(source).batch(np.zeros(1, np.int64))["input"]
    return isinstance(inputs, list) and isinstance(inputs[0], EncodedImage)


def kind(dataset: ds_pipeline.Dataset, source: ds_pipeline.Source) -> str:
    """Return the kind of an input: encoded images, images, series or vectors."""
    if is_encoded(source):
        return "encoded images"
    return {1: "vectors", 2: "series", 3: "images"}[len(dataset.shape)]


def _with_bar(items: Sequence[Any], name: str) -> Iterator[Any]:
    """Yield the items, with a bar on a terminal if it takes longer than a second."""
    yield from tqdm(items, desc=name, delay=1, disable=None, leave=False)


def label_facts(labels: npt.NDArray[Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Return data.json's entries on labels: examples of each class, or the target's range."""
    if class_names:
        counts = np.bincount(labels, minlength=len(class_names)).tolist()
        return {"classes": [{"name": n, "examples": c} for n, c in zip(class_names, counts,
                                                                      strict=True)]}  # fmt: skip
    return {"target": {
        "mean": float(labels.mean(dtype=np.float64)),
        "std": float(labels.std(dtype=np.float64)),
        "min": float(labels.min()),
        "median": float(np.median(labels)),
        "max": float(labels.max()),
    }}  # fmt: skip


def size_facts(sizes: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return data.json's entries on image sizes: their range, and each, the commonest first."""
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        "examined": len(sizes),
        "height": _range(sizes[:, 0]),
        "width": _range(sizes[:, 1]),
        "counts": [
            {"height": int(h), "width": int(w), "examples": int(n)}
            for (h, w), n in zip(distinct[order], counts[order], strict=True)
        ],
    }


def _range(values: npt.NDArray[np.int64]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0, 0.5, 1]).tolist()
    return {"min": low, "median": middle, "max": high}


def statistics_facts(
    statistics: Statistics, dataset: ds_pipeline.Dataset, names: Sequence[str]
) -> dict[str, Any]:
    """Return data.json's entries on the values: as they are, and what normalizes them.

    Args:
        statistics: as measured.
        dataset: has the mean and deviation that training divides by.
        names: of the columns; (): none are known.
    """
    used_mean = np.broadcast_to(dataset.mean, statistics.mean.shape)
    used_std = np.broadcast_to(dataset.std, statistics.std.shape)
    columns = zip(*statistics[1:], used_mean, used_std, strict=True)
    keys = ("mean", "std", "min", "max", "normalizing_mean", "normalizing_std")
    each: list[dict[str, Any]] = [
        dict(zip(keys, map(float, column), strict=True)) for column in columns
    ]
    for name, values in zip(names, each, strict=False):
        values["name"] = name
    return {"examined": statistics.examples, "each": each}
