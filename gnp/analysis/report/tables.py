"""The numbers of each group, and the tables that show them in Markdown and CSV."""

import csv
import html
import io
import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import config as configs
from gnp.analysis.command_line import UsageError
from gnp.analysis.report.groups import Group, data_of, differing_keys, show
from gnp.analysis.report.runs import Run, averaged, final_value, points, training_seconds
from gnp.analysis.report.sharpness import value_of

# Name in sharpness.json -> heading. The eigenvalues are a list, largest first.
SHARPNESS = {
    "hessian_eigenvalues": "λmax",
    "hessian_trace": "trace",
    "sam_sharpness": "SAM sharpness",
}
DASH = "–"


class Spread(NamedTuple):
    """Some values, their mean, standard deviation (None of one alone) and median; None of none."""

    values: tuple[float, ...]
    mean: float | None = None
    deviation: float | None = None
    median: float | None = None


class Summary(NamedTuple):
    """A group's numbers, of the runs that are at their end where there are such.

    Attributes:
        group: whose they are.
        spreads: over the runs, of each that `measure` returns.
    """

    group: Group
    spreads: dict[str, Spread]


class Section(NamedTuple):
    """Groups whose errors may be compared: of one data set, measured alike.

    Attributes:
        title: the data set.
        metric: name of the error in metrics.jsonl.
        summaries: the smallest error first.
        baseline: whose cost is 1; None: there is no ratio.
    """

    title: str
    metric: str
    summaries: tuple[Summary, ...]
    baseline: Summary | None

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order of the summaries."""
        return tuple(summary.group for summary in self.summaries)

    @property
    def is_rate(self) -> bool:
        """True where the error is a share, shown in percent."""
        return self.metric.endswith("error_rate")

    @property
    def error(self) -> str:
        """The error in words, such as `test error`."""
        return self.metric.replace("_rate", "").replace("_", " ")

    def cost(self, summary: Summary, unit: str) -> float | None:
        """Return a group's seconds of a "step" or an "epoch" over the baseline's."""
        name = f"{unit}_seconds"
        seconds = summary.spreads[name].median
        base = self.baseline.spreads[name].median if self.baseline else None
        return seconds / base if seconds is not None and base else None


def sections(groups: Sequence[Group], baseline: Group | None = None) -> list[Section]:
    """Return the groups by data set and error, each with its numbers.

    Args:
        groups: with different names.
        baseline: of the section that has it. Elsewhere, and where it is None, the only plain
            group there is.
    """
    found: dict[tuple[str, ...], list[Summary]] = {}
    for group in groups:
        data = (show(group.config.get(f"dataset.{key}")) for key in ("data_dir", "target"))
        key = group.runs[0].metric, data_of(group.config), *data
        measured = [measure(run) for run in group.measured]
        spreads = {name: spread([each[name] for each in measured]) for name in measured[0]}
        found.setdefault(key, []).append(Summary(group, spreads))
    made = []
    for title, (key, members) in zip(_titles(list(found)), found.items(), strict=True):
        named = [summary for summary in members if summary.group is baseline]
        plain = named or [summary for summary in members if summary.group.is_plain]
        members.sort(key=lambda s: (not s.spreads["final"].values, s.spreads["final"].mean or 0.0))
        made.append(Section(title, key[0], tuple(members), plain[0] if len(plain) == 1 else None))
    return made


def _titles(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """Title sections (metric, data set, its path, its target) with no more than differs."""
    forms = [
        [title for _, title, _, _ in keys],
        [f"{title}, {metric.replace('_', ' ')}" for metric, title, _, _ in keys],
        [f"{title}, {metric.replace('_', ' ')}, {path}, {target}"
         for metric, title, path, target in keys],
    ]  # fmt: skip
    return [next(form[i] for form in forms if form.count(form[i]) == 1) for i in range(len(keys))]


def find_baseline(wanted: str, groups: Sequence[Group]) -> Group:
    """Find the group that has a name, or a run directory; UsageError where there is none."""
    try:
        path = configs.local_path(wanted).resolve()
    except ValueError:  # it may be a group's name all the same
        path = None
    for group in groups:
        if group.name == wanted or any(run.path.resolve() == path for run in group.runs):
            return group
    allowed = ", ".join(repr(group.name) for group in groups[:20])
    more = f" and {len(groups) - 20} more" if len(groups) > 20 else ""
    raise UsageError(
        f"--baseline={wanted} is neither one of the runs nor a group; the groups: {allowed}{more}"
    )


def measure(run: Run) -> dict[str, float | None]:
    """Return what is compared of a run; None is what was not measured.

    Returns:
        "final" and "ema": the error of the parameters and of their average, as `final_value` has
        it; "best": the smallest error; "total_seconds", "epoch_seconds", "step_seconds"; of the
        last checkpoint that was measured, what SHARPNESS names.
    """
    last = run.checkpoints[-1] if run.checkpoints else {}
    return {
        "final": final_value(run, run.metric),
        "best": min((error for _, error in points(run, run.metric)), default=None),
        "ema": final_value(run, averaged(run.metric)),
        **training_seconds(run),
        **{name: value_of(last, name) for name in SHARPNESS},
    }


def spread(values: Sequence[float | None]) -> Spread:
    """Return the values that are not None, with mean, standard deviation and median."""
    found = tuple(value for value in values if value is not None)
    if not found:
        return Spread(found)
    deviation = statistics.stdev(found) if len(found) > 1 else None
    return Spread(found, statistics.fmean(found), deviation, statistics.median(found))


# Words.


def counted(number: int, word: str, words: str = "") -> str:
    """Return a number and its word: `1 run`, `2 runs`."""
    return f"{number} {word if number == 1 else words or word + 's'}"


def mean_and_deviation(found: Spread, number: Callable[[float], str]) -> str:
    """Return `1.25 ± 0.10`, in the form that `number` gives; a percent sign is at the end only."""
    if found.mean is None:
        return DASH
    text = number(found.mean)
    if found.deviation is None:
        return text
    return f"{text.removesuffix('%')} ± {number(found.deviation)}"


def three_digits(values: Sequence[float]) -> Callable[[float], str]:
    """Return a form with three digits of the largest value, and as many decimals of others.

    Example:
        >>> number = three_digits([4.839, 0.748])
        >>> number(4.839), number(0.748)
        ('4.84', '0.75')
    """
    largest = max(map(abs, values), default=0.0)
    if not 1e-4 <= largest < 1e7:
        return "{:.3g}".format
    return f"{{:,.{max(0, 2 - math.floor(math.log10(largest)))}f}}".format


def error_format(section: Section) -> Callable[[float], str]:
    """Return the form in which an error of this section is written."""
    if section.is_rate:
        return "{:.2%}".format
    return three_digits([error for s in section.summaries for error in s.spreads["final"].values])


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them.

    Example:
        >>> duration(0.0123), duration(75.2), duration(4000), duration(200000)
        ('0.012 s', '75 s', '67 min', '55.6 h')
    """
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def state_in_words(group: Group) -> str:
    """Say how far the runs are that did not end; nothing where all did."""
    unfinished = [run for run in group.runs if not run.is_finished]
    if len(group.runs) == len(unfinished) == 1:
        return progress_in_words(unfinished[0])
    return f"{len(unfinished)} of {len(group.runs)} unfinished" if unfinished else ""


