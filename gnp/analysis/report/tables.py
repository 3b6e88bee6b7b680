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
from gnp.analysis.report import runs as of_run
from gnp.analysis.report.groups import Group, data_of, differing_keys, show
from gnp.analysis.report.runs import Run
from gnp.analysis.report.sharpness import read_sharpness, value_of
from gnp.training.files import FileFormatError

# Name in sharpness.json -> heading. The eigenvalues are a list, largest first.
SHARPNESS = {
    "hessian_eigenvalues": "λmax",
    "hessian_trace": "trace",
    "sam_sharpness": "SAM sharpness",
}
DASH = "–"


class Spread(NamedTuple):
    """Mean and standard deviation of some values; no deviation of a single one."""

    mean: float
    deviation: float | None


class Summary(NamedTuple):
    """A group's numbers; None where nothing was measured.

    Attributes:
        group: whose they are.
        median, final, best: of the error after the last epoch, and of its smallest one.
        averaged: of the parameters' average after the last epoch.
        errors: of each run after its last epoch.
        total_seconds, epoch_seconds, step_seconds: medians over its runs.
        epoch_ratio, step_ratio: over the baseline's.
        sharpness: name -> of the runs' last checkpoints.
    """

    group: Group
    median: float | None
    final: Spread | None
    best: Spread | None
    averaged: Spread | None
    errors: tuple[float, ...]
    total_seconds: float | None
    epoch_seconds: float | None
    step_seconds: float | None
    epoch_ratio: float | None
    step_ratio: float | None
    sharpness: dict[str, Spread]


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
    baseline: Group | None

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


def sections(groups: Sequence[Group], baseline: Group | None = None) -> list[Section]:
    """Return the groups by data set and error, each with its numbers.

    Args:
        groups: with different names.
        baseline: of the section that has it. Elsewhere, and where it is None, the only plain
            group there is.
    """
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        data = (show(group.config.get(f"dataset.{key}")) for key in ("data_dir", "target"))
        key = group.runs[0].metric, data_of(group.config), *data
        found.setdefault(key, []).append(group)
    made = []
    for title, (key, members) in zip(_titles(list(found)), found.items(), strict=True):
        base = baseline if baseline in members else _only_plain(members)
        summaries = [summarize(group, base) for group in members]
        summaries.sort(key=lambda s: (s.final is None, s.final.mean if s.final else 0.0))
        made.append(Section(title, key[0], tuple(summaries), base))
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
    """Find the group that has a name, or a run directory.

    Raises:
        UsageError: there is none.
    """
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


def _only_plain(groups: Sequence[Group]) -> Group | None:
    plain = [group for group in groups if group.is_plain]
    return plain[0] if len(plain) == 1 else None


