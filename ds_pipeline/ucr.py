"""Time series in the formats of the UCR and UEA archives: NAME_TRAIN.tsv or .ts, and NAME_TEST.

A line is a series. In .tsv, its label and its values, with tabs between them. In .ts, its channels
and its label with colons between them, and commas between values; before them a header.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ds_pipeline.errors import DataError, nearest
from ds_pipeline.files import LARGEST, number, text_lines
from ds_pipeline.source import InMemorySource, is_constant
from ds_pipeline.splits import Splits, encode_classes, listing, normalized

_SUFFIXES = (".tsv", ".ts")
# A label of .tsv is a number, which C and numpy may write as a float; 01 and 1E3 are none of these.
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]*(e[+-][0-9]{2,})?")

Lines: TypeAlias = Iterator[tuple[int, str]]
# Number of the line, label, and the fields of each channel.
Rows: TypeAlias = Iterator[tuple[int, str, list[list[str]]]]


def load_ucr(data_dir: Path, name: str, normalize: bool = True) -> Splits:
    """Load both splits of a UCR set, each channel of each series z-normalized.

    x = (values - mean) / std of that channel of the series itself, with the population's deviation;
    a constant one becomes 0.

    Args:
        data_dir: the folder with NAME/NAME_TRAIN.tsv or .ts, or with NAME_TRAIN.tsv or .ts.
        name: of the set, such as FordA.
        normalize: False: x is what the files hold.

    Returns:
        Series float32 [n, length, channels]; classes are the labels, sorted.

    Raises:
        DataError: a file is missing, empty or cannot be read; series differ in length or channels;
            a value is missing or no number; a label is not in the header of a .ts file, or in the
            test split alone.

    References:
        Dau et al.: The UCR Time Series Archive, IEEE/CAA Journal of Automatica Sinica, 2019.
        Bagnall et al.: The UEA multivariate time series classification archive, 2018,
        https://arxiv.org/abs/1811.00075.
    """
    train_file, test_file = _files(data_dir, name)
    train, train_labels = _read(train_file, normalize)
    test, test_labels = _read(test_file, normalize)
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{test_file}: series of {test.shape[1]} values in {test.shape[2]} channels, but those "
            f"of {train_file.name} have {train.shape[1]} in {train.shape[2]}"
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
        mean=np.zeros(train.shape[-1], np.float32),
        std=np.ones(train.shape[-1], np.float32),
    )


def _files(data_dir: Path, name: str) -> tuple[Path, Path]:
    """Return the files of both splits; where there are none, raise DataError with what is there."""
    folder = data_dir / name if os.path.isdir(data_dir / name) else data_dir
    for suffix in _SUFFIXES:
        if os.path.exists(folder / f"{name}_TRAIN{suffix}"):
            return folder / f"{name}_TRAIN{suffix}", folder / f"{name}_TEST{suffix}"
    with contextlib.suppress(OSError):  # that the folder cannot be read is said when it is opened
        ends = [f"_TRAIN{suffix}" for suffix in _SUFFIXES]
        files = [(f, end) for end in ends for g in ("", "*/") for f in data_dir.glob(f"{g}*{end}")]
        names = sorted({file.name.removesuffix(end) for file, end in files})
        if data_dir.is_dir():
            raise DataError(
                f"{data_dir} has neither {name}/{name}_TRAIN.tsv nor {name}_TRAIN.tsv; UCR sets "
                f"there: {listing(names)}{nearest(name, names)}; read are .tsv and .ts, not .arff; "
                "for another folder set dataset.data_dir"
            )
    return folder / f"{name}_TRAIN.ts", folder / f"{name}_TEST.ts"


def _read(file: Path, normalize: bool) -> tuple[np.ndarray, list[str]]:
    """Read (series float32 [n, length, channels], labels) of a file."""
    numbers: list[int] = []
    labels: list[str] = []
    series: list[list[np.ndarray]] = []
    rows = _ts_rows if file.suffix == ".ts" else _tsv_rows
    with contextlib.closing(text_lines(file, "the folder of the UCR set")) as text:
        for line, label, channels in rows(file, enumerate(text, start=1)):
            numbers.append(line)
            labels.append(label)
            series.append([_values(f"{file}, line {line}", fields) for fields in channels])
    if not series:
        raise DataError(f"{file} is empty: there is no series in it")
    _check_sizes(file, numbers, series)
    values = np.array(series)
    values = znormalize(values) if normalize else values.astype(np.float32)
    return values.transpose(0, 2, 1), labels


def _tsv_rows(file: Path, lines: Lines) -> Rows:
    for line, text in lines:
        if not text.strip():
            continue
        label, *fields = text.rstrip("\r\n").split("\t")
        label = label.strip()
        if not fields:
            raise DataError(
                f"{file}, line {line}: no values after the label; they are separated by tabs"
            )
        if not label:
            raise DataError(f"{file}, line {line}: no label; it comes first, before a tab")
        if _FLOAT.fullmatch(label) and float(label).is_integer():
            label = str(int(float(label)))
        yield line, label, [fields]


def _ts_rows(file: Path, lines: Lines) -> Rows:
    classes = _ts_classes(file, lines)
    for line, text in lines:
        if not text.strip() or text.startswith("#"):
            continue
        *channels, label = text.split(":")
        label = normalized(label.strip())
        if any("(" in channel for channel in channels):
            raise DataError(f"{file}, line {line}: values with timestamps are not supported")
        if not channels or label not in classes:
            raise DataError(
                f"{file}, line {line}: '{label[:40]}', after the last colon, is no class; the "
                f"header's @classLabel has {listing(classes)}"
            )
        yield line, label, [channel.split(",") for channel in channels]


def _ts_classes(file: Path, lines: Lines) -> list[str]:
    """Read the header of a .ts file and return the names of its classes."""
    header: dict[str, list[str]] = {}
    for line, text in lines:
        words = text.split()
        if not words or text.startswith("#"):
            continue
        key = words[0].lower()
        if not key.startswith("@"):
            raise DataError(f"{file}, line {line}: a header of lines such as '@data' comes first")
        if key == "@data":
            break
        header[key] = words[1:]
    if "true" in map(str.lower, header.get("@timestamps", [])):
        raise DataError(f"{file}: series with timestamps (@timeStamps true) are not supported")
    has_classes, *classes = header.get("@classlabel") or ["false"]
    if has_classes.lower() != "true" or not classes:
        raise DataError(
            f"{file}: the header needs a line '@classLabel true NAME NAME'; numbers to predict "
            "(@targetLabel) are read from CSV and .npz files alone"
        )
    return [normalized(name) for name in classes]


def _values(where: str, fields: list[str]) -> np.ndarray:
    try:
        values = np.array([number(field) for field in fields])
    except ValueError:
        raise DataError(f"{where}: {_no_number(fields)}") from None
    if np.abs(values).max() > LARGEST:
        raise DataError(f"{where}: value {np.argmax(np.abs(values)) + 1} is above {LARGEST:g}")
    return values


def _no_number(fields: list[str]) -> str:
    """Say which field is no number: the first, or the last ones."""
    words = [field.strip().lower() for field in fields]
    count = len(words)
    while count and words[count - 1] == "nan":
        count -= 1
    for index, word in enumerate(words[:count], start=1):
        try:
            number(word)
        except ValueError:
            if word in ("?", "nan", "inf", "-inf"):
                return f"value {index} is {word}; fill in or remove such values first"
            return f"'{word[:40]}' (value {index}) is no number"
    return (
        f"the last {len(words) - count} of {len(words)} values are NaN: a set of series of "
        "different lengths, which is not supported; cut or fill the series first"
    )


def _check_sizes(file: Path, numbers: list[int], series: list[list[np.ndarray]]) -> None:
    """Raise DataError unless all series have as many channels, and all channels as many values."""
    lengths = [[len(values) for values in channels] for channels in series]
    first = lengths[0]
    for line, each in zip(numbers, lengths, strict=True):
        if len(each) != len(first):
            raise DataError(
                f"{file}, line {line}: {len(each)} channels, but the first series has {len(first)}"
            )
        for length in each:
            if length != first[0]:
                raise DataError(
                    f"{file}, line {line}: {length} values, but the first series has {first[0]}; "
                    f"series of different lengths, here {min(map(min, lengths))} to "
                    f"{max(map(max, lengths))}, are not supported: cut or fill them to one length"
                )


def znormalize(series: np.ndarray) -> np.ndarray:
    """Return (x - mean) / std along the last axis, float32; 0 where it is constant.

    Args:
        series: [..., length], float64.
    """
    mean, std = series.mean(-1, keepdims=True), series.std(-1, keepdims=True)
    std = np.where(is_constant(mean, std, series.dtype), np.inf, std)
    return ((series - mean) / std).astype(np.float32)
