"""The parts of a page, in HTML."""

import html
import json
import math
import os
from collections.abc import Sequence
from typing import Any

from gnp.analysis.report import tables
from gnp.analysis.report.curves import MOST_GROUPS, MOST_RUNS, curves
from gnp.analysis.report.figures import Figure, style
from gnp.analysis.report.groups import Group
from gnp.analysis.report.runs import Run, epoch_seconds, final_value, points, total_seconds
from gnp.analysis.report.sharpness import Flatness
from gnp.analysis.report.sharpness_figures import contours, lines
from gnp.analysis.report.tables import Section

_SWITCHED_ON = 7  # groups whose curves are seen at first
_MOST_STRIPS = 40
_MARKERS = {
    "circle": '<circle cx="17" cy="6" r="3.5"/>',
    "square": '<rect x="13.5" y="2.5" width="7" height="7"/>',
    "triangle-up": '<path d="M17 1.5 21.3 9.5H12.7Z"/>',
}
_MAPS = {
    "gradient": ("|G|", "the sum of the epoch's gradients"),
    "dissolving": ("Dissolving gradient", "Σ|G| − |A|, what epochs took from one another"),
    "accumulated": ("|A|", "the sum over the epochs so far"),
}


class Data:
    """The data that the page's script reads."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []
        self.evolutions: list[list[dict[str, Any]]] = []

    def figure(self, figure: Figure) -> str:
        """Return the place of a figure in the page."""
        self.figures.append({"traces": figure.traces, "layout": figure.layout})
        attribute = f'data-figure="{len(self.figures) - 1}"'
        return _figure(figure.title, figure.note, figure.description, attribute)

    def json(self) -> str:
        """Return a value as text that may stand in a script element."""
        found = {"figures": self.figures, "evolutions": self.evolutions}
        text = json.dumps(found, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c")


def safe(text: str) -> str:
    """Return text as HTML.

    Example:
        >>> safe("a < b")
        'a &lt; b'
    """
    return html.escape(text)


def counted(number: int, word: str) -> str:
    """Return a number and its word.

    Example:
        >>> counted(1, "run"), counted(2, "run")
        ('1 run', '2 runs')
    """
    return f"{number} {word}{'' if number == 1 else 's'}"


def listed(words: Sequence[str], most: int = 4) -> str:
    """Join words as in a sentence.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=1)
        ('a, b and c', 'a and 2 more')
    """
    if len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def notes(lines: Sequence[str]) -> str:
    """Return what a reader must know before the numbers."""
    items = "".join(f"<li>{safe(line)}</li>" for line in lines)
    return f'<div class="notes" role="note"><ul>{items}</ul></div>' if lines else ""


def results(section: Section) -> str:
    """Return the table of numbers, and a strip of dots for each group."""
    columns = tables.columns(section)
    rows = []
    for place, summary in enumerate(section.summaries):
        name = safe(summary.group.name)
        tags = ["baseline"] * (summary.group is section.baseline)
        tags += filter(None, [tables.state_in_words(summary.group)])
        tag = "".join(f'<span class="tag">{safe(words)}</span>' for words in tags)
        cells = [f'<th scope="row" data-value="{name}">{name}{tag}</th>']
        for column in columns:
            best = column.heading == section.error and place == 0 and len(section.summaries) > 1
            cells.append(_cell(column.text(summary), column.value(summary), best))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    headings = ["group", *(column.heading for column in columns)]
    table = _table(headings, rows, "Results", sortable=True)
    return f'{table}\n<p class="muted">{safe(tables.legend(section))}</p>\n{_strips(section)}'


def _cell(text: str, value: Any, best: bool = False) -> str:
    """Return a cell and what it is sorted by."""
    shown = "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
    mark = ' class="best"' if best else ""
    return f'<td{mark} data-value="{safe(shown)}">{safe(text)}</td>'


def _table(
    headings: Sequence[str], rows: Sequence[str], label: str, *, kind: str = "",
    sortable: bool = False,
) -> str:  # fmt: skip
    """Return a table that scrolls by itself, also by keyboard."""
    cells = [
        f'<th scope="col"><button type="button">{safe(heading)}</button></th>'
        if sortable
        else f'<th scope="col">{safe(heading)}</th>'
        for heading in headings
    ]
    body = "\n".join(rows)
    kind += " long" * (len(rows) > 24)
    return (
        f'<div class="table {kind}" role="region" aria-label="{safe(label)}" tabindex="0"><table>'
        f"<thead><tr>{''.join(cells)}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _strips(section: Section) -> str:
    """Draw each run's error as a dot, each group's mean as a line, all on one scale."""
    shown = [summary for summary in section.summaries if summary.errors][:_MOST_STRIPS]
    if not shown or max(len(summary.errors) for summary in shown) == len(shown) == 1:
        return ""
    number = tables.error_format(section)
    ticks = _ticks(max(error for summary in shown for error in summary.errors))
    high = ticks[-1] or 1.0
    items = []
    for summary in shown:
        marks = "".join(f'<i style="left:{error / high:.2%}"></i>' for error in summary.errors)
        if len(summary.errors) > 1 and summary.final:
            marks += f'<b style="left:{summary.final.mean / high:.2%}"></b>'
        value = tables.mean_and_deviation(summary.final, number)
        items.append(
            f"<li><span>{safe(summary.group.name)}</span>"
            f'<span class="strip" aria-hidden="true">{marks}</span>'
            f'<span class="value">{safe(value)}</span></li>'
        )
    axis = "".join(
        f'<span style="left:{tick / high:.2%}">{tick * 100:g}%</span>'
        if section.is_rate
        else f'<span style="left:{tick / high:.2%}">{tick:g}</span>'
        for tick in ticks
    )
    more = len(section.summaries) - len(shown)
    left_out = f" The {len(shown)} smallest; the table has {more} more." if more > 0 else ""
    return (
        f"<figure><figcaption>{section.error.capitalize()} of each run"
        f"<small>A ring is a run, a bar the mean.{left_out}</small></figcaption>"
        f'<ul class="strips">{"".join(items)}'
        f'<li class="axis" aria-hidden="true"><span></span><span class="strip">{axis}</span></li>'
        "</ul></figure>"
    )


def _ticks(largest: float) -> list[float]:
    """Return round numbers from 0 to beyond the largest value.

    Example:
        >>> _ticks(0.031)
        [0.0, 0.01, 0.02, 0.03, 0.04]
    """
    if largest < 1e-300:  # there are hardly smaller numbers for its parts
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(p * power for p in (0.2, 0.25, 0.5, 1, 2, 2.5, 5) if p * power * 5 >= largest)
    return [float(f"{i * step:.6g}") for i in range(math.ceil(largest / step - 1e-9) + 1)]


def learning_curves(section: Section, data: Data) -> str:
    """Return the curves, with a key for each group that switches it on and off."""
    figures = curves(section)
    if not figures:
        return ""
    groups = section.groups[:MOST_GROUPS]
    words = "Mean over the runs"
    if any(len(group.runs) > 1 for group in groups):
        words += (
            f", a band of ± one standard deviation, thin lines for the runs (at most {MOST_RUNS})"
        )
    if len(section.groups) > len(groups):
        words += f"; the {len(groups)} groups of the smallest error, of {len(section.groups)}"
    keys = _keys(words, list(enumerate(groups)), section.baseline)
    return f'{keys}\n<div class="figures">{"".join(map(data.figure, figures))}</div>'


def sharpness(section: Section, found: Sequence[Flatness], data: Data) -> str:
    """Return what was measured around the checkpoints, again with a key for each group."""
    figures, maps = lines(found), contours(found)
    if not figures and not maps:
        return ""
    groups = [(each.place, each.group) for each in found]
    parts = [_keys("One run of each group", groups, section.baseline)]
    if figures:
        parts.append(f'<div class="figures">{"".join(map(data.figure, figures))}</div>')
    if maps:
        left_out = sum(bool(each.arrays) for each in found) - len(maps)
        more = f" {counted(left_out, 'more group')} can be shown in a report of fewer."
        parts.append(
            '<p class="heading">Loss around the checkpoint</p>'
            '<p class="muted">Along two random directions, as '
            "shares of the filters' norms. The same colors stand for the same loss throughout."
            f"{more if left_out > 0 else ''}</p>"
            f'<div class="figures three">{"".join(map(data.figure, maps))}</div>'
        )
    return "\n".join(parts)


def _keys(words: str, groups: Sequence[tuple[int, Group]], baseline: Group | None) -> str:
    """Return a button a group, which shows and hides its lines in this section of the page."""
    if len(groups) == 1:
        return f'<p class="muted">{safe(words)}.</p>'
    keys = "".join(
        f'<button type="button" class="key" data-group="{index}" '
        f'aria-pressed="{str(place < _SWITCHED_ON or group is baseline).lower()}">'
        f"{_sample(index)}{safe(group.name)}</button>"
        for place, (index, group) in enumerate(groups)
    )
    return (
        f'<fieldset class="keys"><legend>{safe(words)}. Press a group to show or hide it.</legend>'
        f"{keys}</fieldset>"
    )


def _sample(index: int) -> str:
    """Draw a group's line and marker."""
    look = style(index)
    dash = "" if look["dash"] == "solid" else look["dash"].replace("px", "")
    return (
        f'<svg width="34" height="12" aria-hidden="true" stroke="{look["color"]}" '
        f'fill="{look["color"]}"><line x1="1" x2="33" y1="6" y2="6" stroke-width="2.25" '
        f'stroke-dasharray="{dash}"/><g stroke="none">{_MARKERS[look["marker"]]}</g></svg>'
    )