def summarize(group: Group, baseline: Group | None) -> Summary:
    """Return the numbers of a group, of the runs that are at their end where there are such."""
    final: list[float] = []
    best: list[float] = []
    averaged: list[float] = []
    for run in group.measured:
        errors = [value for _, value in of_run.points(run, run.metric)]
        last = of_run.final_value(run, run.metric)
        final += [] if last is None else [last]
        best += [min(errors)] if errors else []
        smoothed = of_run.final_value(run, run.averaged_metric)
        averaged += [] if smoothed is None else [smoothed]
    epoch, step = (
        _median_of(group.measured, value) for value in (of_run.epoch_seconds, of_run.step_seconds)
    )
    base = baseline.measured if baseline else ()
    return Summary(
        group,
        statistics.median(final) if final else None,
        spread(final),
        spread(best),
        spread(averaged),
        tuple(final),
        _median_of(group.measured, of_run.total_seconds) or None,
        epoch,
        step,
        _ratio(epoch, _median_of(base, of_run.epoch_seconds)),
        _ratio(step, _median_of(base, of_run.step_seconds)),
        _sharpness(group.measured),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and standard deviation; None of nothing.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, deviation=1.4142135623730951)
    """
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _median_of(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    values = [found for run in runs if (found := value(run)) is not None]
    return statistics.median(values) if values else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _sharpness(runs: Sequence[Run]) -> dict[str, Spread]:
    values: dict[str, list[float]] = {}
    for run in runs:
        try:
            checkpoints = read_sharpness(run)
        except (FileFormatError, OSError):
            continue  # the page says so
        for name in SHARPNESS:
            value = value_of(checkpoints[-1], name) if checkpoints else None
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: found for name, each in values.items() if (found := spread(each))}


# Words.


def mean_and_deviation(found: Spread | None, number: Callable[[float], str]) -> str:
    """Return `1.25 ± 0.10`, in the form that `number` gives.

    Example:
        >>> mean_and_deviation(Spread(0.0125, 0.001), "{:.2%}".format)
        '1.25 ± 0.10%'
    """
    if found is None:
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
    return three_digits([error for summary in section.summaries for error in summary.errors])


def duration(seconds: float | None) -> str:
    """Return seconds in the unit that suits them.

    Example:
        >>> duration(0.0123), duration(75.2), duration(4000), duration(200000)
        ('0.012 s', '75 s', '67 min', '55.6 h')
    """
    if seconds is None:
        return DASH
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def state_in_words(group: Group) -> str:
    """Say how far the runs are that did not end; nothing where all did.

    Example:
        >>> state_in_words(Group("", {}, ()))
        ''
    """
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
    """A column of the table of results: heading, text of a cell, and what it is sorted by."""

    heading: str
    text: Callable[[Summary], str]
    value: Callable[[Summary], float | None]


def columns(section: Section) -> list[Column]:
    """Return the columns after the group's name; empty ones are left out."""
    number = error_format(section)
    found = [
        Column("runs", lambda s: str(len(s.group.runs)), lambda s: len(s.group.runs)),
        _spread_column(section.error, lambda s: s.final, number),
        Column(
            "median", lambda s: DASH if s.median is None else number(s.median), lambda s: s.median
        ),
    ]
    if any(summary.best != summary.final for summary in section.summaries):
        found.append(_spread_column("best epoch", lambda s: s.best, number))
    if any(summary.averaged is not None for summary in section.summaries):
        found.append(_spread_column("of the average", lambda s: s.averaged, number))
    found += [
        Column("time", lambda s: duration(s.total_seconds), lambda s: s.total_seconds),
        Column("an epoch", lambda s: duration(s.epoch_seconds), lambda s: s.epoch_seconds),
    ]
    if any(summary.epoch_ratio is not None for summary in section.summaries):
        found.append(Column("cost", lambda s: _times(s.epoch_ratio), lambda s: s.epoch_ratio))
    if any(_ratios_differ(summary) for summary in section.summaries):
        found.append(
            Column("cost of a step", lambda s: _times(s.step_ratio), lambda s: s.step_ratio)
        )
    for name, heading in SHARPNESS.items():
        if any(name in summary.sharpness for summary in section.summaries):
            found.append(_sharpness_column(section, heading, name))
    return found


def _sharpness_column(section: Section, heading: str, name: str) -> Column:
    means = [s.sharpness[name].mean for s in section.summaries if name in s.sharpness]
    return _spread_column(heading, lambda s: s.sharpness.get(name), three_digits(means))


def _spread_column(
    heading: str, value: Callable[[Summary], Spread | None], number: Callable[[float], str]
) -> Column:
    def mean(summary: Summary) -> float | None:
        found = value(summary)
        return found.mean if found else None

    return Column(heading, lambda s: mean_and_deviation(value(s), number), mean)


def _ratios_differ(summary: Summary) -> bool:
    """Tell whether they differ, as they do where epochs have different numbers of steps."""
    if summary.epoch_ratio is None or summary.step_ratio is None:
        return False
    return abs(summary.epoch_ratio - summary.step_ratio) > 0.01 * summary.epoch_ratio


