"""The splits that every kind of data set is read into, and helpers of the readers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_pipeline.errors import DataError, nearest
from ds_pipeline.source import InMemorySource, Source, SubsetSource, stratified_split


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set as its files give it.

    Args:
        train: the training split.
        evaluation: examples to evaluate on; None: some of train are to be held out.
        evaluation_name: 'test' or 'validation'.
        shape: of an input; None: encoded images of any size.
        dtype: of the inputs, once decoded.
        class_names: one a class; (): a regression.
        columns: names of a table's inputs, in their order; (): they have none.
        mean: published, of each channel, in the units of the raw values; None: there is none.
        std: likewise.
        warnings: what the user should know, a line each.
    """

    train: Source
    evaluation: Source | None
    evaluation_name: str
    shape: tuple[int, ...] | None
    dtype: np.dtype
    class_names: tuple[str, ...]
    columns: tuple[str, ...] = ()
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


def encode_classes(
    where: str, train: Sequence[str], test: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Number the sorted distinct values of the training examples 0, 1, ..., as labels.

    Values that are all whole numbers are sorted as numbers, others as text; 1.0 is the class 1.

    Args:
        where: the file, for messages.
        train: value of each training example.
        test: of each test example.

    Returns:
        (labels of train, labels of test, class names), labels int32.

    Raises:
        DataError: a value is a number with a fraction; fewer than two classes; a value occurs in
            the test examples alone.

    Example:
        >>> encode_classes("a.csv", ["10", "9", "10.0"])[::2]
        (array([1, 0, 1], dtype=int32), ('9', '10'))
    """
    train, test = (
        [_class_name(where, text) for text in train],
        [_class_name(where, t) for t in test],
    )
    values = set(train)
    names = tuple(sorted(values, key=int) if all(map(_is_whole, values)) else sorted(values))
    if len(names) < 2:
        raise DataError(f"{where}: a classification needs two classes, all labels are {names[0]}")
    label_of = {name: label for label, name in enumerate(names)}
    unknown = sorted(set(test) - set(names))
    if unknown:
        raise DataError(
            f"{where}: class '{unknown[0]}' occurs in the test split alone; the training split has "
            f"{listing(names)}"
        )
    return (
        np.array([label_of[name] for name in train], np.int32),
        np.array([label_of[name] for name in test], np.int32),
        names,
    )


def _class_name(where: str, text: str) -> str:
    """Return the text, or the integer it stands for, so that 1, 1.0 and 1e0 are one class."""
    try:
        return str(int(text))
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return text
    if not value.is_integer():
        raise DataError(
            f"{where}: label {text} is no class: allowed are text and whole numbers; numbers to "
            "predict, in a CSV or .npz file, need dataset.task=regression"
        )
    return str(int(value))


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def split_off_test(
    where: str,
    inputs: np.ndarray,
    labels: np.ndarray,
    fraction: float,
    seed: int,
    class_names: tuple[str, ...],
) -> Splits:
    """Split data that come without a test split into train and test.

    Stratified by class; random for a regression.

    Args:
        where: the data set or file, for messages.
        inputs: [n, ...], uint8 or float32.
        labels: [n], int32 or float32.
        fraction: share of the test split, dataset.test_fraction.
        seed: of the shuffle, at least 0.
        class_names: one a class; empty: a regression.

    Raises:
        DataError: a split would be empty, or a class would have no training example.
    """
    try:
        train, test = stratified_split(labels, fraction, seed, "dataset.test_fraction")
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if class_names:
        missing = np.setdiff1d(labels[test], labels[train])
        if len(missing):
            raise DataError(
                f"{where}: class '{class_names[missing[0]]}' has too few examples for a share in "
                "the training split and in the test split; remove it, add examples, or lower "
                "dataset.test_fraction"
            )
    source = InMemorySource(inputs, labels)
    return Splits(
        train=SubsetSource(source, train),
        evaluation=SubsetSource(source, test),
        evaluation_name="test",
        shape=inputs.shape[1:],
        dtype=inputs.dtype,
        class_names=class_names,
    )


def default_class_names(count: int) -> tuple[str, ...]:
    """Return '0', '1', ...: names of classes that have none."""
    return tuple(str(i) for i in range(count))


def listing(names: Sequence[str], limit: int = 10) -> str:
    """Join names by commas, not more than `limit`; 'none' where there are none."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def unknown_name(what: str, name: str, allowed: Sequence[str]) -> str:
    """Return `WHAT 'name'; allowed: a, b; did you mean 'a'?`."""
    return f"{what} '{name}'; allowed: {listing(allowed)}{nearest(name, allowed)}"
