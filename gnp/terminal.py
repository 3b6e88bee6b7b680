"""What a command says: lines on the terminal, whatever the terminal can show."""

import errno
import os
import stat
import sys
from contextlib import suppress


def prepare_streams() -> None:
    """Make the standard streams fit for any text; to be called before anything is opened.

    Characters that a stream's encoding lacks are written as escapes. A stream that is closed goes
    to the null device: its number would otherwise be given to the next file that is opened, into
    which libraries would then write their messages.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        else:
            with suppress(AttributeError):  # a notebook's stream takes any text
                stream.reconfigure(errors="backslashreplace")


def let_go() -> None:
    """Write to the null device what went to a terminal, which is closed: writing would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)


def printable(text: str) -> str:
    r"""Return a text whose control characters are escaped, as data may hold a terminal's commands.

    Line breaks and tabs stay.

    Example:
        >>> printable("a class named \x1b[2J")
        'a class named \\x1b[2J'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def one_line(text: object) -> str:
    r"""Return a text, such as a file's name, as one printable line.

    Example:
        >>> one_line("two\nlines")
        'two\\nlines'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def describe(error: BaseException) -> str:
    """Return what an error says; of the system's errors, the file first.

    Example:
        >>> describe(FileNotFoundError(2, "No such file or directory", "a.csv"))
        'a.csv: No such file or directory'
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.filename is not None:
        return f"{one_line(os.fsdecode(error.filename))}: {error.strerror}"
    # Files are named where they are written.
    is_stream = error.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO)
    return f"standard output or error: {error.strerror}" if is_stream else str(error)


def warn(text: str) -> None:
    """Print a warning to standard error."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def fail(problem: BaseException | str, code: int) -> int:
    """Say on standard error what went wrong, a line a problem, and return the exit code."""
    text = describe(problem) if isinstance(problem, BaseException) else problem
    with suppress(OSError):  # what was to read it has ended
        for line in printable(text).splitlines():
            print(f"gnp: {line}", file=sys.stderr, flush=True)
    flush()
    return code


def flush() -> None:
    """Write what the standard streams still hold; give up what Python would fail on at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
