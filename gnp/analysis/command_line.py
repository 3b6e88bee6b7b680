"""Command lines: the functions that the commands of this folder share."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from gnp.training.files import FileFormatError


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and ends with 2; the description is shown as it is."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """End the process."""
        sys.stderr.write(f"gnp: {message}; --help shows the usage\n")
        sys.exit(2)


def make_folder(path: Path) -> None:
    """Make the folder that --out names.

    Raises:
        FileFormatError: it cannot be made, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileFormatError(
            f"{path} is no folder and cannot be made one ({error.strerror}); choose another with "
            "--out=DIR"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise FileFormatError(f"{path} is not writable; choose another folder with --out=DIR")