def progress_in_words(run: Run) -> str:
    """Say how far a run is."""
    if run.is_finished:
        return "finished"
    return f"at epoch {run.epochs} of {run.config['total_epochs']}"


class Column(NamedTuple):
    """A column of a table: heading, a text a row, and what the rows are sorted by."""

    heading: str
    texts: list[str]
    values: Sequence[float | str | None]


def column(heading: str, values: Sequence[float | None], form: Callable[[float], str]) -> Column:
    """Return a column of numbers, of which those that are missing are dashes."""
    texts = [DASH if value is None else form(value) for value in values]
    return Column(heading, texts, list(values))


def columns(section: Section) -> list[Column]:
    """Return the columns after the group's name; optional ones without a number are left out."""
    groups, number = section.summaries, error_format(section)

    def means(heading: str, name: str, form: Callable[[float], str]) -> Column:
        texts = [mean_and_deviation(s.spreads[name], form) for s in groups]
        return Column(heading, texts, [s.spreads[name].mean for s in groups])

    def medians(heading: str, name: str, form: Callable[[float], str]) -> Column:
        return column(heading, [s.spreads[name].median for s in groups], form)

    def costs(unit: str) -> list[float | None]:
        return [section.cost(s, unit) for s in groups]

    found = [
        column("runs", [len(s.group.runs) for s in groups], str),
        means(section.error, "final", number),
        medians("median", "final", number),
    ]
    if any(s.spreads["best"] != s.spreads["final"] for s in groups):
        found.append(means("best epoch", "best", number))
    if any(s.spreads["ema"].values for s in groups):
        found.append(means("of the average", "ema", number))
    found.append(medians("time", "total_seconds", duration))
    found.append(medians("an epoch", "epoch_seconds", duration))
    epoch, step = costs("epoch"), costs("step")
    if any(epoch):
        found.append(column("cost", epoch, "{:.2f}".format))
    # They differ where epochs have different numbers of steps.
    if any(a and b and abs(a - b) > 0.01 * a for a, b in zip(epoch, step, strict=True)):
        found.append(column("cost of a step", step, "{:.2f}".format))
    for name, heading in SHARPNESS.items():
        if known := [mean for s in groups if (mean := s.spreads[name].mean) is not None]:
            found.append(means(heading, name, three_digits(known)))
    return found


