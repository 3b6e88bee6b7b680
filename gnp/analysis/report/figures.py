"""Figures, in plotly's JSON: panels under one legend, which page.js sets in columns."""

import html
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from plotly.colors import qualitative

# Seen on white and on black. Neighbors differ in all three, and no two of the first 30 are alike.
_COLORS = qualitative.D3
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_MARKERS = ("circle", "square", "triangle-up")


class Panel(NamedTuple):
    """A plot among others of a figure.

    Attributes:
        title: above it, in one line or two.
        traces: lines of one legendgroup are shown and hidden together.
        xaxis, yaxis: as in plotly's layout.
    """

    title: str
    traces: list[dict[str, Any]]
    xaxis: dict[str, Any]
    yaxis: dict[str, Any]


def figure(
    panels: Sequence[Panel], columns: int, height: int = 300, hidden: Collection[str] = (),
    **layout: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return a figure of panels; each legendgroup has one entry in its legend.

    Args:
        panels: at least one.
        columns: on a wide screen; on a phone there is one.
        height: of a row, in pixels.
        hidden: legendgroups of which only the entry is seen at first.
        layout: further attributes of it.
    """
    traces, axes, titles = [], dict[str, Any](), []
    entries = dict[str, int]()  # legendgroup -> lines of text in the legend
    for number, panel in zip(["", *range(2, len(panels) + 1)], panels, strict=True):
        axes |= {f"xaxis{number}": panel.xaxis, f"yaxis{number}": panel.yaxis}
        titles.append({
            "text": f"<b>{label(panel.title)}</b>", "xref": f"x{number} domain", "x": 0,
            "xanchor": "left", "yref": f"y{number} domain", "y": 1, "yanchor": "bottom",
            "align": "left", "showarrow": False,
        })  # fmt: skip
        for trace in panel.traces:
            group = trace.get("legendgroup", "")
            is_entry = "name" in trace and group not in entries
            traces.append(
                trace | {"xaxis": f"x{number}", "yaxis": f"y{number}", "showlegend": is_entry}
                | ({"visible": "legendonly"} if group in hidden else {})
            )  # fmt: skip
            if is_entry:
                entries[group] = 1 + trace["name"].count("<br>")
    return {
        "data": traces,
        "layout": {
            "meta": {
                "panels": len(panels),
                "columns": columns,
                "height": height,
                "legend": sum(entries.values()),
            },
            "annotations": titles,
            "hovermode": "closest",
            "hoverlabel": {"namelength": -1},
            "showlegend": len(entries) > 1,
            "legend": {"orientation": "h", "y": 1, "yanchor": "bottom"},
            "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            **axes,
            **layout,
        },
    }


def line(points: Iterable[tuple[float, float]], index: int, name: str = "") -> dict[str, Any]:
    """Return a line of the group with that number.

    Args:
        points: (x, y).
        index: says its color, dash and marker.
        name: the line has markers and an entry in the legend; without one it is bare.
    """
    points = list(points)
    color = _COLORS[index % len(_COLORS)]
    found = {
        "type": "scatter", "mode": "lines", "legendgroup": str(index), "x": [x for x, _ in points],
        "y": [rounded(y) for _, y in points], "line": {"color": color, "width": 1},
    }  # fmt: skip
    if not name:
        return found | {"hoverinfo": "skip"}
    return found | {
        "mode": "lines+markers", "name": label(name),
        "line": {"color": color, "width": 2.25, "dash": _DASHES[index % len(_DASHES)]},
        "marker": {"symbol": _MARKERS[index % len(_MARKERS)], "size": 7, "maxdisplayed": 8},
    }  # fmt: skip


def label(text: str, width: int = 38) -> str:
    r"""Return text in lines that fit a phone; what looks like HTML in it is text to plotly.

    Example:
        >>> label("<b>", 9), label("one two three\nfour", 9)
        ('&lt;b&gt;', 'one two<br>three<br>four')
    """
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def titled(text: str) -> dict[str, Any]:
    """Return an axis with a title."""
    return {"title": {"text": text}}


def rounded(value: float) -> float:
    """Return a number with four digits, which make a small page."""
    return float(f"{value:.4g}")


def value_axis(traces: Iterable[dict[str, Any]], ratio: float = 10) -> dict[str, Any]:
    """Return an axis from zero; a logarithmic one where the largest value is so much larger."""
    values = [y for trace in traces for y in trace["y"]]
    if not values or min(values) <= 0 or max(values) <= ratio * min(values):
        return {"rangemode": "tozero"}
    ticks = {"dtick": "D2"} if max(values) < 300 * min(values) else {"nticks": 6}  # D2: 1, 2, 5
    return {"type": "log", "tickformat": "~g", **ticks}
