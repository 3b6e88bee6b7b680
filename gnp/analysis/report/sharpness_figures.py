"""The figures of how flat the runs' minima are."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gnp.analysis.report.figures import Figure, line_of, log_axis, rounded
from gnp.analysis.report.sharpness import Flatness, value_of

MOST_CONTOURS = 6


def lines(found: Sequence[Flatness]) -> list[Figure]:
    """Draw the largest eigenvalue over training, spectral density, and loss along directions."""
    return [
        figure
        for figure in (_eigenvalue(found), _density(found), _gradient(found), _random(found))
        if figure.traces
    ]


def contours(found: Sequence[Flatness]) -> list[Figure]:
    """Draw the loss around each checkpoint, on one scale of colors."""
    shown = [each for each in found if each.arrays][:MOST_CONTOURS]
    losses = [each.arrays["contour_losses"].ravel() for each in shown]
    finite = [x for x in np.concatenate([*losses, []]).tolist() if 0 < x < math.inf]
    if not finite:
        return []
    low, high = math.log10(min(finite)), math.log10(max(finite))
    ticks = log_axis(finite)["tickvals"]
    return [_contour(each, low, max(high, low + 1e-6), ticks) for each in shown]


def _contour(found: Flatness, low: float, high: float, ticks: Sequence[float]) -> Figure:
    losses = found.arrays["contour_losses"]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.log10(losses)
    grid = [rounded(value) for value in found.arrays["contour_distances"]]
    trace = {
        "type": "contour", "x": grid, "y": grid,
        "z": [[rounded(value) for value in row] for row in z],
        "customdata": [[rounded(value) for value in row] for row in losses],
        "zmin": low, "zmax": high, "colorscale": "Cividis", "reversescale": True,
        "contours": {"start": low, "end": high, "size": (high - low) / 14},
        "line": {"width": 0.6}, "hovertemplate": "loss %{customdata:.3g}<extra></extra>",
        "colorbar": {
            "orientation": "h", "y": -0.1, "yanchor": "top", "thickness": 8, "outlinewidth": 0,
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:g}" for tick in ticks],
            "tickfont": {"color": "var(--muted)", "size": 12},
        },
    }  # fmt: skip
    here = {
        "type": "scatter", "mode": "markers", "x": [0], "y": [0], "hoverinfo": "skip",
        "marker": {"symbol": "circle", "size": 9, "color": "#ffffff",
                   "line": {"color": "#000000", "width": 1.5}},
    }  # fmt: skip
    layout = {
        "showlegend": False, "margin": {"l": 30, "r": 4, "t": 6, "b": 64},
        "xaxis": {"nticks": 5, "constrain": "domain"},
        "yaxis": {"nticks": 5, "scaleanchor": "x", "constrain": "domain"},
    }  # fmt: skip
    note = f"step {found.arrays['step']:,.0f}"
    description = f"Contours of the loss around a checkpoint of {found.group.name}."
    return Figure(found.group.name, note, description, [trace, here], layout)


def _eigenvalue(found: Sequence[Flatness]) -> Figure:
    traces = []
    for each in found:
        values = [
            (int(checkpoint["step"]), value)
            for checkpoint in each.checkpoints
            if (value := value_of(checkpoint, "hessian_eigenvalues")) is not None
        ]
        if len(values) > 1:
            traces.append(line_of(values, each.place, each.group.name))
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"rangemode": "tozero"}}
    return Figure(
        "Largest eigenvalue in training", "of the Hessian; of one run a group",
        "Largest eigenvalue of the Hessian over steps.", traces, _without_legend(layout),
    )  # fmt: skip


def _density(found: Sequence[Flatness]) -> Figure:
    traces = []
    for each in found:
        if not each.arrays:
            continue
        density = np.maximum(each.arrays["density"], _density_floor(each))
        traces.append(_plain(each, each.arrays["density_points"], density))
    axis = log_axis(y for trace in traces for y in trace["y"])
    layout = {"xaxis": {"title": {"text": "eigenvalue"}}, "yaxis": axis}
    return Figure(
        "Spectral density", "share of the Hessian's eigenvalues, of one run a group",
        "Spectral density of the Hessian.", traces, _without_legend(layout),
    )  # fmt: skip


def _density_floor(found: Flatness) -> float:
    """Return less than the height of a single eigenvalue, of all that there are."""
    for each in found.checkpoints:
        width, parameters = (value_of(each, name) for name in ("density_width", "parameters"))
        if each["step"] == found.arrays["step"] and width and parameters:
            return 0.3 / parameters / (width * math.sqrt(2 * math.pi))
    return float(found.arrays["density"].max()) * 1e-6


def _gradient(found: Sequence[Flatness]) -> Figure:
    names = "gradient_distances", "gradient_losses"
    traces = [_plain(each, *(each.arrays[name] for name in names)) for each in found if each.arrays]
    layout = {"xaxis": {"title": {"text": "distance"}}, "yaxis": _loss_axis(traces)}
    return Figure(
        "Loss along the gradient", "from the checkpoint at 0", "Loss along the gradient.",
        traces, _without_legend(layout),
    )  # fmt: skip


def _random(found: Sequence[Flatness]) -> Figure:
    traces = [
        _plain(each, each.arrays["random_distances"], losses)
        for each in found
        if each.arrays
        for losses in each.arrays["random_losses"]
    ]
    axis = {"title": {"text": "share of the filters' norms"}}
    return Figure(
        "Loss along random directions", "two, filter-normalized",
        "Loss along two random directions.", traces,
        _without_legend({"xaxis": axis, "yaxis": _loss_axis(traces)}),
    )  # fmt: skip


def _plain(found: Flatness, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return a line without markers, but for a few."""
    line = [(rounded(a) or 0.0, float(b)) for a, b in zip(x, y, strict=True)]
    return line_of(line, found.place, found.group.name)


def _loss_axis(traces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = [y for trace in traces for y in trace["y"] if y is not None]
    if values and min(values) > 0 and max(values) / min(values) > 20:
        return log_axis(values)
    return {"rangemode": "tozero"}


def _without_legend(layout: dict[str, Any]) -> dict[str, Any]:
    return {**layout, "showlegend": False}
