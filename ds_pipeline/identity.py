"""What identifies a data set, and whether two are one: a run goes on with its own data alone."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from ds_pipeline.dataset import Dataset
from ds_pipeline.errors import DataError, escaped
from ds_pipeline.forecast import WindowSource
from ds_pipeline.image_folder import ImageFolder
from ds_pipeline.label_noise import RelabeledSource
from ds_pipeline.labels_file import FileLabels
from ds_pipeline.source import Batch, InMemorySource, Source, SubsetSource, View
from ds_pipeline.splits import Splits, listing
from ds_pipeline.tfds_source import TfdsSplit

# Larger inputs are not hashed: a start would wait for it.
_MOST_HASHED_BYTES = 2**28
# Of statistics, in deviations: another machine sums the same data in another order.
_TOLERANCE = 1e-6
_NAMES = {
    "train_examples": "train examples",
    "evaluation_examples": "evaluation examples",
    "evaluation_name": "evaluation set",
    "shape": "input shape",
    "dtype": "input type",
    "classes": "classes",
    "columns": "columns",
    "mean": "mean of the inputs",
    "std": "deviation of the inputs",
}


def identity(dataset: Dataset) -> dict[str, Any]:
    """Return what identifies a data set, as JSON values.

    Its digest is of the labels and, in memory and up to 256 MiB, the inputs as they were read; of
    an image folder's file names; of the names and lengths of a large TFDS set's files; of the
    labels of dataset.labels_file. It does not depend on where the data lie, nor on augmentation
    and label noise.
    """
    digest = hashlib.sha256()
    done: list[Source] = []
    for source in (dataset.train, dataset.evaluation, dataset.validation):
        if source is not None:
            _hash(digest, source, done)
    return {
        "train_examples": len(dataset.train),
        "evaluation_examples": len(dataset.evaluation),
        "evaluation_name": dataset.evaluation_name,
        "shape": list(dataset.shape),
        "dtype": dataset.dtype.name,
        "classes": list(dataset.class_names),
        "columns": list(dataset.columns),
        "mean": dataset.mean.astype(np.float64).tolist(),
        "std": dataset.std.astype(np.float64).tolist(),
        "digest": digest.hexdigest(),
    }


def identity_problems(stored: object, here: Mapping[str, Any]) -> list[str]:
    """Return how the data that a run stored differ from these, a phrase each; [] where in nothing.

    Args:
        stored: what `identity` returned, as it was read from a file; anything else is different.
        here: what it returns now.

    Example:
        >>> here = {"train_examples": 160, "classes": ["dog", "emu"]}
        >>> identity_problems({"train_examples": 100, "classes": ["cat", "dog"]}, here)
        ['train examples: 100 there, 160 here', 'classes: cat, dog there; dog, emu here']
    """
    if not isinstance(stored, Mapping):
        return [f"the data are described by {_shown(stored)} there"]
    problems = []
    for key, name in _NAMES.items():
        if key in here and not _equal(stored.get(key), here[key], here.get("std", [])):
            between = "; " if isinstance(here[key], list) else ", "
            there = _shown(stored.get(key))
            problems.append(f"{name}: {there} there{between}{_shown(here[key])} here")
    if not problems and stored.get("digest") != here.get("digest"):
        problems.append("contents: as many examples, but not the same ones, or in another order")
    return problems


def matched(known: Mapping[str, Any], splits: Splits) -> Splits:
    """Bring data to the classes and the columns of a run, by their names.

    Labels are numbered as in the run; classes of the run that are not there are no fault. Columns
    that the run was not trained on are left out, with a warning.

    Args:
        known: the identity that the run stored.
        splits: as read.

    Raises:
        DataError: classes or columns cannot be matched, with both lists; one are classes and the
            other numbers to predict; what the run stored is none of that.
    """
    if not isinstance(known, Mapping):
        raise DataError(f"what the run stored of its data is {_shown(known)}, no object")
    classes, columns = _texts(known, "classes"), _texts(known, "columns")
    if bool(classes) != bool(splits.class_names):
        raise DataError(
            f"the run was trained on {_target(classes)}, and these data have "
            f"{_target(splits.class_names)}"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in splits.class_names if name not in label_of]
    if unknown:
        raise DataError(
            f"class '{unknown[0]}' is none of the run's: it was trained on "
            f"{_shown(list(classes))}, and these data have {listing(splits.class_names)}"
        )
    if classes != splits.class_names:
        numbers = np.array([label_of[name] for name in splits.class_names], np.int32)
        splits = _mapped(splits, lambda source: RelabeledSource(source, numbers[source.labels()]))
    place_of = {name: place for place, name in enumerate(splits.columns)}
    missing = [name for name in columns if name not in place_of]
    if missing or (splits.columns and not columns):
        what = f"column '{_shown(missing[0])}' is missing" if missing else "columns have no names"
        raise DataError(
            f"{what}: the run was trained on {_shown(list(columns))}, and these data have "
            f"{listing(splits.columns)}"
        )
    warnings = splits.warnings
    if columns != splits.columns:
        order = [place_of[name] for name in columns]
        extra = sorted(set(splits.columns) - set(columns), key=place_of.__getitem__)
        if extra:
            warnings += (f"columns that the run was not trained on are left out: {listing(extra)}",)
        splits = _mapped(splits, lambda source: View(source, partial(_columns, order)))
        splits = replace(splits, shape=(len(columns),), columns=columns)
    return replace(splits, class_names=classes, warnings=warnings)


def known_columns(known: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the columns that a run was trained on.

    Raises:
        DataError: it stored something else.
    """
    return _texts(known, "columns")


