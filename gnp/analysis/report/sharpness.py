"""Flatness of the runs' minima, which `gnp.analysis.sharpness` left in their directories."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gnp.analysis.report.groups import Group
from gnp.analysis.report.runs import Run, is_number
from gnp.analysis.sharpness.files import read_drawn_arrays, read_results
from gnp.terminal import describe
from gnp.training.files import FileFormatError

Arrays = Mapping[str, np.ndarray]


class Flatness(NamedTuple):
    """Measurements of a group's representative.

    Attributes:
        place, group: of the page.
        checkpoints: the objects of sharpness.json, by step.
        arrays: of sharpness.npz; empty where it is missing.
    """

    place: int
    group: Group
    checkpoints: list[dict[str, Any]]
    arrays: Arrays


def read_sharpness(run: Run) -> list[dict[str, Any]]:
    """Return sharpness.json's objects, one a checkpoint, by step; nothing without the file.

    Raises:
        FileFormatError: it is damaged.
        OSError: it cannot be read.
    """
    return read_results(run.path / "sharpness.json")


def value_of(checkpoint: Mapping[str, Any], name: str) -> float | None:
    """Return a value of a checkpoint; of a list, the largest.

    Example:
        >>> value_of({"hessian_eigenvalues": [3.0, 2.0]}, "hessian_eigenvalues")
        3.0
    """
    value = checkpoint.get(name)
    if isinstance(value, list):
        value = max(filter(is_number, value), default=None)
    return float(value) if is_number(value) else None


def read_flatness(groups: Sequence[Group], most: int) -> tuple[list[Flatness], list[str]]:
    """Read a measured run of each group; and return a line for each file that is damaged.

    Args:
        groups: of a data set. All their runs are read, for the warnings.
        most: groups that are shown.
    """
    found: list[Flatness] = []
    warnings: list[str] = []
    last: list[dict[str, Any]] = []
    for place, group in enumerate(groups):
        is_shown = place >= most
        for run in group.runs:
            try:
                checkpoints = read_sharpness(run)
                last += checkpoints[-1:]
                if checkpoints and not is_shown:
                    arrays = read_drawn_arrays(run.path / "sharpness.npz")
                    found.append(Flatness(place, group, checkpoints, arrays))
                    is_shown = True
            except (FileFormatError, OSError) as error:
                warnings.append(describe(error))
    return found, warnings + unlike(last)


def unlike(checkpoints: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line where checkpoints were measured in ways that do not compare.

    Example:
        >>> unlike([{"sam_radius": 0.05}, {"sam_radius": 0.1}, {}])
        ['sharpness was measured with sam_radius = 0.05 and 0.1, which do not compare']
    """
    ways = []
    for name in ("sam_radius", "examples", "regularized"):
        values = sorted({str(each[name]) for each in checkpoints if name in each})
        if len(values) > 1:
            ways.append(f"{name} = {' and '.join(values)}")
    return [f"sharpness was measured with {way}, which do not compare" for way in ways]
