"""Set runs side by side: what each has come to, and one picture of the way there.

    python -m gnp.analysis.compare RUN [RUN ...] --out=FILE.png

RUN is a run directory, or a folder that holds some at any depth. The table and the picture have
the error by which such runs are compared and, of runs with `dataset.label_noise`, the share of the
wrong labels that a run has learned by heart: of the training examples whose label was replaced,
those for which it predicts that label. `python -m gnp.analysis.report` says more, over many seeds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gnp.analysis.command_line import Parser, UsageError, local_path, make_folder, run
from gnp.analysis.figure_files import drawn, picture
from gnp.analysis.names import names_of
from gnp.analysis.report.runs import Run, final_value, points, read_runs, training_seconds
from gnp.analysis.results import print_table
from gnp.terminal import one_line, prepare_streams
from gnp.training.files import FileFormatError
from gnp.training.metrics import number

_MISLABELED = "mislabeled_error_rate"
_BAR = 16  # characters of the longest one, so that the table of the quickstart fits into 80
_MOST_RUNS = 8  # of which each has a color


class Panel(NamedTuple):
    """Hold one number of several runs.

    Attributes:
        title: What it is.
        metric: The name in metrics.jsonl that says how it is written.
        curves: Its (epoch, value) pairs, a list for each run.
        finals: Its value in the end, for each run; None: not finite.
    """

    title: str
    metric: str
    curves: list[list[tuple[int, float]]]
    finals: list[float | None]

    def texts(self) -> list[str]:
        """Return the final values as people read them."""
        return [number(self.metric, value) for value in self.finals]


def main(arguments: Sequence[str]) -> int:
    """Run a command line, without the program's name, and return the exit code."""
    return run(lambda: _compare(_parse(arguments)))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m gnp.analysis.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN")
    parser.add_argument(
        "--out", type=local_path, required=True, metavar="FILE.png", help="the picture"
    )
    return parser.parse_args(arguments)


def _compare(options: argparse.Namespace) -> None:
    runs, skipped = read_runs(options.runs)
    if skipped:
        raise FileFormatError(skipped[0])
    panels, names = panels_of(runs), names_of([run.path for run in runs])
    make_folder(options.out.parent)
    seconds = [training_seconds(run)["total_seconds"] or 0 for run in runs]
    columns = [
        [f"{text:>7} {bar}" for text, bar in zip(each.texts(), bars(each.finals), strict=True)]
        for each in panels
    ]
    epochs = dict.fromkeys(str(run.epochs) for run in runs)
    print_table(
        f"{', '.join(epochs)} epochs",
        zip(names, *columns, (f"{each:.0f} s" for each in seconds), strict=True),
        ("", *(panel.title for panel in panels), "training"),
        numbers=("training",),
    )
    if drawn(plot_panels, panels, names, options.out):
        print(f"the way there: {one_line(options.out)}")


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """Return what runs are compared by: their error, and the wrong labels that they have learned.

    Raises:
        UsageError: the runs are too many, measured in different ways, or not measured yet.
    """
    if len(runs) > _MOST_RUNS:
        raise UsageError(
            f"{len(runs)} runs, and no more than {_MOST_RUNS} have a color; for more there is "
            "python -m gnp.analysis.report"
        )
    metric = runs[0].metric
    for each in runs:
        if each.metric != metric:
            raise UsageError(
                f"{runs[0].path} is measured by its {metric}, {each.path} by its {each.metric}; "
                "name runs of one task and one split"
            )
        if not points(each, metric):
            raise UsageError(f"{each.path} has no {metric} yet; train it first")
    finals = [final_value(run, metric) for run in runs]
    title = metric.replace("_", " ")
    found = [Panel(title, metric, [points(run, metric) for run in runs], finals)]
    if all(points(run, _MISLABELED) for run in runs):
        curves = [[(epoch, 1 - v) for epoch, v in points(run, _MISLABELED)] for run in runs]
        wrong = (final_value(run, _MISLABELED) for run in runs)
        finals = [None if value is None else 1 - value for value in wrong]
        found.append(Panel("wrong labels learned by heart", _MISLABELED, curves, finals))
    return found


def bars(values: Sequence[float | None]) -> list[str]:
    """Return a bar of characters for each value, the longest for the largest.

    Example:
        >>> [len(bar) for bar in bars([0.2, 0.05, 0.0, None])]
        [16, 4, 0, 0]
    """
    largest = max((value or 0 for value in values), default=0) or 1
    block = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    return [block * round(_BAR * (value or 0) / largest) for value in values]


def plot_panels(panels: Sequence[Panel], names: Sequence[str], path: Path) -> None:
    """Draw each number over epochs, a line a run.

    Args:
        panels: The numbers.
        names: Of the runs, for the legend.
        path: The PNG to write; replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    with picture(path, (4.5 * len(panels), 3.4), dpi=100) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for name, curve, final in zip(names, panel.curves, panel.texts(), strict=True):
                axis.plot(*zip(*curve, strict=True), label=f"{name}: {final}")
            axis.set_title(panel.title)
            axis.set_xlabel("epoch")
            axis.set_ylim(bottom=0)
            if panel.metric.endswith("_rate"):
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axis.legend()


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