def legend(section: Section) -> str:
    """Explain the columns."""
    headings = [column.heading for column in columns(section)]
    chosen = {group.config.get("early_stopping.metric") for group in section.groups}
    counted = "the last epoch"
    if chosen != {None}:
        counted = f"the epoch of the smallest {' or '.join(sorted(filter(None, chosen)))}"
        counted += ", the last where none is chosen," if None in chosen else ""
    words = [
        f"{section.error.capitalize()}: after {counted}, mean ± standard deviation over the runs."
    ]
    if "best epoch" in headings:
        words.append("Best epoch: the smallest of a run, which the same examples chose.")
    if "of the average" in headings:
        words.append(
            "Of the average: of the parameters' exponential moving average, after the last epoch."
        )
    words.append(
        "Time: of training alone, median over the runs; an epoch: without the first, which "
        "compiles."
    )
    if section.baseline:
        words.append(f"Cost: of an epoch, over that of {section.baseline.group.name}.")
    else:
        words.append("No cost ratio: name a baseline with --baseline=NAME.")
    return " ".join(words)


def differences(section: Section) -> list[Column]:
    """Return the config keys that are not the same in all groups, with each group's value."""
    found = [group.config for group in section.groups]
    texts = {key: [show(config.get(key)) for config in found] for key in differing_keys(found)}
    return [Column(key, each, each) for key, each in texts.items()]


def markdown(found: Sequence[Section], notes: Sequence[str]) -> str:
    """Return the report as a Markdown page."""
    lines = ["# Report", ""]
    lines += [f"- {_cell(note)}" for note in notes] + [""] * bool(notes)
    for section in found:
        states = [(group.name, state_in_words(group)) for group in section.groups]
        names = [f"{name} ({state})" if state else name for name, state in states]
        lines += [f"## {_cell(section.title)}", "", *_table(names, columns(section), "---:")]
        lines += ["", _cell(legend(section)), ""]
        if different := differences(section):
            names = [group.name for group in section.groups]
            lines += ["What differs:", "", *_table(names, different, "---"), ""]
    return "\n".join(lines)


def _table(names: Sequence[str], cells: Sequence[Column], rule: str) -> list[str]:
    first = ["group", "---", *names]
    rows = zip(first, *([each.heading, rule, *each.texts] for each in cells), strict=True)
    return [f"| {' | '.join(map(_cell, row))} |" for row in rows]


def _cell(text: str) -> str:
    """Return text as it is, where Markdown allows HTML and bars end a cell."""
    text = html.escape(text, quote=False).replace("\\", "\\\\")
    return text.replace("|", "\\|").replace("\n", " ")


def comma_separated(found: Sequence[Section]) -> str:
    """Return the report as CSV: a line a group, numbers unrounded, shares as shares."""
    file = io.StringIO()
    names = [
        "dataset", "group", "metric", "runs", "finished", "final_median", "final_mean",
        "final_deviation", "best_mean", "best_deviation", "ema_mean", "ema_deviation",
        "total_seconds", "epoch_seconds", "step_seconds", "epoch_cost_ratio",
        "step_cost_ratio", "baseline",
        *(f"{name}_{what}" for name in SHARPNESS for what in ("mean", "deviation")),
        "directories",
    ]  # fmt: skip
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for section in found:
        for s in section.summaries:
            row: dict[str, object] = {}
            for name, each in s.spreads.items():
                row[name] = each.median
                row |= {f"{name}_{what}": value for what, value in each._asdict().items()}
            row |= {f"{unit}_cost_ratio": section.cost(s, unit) for unit in ("epoch", "step")}
            writer.writerow(
                row | {
                    "dataset": _inert(s.group.config["dataset.dataset_name"]),
                    "group": _inert(s.group.name), "metric": section.metric,
                    "runs": len(s.group.runs), "finished": len(s.group.finished),
                    "baseline": _inert(section.baseline.group.name if section.baseline else ""),
                    "directories": _inert(" ".join(str(run.path) for run in s.group.runs)),
                }
            )  # fmt: skip
    return file.getvalue()


def _inert(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text