def differences(section: Section) -> str:
    """Return the config keys that differ; a value that most groups have is set back."""
    keys, values = tables.differences(section)
    if not keys:
        return ""
    usual = tables.are_usual(values)
    rows = [
        f'<tr><th scope="row">{safe(group.name)}</th>'
        + "".join(
            f"<td{' class=same' if same else ''}>{safe(value)}</td>"
            for value, same in zip(row, usual_row, strict=True)
        )
        + "</tr>"
        for group, row, usual_row in zip(section.groups, values, usual, strict=True)
    ]
    table = _table(["group", *keys], rows, "Config keys that differ", kind="words")
    return f'{table}<p class="muted">Values that most groups share are set back.</p>'


def gradients(recorded: Sequence[dict[str, Any]], data: Data) -> str:
    """Return the choice of a run, a layer and an epoch, and six figures of them."""
    if not recorded:
        return ""
    data.evolutions.append(list(recorded))
    options = "".join(
        f'<option value="{i}">{safe(each["name"])}</option>' for i, each in enumerate(recorded)
    )
    maps = "".join(
        _figure(title, note, f"Heatmap of {title} of the layer chosen.", f'data-plot="{name}"')
        for name, (title, note) in _MAPS.items()
    )
    norms = _figure(
        "Norms of the gradients", "standardized L1: the sum over layers of ‖·‖₁ / size",
        "Norms of the gradient, of the accumulated gradient and of the sum of gradients by epoch.",
        'data-plot="norms"',
    )  # fmt: skip
    highest = "".join(
        _figure(
            f"Highest element of |{letter}|",
            "over the layer's largest |A|, all layers",
            f"Highest element of {letter} by epoch, a line for each layer.",
            f'data-plot="highest-{name}"',
        )
        for letter, name in (("G", "gradient"), ("A", "accumulated"))
    )
    hidden = max(each["hidden"] for each in recorded)
    note = f" Of {counted(hidden, 'smaller layer')} there is no picture." if hidden else ""
    return f"""<p class="muted">G: the sum of an epoch's gradients; A: the sum of G over the epochs
so far. Each cell of a heatmap is the largest of the values it stands for; its colors reach to the
largest of all epochs.{note}</p>
<div data-evolution="{len(data.evolutions) - 1}">
<div class="control">
<label>run<select name="run">{options}</select></label>
<label>layer<select name="layer"></select></label>
<label class="wide"><output aria-live="polite"></output>
<input type="range" name="epoch" min="0" max="0" step="1" aria-label="epoch"></label>
<button type="button">Play</button>
</div>
<div class="figures three">{maps}</div>
<div class="figures three">{norms}{highest}</div>
<p class="heading">Does this run behave as the article on gradient evolution reports?</p>
<ul class="verdicts"></ul>
</div>"""


