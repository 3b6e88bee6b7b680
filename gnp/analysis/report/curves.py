"""Learning curves: loss and error over epochs, of all groups."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from gnp.analysis.report.figures import Figure, bare_line, line_of, log_axis, style, thinned
from gnp.analysis.report.groups import Group
from gnp.analysis.report.runs import averaged, points
from gnp.analysis.report.tables import Section

MOST_GROUPS = 16  # in the figures; the table has them all
MOST_RUNS = 10  # thin lines of a group


def curves(section: Section) -> list[Figure]:
    """Draw loss and error over epochs, in training and in the test, where measured twice."""
    split, _, error = section.metric.partition("_")
    rate = section.is_rate
    wanted = [
        (f"{split}_{error}", f"{split.capitalize()} {error.removesuffix('_rate')}", rate),
        (
            averaged(section.metric),
            f"{split.capitalize()} {error.removesuffix('_rate')} of the average",
            rate,
        ),
        (f"train_{error}", f"Training {error.removesuffix('_rate')}", rate),
        (f"{split}_loss", f"{split.capitalize()} loss", False),
        ("train_loss", "Training loss", False),
    ]
    groups = section.groups[:MOST_GROUPS]
    return [
        _curve(name, title.replace("_", " "), groups, percent)
        for name, title, percent in wanted
        if any(len(points(run, name)) > 1 for group in groups for run in group.runs)
    ]


def _curve(name: str, title: str, groups: Sequence[Group], percent: bool) -> Figure:
    traces = [trace for i, group in enumerate(groups) for trace in _lines(name, group, i)]
    axis: dict[str, Any] = {"title": {"text": ""}}
    if percent:
        axis |= {"tickformat": ".1~%", "rangemode": "tozero"}
    elif _spans_decades(y for trace in traces for y in trace["y"]):
        axis |= log_axis(y for trace in traces for y in trace["y"])
    layout = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": axis, "showlegend": False}
    return Figure(title, "", f"{title} over epochs, a line for each group.", traces, layout)


def _lines(name: str, group: Group, index: int) -> list[dict[str, Any]]:
    """Draw a group's runs as thin lines, the band of mean ± standard deviation, and the mean."""
    look = style(index)
    measured = [found for run in group.measured if (found := points(run, name))]
    middle = mean_curve(measured)
    traces: list[dict[str, Any]] = []
    if len(measured) > 1:
        for run in group.runs[:MOST_RUNS]:
            if line := thinned(points(run, name)):
                traces.append(
                    bare_line(line, index) | {
                        "mode": "lines", "opacity": 0.3, "hoverinfo": "skip",
                        "line": {"color": look["color"], "width": 1},
                    }
                )  # fmt: skip
        deviations = [(e, mean, dev) for e, mean, dev in middle if dev is not None]
        if len(deviations) > 1:
            shown = thinned(deviations)
            upper = [(e, mean + dev) for e, mean, dev in shown]
            # Below zero there is no loss, and no place on a logarithmic axis.
            floor = min(y for line in measured for _, y in line) / 2
            lower = [(e, mean - dev if mean > dev else floor) for e, mean, dev in shown]
            traces.append(
                bare_line([*upper, *reversed(lower)], index) | {
                    "mode": "lines", "fill": "toself", "hoverinfo": "skip", "line": {"width": 0},
                    "fillcolor": f"{look['color']} 16%",
                }
            )  # fmt: skip
    if middle:
        means = [(epoch, mean) for epoch, mean, _ in middle]
        traces.append(line_of(means, index, group.name))
    return traces


def mean_curve(
    lines: Sequence[Sequence[tuple[int, float]]],
) -> list[tuple[int, float, float | None]]:
    """Return (epoch, mean, standard deviation) at the epochs that all lines have.

    Example:
        >>> mean_curve([[(1, 2.0), (2, 0.0)], [(1, 4.0)]])
        [(1, 3.0, 1.4142135623730951)]
    """
    if not lines:
        return []
    values = [dict(line) for line in lines]
    found = []
    for epoch in sorted(set.intersection(*(set(each) for each in values))):
        here = [each[epoch] for each in values]
        deviation = statistics.stdev(here) if len(here) > 1 else None
        found.append((epoch, statistics.fmean(here), deviation))
    return found


def _spans_decades(values: Iterable[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and min(known) > 0 and max(known) / min(known) > 10
