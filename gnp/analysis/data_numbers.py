"""Numbers about a data set: values, labels, image sizes, and the speed of its pipeline."""

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import ds_pipeline
from ds_pipeline.decode import DecodedSource, center_crop, image_size
from ds_pipeline.forecast import WindowSource
from ds_pipeline.identity import innermost
from ds_pipeline.source import EncodedImage, InMemorySource
from ds_pipeline.table import StandardizedSource

# Statistics read at most so many bytes of examples, evenly spread over the split; decoding
# encoded images costs more, so fewer are read of them.
_STATISTICS_BYTES = 2**30
_ENCODED_EXAMPLES = 2000
_CHUNK_BYTES = 2**25


class Statistics(NamedTuple):
    """Examples that were read; of each channel, or of each column of a table, what they have."""

    examples: int
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def measure(source: ds_pipeline.Source) -> Statistics:
    """Return mean, deviation and extremes along the last axis, over (at most 1 GiB of) examples.

    Args:
        source: with inputs [b, ..., c].
    """
    from sklearn.preprocessing import MinMaxScaler, StandardScaler  # late: they take a second

    one = source.batch(np.zeros(1, np.int64))["input"]
    most = min(len(source), max(1, _STATISTICS_BYTES // one.nbytes))
    if isinstance(source, DecodedSource):
        most = min(most, _ENCODED_EXAMPLES)
    indices = evenly(len(source), most)
    moments, limits = StandardScaler(), MinMaxScaler()
    rows = max(1, _CHUNK_BYTES // (8 * one.size))
    for part in _parts(indices, rows, "reading"):
        values = source.batch(part)["input"].reshape(-1, one.shape[-1]).astype(np.float64)
        moments.partial_fit(values)
        limits.partial_fit(values)
    return Statistics(
        most, moments.mean_, np.sqrt(moments.var_), limits.data_min_, limits.data_max_
    )


def image_sizes(source: ds_pipeline.Source) -> npt.NDArray[np.int64]:
    """Return heights and widths of (at most 2,000) encoded images, from their headers, [n, 2].

    Raises:
        DataError: a header cannot be read.
    """
    indices = evenly(len(source), _ENCODED_EXAMPLES)
    sizes = []
    for part in _parts(indices, 64, "headers"):
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
    source = dataset.train if split == "train" else dataset.evaluation
    size = min(batch_size, len(source))
    batches = _endless(dataset, split, size, seed)
    begin = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(3):  # not those that were made while the first was waited for
        next(batches)
    count, passed, begin = 0, 0.0, time.perf_counter()
    with tqdm(desc="measuring the speed", unit="batch", leave=False, disable=None) as bar:
        while passed < seconds:
            next(batches)
            count += size
            bar.update()
            passed = time.perf_counter() - begin
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
    source, workers = dataset.evaluation, dataset.workers
    return (
        batch
        for _ in itertools.count()
        for batch in ds_pipeline.evaluation_batches(source, size, workers=workers)
    )


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


def _parts(indices: npt.NDArray[np.int64], size: int, name: str) -> Iterable[Any]:
    """Return indices in parts, with a bar on a terminal if it takes longer than a second."""
    parts = [indices[i : i + size] for i in range(0, len(indices), size)]
    return tqdm(parts, name, delay=1, disable=None, leave=False)


def label_facts(labels: npt.NDArray[Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Return data.json's entries on labels: examples of each class, or the target's range."""
    if class_names:
        counts = np.bincount(labels, minlength=len(class_names)).tolist()
        pairs = zip(class_names, counts, strict=True)
        return {"classes": [{"name": name, "examples": count} for name, count in pairs]}
    mean, std = labels.mean(dtype=np.float64), labels.std(dtype=np.float64)
    return {"target": {"mean": float(mean), "std": float(std), **_range(labels)}}


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


def _range(values: npt.NDArray[Any]) -> dict[str, float]:
    low, middle, high = np.quantile(values.astype(np.float64), [0, 0.5, 1]).tolist()
    return {"min": low, "median": middle, "max": high}


def rows_of_series(source: ds_pipeline.Source, dataset: ds_pipeline.Dataset) -> ds_pipeline.Source:
    """Return the series that windows are cut from, each row once, in the units of its file."""
    windows = innermost(source)
    assert isinstance(windows, WindowSource)
    rows = windows.series * dataset.std + dataset.mean
    return InMemorySource(rows, np.zeros(len(rows), np.float32))


def statistics_facts(source: ds_pipeline.Source, dataset: ds_pipeline.Dataset) -> dict[str, Any]:
    """Return data.json's entries on a split's raw values, and what normalizes them in training."""
    statistics = measure(decoded(source, dataset.shape))
    keys = ("mean", "std", "min", "max", "normalizing_mean", "normalizing_std")
    columns = np.broadcast_arrays(*statistics[1:], dataset.mean, dataset.std)
    each: list[dict[str, Any]] = [
        dict(zip(keys, values, strict=True)) for values in np.transpose(columns).tolist()
    ]
    for name, values in zip(dataset.columns, each, strict=False):
        values["name"] = name
    return {"examined": statistics.examples, "each": each}
