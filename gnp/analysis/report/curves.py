"""Learning curves: loss and error over epochs, of all groups, and the error of each run."""

import statistics
from collections.abc import Sequence
from typing import Any

from gnp.analysis.evolution_numbers import evenly_spaced
from gnp.analysis.report.figures import Panel, figure, line, titled, value_axis
from gnp.analysis.report.groups import Group
from gnp.analysis.report.runs import averaged, points
from gnp.analysis.report.tables import Section

MOST_GROUPS = 16  # in the figures; the table has them all
MOST_RUNS = 10  # thin lines of a group
_MOST_POINTS = 250  # of a line
_SWITCHED_ON = 7  # groups that are seen at first


def hidden(section: Section) -> set[str]:
    """Return the groups that wait in the legend at first, by their numbers."""
    return {
        str(place)
        for place, summary in enumerate(section.summaries)
        if place >= _SWITCHED_ON and summary is not section.baseline
    }


def curves(section: Section) -> dict[str, Any] | None:
    """Draw loss and error over epochs, in training and in the test, where measured twice."""
    split, _, error = section.metric.partition("_")
    words = error.removesuffix("_rate").replace("_", " ")
    wanted = {
        section.metric: f"{split.capitalize()} {words}",
        averaged(section.metric): f"{split.capitalize()} {words} of the average",
        f"train_{error}": f"Training {words}",
        f"{split}_loss": f"{split.capitalize()} loss",
        "train_loss": "Training loss",
    }
    groups = section.groups[:MOST_GROUPS]
    percent = {"tickformat": ".1~%", "rangemode": "tozero"}
    panels = []
    for name, title in wanted.items():
        if any(len(points(run, name)) > 1 for group in groups for run in group.runs):
            traces = [trace for i, group in enumerate(groups) for trace in _lines(name, group, i)]
            is_rate = section.is_rate and name.endswith(error)
            axis = percent if is_rate else value_axis(traces)
            panels.append(Panel(title, traces, titled("epoch"), axis))
    dots = [
        trace
        for i, summary in enumerate(section.summaries[:MOST_GROUPS])
        for trace in _dots(i, summary.group.name, summary.spreads["final"].values)
    ]
    if len(dots) > 1:
        title = f"{section.error.capitalize()} of each run\nand the mean, a line"
        axis = {"tickformat": ".1~%"} if section.is_rate else {}
        panels.append(Panel(title, dots, {"visible": False}, axis))
    return figure(panels, columns=2, hidden=hidden(section)) if panels else None


def _dots(index: int, name: str, errors: Sequence[float]) -> list[dict[str, Any]]:
    """Draw each run's error as a dot, and the mean of several as a line."""
    if not errors:
        return []
    dots = line([(index, error) for error in errors], index, name) | {"mode": "markers"}
    if len(errors) == 1:
        return [dots]
    mean = statistics.fmean(errors)
    return [dots, line([(index - 0.3, mean), (index + 0.3, mean)], index)]


def _lines(name: str, group: Group, index: int) -> list[dict[str, Any]]:
    """Draw a group's runs as thin lines, the band of mean ± standard deviation, and the mean."""
    measured = [found for run in group.measured if (found := points(run, name))]
    values = [dict(each) for each in measured]
    shared = sorted(set.intersection(*map(set, values))) if values else []
    columns = {epoch: [each[epoch] for each in values] for epoch in _thinned(shared)}
    mean = {epoch: statistics.fmean(found) for epoch, found in columns.items()}
    traces: list[dict[str, Any]] = []
    if len(measured) > 1:
        runs = filter(None, (_thinned(points(run, name)) for run in group.runs[:MOST_RUNS]))
        traces += [line(each, index) | {"opacity": 0.3} for each in runs]
        # Below zero there is no loss, and no place on a logarithmic axis.
        floor = min(y for each in measured for _, y in each) / 2
        deviation = {epoch: statistics.stdev(found) for epoch, found in columns.items()}
        upper = [(epoch, y + deviation[epoch]) for epoch, y in mean.items()]
        lower = [(e, y - deviation[e] if y > deviation[e] else floor) for e, y in mean.items()]
        band = line([*upper, *reversed(lower)], index)
        traces.append(
            band | {"fill": "toself", "opacity": 0.3, "line": band["line"] | {"width": 0}}
        )
    traces.append(line(mean.items(), index, group.name))
    return traces


def _thinned(line: Sequence[Any]) -> list[Any]:
    return [line[i] for i in evenly_spaced(len(line), _MOST_POINTS)]
