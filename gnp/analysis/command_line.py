"""Command lines: what the commands of this folder share."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import config as configs
from gnp.terminal import describe, fail, one_line
from gnp.training.early_stopping import BEST
from gnp.training.files import FileFormatError


class UsageError(ValueError):
    """A command line that cannot be run; each line of the message is one problem."""


class Parser(argparse.ArgumentParser):
    """Takes what is wrong for a UsageError, and shows the description as it is."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise UsageError(f"{message}; --help shows the usage")


def local_path(text: str) -> Path:
    """Return the path that an argument names: the type of one, for argparse."""
    try:
        return configs.local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} {error}") from error


def whole(at_least: int) -> Callable[[str], int]:
    """Return the type, for argparse, of whole numbers from one up."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if not at_least <= value < 2**32:
            raise argparse.ArgumentTypeError(f"{text}: a whole number >= {at_least} is needed")
        return value

    return parse


def checkpoint_step(text: str) -> int | str:
    """Return the step of a checkpoint, or BEST: the type of one, for argparse."""
    if text == BEST:
        return text
    try:
        return whole(0)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text}: best or a step is needed") from None


def run(
    action: Callable[[], None],
    usage: tuple[type[Exception], ...] = (),
    errors: tuple[type[Exception], ...] = (),
) -> int:
    """Run a command; say in a line what went wrong, and return the exit code.

    Args:
        action: the command.
        usage: errors beside UsageError that end it with 2.
        errors: those beside FileFormatError and OSError that end it with 1.
    """
    usage = (UsageError, *usage)
    errors = (FileFormatError, OSError, *errors)
    try:
        action()
        sys.stdout.flush()
        code = 0
    except usage as error:
        code = fail(str(error).removeprefix("--working_dir="), 2)
    except errors as error:
        code = fail(one_line(describe(error)), 1)
    except SystemExit:  # --help
        code = 0
    except KeyboardInterrupt:
        code = fail("interrupted", 130)
    return code


def make_folder(path: Path) -> None:
    """Make the folder that --out names.

    Raises:
        UsageError: it is a file.
        FileFormatError: it cannot be made, or nothing can be written there.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out={path} is a file; a directory is needed")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be made ({error.strerror}); choose another folder with --out=DIR"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise FileFormatError(f"{path} is not writable; choose another folder with --out=DIR")
