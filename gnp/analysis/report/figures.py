"""The figures of a page, as plotly takes them in JSON.

A color is written `var(--NAME)`, or `var(--NAME) 20%` for a faint one: the page's script puts in
what the style sheet says for light or dark.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

# Neighbors differ in all three, and no two of the first 105 are alike.
COLORS = 7
DASHES = ("solid", "8px,3px", "2px,3px", "8px,3px,2px,3px", "14px,4px")
MARKERS = ("circle", "square", "triangle-up")
MOST_POINTS = 250  # of a line


class Figure(NamedTuple):
    """A figure of the page.

    Attributes:
        title, note: above it.
        description: for those who do not see it.
        traces, layout: as plotly's.
    """

    title: str
    note: str
    description: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]


def style(index: int) -> dict[str, Any]:
    """Return color, dash and marker of the group with that number.

    Example:
        >>> style(8)
        {'color': 'var(--series-1)', 'dash': '8px,3px,2px,3px', 'marker': 'triangle-up'}
    """
    return {
        "color": f"var(--series-{index % COLORS})",
        "dash": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def line_of(line: Sequence[tuple[float, float]], index: int, name: str) -> dict[str, Any]:
    """Return a group's line, with its color, dash and marker."""
    look = style(index)
    marker = {"symbol": look["marker"], "size": 7, "maxdisplayed": 8, "color": look["color"]}
    return bare_line(line, index) | {
        "mode": "lines+markers",
        "name": name,
        "line": {"color": look["color"], "width": 2.25, "dash": look["dash"]},
        "marker": marker,
    }


def bare_line(line: Sequence[tuple[float, float]], index: int) -> dict[str, Any]:
    """Return the points of a group, as yet without a style."""
    return {
        "type": "scatter",
        "x": [x for x, _ in line],
        "y": [rounded(y) for _, y in line],
        "meta": {"group": index},
    }


def rounded(value: Any, digits: int = 4) -> float | None:
    """Return a number with few digits, which make a small page; None where it is not finite.

    Example:
        >>> rounded(0.123456), rounded(float("nan"))
        (0.1235, None)
    """
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def thinned(line: Sequence[_T]) -> list[_T]:
    """Return at most MOST_POINTS, evenly, with the first and the last."""
    return [line[i] for i in evenly(len(line), MOST_POINTS)]


def evenly(number: int, most: int) -> list[int]:
    """Return at most `most` indices below `number`, evenly, with the first and the last.

    Example:
        >>> evenly(3, 5), evenly(9, 3)
        ([0, 1, 2], [0, 4, 8])
    """
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)]


def log_axis(values: Iterable[float | None]) -> dict[str, Any]:
    """Return a logarithmic axis with few round ticks.

    Args:
        values: those that are positive and finite have a place on it.

    Example:
        >>> log_axis([0.3, 4.0])["tickvals"]
        [0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
    """
    shown = [value for value in values if value and 0 < value < math.inf]
    if not shown:
        return {"type": "log"}
    low, high = math.log10(min(shown)), math.log10(max(shown))
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    every = max(1, math.ceil((high - low) / 6))
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [float(f"{i}e{power}") for power in powers if power % every == 0 for i in steps]
    ticks = [tick for tick in ticks if tick and low - 0.4 < math.log10(tick) < high + 0.4]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
