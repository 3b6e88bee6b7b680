"""Files that are never half written."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a run's metrics.jsonl; none where it is missing.

    Raises:
        FileFormatError: a line is not a JSON object with a step; names file and line.
    """
    if not path.exists():
        return []
    rows = []
    for count, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FileFormatError(f"{path}, line {count}: not JSON; {_HOW}") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise FileFormatError(f"{path}, line {count}: no object with a step; {_HOW}")
        rows.append(row)
    return rows
