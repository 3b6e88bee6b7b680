"""The one exception that users of the data pipeline see."""

import difflib
from collections.abc import Iterable
from itertools import islice

# Among more names, the nearest one is not looked for: it would take minutes.
_MOST_NAMES = 10_000


class DataError(ValueError):
    """Something is wrong with the data or with what was asked of them; the message is one line.

    Names of files and classes may hold line breaks and a terminal's commands: it has them escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))


def escaped(text: str) -> str:
    r"""Return a text as one printable line: names in data may hold anything, in any encoding."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the allowed name nearest to `name`, or nothing."""
    matches = difflib.get_close_matches(name.lower(), list(islice(allowed, _MOST_NAMES)), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an exception's message, at most `limit` characters of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= limit else lines[0][: limit - 3] + "..."
