"""The runs that a report is about: found, read, and refused where they are none."""

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from tqdm import tqdm

from config import default
from gnp.analysis.command_line import UsageError
from gnp.analysis.sharpness.files import read_results
from gnp.terminal import describe
from gnp.training.early_stopping import best_row, has_ended
from gnp.training.files import FileFormatError, read_rows
from gnp.training.run_directory import OUTPUTS, RunDirectoryError, read_config

_KEYS = {key.name: key for key in default.KEYS}
_DEFAULTS = {name: key.default for name, key in _KEYS.items()}


class Run(NamedTuple):
    """The contents of a run directory.

    Attributes:
        path: the directory.
        config: dotted key -> JSON value; keys that an older run does not know at their defaults.
        rows: the objects of metrics.jsonl.
        checkpoints: those of sharpness.json, by step; of what it did not measure, none.
        damage: why sharpness.json cannot be read, if so.
    """

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    checkpoints: Sequence[dict[str, Any]] = ()
    damage: str = ""

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def is_finished(self) -> bool:
        """True once the last epoch of its config is done, or its patience is at its end."""
        stopping = (self.config[f"early_stopping.{name}"] for name in ("metric", "patience"))
        return self.epochs >= self.config["total_epochs"] or has_ended(self.rows, *stopping)

    @property
    def metric(self) -> str:
        """Name of what is compared, such as `test_error_rate`."""
        split = "test" if self.config["use_test_set"] else "validation"
        if self.config["dataset.dataset_name"] == "forecast":
            return f"{split}_loss"  # the mean squared error, by which forecasts are compared
        squared = self.config["loss"] == "squared_error"
        return f"{split}_{'mean_absolute_error' if squared else 'error_rate'}"


def averaged(metric: str) -> str:
    """Return the name of a metric of the average of the parameters, where `ema_decay` keeps one.

    Example:
        >>> averaged("test_error_rate")
        'test_ema_error_rate'
    """
    split, _, name = metric.partition("_")
    return f"{split}_ema_{name}"


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read the runs in run directories and in folders that hold some.

    Returns:
        The runs, each once, and why others in the folders were skipped, a line each.

    Raises:
        UsageError: a path is neither.
        FileFormatError: not one of them can be read.
    """
    directories = {path.resolve(): path for each in paths for path in _find(each)}
    runs, skipped = [], []
    for path in tqdm(directories.values(), "reading", disable=None, unit="run", leave=False):
        try:
            runs.append(read_run(path))
        except (FileFormatError, OSError) as error:
            skipped.append(describe(error))
    if not runs:
        several = f"none of {len(skipped)} directories can be read; " if len(skipped) > 1 else ""
        raise FileFormatError(several + skipped[0])
    return runs, skipped


def read_run(path: Path) -> Run:
    """Read one run directory.

    Raises:
        FileFormatError: it is damaged, or of another program. A sharpness.json that is damaged is
            no error: `damage` has it.
        OSError: it cannot be read.
    """
    try:
        config = read_config(path)
    except RunDirectoryError as error:
        raise FileFormatError(str(error).removeprefix("--working_dir=")) from error
    rows = read_rows(path / "metrics.jsonl")
    wrong = [name for name, value in config.items() if name in _KEYS and not _fits(name, value)]
    if wrong:
        value = json.dumps(config[wrong[0]])
        raise FileFormatError(f"{path}/config.json is not of a gnp run: {wrong[0]} = {value}")
    try:
        checkpoints, damage = read_results(path / "sharpness.json"), ""
    except (FileFormatError, OSError) as error:
        checkpoints, damage = [], describe(error)
    return Run(path, {**_DEFAULTS, **config}, rows, checkpoints, damage)


def _fits(name: str, value: Any) -> bool:
    """Tell whether a value is of the kind of a key's default; where that is none, is allowed."""
    usual = _DEFAULTS[name]
    if usual is None:
        return value is None or _KEYS[name].kind.check(value)
    if isinstance(usual, (int, float)) and not isinstance(usual, bool):
        return is_number(value)
    return isinstance(value, list if isinstance(usual, tuple) else type(usual))


def _find(path: Path) -> list[Path]:
    """Find the directories with a config.json in a folder, itself among them."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}; name run directories, or folders that hold some")
    found = []
    for folder, below, files in os.walk(path):
        is_run = "config.json" in files
        found += [Path(folder)] * is_run
        # What a run writes holds none.
        below[:] = sorted(
            name for name in below if not name.startswith(".") and not (is_run and name in OUTPUTS)
        )
    if not found:
        raise UsageError(
            f"{path} is no run directory and holds none (a run has config.json, metrics.jsonl)"
        )
    return found


def points(run: Run, name: str) -> list[tuple[int, float]]:
    """Return (epoch, value) wherever a metric was measured and is finite."""
    values = ((row["epoch"], row.get(name)) for row in run.rows)
    return [(epoch, value) for epoch, value in values if is_number(value)]


def final_value(run: Run, name: str) -> float | None:
    """Return a metric of the best epoch, or where it was measured last if none is the best.

    None if that is not finite, or never was.

    Example:
        >>> final_value(Run(Path(), {}, [{"epoch": 1, "loss": 0.5}, {"epoch": 2}]), "loss")
        0.5
    """
    best = best_row(run.rows, run.config.get("early_stopping.metric"))
    values = [row[name] for row in ([best] if best else run.rows) if name in row]
    return values[-1] if values and is_number(values[-1]) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a JSON value is a number, finite as its square is.

    Example:
        >>> is_number(True), is_number(float("nan")), is_number(3)
        (False, False, True)
    """
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and math.isfinite(value) and abs(value) < 1e150


def training_seconds(run: Run) -> dict[str, float | None]:
    """Return the seconds of training, without evaluations, and the median ones of an epoch, a step.

    Medians are without the first epoch, which compiles, unless it is the only one.
    """
    epochs = [seconds for _, seconds in points(run, "epoch_seconds")]
    steps, before = [], 0
    for row in run.rows:
        count, before = row["step"] - before, row["step"]
        if count > 0 and is_number(row.get("epoch_seconds")):
            steps.append(row["epoch_seconds"] / count)
    return {
        "total_seconds": sum(epochs) or None,
        "epoch_seconds": statistics.median(epochs[1:] or epochs) if epochs else None,
        "step_seconds": statistics.median(steps[1:] or steps) if steps else None,
    }
