"""Paths that users write."""

import re
from pathlib import Path


def local_path(text: str) -> Path:
    """Return the path that a user named, with `~` expanded.

    Raises:
        ValueError: it is empty, a URL, or of a user that does not exist; the message says what is
            allowed and goes behind the flag or key.

    Example:
        >>> local_path("runs/a")
        PosixPath('runs/a')
        >>> local_path("gs://bucket/run")
        Traceback (most recent call last):
        ...
        ValueError: is a URL; a folder or file of this machine is needed (mount it, or copy it)
    """
    if not text.strip():
        raise ValueError("is empty; a folder or file is needed")
    if "\0" in text:
        raise ValueError("holds a null character; a folder or file is needed")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise ValueError(
            "is a URL; a folder or file of this machine is needed (mount it, or copy it)"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError("names the home of a user who does not exist here") from error
