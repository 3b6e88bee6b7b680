"""Files and lines that a run writes as it goes on: metrics.jsonl, TensorBoard events, the bar."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorboardX
from tqdm import tqdm

from gnp.training.files import read_rows, write_atomic


class Log:
    """Write a run's metrics, and say what happens; only process 0 does.

    Use it in a `with` statement, which ends the bar and the event file.

    Args:
        directory: The run directory.
        from_step: Rows and events of later steps are dropped: they will be written again.
        active: False: nothing is written and printed.
    """

    def __init__(self, directory: Path, from_step: int = 0, active: bool = True) -> None:
        self.path = directory / "metrics.jsonl"
        self.active = active
        self.rows: list[dict[str, Any]] = []
        self._bar: tqdm | None = None
        if active:
            self.rows = [row for row in read_rows(self.path) if row["step"] <= from_step]
            self._write_rows()
            self._events = tensorboardX.SummaryWriter(
                str(directory / "tensorboard"), purge_step=from_step + 1
            )

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_bar()
        if self.active:
            self._events.close()

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
        """Write TensorBoard points of a step."""
        if self.active:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def end_epoch(self, row: dict[str, Any], line: str) -> None:
        """Write the epoch's row into metrics.jsonl and TensorBoard, and its line to the screen."""
        self.close_bar()
        if not self.active:
            return
        self.rows.append(row)
        self._write_rows()
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        # A name with a folder of its own keeps it.
        named = {k if k.startswith("sharpness/") else f"epoch/{k}": v for k, v in numbers.items()}
        self.points(row["step"], named)
        self._events.flush()
        print(line, flush=True)

    def say(self, line: str) -> None:
        """Print a line to standard error, above the bar."""
        if self.active:
            tqdm.write(line, file=sys.stderr)

    def close_bar(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write_rows(self) -> None:
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
