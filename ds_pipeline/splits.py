"""The splits that every kind of data set is read into, and helpers of the readers."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ds_pipeline.errors import DataError, escaped, nearest
from ds_pipeline.files import number
from ds_pipeline.source import (
    CONSTANT,
    Indices,
    InMemorySource,
    Source,
    SubsetSource,
    is_constant,
    split_indices,
)

# Of more digits, a label is a text: Python's own limit is 4,300.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,999}")
_LONGEST_NAME = 1000


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set as its files give it.

    Args:
        train: the training split.
        evaluation: examples to evaluate on; None: some of train are to be held out.
        evaluation_name: 'test' or 'validation'.
        shape: of an input; None: encoded images of any size.
        dtype: of the inputs, once decoded; float64: float32 does not hold them, and they are to be
            standardized before they become float32.
        class_names: one a class; (): labels are no classes.
        columns: names of a table's inputs, in their order; (): they have none.
        mean: published, of each channel, in the units of the raw values; None: there is none.
        std: likewise.
        warnings: what the user should know, a line each.
        task: what is learned: "classification", "regression" or "forecasting".
        target_shape: of a label; (): a class or a number.
        validation: a split of the data's own to choose the best epoch by; None: there is none.
        standardized: the sources give (x - mean) / std already.
        numbers: returns the number of each example of train, which files of other labels go by;
            None: it is the place in the data as they are read.
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
    task: str = "classification"
    target_shape: tuple[int, ...] = ()
    validation: Source | None = None
    standardized: bool = False
    numbers: Callable[[], Indices] | None = None


def encode_classes(
    where: str, train: Sequence[str], test: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Number the sorted distinct values of the training examples 0, 1, ..., as labels.

    Each text is a class, as it is written: 1, 01 and 1E3 are three. Where all are whole numbers
    without leading zeros, they are sorted as numbers, else as text.

    Args:
        where: the file, for messages.
        train: value of each training example.
        test: of each test example.

    Returns:
        (labels of train, labels of test, class names), labels int32.

    Raises:
        DataError: all values are numbers, and some have a fraction; a value occurs in the test
            examples alone.
    """
    name_of = {text: normalized(text) for text in {*train, *test}}
    train, test = ([name_of[text] for text in texts] for texts in (train, test))
    values = sorted(set(train))
    if all(map(_INTEGER.fullmatch, values)):
        values.sort(key=int)
    elif fraction := _fraction(values):
        raise DataError(
            f"{where}: label {fraction[:40]} is no class: allowed are text and whole numbers; "
            "numbers to predict need dataset.task=regression"
        )
    names = tuple(values)
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


def _fraction(texts: Sequence[str]) -> str | None:
    """Return the first that has a fraction, where all are numbers."""
    try:
        fractions = [text for text in texts if 0 < number(text) % 1 < 1]  # of infinity, it is NaN
    except ValueError:
        return None
    return fractions[0] if fractions else None


def normalized(name: str) -> str:
    r"""Return the one form of a class's or column's name, however it is encoded; one line.

    Unicode's composed form (NFC), in which an accent is no character of its own; what cannot be
    printed, such as a byte that is not UTF-8 in a folder's name, is escaped.

    Example:
        >>> print(normalized("cafe\u0301"), normalized("New\nYork"), normalized("caf\udce9"))
        café New\nYork caf\udce9
    """
    return escaped(unicodedata.normalize("NFC", name))


def check_splits(name: str, splits: Splits) -> list[str]:
    """Check the classes, which every reader reads its own way; return warnings, a line each.

    Args:
        name: of the data set, for messages.
        splits: as a reader returned them.

    Raises:
        DataError: there are fewer than two classes, two of one name, or one whose name is empty,
            very long or not `normalized`.
    """
    if splits.task == "forecasting":  # its labels are all windows
        return []
    if not splits.class_names:
        targets = splits.train.labels()
        if (targets == targets[0]).all():
            return [f"{name}: all targets of the training split are {targets[0]:.9g}"]
        return []
    for class_name in splits.class_names:
        if not 0 < len(class_name) <= _LONGEST_NAME or class_name != normalized(class_name):
            raise DataError(
                f"{name}: the class name '{class_name[:40]}' has {len(class_name):,} characters; "
                f"allowed are 1 to {_LONGEST_NAME:,}, printable and composed (NFC)"
            )
    if repeated := duplicate(splits.class_names):
        raise DataError(f"{name}: two classes are named '{repeated}'; rename or join them")
    if len(splits.class_names) < 2:
        raise DataError(
            f"{name}: a classification needs two classes, all labels are '{splits.class_names[0]}'"
        )
    return []


def constant_columns(mean: np.ndarray, std: np.ndarray, columns: Sequence[str]) -> list[str]:
    """Return a warning that names the columns which tell nothing; empty where there are none.

    Args:
        mean: [c], from `channel_statistics` of the training split.
        std: [c], likewise.
        columns: their names; (): they have none, and are counted from 1.
    """
    names = columns or [str(i + 1) for i in range(len(mean))]
    constant = np.flatnonzero(std == CONSTANT).tolist()
    found = listing([f"column {names[i]} ({mean[i]:.17g})" for i in constant])
    return [f"constant in all training examples, so standardized to 0: {found}"] * bool(constant)


def duplicate(names: Sequence[str]) -> str | None:
    """Return a name that occurs twice, if any does."""
    name, count = Counter(names).most_common(1)[0]
    return name if count > 1 else None


def float32_targets(where: str, targets: np.ndarray) -> np.ndarray:
    """Return targets of a regression as float32, in which they are trained on.

    Args:
        where: the file, for messages.
        targets: [n], finite numbers.

    Raises:
        DataError: float32 does not hold them, or not what they differ by.
    """
    exact = targets.astype(np.float64)
    with np.errstate(over="ignore"):  # it is said below
        rounded = exact.astype(np.float32)
    if not np.isfinite(rounded).all():
        row = int(np.argmin(np.isfinite(rounded)))
        raise DataError(f"{where}: the target {exact[row]:g} is too large for float32; divide all")
    mean, std = exact.mean(), exact.std()
    if np.abs(rounded - exact).max() > 0.01 * std and not is_constant(mean, std, exact.dtype):
        raise DataError(
            f"{where}: float32 does not hold what the targets, about {mean:.9g}, differ by; "
            "subtract that from all"
        )
    return rounded


def split_off_test(
    where: str,
    inputs: np.ndarray,
    labels: np.ndarray,
    fraction: float,
    seed: int,
    class_names: tuple[str, ...],
    columns: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    split: str = "stratified",
) -> Splits:
    """Split data that come without a test split into train and test.

    Args:
        where: the data set or file, for messages.
        inputs: [n, ...], as for `InMemorySource`.
        labels: [n], likewise.
        fraction: share of the test split, dataset.test_fraction.
        seed: of the shuffle, at least 0.
        class_names: as in `Splits`.
        columns: likewise.
        warnings: likewise.
        split: how, see `split_indices`.

    Raises:
        DataError: a split would be empty, or a class would have no training example.
    """
    try:
        train, test = split_indices(split, labels, fraction, seed, "dataset.test_fraction")
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
        columns=columns,
        warnings=warnings,
        task="classification" if class_names else "regression",
    )


def listing(names: Sequence[str], limit: int = 10) -> str:
    """Join names by commas, not more than `limit`; 'none' where there are none."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def unknown_name(what: str, name: str, allowed: Sequence[str]) -> str:
    """Return `WHAT 'name'; allowed: a, b; did you mean 'a'?`."""
    return f"{what} '{name}'; allowed: {listing(allowed)}{nearest(name, allowed)}"
