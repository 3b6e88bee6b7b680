"""Flatness of the runs' minima, which `gnp.analysis.sharpness` left in their directories."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gnp.analysis.report.groups import Group
from gnp.analysis.report.runs import ReportError, Run, is_number

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
        ReportError: it is damaged.
    """
    path = run.path / "sharpness.json"
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} is damaged; measure the sharpness anew") from error
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and isinstance(each.get("step"), int) for each in found
    ):
        raise ReportError(f"{path} is no list of checkpoints; measure the sharpness anew")
    return sorted(found, key=lambda each: int(each["step"]))


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
                    found.append(Flatness(place, group, checkpoints, _read_arrays(run)))
                    is_shown = True
            except ReportError as error:
                warnings.append(str(error))
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


def _read_arrays(run: Run) -> Arrays:
    path = run.path / "sharpness.npz"
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], np.float64) for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path} is damaged; measure the sharpness anew") from error
