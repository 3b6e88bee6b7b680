"""Tables in CSV files: one column to predict, the others to predict it from."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ds_pipeline.errors import DataError, one_line
from ds_pipeline.files import text_lines
from ds_pipeline.splits import Splits, encode_classes, split_off_test, unknown_name

_MEANING = "the CSV file"
_LARGEST = float(np.finfo(np.float32).max)


def load_csv(
    file: Path, target: str | None, is_regression: bool, test_fraction: float, seed: int
) -> Splits:
    """Load a table, split into train and test, stratified by class; random for a regression.

    Args:
        file: with a header line, commas between columns, quotes where needed.
        target: name of the column to predict.
        is_regression: it holds numbers; else classes, as text or whole numbers.
        test_fraction: share of the test split.
        seed: of the split, at least 0.

    Returns:
        Inputs float32 [n, d], the other columns in their order.

    Raises:
        DataError: the file is missing, empty or cannot be read, has no such column, two of one
            name, no rows, a row of another length, a value that is no finite number.
    """
    header, rows = _read(file)
    index = _target_index(file, header, target)
    if not rows:
        raise DataError(f"{file} has a header and no rows")
    inputs = np.empty((len(rows), len(header) - 1), np.float32)
    for row, (line, fields) in enumerate(rows):
        inputs[row] = [
            _number(file, line, name, text)
            for column, (name, text) in enumerate(zip(header, fields, strict=True))
            if column != index
        ]
    targets = [(line, fields[index].strip()) for line, fields in rows]
    where = f"{file}, column '{header[index]}'"
    class_names: tuple[str, ...] = ()
    if is_regression:
        classes = "for classes set dataset.task to classification, or "
        labels = np.array(
            [_number(file, line, header[index], t, classes) for line, t in targets], np.float32
        )
    else:
        for line, text in targets:
            if text.lower() in ("", "nan"):
                raise DataError(f"{file}, line {line}: column '{header[index]}' is empty")
        labels, _, class_names = encode_classes(where, [text for _, text in targets])
    return split_off_test(where, inputs, labels, test_fraction, seed, class_names)


def input_names(file: Path, target: str | None) -> tuple[str, ...]:
    """Return the names of the columns that `load_csv` takes as inputs, in their order.

    Args:
        file: as in `load_csv`.
        target: name of the column to predict.

    Raises:
        DataError: as `load_csv`.
    """
    header, _ = _read(file)
    index = _target_index(file, header, target)
    return tuple(name for column, name in enumerate(header) if column != index)


def _read(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return (header, rows with their line numbers)."""
    numbers: list[int] = []

    def lines() -> Iterator[str]:
        for number, line in text_lines(file, _MEANING):
            numbers.append(number)
            yield line

    reader = csv.reader(lines(), strict=True, skipinitialspace=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for fields in reader:
            rows.append((numbers[-1], fields))
    except csv.Error as error:
        raise DataError(f"{file}, line {numbers[-1]}: {one_line(error)}") from error
    if not rows:
        raise DataError(f"{file} is empty; it needs a header line and rows")
    header = [name.strip() for name in rows.pop(0)[1]]
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{file}: two columns are named '{name}'; rename one")
    for line, fields in rows:
        if len(fields) != len(header):
            raise DataError(
                f"{file}, line {line}: {len(fields)} values, but the header names {len(header)} "
                "columns"
            )
    return header, rows


def _target_index(file: Path, header: list[str], target: str | None) -> int:
    if target is None:
        raise DataError(
            f"which column of {file} is to be predicted? set dataset.target to one of "
            f"{', '.join(header)}"
        )
    if target not in header:
        raise DataError(unknown_name(f"dataset.target: {file} has no column", target, header))
    if len(header) < 2:
        raise DataError(f"{file} has one column; are commas between its columns?")
    return header.index(target)


def _number(file: Path, line: int, column: str, text: str, advice: str = "") -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if abs(value) <= _LARGEST:  # False for NaN
        return value
    wrong = "is too large for float32" if math.isfinite(value) else "is no finite number"
    found = f"'{text.strip()[:40]}' {wrong}" if text.strip() else "an empty value"
    raise DataError(
        f"{file}, line {line}, column '{column}': {found}; {advice}fill in or remove such values "
        "first"
    )
