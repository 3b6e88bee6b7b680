"""Tables in Markdown pages, between two marks."""

from pathlib import Path

from gnp.training.files import write_atomic


class PageError(ValueError):
    """A page that cannot take a table; one line."""


def read_page(page: Path, marks: tuple[str, str]) -> tuple[str, str]:
    """Return what is before and after the table of a page.

    Args:
        page: a Markdown file.
        marks: the lines around the table.

    Raises:
        PageError: the page has not both marks, or cannot be read.
    """
    start, end = marks
    try:
        before, found, rest = page.read_text(encoding="utf-8").partition(start)
    except OSError as error:
        raise PageError(f"--page={page}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PageError(f"--page={page} is no text in UTF-8") from error
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise PageError(f"--page={page}: it needs the lines {start} and {end}")
    return before, after


def write_page(page: Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between the marks of a page.

    Raises:
        PageError: as `read_page`.
    """
    before, after = read_page(page, marks)
    write_atomic(page, f"{before}{marks[0]}\n\n{text}\n\n{marks[1]}{after}")
