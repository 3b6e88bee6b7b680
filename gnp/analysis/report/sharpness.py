"""Flatness of the runs' minima, which `gnp.analysis.sharpness` left in their directories."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gnp.analysis.report.figures import Panel, figure, line, rounded, titled, value_axis
from gnp.analysis.report.groups import Group
from gnp.analysis.report.runs import is_number
from gnp.analysis.sharpness.files import read_drawn_arrays
from gnp.terminal import describe
from gnp.training.files import FileFormatError

MOST_CONTOURS = 6


class Flatness(NamedTuple):
    """Measurements of a group's representative.

    Attributes:
        place, group: of the page.
        checkpoints: the objects of sharpness.json, by step.
        arrays: of sharpness.npz; empty where it is missing.
    """

    place: int
    group: Group
    checkpoints: Sequence[dict[str, Any]]
    arrays: dict[str, np.ndarray]


def value_of(checkpoint: Mapping[str, Any], name: str) -> float | None:
    """Return a value of a checkpoint; of a list, the largest."""
    value = checkpoint.get(name)
    if isinstance(value, list):
        value = max(filter(is_number, value), default=None)
    return float(value) if is_number(value) else None


def read_flatness(groups: Sequence[Group], most: int) -> tuple[list[Flatness], list[str]]:
    """Read a measured run of each of the first groups; and return a line for each damaged file.

    Args:
        groups: of a data set; the warnings are of all.
        most: groups that are shown.
    """
    runs = [run for group in groups for run in group.runs]
    found, warnings = list[Flatness](), [run.damage for run in runs if run.damage]
    for place, group in enumerate(groups[:most]):
        for run in filter(lambda run: run.checkpoints, group.runs):
            try:
                arrays = read_drawn_arrays(run.path / "sharpness.npz")
            except (FileFormatError, OSError) as error:
                warnings.append(describe(error))
                continue
            found.append(Flatness(place, group, run.checkpoints, arrays))
            break
    return found, warnings + unlike([run.checkpoints[-1] for run in runs if run.checkpoints])


def unlike(checkpoints: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line where checkpoints were measured in ways that do not compare."""
    ways = []
    for name in ("sam_radius", "examples", "regularized"):
        values = {str(each[name]) for each in checkpoints if name in each}
        if len(values) > 1:
            ways.append(f"{name} = {' and '.join(sorted(values, key=_by_size))}")
    return [f"sharpness was measured with {way}, which do not compare" for way in ways]


def sharpness(found: Sequence[Flatness], hidden: Collection[str]) -> dict[str, Any] | None:
    """Draw the largest eigenvalue over training, spectral density, and loss along directions."""
    panels = [each for each in (_eigenvalue(found), *_drawn(found)) if each.traces]
    return figure(panels, columns=2, hidden=hidden) if panels else None


def _eigenvalue(found: Sequence[Flatness]) -> Panel:
    traces = []
    for each in found:
        values = [
            (int(checkpoint["step"]), value)
            for checkpoint in each.checkpoints
            if (value := value_of(checkpoint, "hessian_eigenvalues")) is not None
        ]
        if len(values) > 1:
            traces.append(line(values, each.place, each.group.name))
    title = "Largest eigenvalue of the Hessian"
    return Panel(title, traces, titled("step"), {"rangemode": "tozero"})


def _drawn(found: Sequence[Flatness]) -> Iterator[Panel]:
    """Draw what the arrays hold."""

    def lines(x: str, y: Callable[[Flatness], np.ndarray]) -> list[dict[str, Any]]:
        return [
            line(
                zip(each.arrays[x].tolist(), values.tolist(), strict=True),
                each.place,
                each.group.name,
            )
            for each in found
            if each.arrays
            for values in np.atleast_2d(y(each))
        ]

    density = lines("density_points", lambda f: np.maximum(f.arrays["density"], _density_floor(f)))
    yield Panel(
        "Density of the Hessian's eigenvalues",
        density,
        titled("eigenvalue"),
        value_axis(density, 1),
    )
    gradient = lines("gradient_distances", lambda f: f.arrays["gradient_losses"])
    yield Panel("Loss along the gradient", gradient, titled("distance"), value_axis(gradient, 20))
    random = lines("random_distances", lambda f: f.arrays["random_losses"])
    axis = titled("share of the filters' norms")
    yield Panel("Loss along two random directions", random, axis, value_axis(random, 20))


def _density_floor(found: Flatness) -> float:
    """Return less than the height of a single eigenvalue, of all that there are."""
    for each in found.checkpoints:
        width, parameters = (value_of(each, name) for name in ("density_width", "parameters"))
        if each["step"] == found.arrays["step"] and width and parameters:
            return 0.3 / parameters / (width * math.sqrt(2 * math.pi))
    return float(found.arrays["density"].max()) * 1e-6


def contours(found: Sequence[Flatness]) -> dict[str, Any] | None:
    """Draw the loss around each checkpoint, on one scale of colors."""
    shown = [each for each in found if each.arrays][:MOST_CONTOURS]
    losses = [each.arrays["contour_losses"] for each in shown]
    finite = [x for each in losses for x in each.ravel().tolist() if 0 < x < math.inf]
    if not finite:
        return None
    low, high = math.log10(min(finite)), math.log10(max(finite))
    high = max(high, low + 1e-6)
    panels = []
    for number, (each, values) in enumerate(zip(shown, losses, strict=True), 1):
        grid = list(map(rounded, each.arrays["contour_distances"]))
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.log10(values)
        contour = {
            "type": "contour", "x": grid, "y": grid, "coloraxis": "coloraxis",
            "z": [list(map(rounded, row)) for row in logarithms],
            "customdata": [list(map(rounded, row)) for row in values],
            "contours": {"start": low, "end": high, "size": (high - low) / 14},
            "line": {"width": 0.6}, "hovertemplate": "loss %{customdata:.3g}<extra></extra>",
        }  # fmt: skip
        here = {
            "type": "scatter", "mode": "markers", "x": [0], "y": [0], "hoverinfo": "skip",
            "marker": {"size": 9, "color": "white", "line": {"color": "black", "width": 1.5}},
        }  # fmt: skip
        title = f"{each.group.name}\nstep {each.arrays['step']:,.0f}"
        square = {
            "scaleanchor": f"x{number}" if number > 1 else "x",
            "constrain": "domain",
            "nticks": 5,
        }
        panels.append(Panel(title, [contour, here], {"constrain": "domain", "nticks": 5}, square))
    ticks = np.linspace(low, high, 5).tolist()
    return figure(
        panels, columns=3, height=360,
        coloraxis={
            "cmin": low, "cmax": high, "colorscale": "Cividis", "reversescale": True,
            "colorbar": titled("loss") | {"thickness": 12, "tickvals": ticks,
                         "ticktext": [f"{10**tick:.2g}" for tick in ticks]},
        },
    )  # fmt: skip


def _by_size(text: str) -> tuple[int, str]:
    """Return what sorts positive numbers as they are written: 0.05, 0.1, 200, 1438."""
    return len(text.partition(".")[0]), text
