"""Write and say how a run goes on: metrics.jsonl, its writers' points, lines, the bar."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from gnp.terminal import printable
from gnp.training.files import FileFormatError, read_rows, write_atomic
from gnp.training.trackers import Writer


class Log:
    """Write a run's metrics, and say what happens; only process 0 does.

    Use it in a `with` statement, which ends the bar.

    Args:
        directory: The run directory.
        rows: Of the epochs that are done.
        writers: Take its points.
        active: False: nothing is written and printed.
    """

    def __init__(
        self,
        directory: Path,
        rows: Iterable[dict[str, Any]] = (),
        writers: Sequence[Writer] = (),
        active: bool = True,
    ) -> None:
        self.path = directory / "metrics.jsonl"
        self.active = active
        self.rows = list(rows)
        self._writers = writers
        self._bar: tqdm | None = None
        if active:
            self._write_rows()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_bar()

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Open the epoch's progress bar (on a terminal only)."""
        self._bar = tqdm(
            total=steps,
            initial=done,
            desc=f"epoch {epoch}/{epochs}",
            unit="step",
            leave=False,
            disable=None if self.active else True,
            dynamic_ncols=True,
        )

    def step(self, postfix: Callable[[], str]) -> None:
        """Show one more step in the bar, with a text behind it that is made only for a bar."""
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(postfix(), refresh=False)
            self._bar.update()

    def points(self, step: int, values: dict[str, float]) -> None:
        """Hand the numbers of a step to the writers."""
        for writer in self._writers:
            writer.points(step, values)

    def end_epoch(self, row: dict[str, Any], line: str) -> None:
        """Write the epoch's row into metrics.jsonl, its points, and its line to the screen."""
        self.close_bar()
        self.rows.append(row)
        if not self.active:
            return
        self._write_rows()
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        # A name with a folder of its own keeps it.
        named = {k if k.startswith("sharpness/") else f"epoch/{k}": v for k, v in numbers.items()}
        self.points(row["step"], named)
        for writer in self._writers:
            writer.flush()
        print(line, flush=True)

    def say(self, line: str) -> None:
        """Print a line to standard error, above the bar."""
        if self.active:
            tqdm.write(printable(line), file=sys.stderr)

    def close_bar(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write_rows(self) -> None:
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))


def rows_of(directory: Path, epochs: int, whole: bool = True) -> list[dict[str, Any]]:
    """Return the rows of the epochs that are done; the later ones will be written again.

    Args:
        directory: The run directory.
        epochs: How many are done.
        whole: All of them were trained here; False: the last ones, or none.

    Raises:
        FileFormatError: some are missing, or the file is damaged.
    """
    path = directory / "metrics.jsonl"
    rows = [row for row in read_rows(path) if row["epoch"] <= epochs]
    first = 1 if whole else epochs + 1 - len(rows)
    if [row["epoch"] for row in rows] != list(range(first, epochs + 1)):
        raise FileFormatError(
            f"{path} lacks some of the rows of the {epochs} epochs that are done: put it back, or "
            "start over with --config.retrain=True"
        )
    return rows
