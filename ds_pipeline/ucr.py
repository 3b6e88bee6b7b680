"""Time series in the format of the UCR archive: NAME_TRAIN.tsv and NAME_TEST.tsv.

One series a line: its label, then its values, with tabs between them.
"""

import os
from pathlib import Path

import numpy as np

from ds_pipeline.errors import DataError, nearest
from ds_pipeline.files import text_lines
from ds_pipeline.source import InMemorySource
from ds_pipeline.splits import Splits, encode_classes, listing


def load_ucr(data_dir: Path, name: str) -> Splits:
    """Load both splits of a UCR set, each series z-normalized.

    x = (values - mean) / std of the series itself, with the population's deviation; a constant
    series becomes 0.

    Args:
        data_dir: the folder with NAME/NAME_TRAIN.tsv, or with NAME_TRAIN.tsv.
        name: of the set, such as FordA.

    Returns:
        Series float32 [n, length, 1]; classes are the labels, sorted.

    Raises:
        DataError: a file is missing, empty or cannot be read; a line has more or fewer values
            than the first, or a value that is no finite number; a label that only the test split
            has.

    References:
        Dau et al.: The UCR Time Series Archive, IEEE/CAA Journal of Automatica Sinica, 2019.
    """
    folder = data_dir / name if os.path.isdir(data_dir / name) else data_dir
    if not os.path.exists(folder / f"{name}_TRAIN.tsv"):
        _raise_missing(data_dir, name)
    train_file, test_file = folder / f"{name}_TRAIN.tsv", folder / f"{name}_TEST.tsv"
    train, train_labels = _read(train_file)
    test, test_labels = _read(test_file)
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"{test_file}: series of {test.shape[1]} values, but those of {train_file.name} have "
            f"{train.shape[1]}"
        )
    where = f"{train_file} and {test_file.name}"
    labels, labels_of_test, class_names = encode_classes(where, train_labels, test_labels)
    return Splits(
        train=InMemorySource(train, labels),
        evaluation=InMemorySource(test, labels_of_test),
        evaluation_name="test",
        shape=train.shape[1:],
        dtype=train.dtype,
        class_names=class_names,
        mean=np.zeros(1, np.float32),
        std=np.ones(1, np.float32),
    )


def _raise_missing(data_dir: Path, name: str) -> None:
    """Raise DataError with the sets that are there; not where the folder cannot be read."""
    try:
        files = [*data_dir.glob("*_TRAIN.tsv"), *data_dir.glob("*/*_TRAIN.tsv")]
    except OSError:
        return
    if data_dir.is_dir():
        names = sorted(file.name.removesuffix("_TRAIN.tsv") for file in files)
        raise DataError(
            f"{data_dir} has neither {name}/{name}_TRAIN.tsv nor {name}_TRAIN.tsv; UCR sets there: "
            f"{listing(names)}{nearest(name, names)}; for another folder set dataset.data_dir"
        )


def _read(file: Path) -> tuple[np.ndarray, list[str]]:
    """Read (series [n, length, 1], labels) of a file."""
    series: list[np.ndarray] = []
    labels: list[str] = []
    for number, line in text_lines(file, "the folder of the UCR set"):
        where = f"{file}, line {number}"
        label, *fields = line.split("\t")
        values = _numbers(where, fields)
        if not label.strip():
            raise DataError(f"{where}: no label; it comes first, before a tab")
        if series and len(values) != len(series[0]):
            raise DataError(
                f"{where}: {len(values)} values, but the first series has {len(series[0])}; all "
                "series of a set need one length"
            )
        series.append(znormalize(_finite(where, values)))
        labels.append(label.strip())
    if not series:
        raise DataError(f"{file} is empty: there is no series in it")
    return np.stack(series)[..., None], labels


def znormalize(values: np.ndarray) -> np.ndarray:
    """Return (x - mean) / std of one series, float32; 0 where it is constant.

    Example:
        >>> znormalize(np.array([1.0, 3.0])).tolist()
        [-1.0, 1.0]
    """
    # A constant series' deviation is not 0 where its mean is rounded.
    if values.max() == values.min():
        return np.zeros(len(values), np.float32)
    return ((values - values.mean()) / values.std()).astype(np.float32)


def _numbers(where: str, fields: list[str]) -> np.ndarray:
    if not fields:
        raise DataError(f"{where}: no values after the label; they are separated by tabs")
    try:
        return np.array(fields, np.float64)
    except ValueError:
        for index, field in enumerate(fields, start=1):
            try:
                float(field)
            except ValueError:
                raise DataError(f"{where}: '{field[:40]}' (value {index}) is no number") from None
        raise


def _finite(where: str, values: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(~np.isfinite(values))
    if not len(wrong):
        return values
    if np.isnan(values[wrong[0] :]).all():
        raise DataError(
            f"{where}: the last {len(wrong)} of {len(values)} values are NaN: a set of series of "
            "different lengths, which is not supported; cut or fill the series first"
        )
    raise DataError(
        f"{where}: value {wrong[0] + 1} is {values[wrong[0]]}; fill in or remove such values first"
    )
