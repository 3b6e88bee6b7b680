"""Opening files that users name, with one clear line where that fails."""

from collections.abc import Iterator
from pathlib import Path

from ds_pipeline.errors import DataError


def check_file(file: Path, meaning: str) -> None:
    """Raise DataError unless there is such a file and it may be read.

    Args:
        file: to look for.
        meaning: what dataset.data_dir must name, for messages.

    Raises:
        DataError: it is missing, a folder or not readable.

    Example:
        >>> check_file(Path("no.csv"), "the CSV file")
        Traceback (most recent call last):
        ...
        ds_pipeline.errors.DataError: no.csv does not exist; set dataset.data_dir to the CSV file
    """
    advice = f"set dataset.data_dir to {meaning}"
    try:
        with file.open("rb"):
            pass
    except IsADirectoryError:
        raise DataError(f"{file} is a folder, not a file; {advice}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{file} does not exist; {advice}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def text_lines(file: Path, meaning: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the lines that are not blank, without their ends; UTF-8.

    Args:
        file: to read.
        meaning: what dataset.data_dir must name, for messages.

    Raises:
        DataError: as `check_file`; it is no text.
    """
    check_file(file, meaning)
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{file} is no text file (UTF-8)") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
