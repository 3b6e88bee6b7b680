"""Files of a run directory: never half written, and not trusted when they are read."""

import contextlib
import errno
import json
import os
import secrets
import stat
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np

# What numpy, zipfile and zlib raise for damaged bytes; a size that was changed asks for memory, and
# of a header that is not numpy's own there is a warning, to be made an error.
DAMAGED_ARRAYS = (
    ValueError, EOFError, KeyError, TypeError, AttributeError, SyntaxError, OverflowError,
    RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, UserWarning,
)  # fmt: skip
_MOST_BYTES = 2**30
_HOW = "remove that line, or start over with --config.retrain=True"


class FileFormatError(ValueError):
    """A file of a run directory does not hold what a run writes; one line."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters of it.

    Example:
        >>> first_line(KeyError())
        'KeyError'
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # TensorStore's messages name every layer; what the system said comes last.
    layers, code, _ = line.partition(" [os_error_code=")
    return layers.rpartition(": ")[2] if code else line[:300]


def write_atomic(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, so that it is never half written.

    Args:
        path: the file; its folder is there.
        text: the whole content.

    Raises:
        OSError: it could not be written; the old file is untouched.
    """
    with replaced(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write; a reader, or a crash, sees the old one or the new one whole.

    Args:
        path: takes the new content when the block ends without an error; its folder is there.

    Raises:
        OSError: it could not be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with naming(path):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # its folder may be gone
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have the system's errors name this file, instead of none, or of one that is gone by then."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows nothing to do here
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file to read; a pipe or a device could give bytes for ever, or none.

    Raises:
        FileFormatError: it is no regular file.
        OSError: it is missing or cannot be read.
    """
    with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileFormatError(f"{path} is no regular file; remove it")
        try:
            yield file
        except OSError as error:  # the system names no file where it cannot read on
            error.filename = error.filename or os.fspath(path)
            raise


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        FileFormatError: it holds something else; names it.
        OSError: it is missing or cannot be read.
    """
    with opened(path) as file:
        try:
            return _parse(file.read())
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged: {first_line(error)}") from error


def _parse(text: bytes) -> Any:
    return json.loads(text.decode(), parse_int=_int64)


def _int64(digits: str) -> int:
    """Return a whole number; those that no float or array can take are none of ours."""
    if len(digits) > 19:
        raise ValueError("a whole number of more than 19 digits")
    return int(digits)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a run's metrics.jsonl; none where it is missing.

    Raises:
        FileFormatError: a line is not a row as runs write them; names file and line.
        OSError: it cannot be read.
    """
    if not path.exists():
        return []
    rows = []
    with opened(path) as file:
        for count, line in enumerate(file.read().splitlines(), start=1):
            try:
                row = _parse(line)
            except (ValueError, RecursionError) as error:
                raise FileFormatError(f"{path}, line {count}: not JSON; {_HOW}") from error
            if not isinstance(row, dict) or not all(map(_is_number, row.values())):
                raise FileFormatError(f"{path}, line {count}: no object of numbers; {_HOW}")
            for name in ("epoch", "step"):
                if not (isinstance(row.get(name), int) and row[name] >= 0):
                    raise FileFormatError(f"{path}, line {count}: no object with {name}; {_HOW}")
            rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_arrays(
    path: Path, wanted: Callable[[str], bool] = lambda _: True
) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, or those of them whose names are wanted.

    Raises:
        FileFormatError: it is damaged, too large or holds Python objects; names it.
        OSError: it is missing or cannot be read.
    """
    with opened(path) as file, warnings.catch_warnings(action="error", category=UserWarning):
        try:
            with np.load(file, allow_pickle=False) as arrays:
                if sum(each.file_size for each in arrays.zip.infolist()) > _MOST_BYTES:
                    raise ValueError("it is larger than any that a run writes")
                return {name: arrays[name] for name in arrays if wanted(name)}
        except DAMAGED_ARRAYS as error:
            raise FileFormatError(f"{path} is damaged: {first_line(error)}") from error