def _figure(title: str, note: str, description: str, attribute: str) -> str:
    small = f"<small>{safe(note)}</small>" if note else ""
    return (
        f"<figure><figcaption>{safe(title)}{small}</figcaption>"
        f'<div class="plot" role="img" aria-label="{safe(description)}" {attribute}></div></figure>'
    )


def runs(sections: Sequence[Section]) -> str:
    """Return every run, with its directory."""
    found = [(s, g, run) for s in sections for g in s.groups for run in g.runs]
    parent = os.path.commonpath([run.path.resolve().parent for _, _, run in found])
    rows = [_run_row(section, group.name, run, parent) for section, group, run in found]
    headings = ["directory", "group", "seeds", "state", "error", "best epoch", "time",
                "an epoch"]  # fmt: skip
    table = _table(headings, rows, "All runs", sortable=True)
    return (
        f"<details><summary>{counted(len(found), 'run')} in <code>{safe(parent)}</code></summary>\n"
        f"{table}</details>"
    )


def _run_row(section: Section, group: str, run: Run, parent: str) -> str:
    number = tables.error_format(section)
    errors = [value for _, value in points(run, section.metric)]
    last, best = final_value(run, section.metric), min(errors, default=None)
    seconds, epoch = total_seconds(run) or None, epoch_seconds(run)
    name = os.path.relpath(run.path.resolve(), parent)
    seeds = " / ".join(
        str(seed) for seed in dict.fromkeys((run.config["init_seeds"], run.config["seeds"]))
    )
    cells = [
        (group, group),
        (seeds, seeds),
        (tables.progress_in_words(run), run.epochs),
        *((tables.DASH if value is None else number(value), value) for value in (last, best)),
        *((tables.duration(value), value) for value in (seconds, epoch)),
    ]
    return (
        f'<tr><th scope="row" data-value="{safe(name)}"><code>{safe(name)}</code></th>'
        + "".join(_cell(text, value) for text, value in cells)
        + "</tr>"
    )
