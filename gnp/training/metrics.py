"""What a run writes while it goes on: metrics.jsonl, TensorBoard events, a line an epoch."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorboardX
from tqdm import tqdm

from gnp.training.files import read_rows, write_atomic


class Means:
    """Running means of metrics over an epoch's steps, in float64 on the host.

    They are part of a checkpoint, so that an epoch that was interrupted ends with the same means.

    Example:
        >>> means = Means()
        >>> means.add({"loss": 1.0}); means.add({"loss": 3.0})
        >>> means.mean()
        {'loss': 2.0}
    """

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self.sums = dict(sums or {})
        self.count = count

    def add(self, values: dict[str, float]) -> None:
        """One step's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1

    def mean(self) -> dict[str, float]:
        """The means so far; empty before the first value."""
        return {name: value / self.count for name, value in self.sums.items()}


class Log:
    """Writes a run's metrics; only process 0 does.

    Args:
        directory: the run directory.
        from_step: rows and events of later steps are dropped: they will be written again.
        active: False: writes and prints nothing.
        name: of one of several seeds, in front of its lines.
        bar: whether it shows the progress of the epoch.
    """

    def __init__(
        self,
        directory: Path,
        from_step: int = 0,
        active: bool = True,
        name: str = "",
        bar: bool = True,
    ) -> None:
        self.path = directory / "metrics.jsonl"
        self.active = active
        self._name = f"{name}: " if name else ""
        self._shows_bar = active and bar
        self.rows: list[dict[str, Any]] = []
        self._bar: tqdm | None = None
        if active:
            self.rows = [row for row in read_rows(self.path) if row["step"] <= from_step]
            self._write_rows()
            self._events = tensorboardX.SummaryWriter(
                str(directory / "tensorboard"), purge_step=from_step + 1
            )

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Opens the epoch's progress bar (on a terminal only)."""
        disable = None if self._shows_bar else True
        self._bar = tqdm(
            total=steps,
            initial=done,
            desc=f"{self._name}epoch {epoch}/{epochs}",
            unit="step",
            leave=False,
            disable=disable,
            dynamic_ncols=True,
        )

    def step(self, values: Callable[[], str]) -> None:
        """One more step in the bar, with a text behind it, made only where there is a bar."""
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(values(), refresh=False)
            self._bar.update()

    def points(self, step: int, values: dict[str, float]) -> None:
        """TensorBoard points of a step."""
        if self.active:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def end_epoch(self, row: dict[str, Any], line: str) -> None:
        """The epoch's row into metrics.jsonl and TensorBoard, its line onto the screen."""
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
        print(f"{self._name}{line}", flush=True)

    def say(self, line: str) -> None:
        """A line onto standard error, above the bar."""
        if self.active:
            tqdm.write(f"{self._name}{line}", file=sys.stderr)

    def close_bar(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Ends the event file."""
        self.close_bar()
        if self.active:
            self._events.close()

    def _write_rows(self) -> None:
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
