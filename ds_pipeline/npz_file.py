"""Arrays in .npz files: x and y, and x_test and y_test where there is a test split."""

import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ds_pipeline.errors import DataError, one_line
from ds_pipeline.files import LARGEST, NPZ_ERRORS, check_unpacked, opened
from ds_pipeline.source import InMemorySource, lossless
from ds_pipeline.splits import Splits, encode_classes, float32_targets, listing, split_off_test


def load_npz(
    file: Path, is_regression: bool, test_fraction: float, seed: int, split: str = "stratified"
) -> Splits:
    """Load a data set from arrays; nothing that needs pickle is read.

    Args:
        file: with x [n, h, w, c], [n, h, w] (uint8 or float) or [n, d] (any numbers) and y [n]
            (classes as whole numbers or text, or numbers to predict); x_test and y_test likewise.
        is_regression: y holds numbers to predict, not classes.
        test_fraction: share of the test split, where the file has none.
        seed: of that split, at least 0.
        split: how, see `split_indices`.

    Returns:
        Inputs uint8, float32 or float64 [n, h, w, c], or float32 or float64 [n, d]; float64 where
        float32 holds less.

    Raises:
        DataError: the file is missing, damaged or no .npz, or too large once unpacked; an array is
            missing, of objects, of another type, shape or length than allowed, or not finite.
    """
    arrays = read_arrays(file, partial(_wanted, file), "the .npz file")
    x, y = _inputs(file, "x", arrays), _targets(file, "y", arrays, is_regression)
    has_test = "x_test" in arrays
    x_test = _inputs(file, "x_test", arrays) if has_test else x[:0]
    y_test = _targets(file, "y_test", arrays, is_regression) if has_test else y[:0]
    if {x.dtype, x_test.dtype} == {np.dtype(np.float32), np.dtype(np.float64)}:
        x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    if x.shape[1:] != x_test.shape[1:] or x.dtype != x_test.dtype:
        raise DataError(
            f"{file}: x holds {x.dtype} {list(x.shape[1:])} an example and x_test "
            f"{x_test.dtype} {list(x_test.shape[1:])}; they must be alike"
        )
    for suffix, inputs, targets in (("", x, y), ("_test", x_test, y_test)):
        if len(inputs) != len(targets):
            raise DataError(
                f"{file}: x{suffix} has {len(inputs)} examples and y{suffix} {len(targets)}; they "
                "must be as many"
            )
    class_names: tuple[str, ...] = ()
    if not is_regression:
        y, y_test, class_names = encode_classes(f"{file}, y", _texts(y), _texts(y_test))
    if not has_test:
        return split_off_test(f"{file}, y", x, y, test_fraction, seed, class_names, split=split)
    return Splits(
        train=InMemorySource(x, y),
        evaluation=InMemorySource(x_test, y_test),
        evaluation_name="test",
        shape=x.shape[1:],
        dtype=x.dtype,
        class_names=class_names,
        task="regression" if is_regression else "classification",
    )


def read_arrays(
    file: Path,
    choose: Callable[[Sequence[str]], Sequence[str]],
    meaning: str,
    key: str = "dataset.data_dir",
) -> dict[str, np.ndarray]:
    """Return some arrays of a file, each with a first axis; nothing that needs pickle is read.

    Args:
        file: .npz.
        choose: takes the names of its arrays and returns those to read; may raise DataError.
        meaning: what the config key must name, for messages.
        key: that names the file.

    Raises:
        DataError: the file is missing, damaged or no .npz, or too large once unpacked; an array is
            of objects or empty.
    """
    with opened(file, meaning, key) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy's, of headers that Python 2 wrote
        if not zipfile.is_zipfile(stream):
            raise DataError(f"{file} is no .npz file; write one by numpy.savez(FILE, NAME=...)")
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as stored:
                wanted = choose(stored.files)
                members = stored.zip.infolist()
                _check_sizes(
                    file, [m for m in members if m.filename.removesuffix(".npy") in wanted]
                )
                return {name: _array(file, name, stored) for name in wanted}
        except DataError:
            raise
        except NPZ_ERRORS as error:
            raise DataError(f"{file} is damaged ({one_line(error)}); write it again") from error


