"""The page: one HTML file with its styles, its script, plotly.js and its data inside."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import plotly.offline

from gnp.analysis.report import parts
from gnp.analysis.report.curves import MOST_GROUPS
from gnp.analysis.report.evolution import evolutions
from gnp.analysis.report.parts import Data, counted, listed, safe
from gnp.analysis.report.sharpness import read_flatness
from gnp.analysis.report.tables import Section

_HERE = Path(__file__).resolve().parent
# The browser itself sees to it that the page reads nothing but itself.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


def page(sections: Sequence[Section], notes: Sequence[str]) -> tuple[str, list[str]]:
    """Return the page, and a line for each thing in the run directories that was not shown.

    Args:
        sections: with their summaries.
        notes: what a reader must know before the numbers.
    """
    data, warnings, bodies = Data(), list[str](), list[str]()
    links: list[tuple[str, str]] = []
    for number, section in enumerate(sections):
        body, there, missing = _section(section, number, data, alone=len(sections) == 1)
        bodies.append(body)
        links += there
        warnings += missing
    groups = [group for section in sections for group in section.groups]
    runs = sum(len(group.runs) for group in groups)
    models = sorted({str(group.config["model.model_name"]) for group in groups})
    title = f"{counted(runs, 'run')} on {listed([section.title for section in sections])}"
    lead = (
        f"{counted(len(groups), 'group')} of runs that differ in their seeds alone. "
        f"{'Model' if len(models) == 1 else 'Models'}: {listed(models)}."
    )
    made = datetime.datetime.now().astimezone()
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{safe(title)}</title>
<style>
{(_HERE / "style.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{safe(title)}</h1>
<p class="lead">{safe(lead)}</p>
{parts.notes([*notes, *warnings])}
<nav aria-label="Parts of this page"><ul>
{"".join(f'<li><a href="#{to}">{safe(words)}</a></li>' for to, words in [*links, _RUNS])}
</ul></nav>
</header>
<main id="main">
{"".join(bodies)}
<section class="part" id="runs" aria-labelledby="runs-title">
<h2 id="runs-title">All runs</h2>
{parts.runs(sections)}
</section>
</main>
<footer>
<p>Made by <code>gnp.analysis.report</code> on <time
datetime="{made.isoformat(timespec="seconds")}">{made:%d %B %Y, %H:%M}</time>. The headings of a
table sort it. Dragging in a figure zooms; a double click brings everything back.</p>
</footer>
<script>{plotly.offline.get_plotlyjs()}</script>
<script type="application/json" id="data">{data.json()}</script>
<script>
{(_HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    return text, warnings


_RUNS = ("runs", "All runs")


def _section(
    section: Section, number: int, data: Data, alone: bool
) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Return a data set's section, its entries in the page's menu, and what was not shown."""
    recorded, warnings = evolutions(section.groups)
    flatness, damaged = read_flatness(section.groups, MOST_GROUPS)
    warnings += damaged
    contents = [
        ("results", "Results", parts.results(section)),
        ("curves", "Learning curves", parts.learning_curves(section, data)),
        ("configs", "What differs", parts.differences(section)),
        ("gradients", "Gradients", parts.gradients(recorded, data)),
        ("sharpness", "Sharpness", parts.sharpness(section, flatness, data)),
    ]
    shown = [each for each in contents if each[2]]
    level = 2 if alone else 3
    body = "\n".join(
        f'<section class="part" id="{name}-{number}" aria-labelledby="{name}-{number}-title" '
        f'data-part>\n<h{level} class="part-title" id="{name}-{number}-title">{heading}</h{level}>'
        f"\n{content}\n</section>"
        for name, heading, content in shown
    )
    if alone:
        return body, [(f"{name}-{number}", heading) for name, heading, _ in shown], warnings
    title = safe(section.title)
    body = f'<section class="data part" id="data-{number}">\n<h2>{title}</h2>\n{body}\n</section>'
    return body, [(f"data-{number}", section.title)], warnings
