"""The epoch that counts, by the rows of metrics.jsonl: which is the best, and whether to go on.

All of it is in the rows, so that a run that goes on ends where it would have ended.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnp.training.files import read_rows
from gnp.training.run_directory import (
    PARTS_OF_A_CHECKPOINT,
    RunDirectoryError,
    read_config,
    steps_with,
)

Rows = Sequence[Mapping[str, Any]]
# In place of a checkpoint's step: that of the best epoch.
BEST = "best"


def best_row(rows: Rows, metric: str | None) -> Mapping[str, Any] | None:
    """Return the row in which a number is smallest, the first of several; None: none has it.

    Example:
        >>> best_row([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 3}], "loss")
        {'step': 2, 'loss': 1.0}
    """
    if metric is None:
        return None
    return min((row for row in rows if metric in row), key=lambda row: row[metric], default=None)


def has_ended(rows: Rows, metric: str | None, patience: int | None) -> bool:
    """Return whether the last `patience` values of a number are no better than one before them.

    An epoch that was not evaluated, or whose value is not finite, does not count.

    Args:
        rows: Of the epochs so far.
        metric: Name of the number; None: of none, so never.
        patience: None: never.

    Example:
        >>> has_ended([{"loss": loss} for loss in (2.0, 1.0, 3.0, 1.0)], "loss", patience=2)
        True
    """
    if metric is None or patience is None:
        return False
    values = [row[metric] for row in rows if metric in row]
    return bool(values) and len(values) - 1 - values.index(min(values)) >= patience


def best_step(directory: Path) -> int:
    """Return the step of the best epoch of a run directory.

    Raises:
        RunDirectoryError: the run does not say which number makes it, or has no such epoch yet.
    """
    metric = read_config(directory).get("early_stopping.metric")
    if metric is None:
        raise RunDirectoryError(
            f"no epoch of {directory} is the best: it was trained without early_stopping.metric; "
            "give the step of a checkpoint"
        )
    # The row of an epoch is there a moment before its checkpoint.
    saved = steps_with(directory / "checkpoints", *PARTS_OF_A_CHECKPOINT)
    rows = [row for row in read_rows(directory / "metrics.jsonl") if row["step"] in saved]
    row = best_row(rows, metric)
    if row is None:
        raise RunDirectoryError(
            f"no epoch of {directory} with a checkpoint has a {metric}; give the step of one"
        )
    return int(row["step"])
