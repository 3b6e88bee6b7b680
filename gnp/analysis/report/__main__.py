"""python -m gnp.analysis.report RUN... --out=DIR: runs side by side.

RUN is a run directory, or a folder that holds some at any depth. Runs that differ in their seeds
alone are one group. DIR receives report.html (one file that needs no network), report.md and
report.csv.
"""

import argparse
import sys
from collections.abc import Sequence

from gnp.analysis.command_line import Parser, local_path, make_folder, run
from gnp.analysis.report.groups import Group, group_runs
from gnp.analysis.report.page import page
from gnp.analysis.report.runs import Run, final_value, points, read_runs
from gnp.analysis.report.tables import comma_separated, counted, find_baseline, markdown, sections
from gnp.terminal import one_line, prepare_streams, printable, warn
from gnp.training.files import write_atomic


def main(arguments: Sequence[str]) -> int:
    """Run a command line, without the program's name, and return the exit code."""
    return run(lambda: _report(_parse(arguments)))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m gnp.analysis.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN")
    parser.add_argument(
        "--out", type=local_path, required=True, metavar="DIR", help="made if needed"
    )
    parser.add_argument(
        "--baseline",
        metavar="RUN_OR_GROUP",
        help="whose cost is 1; a run directory, or a group by its name in the report. "
        "Default: the only plain group, if there is one",
    )
    return parser.parse_args(arguments)


def _report(options: argparse.Namespace) -> None:
    out, baseline = options.out, options.baseline
    runs, skipped = read_runs(options.runs)
    for reason in skipped[:10]:
        warn(one_line(f"skipped: {reason}"))
    if len(skipped) > 10:
        warn(f"and {len(skipped) - 10} more were skipped")
    groups = group_runs(runs)
    found = sections(groups, None if baseline is None else find_baseline(baseline, groups))
    notes = _notes(runs, groups, skipped)
    html, warnings = page(found, notes)
    for warning in warnings:
        warn(one_line(warning))
    make_folder(out)
    # A file's name may hold bytes that are no text, and a terminal's commands.
    write_atomic(out / "report.md", printable(markdown(found, [*notes, *warnings])))
    write_atomic(out / "report.csv", printable(comma_separated(found)))
    write_atomic(out / "report.html", html.encode(errors="replace").decode())
    left_out = f", {len(skipped)} skipped" if skipped else ""
    print(f"{counted(len(runs), 'run')} in {counted(len(groups), 'group')}{left_out}")
    print(f"in {one_line(out)}: report.html, report.md, report.csv")


def _notes(runs: Sequence[Run], groups: Sequence[Group], skipped: Sequence[str]) -> list[str]:
    """Return what a reader must know before the numbers."""
    notes = []
    unfinished = [run for run in runs if not run.is_finished]
    if unfinished:
        notes.append(
            f"{counted(len(unfinished), 'run')} of {len(runs)} not at the end of the training: the "
            "numbers are of the others in its group, where there are others."
        )
    lost = [run for run in runs if points(run, run.metric) and final_value(run, run.metric) is None]
    if lost:
        notes.append(
            f"{counted(len(lost), 'run')} left out of the mean and the median: the last "
            f"{lost[0].metric} is not finite, such as in {lost[0].path}."
        )
    for group in groups:
        seeds = {(run.config["init_seeds"], run.config["seeds"]) for run in group.runs}
        if len(seeds) < len(group.runs):
            notes.append(
                f"{group.name}: {len(group.runs)} runs have {counted(len(seeds), 'seed')} between "
                "them; the spread is smaller than that of as many seeds."
            )
    if skipped:
        notes.append(
            f"{counted(len(skipped), 'directory', 'directories')} skipped: "
            + "; ".join(skipped[:3])
            + ("; ..." if len(skipped) > 3 else ".")
        )
    return notes


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