def _times(ratio: float | None) -> str:
    return DASH if ratio is None else f"{ratio:.2f}"


def legend(section: Section) -> str:
    """Explain the columns."""
    cost = (
        f" Cost: of an epoch, over that of {section.baseline.name}."
        if section.baseline
        else " No cost ratio: name a baseline with --baseline=NAME."
    )
    best = (
        " Best epoch: the smallest of a run, which the same examples chose."
        if any(column.heading == "best epoch" for column in columns(section))
        else ""
    )
    average = (
        " Of the average: of the parameters' exponential moving average, after the last epoch."
        if any(summary.averaged is not None for summary in section.summaries)
        else ""
    )
    return (
        f"{section.error.capitalize()}: after the last epoch, mean ± standard deviation over the "
        f"runs.{best}{average} Time: of training alone, median over the runs; an epoch: without "
        f"the first, which compiles.{cost}"
    )


def differences(section: Section) -> tuple[list[str], list[list[str]]]:
    """Return the keys that are not the same in all groups, and each group's values of them."""
    configs = [group.config for group in section.groups]
    keys = differing_keys(configs)
    return keys, [[show(config.get(key)) for key in keys] for config in configs]


def are_usual(rows: Sequence[Sequence[str]]) -> list[list[bool]]:
    """Tell of each value whether it is the commonest one of its column.

    Example:
        >>> are_usual([["a"], ["b"], ["a"]])
        [[True], [False], [True]]
    """
    usual = [statistics.mode(column) for column in zip(*rows, strict=True)]
    return [[value == most for value, most in zip(row, usual, strict=True)] for row in rows]


def markdown(found: Sequence[Section], notes: Sequence[str]) -> str:
    """Return the report as a Markdown page."""
    lines = ["# Report", ""]
    lines += [f"- {_cell(note)}" for note in notes] + [""] * bool(notes)
    for section in found:
        cells = columns(section)
        lines += [f"## {_cell(section.title)}", ""]
        lines += _table(
            ["group", *(column.heading for column in cells)],
            [[_name(s.group), *(column.text(s) for column in cells)] for s in section.summaries],
        )
        lines += ["", _cell(legend(section)), ""]
        keys, values = differences(section)
        if keys:
            lines += ["What differs:", ""]
            rows = [[group.name, *row] for group, row in zip(section.groups, values, strict=True)]
            lines += [*_table(["group", *keys], rows, numbers=False), ""]
    return "\n".join(lines)


def _name(group: Group) -> str:
    state = state_in_words(group)
    return f"{group.name} ({state})" if state else group.name


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True
) -> list[str]:
    rule = ["---", *(["---:" if numbers else "---"] * (len(headings) - 1))]
    return [f"| {' | '.join(map(_cell, row))} |" for row in (headings, rule, *rows)]


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
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for section in found:
        for s in section.summaries:
            nothing = (None, None)
            writer.writerow(
                [
                    _inert(s.group.config["dataset.dataset_name"]), _inert(s.group.name),
                    section.metric,
                    len(s.group.runs), len(s.group.finished), s.median, *(s.final or nothing),
                    *(s.best or nothing), *(s.averaged or nothing),
                    s.total_seconds, s.epoch_seconds, s.step_seconds, s.epoch_ratio,
                    s.step_ratio, _inert(section.baseline.name if section.baseline else ""),
                    *(value for name in SHARPNESS for value in s.sharpness.get(name, nothing)),
                    _inert(" ".join(str(run.path) for run in s.group.runs)),
                ]
            )  # fmt: skip
    return file.getvalue()


def _inert(text: str) -> str:
    """Return text that no spreadsheet takes for a formula.

    Example:
        >>> _inert("=1+1"), _inert("cifar10")
        ("'=1+1", 'cifar10')
    """
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text
