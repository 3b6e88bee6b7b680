"""The page: one HTML file with its styles, its script, plotly.js and its data inside."""

import datetime
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.io
import plotly.offline
from plotly.io.json import to_json_plotly

from gnp.analysis.evolution_numbers import Evolution, verdicts
from gnp.analysis.report import tables
from gnp.analysis.report.curves import MOST_GROUPS, MOST_RUNS, curves, hidden
from gnp.analysis.report.evolution import MOST_CELLS, evolutions, heatmaps, norms, shown_layers
from gnp.analysis.report.groups import Group
from gnp.analysis.report.sharpness import (
    MOST_CONTOURS,
    Flatness,
    contours,
    read_flatness,
    sharpness,
)
from gnp.analysis.report.tables import Column, Section, column, counted

_HERE = Path(__file__).resolve().parent
# The browser itself sees to it that the page reads nothing but itself.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_SCHEMES = {"light": "plotly_white", "dark": "plotly_dark"}
_VERDICTS = {True: "yes", False: "no", None: "cannot tell"}


def page(sections: Sequence[Section], notes: Sequence[str]) -> tuple[str, list[str]]:
    """Return the page, and a line for each thing in the run directories that was not shown.

    Args:
        sections: with their summaries.
        notes: what a reader must know before the numbers.
    """
    parts, warnings = list[tuple[str, str]](), list[str]()
    for section in sections:
        recorded, missing = evolutions(section.groups)
        flatness, damaged = read_flatness(section.groups, MOST_GROUPS)
        warnings += missing + damaged
        bodies = {
            "Results": _results(section),
            "Learning curves": _curves(section),
            "What differs": _differences(section),
            "Gradients": _gradients(recorded, section.title),
            "Sharpness": _sharpness(section, flatness),
            "All runs": _runs(section),
        }
        data = f"{section.title}: " if len(sections) > 1 else ""
        parts += [(data + heading, body) for heading, body in bodies.items() if body]
    links = "".join(f'<a href="#{i}">{escape(title)}</a>' for i, (title, _) in enumerate(parts))
    main = "".join(
        f'<section id="{i}">\n<h2>{escape(title)}</h2>\n{body}\n</section>\n'
        for i, (title, body) in enumerate(parts)
    )
    groups = [group for section in sections for group in section.groups]
    runs = sum(len(group.runs) for group in groups)
    models = sorted({str(group.config["model.model_name"]) for group in groups})
    title = f"{counted(runs, 'run')} on {listed([section.title for section in sections])}"
    lead = (
        f"{counted(len(groups), 'group')} of runs that differ in their seeds alone. "
        f"{'Model' if len(models) == 1 else 'Models'}: {listed(models)}."
    )
    items = "".join(f"<li>{escape(note)}</li>" for note in [*notes, *warnings])
    templates = {scheme: plotly.io.templates[name] for scheme, name in _SCHEMES.items()}
    made = datetime.datetime.now().astimezone()
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{(_HERE / "style.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(lead)}</p>
{f'<ul class="notes">{items}</ul>' if items else ""}
<nav>{links}</nav>
</header>
<main>
{main}
</main>
<footer>
<p>Made by <code>gnp.analysis.report</code> on <time
datetime="{made.isoformat(timespec="seconds")}">{made:%d %B %Y, %H:%M}</time>. The headings of a
table sort it. Dragging in a figure zooms; a double click brings everything back.</p>
</footer>
<script>{plotly.offline.get_plotlyjs()}</script>
<script type="application/json" id="templates">{to_json_plotly(templates, engine="json")}</script>
<script>
{(_HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    return text, warnings


def listed(words: Sequence[str], most: int = 4) -> str:
    """Join words as in a sentence.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c"], most=1)
        ('a, b and c', 'a and 2 more')
    """
    if len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _results(section: Section) -> str:
    names = []
    for summary in section.summaries:
        tags = ["baseline"] * (summary is section.baseline)
        tags += filter(None, [tables.state_in_words(summary.group)])
        tag = "".join(f" <small>{escape(words)}</small>" for words in tags)
        names.append((summary.group.name, escape(summary.group.name) + tag))
    table = _table("group", names, tables.columns(section))
    return f"{table}\n<p>{escape(tables.legend(section))}</p>"


def _table(first: str, names: Sequence[tuple[str, str]], columns: Sequence[Column]) -> str:
    """Return a table that its headings sort; names are each row's text and HTML, under `first`."""
    headings = [first, *(each.heading for each in columns)]
    head = "".join(f'<th scope="col"><button>{escape(words)}</button></th>' for words in headings)
    rows = []
    for row, (name, shown) in enumerate(names):
        cells = [f'<th scope="row" data-value="{escape(name)}">{shown}</th>']
        for each in columns:
            value = "" if each.values[row] is None else str(each.values[row])
            cells.append(f'<td data-value="{escape(value)}">{escape(each.texts[row])}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return (
        '<div class="table" tabindex="0" role="region" aria-label="table">'
        f"<table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(figure: dict[str, Any] | None, description: str) -> str:
    """Return the place of a figure, and its data, which page.js draws there."""
    if not figure:
        return ""
    data = to_json_plotly(figure, engine="json")  # in which < is \u003c
    return (
        f'<figure><script type="application/json">{data}</script>'
        f'<div class="plot" role="img" aria-label="{escape(description)}"></div></figure>'
    )


def _curves(section: Section) -> str:
    figure = _figure(curves(section), "Loss and error over epochs, a line for each group.")
    if not figure:
        return ""
    words = "Mean over the runs"
    if any(len(group.runs) > 1 for group in section.groups):
        words += (
            f", a band of ± one standard deviation, thin lines for the runs (at most {MOST_RUNS})"
        )
    if len(section.groups) > MOST_GROUPS:
        words += f"; the {MOST_GROUPS} groups of the smallest error, of {len(section.groups)}"
    if len(section.groups) > 1:
        words += ". An entry of the legend shows and hides its group"
    return f"<p>{words}.</p>\n{figure}"


def _differences(section: Section) -> str:
    names = [(group.name, escape(group.name)) for group in section.groups]
    different = tables.differences(section)
    return f'<div class="words">{_table("group", names, different)}</div>' if different else ""


def _gradients(recorded: Sequence[tuple[Group, Evolution]], data: str) -> str:
    """Return a run's gradients under its group's name, one run open at a time."""
    if not recorded:
        return ""
    parts = list[str]()
    for group, evolution in recorded:
        claims = "".join(
            f"<li>{escape(each.claim)}: <strong>{_VERDICTS[each.holds]}</strong> "
            f"({escape(each.numbers)})</li>"
            for each in verdicts(evolution)
        )
        left_out = len(evolution.names) - len(shown_layers(evolution))
        note = f"Of {counted(left_out, 'smaller layer')} there is no picture." if left_out else ""
        maps = heatmaps(evolution, MOST_CELLS // len(recorded))
        parts.append(
            f'<details name="{escape(data)}"{"" if parts else " open"}>'
            f"<summary>{escape(group.name)}</summary>\n"
            "<p>Does this run behave as the article on gradient evolution reports?</p>\n"
            f"<ul>{claims}</ul>\n"
            f'<div class="pair">{_figure(maps, "Heatmaps of a layer, epoch by epoch.")}'
            f"{_figure(norms(evolution), 'Norms and highest elements over epochs.')}</div>\n"
            f"<p>{note}</p></details>\n"
        )
    return (
        "<p>G: the sum of an epoch's gradients; A: the sum of G over the epochs so far. Each cell "
        "of a heatmap is the largest of the values it stands for, in percent of the layer's "
        f"largest of all epochs.</p>\n{''.join(parts)}"
    )


def _sharpness(section: Section, found: Sequence[Flatness]) -> str:
    lines = _figure(sharpness(found, hidden(section)), "The Hessian, and the loss along lines.")
    maps = _figure(contours(found), "Contours of the loss around each checkpoint.")
    if not lines and not maps:
        return ""
    text = f"<p>One run of each group.</p>\n{lines}"
    if maps:
        left_out = sum(bool(each.arrays) for each in found) - MOST_CONTOURS
        more = f" {counted(left_out, 'more group')} can be shown in a report of fewer."
        text += (
            "\n<p>Loss around the checkpoint, along two random directions, as shares of the "
            f"filters' norms.{more if left_out > 0 else ''}</p>\n{maps}"
        )
    return text


def _runs(section: Section) -> str:
    """Return every run, with its directory."""
    found = [(group, run) for group in section.groups for run in group.runs]
    runs, groups = [run for _, run in found], [group.name for group, _ in found]
    parent = os.path.commonpath([run.path.resolve().parent for run in runs])
    names = [os.path.relpath(run.path.resolve(), parent) for run in runs]
    seeds = [
        " / ".join(map(str, dict.fromkeys((run.config["init_seeds"], run.config["seeds"]))))
        for run in runs
    ]
    measured, error = [tables.measure(run) for run in runs], tables.error_format(section)
    columns = [
        Column("group", groups, groups),
        Column("seeds", seeds, seeds),
        Column("state", list(map(tables.progress_in_words, runs)), [run.epochs for run in runs]),
    ]
    for heading, name, form in (
        ("error", "final", error),
        ("best epoch", "best", error),
        ("time", "total_seconds", tables.duration),
        ("an epoch", "epoch_seconds", tables.duration),
    ):
        columns.append(column(heading, [each[name] for each in measured], form))
    table = _table("directory", [(name, f"<code>{escape(name)}</code>") for name in names], columns)
    summary = f"{counted(len(runs), 'run')} in <code>{escape(parent)}</code>"
    return f"<details><summary>{summary}</summary>\n{table}</details>"