def _wanted(file: Path, names: Sequence[str]) -> list[str]:
    """Return the names of a data set's arrays in a file: x and y, and those of its test split."""
    wanted = [n for n in ("x", "y", "x_test", "y_test") if n in names]
    missing = [n for n in ("x", "y") if n not in wanted]
    if len(wanted) == 3 and not missing:
        missing = [n for n in ("x_test", "y_test") if n not in wanted]
    if missing:
        raise DataError(
            f"{file} has no array {missing[0]}; it needs x and y, may have x_test and y_test, and "
            f"has {listing(names)}"
        )
    return wanted


def _check_sizes(file: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise DataError where the arrays would fill the memory, before they are unpacked."""
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        raise DataError(f"{file} is compressed in a way that numpy does not write; write it again")
    packed, unpacked = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    check_unpacked(file, packed, unpacked)


def _array(file: Path, name: str, stored: Any) -> np.ndarray:
    try:
        array = np.asanyarray(stored[name])
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise DataError(
            f"{file}: {name} is an array of Python objects, which need pickle and are never read; "
            "save it as numbers or text"
        ) from None
    if array.ndim == 0 or not len(array):
        raise DataError(f"{file}: {name} has no examples")
    return array


def _inputs(file: Path, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    x = arrays.pop(name)
    is_float, is_image = np.issubdtype(x.dtype, np.floating), x.ndim in (3, 4)
    is_number = is_float or np.issubdtype(x.dtype, np.integer)
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(
            f"{file}: {name} has the shape {list(x.shape)}; allowed are images [n, h, w, c] or "
            "[n, h, w] and vectors [n, d]"
        )
    if not is_number or (is_image and not is_float and x.dtype != np.uint8):
        raise DataError(
            f"{file}: {name} holds {x.dtype}; allowed are uint8 and floats for images, and any "
            "real numbers for vectors"
        )
    if not (is_image and x.dtype == np.uint8):
        exact = _finite(file, name, x)
        # What float32 holds in any case need not be compared.
        small = x.dtype == np.float32 or x.dtype.itemsize <= 2
        x = exact.astype(np.float32) if small else lossless(exact)
    return x[..., None] if x.ndim == 3 else x


def _targets(
    file: Path, name: str, arrays: dict[str, np.ndarray], is_regression: bool
) -> np.ndarray:
    y = arrays[name]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"{file}: {name} has the shape {list(y.shape)}; allowed is [n]")
    is_number = np.issubdtype(y.dtype, np.floating) or np.issubdtype(y.dtype, np.integer)
    if not is_number and (is_regression or y.dtype.kind != "U"):
        allowed = "numbers" if is_regression else "whole numbers and text"
        raise DataError(f"{file}: {name} holds {y.dtype}; allowed are {allowed}")
    if is_number:
        exact = _finite(file, name, y)
        return float32_targets(f"{file}, {name}", exact) if is_regression else y
    # Python cannot make texts of characters that Unicode has not.
    codes = np.ascontiguousarray(y, y.dtype.newbyteorder("=")).view(np.uint32)
    if (codes > sys.maxunicode).any():
        raise DataError(f"{file}: {name} holds text that is not Unicode; write it again")
    return y


def _finite(file: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return the values as float64, or as they are where that is smaller."""
    with np.errstate(over="ignore"):  # of a longer type: it is said below
        result = values if values.dtype == np.float32 else values.astype(np.float64, copy=False)
    wrong = ~(np.abs(result) <= min(LARGEST, float(np.finfo(result.dtype).max)))
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise DataError(
            f"{file}: {name}[{row}] holds values that are NaN, infinite or too large (above "
            f"{LARGEST:g})"
        )
    return result


def _texts(y: np.ndarray) -> list[str]:
    """Return the texts of labels; of floats that are whole, without a fraction."""
    if y.dtype.kind == "f":
        return [str(int(v)) if v.is_integer() else repr(v) for v in y.astype(np.float64).tolist()]
    return [str(value) for value in y.tolist()]
