"""Tables in CSV files: one column to predict, the others to predict it from."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ds_pipeline.errors import DataError, one_line
from ds_pipeline.files import LARGEST, number, text_lines
from ds_pipeline.source import lossless
from ds_pipeline.splits import (
    Splits,
    duplicate,
    encode_classes,
    float32_targets,
    listing,
    normalized,
    split_off_test,
    unknown_name,
)


def load_csv(
    file: Path,
    target: str | None,
    is_regression: bool,
    test_fraction: float,
    seed: int,
    split: str = "stratified",
) -> Splits:
    """Load a table, split into train and test, stratified by class; random for a regression.

    Args:
        file: with a header line, commas between columns, quotes where needed.
        target: name of the column to predict.
        is_regression: it holds numbers; else classes, as text or whole numbers.
        test_fraction: share of the test split.
        seed: of the split, at least 0.
        split: how, see `split_indices`.

    Returns:
        Inputs [n, d], the other columns in their order: float32, or float64 where that holds more.

    Raises:
        DataError: the file is missing, empty or cannot be read, has no such column, two of one
            name, no rows, a row of another length, a value that is no finite number.
    """
    header, rows, warnings = _read(file)
    index = _target_index(file, header, target)
    if not rows:
        raise DataError(f"{file} has a header and no rows")
    inputs = np.empty((len(rows), len(header) - 1))
    for row, (line, fields) in enumerate(rows):
        inputs[row] = [
            finite_number(file, line, name, text)
            for column, (name, text) in enumerate(zip(header, fields, strict=True))
            if column != index
        ]
    targets = [(line, fields[index].strip()) for line, fields in rows]
    where = f"{file}, column '{header[index]}'"
    class_names: tuple[str, ...] = ()
    if is_regression:
        classes = "for classes set dataset.task to classification, or "
        numbers = [finite_number(file, line, header[index], t, classes) for line, t in targets]
        labels = float32_targets(where, np.array(numbers))
    else:
        for line, text in targets:
            if not text:
                raise DataError(f"{file}, line {line}: column '{header[index]}' is empty")
        labels, _, class_names = encode_classes(where, [text for _, text in targets])
    columns = (*header[:index], *header[index + 1 :])
    return split_off_test(
        where, lossless(inputs), labels, test_fraction, seed, class_names, columns, warnings, split
    )


def _read(file: Path) -> tuple[list[str], list[tuple[int, list[str]]], tuple[str, ...]]:
    """Return (header, rows with the number of their first line, warnings)."""
    (_, header), *rows = read_table(file)
    return header, rows, nameless_columns(file, header)


def nameless_columns(file: Path, header: list[str]) -> tuple[str, ...]:
    """Return a warning that names the columns that have no name; none where all have."""
    nameless = [name for i, name in enumerate(header) if name == _nameless(i)]
    warning = (
        f"{file}: no name in the header for {listing(nameless)}, taken as an input; remove it if "
        "it numbers the rows"
    )
    return (warning,) if nameless else ()


def _nameless(index: int) -> str:
    return f"column {index + 1}"


def read_table(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the names of a table's columns, then its rows, each with the number of its first line.

    Blank lines are left out. A column without a name is called `column 1`, by its place.

    Raises:
        DataError: the file is missing, empty or cannot be read, has two columns of one name, or a
            row of another length.
    """
    header: list[str] = []
    line = 1
    with contextlib.closing(text_lines(file, "the CSV file")) as text:
        reader = csv.reader(text, strict=True, skipinitialspace=True)
        try:
            for fields in reader:
                first, line = line, reader.line_num + 1
                if len(fields) < 2 and not any(field.strip() for field in fields):
                    continue
                if not header:
                    names = (normalized(name.strip()) for name in fields)
                    header = fields = [name or _nameless(i) for i, name in enumerate(names)]
                    if repeated := duplicate(header):
                        raise DataError(f"{file}: two columns are named '{repeated}'; rename one")
                elif len(fields) != len(header):
                    raise DataError(
                        f"{file}, line {first}: {len(fields)} values, but the header names "
                        f"{len(header)} columns"
                    )
                yield first, fields
        except csv.Error as error:
            raise DataError(f"{file}, line {line}: {one_line(error)}") from error
    if not header:
        raise DataError(f"{file} is empty; it needs a header line and rows")


def _target_index(file: Path, header: list[str], target: str | None) -> int:
    if target is None:
        raise DataError(
            f"which column of {file} is to be predicted? set dataset.target to one of "
            f"{listing(header)}"
        )
    target = normalized(target)
    if target not in header:
        raise DataError(unknown_name(f"dataset.target: {file} has no column", target, header))
    if len(header) < 2:
        raise DataError(f"{file} has one column; are commas between its columns?")
    return header.index(target)


def finite_number(file: Path, line: int, column: str, text: str, advice: str = "") -> float:
    """Return the number in a field of a table.

    Args:
        file: for messages, as the next two.
        line: of the row.
        column: its name.
        text: the field.
        advice: what else may be done, before a semicolon.

    Raises:
        DataError: it is empty, no finite number or too large.
    """
    try:
        value = number(text)
    except ValueError:
        wrong = "is no finite number"
    else:
        if abs(value) <= LARGEST:
            return value
        wrong = f"is too large: above {LARGEST:g}"
    found = f"'{text.strip()[:40]}' {wrong}" if text.strip() else "an empty value"
    raise DataError(
        f"{file}, line {line}, column '{column}': {found}; {advice}fill in or remove such values "
        "first"
    )
