"""Opening files that users name, with one clear line where that fails, and reading their text."""

import contextlib
import io
import os
import re
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ds_pipeline.errors import DataError, one_line

# Kinds of data sets whose name does not say which data they are: dataset.data_dir does.
OWN_FILES = ("image_folder", "csv", "npz", "idx", "forecast")
# The squares of larger numbers, which a deviation sums, are too large for float64.
LARGEST = 1e150
# What numpy, zipfile and zlib raise for a damaged .npz; a size that was changed asks for memory.
NPZ_ERRORS = (
    ValueError, EOFError, KeyError, TypeError, AttributeError, SyntaxError, OverflowError,
    RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
# A file that was made to fill the memory is a thousandth of what it unpacks to.
_HARMLESS_BYTES, _MOST_RATIO = 2**30, 100
_NO_NUMBER = re.compile(r"[^0-9+\-.eE \t]")


def check_unpacked(file: Path, packed: int, unpacked: int) -> None:
    """Raise DataError where arrays would fill the memory, before they are read.

    Args:
        file: for messages.
        packed: bytes that they take in it.
        unpacked: bytes that they take as arrays.
    """
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if unpacked > _MOST_RATIO * packed:
        limit = min(limit, _HARMLESS_BYTES)
    if unpacked > limit:
        raise DataError(
            f"{file} unpacks from {packed:,} to {unpacked:,} bytes; allowed are up to {limit:,}, "
            "half of the machine's memory, or less where it unpacks to more than "
            f"{_MOST_RATIO} times its size; store fewer examples or a smaller type"
        )


@contextlib.contextmanager
def opened(file: Path, meaning: str, key: str = "dataset.data_dir") -> Iterator[IO[bytes]]:
    """Open a regular file to read; a pipe or a device could give bytes for ever, or none.

    `meaning` is what the config's `key` must name, for messages.

    Raises:
        DataError: it is missing, no regular file or cannot be read, then or in the block.
    """
    advice = f"set {key} to {meaning}"
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise DataError(f"{file} is no regular file; {advice}")
            yield stream
    except IsADirectoryError:
        raise DataError(f"{file} is a folder, not a file; {advice}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{file} does not exist; {advice}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or one_line(error)}") from error


def text_lines(file: Path, meaning: str) -> Generator[str, None, None]:
    r"""Yield the lines of a text in UTF-8 with their ends: \\n, \\r\\n or \\r.

    The file stays open until the last one, or until the generator is closed.

    Raises:
        DataError: as `opened`; it is no text.
    """
    with opened(file, meaning) as stream:
        try:
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            for number, line in enumerate(text, start=1):
                if "\0" in line:
                    raise DataError(
                        f"{file}, line {number}: a NUL byte, so it is no text file (UTF-8); save "
                        "it as one"
                    )
                yield line
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(
                f"{file} is no text file (UTF-8): it has the byte {byte:#x}; save it as one"
            ) from None


def number(text: str) -> float:
    """Return the number that a text is: decimal digits, a sign, a point, an exponent, no more.

    Python reads 1_3, digits of other scripts, inf and nan, too.

    Raises:
        ValueError: it is none.
    """
    if _NO_NUMBER.search(text):
        raise ValueError(f"no number: {text}")
    return float(text)


def numbers(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the numbers that texts are, as `number` reads each, in a fraction of the time.

    Raises:
        ValueError: one of them is none.
    """
    if _NO_NUMBER.search(" ".join(texts)):
        raise ValueError("a text that is no number")
    return np.array(texts, np.float64)