def check_inputs(known: Mapping[str, Any], shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise DataError unless a run was trained on such inputs; floats are alike, however wide."""
    stored = known.get("shape"), known.get("dtype")
    is_bytes = dtype == np.uint8
    if stored[0] != list(shape) or (stored[1] == "uint8") != is_bytes:
        raise DataError(
            f"the run was trained on inputs of shape {_shown(stored[0])} and type "
            f"{_shown(stored[1])}, and these data have {_shown(list(shape))} and {dtype.name}"
        )


def known_statistics(known: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation that a run stored, float64 [c].

    Raises:
        DataError: it stored something else.
    """
    mean, std = (known.get(key) for key in ("mean", "std"))
    if not (_are_numbers(mean, channels) and _are_numbers(std, channels) and min(std) > 0):
        raise DataError(
            f"the run's data are described by the mean {_shown(mean)} and the deviation "
            f"{_shown(std)}, and these have {channels} channels: each needs both"
        )
    return np.array(mean, np.float64), np.array(std, np.float64)


def innermost(source: Source) -> Source:
    """Return the source as it was read, without what changes its batches."""
    while isinstance(source, View):
        source = source.source
    return source


def _hash(digest: Any, source: Source, done: list[Source]) -> None:
    """Add a source to a digest, its labels and inputs once where several are subsets of it."""
    while isinstance(source, View):
        if isinstance(source, SubsetSource):
            digest.update(source.indices.tobytes())
        elif isinstance(source, FileLabels):
            digest.update(source.labels().tobytes())
        source = source.source
    if any(source is each for each in done):
        return
    done.append(source)
    arrays: list[np.ndarray] = []
    if isinstance(source, TfdsSplit):  # whose labels take a pass over the data
        files = [(file.path.name, file.skip, file.take) for file in source.files]
        digest.update(json.dumps([source.directory.name, files]).encode())
    elif isinstance(source, ImageFolder):
        arrays = [source.labels(), source.index.names, source.index.ends]
    elif isinstance(source, WindowSource):  # its labels are views of the series
        arrays = [source.series]
    else:
        arrays = [source.labels()]
        if isinstance(source, InMemorySource) and source.inputs.nbytes <= _MOST_HASHED_BYTES:
            arrays.append(source.inputs)
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))


def _columns(order: list[int], batch: Batch) -> Batch:
    return {**batch, "input": batch["input"][:, order]}


def _mapped(splits: Splits, change: Callable[[Source], Source]) -> Splits:
    evaluation = None if splits.evaluation is None else change(splits.evaluation)
    return replace(splits, train=change(splits.train), evaluation=evaluation)


def _target(class_names: Sequence[str]) -> str:
    return f"the classes {_shown(list(class_names))}" if class_names else "numbers to predict"


def _texts(known: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = known.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"what the run stored of its data has no list of names as its {key}")
    return tuple(values)


def _are_numbers(value: object, count: int) -> TypeGuard[list[float]]:
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(isinstance(each, float) and math.isfinite(each) for each in value)


def _equal(there: object, here: object, std: list[float]) -> bool:
    if isinstance(here, list) and here and isinstance(here[0], float):
        tolerance = _TOLERANCE * np.array(std)
        return _are_numbers(there, len(here)) and np.allclose(there, here, _TOLERANCE, tolerance)
    return type(there) is type(here) and there == here


def _shown(value: object) -> str:
    """Return a value of a file for a message, whatever it is."""
    if isinstance(value, list) and all(isinstance(each, (str, int, float)) for each in value):
        return listing([_shown(each) for each in value])
    if isinstance(value, str):
        return escaped(value[:60])
    if value is None:
        return "nothing"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    return f"some {type(value).__name__}"
