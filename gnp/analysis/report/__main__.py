"""python -m gnp.analysis.report RUN... --out=DIR: runs side by side.

RUN is a run directory, or a folder that holds some at any depth. Runs that differ in their seeds
alone are one group. DIR receives report.html (one file that needs no network), report.md and
report.csv.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gnp.analysis.report.groups import Group, group_runs
from gnp.analysis.report.page import page
from gnp.analysis.report.runs import (
    ReportError,
    Run,
    UsageError,
    final_value,
    points,
    read_runs,
)
from gnp.analysis.report.tables import comma_separated, find_baseline, markdown, sections
from gnp.training.files import write_atomic


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help shows the usage")


def main(arguments: Sequence[str]) -> int:
    """Write a report and return the exit code.

    Args:
        arguments: without the program's name.
    """
    try:
        options = _parse(arguments)
        return _report(options.runs, options.out, options.baseline)
    except UsageError as error:
        return _fail(error, 2)
    except (ReportError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail(RuntimeError("interrupted"), 130)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m gnp.analysis.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if needed")
    parser.add_argument(
        "--baseline",
        metavar="RUN_OR_GROUP",
        help="whose cost is 1; a run directory, or a group by its name in the report. "
        "Default: the only plain group, if there is one",
    )
    return parser.parse_args(arguments)


def _report(paths: Sequence[Path], out: Path, baseline: str | None) -> int:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out={out} is a file; a directory is needed")
    runs, skipped = read_runs(paths)
    for _, reason in skipped[:10]:
        print(f"gnp: skipped: {reason}", file=sys.stderr)
    if len(skipped) > 10:
        print(f"gnp: and {len(skipped) - 10} more were skipped", file=sys.stderr)
    groups = group_runs(runs)
    found = sections(groups, find_baseline(baseline, groups) if baseline else None)
    notes = _notes(runs, groups, skipped)
    html, warnings = page(found, notes)
    for warning in warnings:
        print(f"gnp: {warning}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.md", markdown(found, [*notes, *warnings])),
        ("report.csv", comma_separated(found)),
        ("report.html", html),
    ):
        # A file's name may hold bytes that are no text.
        write_atomic(out / name, text.encode(errors="replace").decode())
    left_out = f", {len(skipped)} skipped" if skipped else ""
    print(f"{_count(len(runs), 'run')} in {_count(len(groups), 'group')}{left_out}")
    print(f"in {out}: report.html, report.md, report.csv")
    return 0


def _notes(
    runs: Sequence[Run], groups: Sequence[Group], skipped: Sequence[tuple[Path, str]]
) -> list[str]:
    """Return what a reader must know before the numbers."""
    notes = []
    unfinished = [run for run in runs if not run.is_finished]
    if unfinished:
        notes.append(
            f"{_count(len(unfinished), 'run')} of {len(runs)} not at the end of the training: the "
            "numbers are of the others in its group, where there are others."
        )
    lost = [run for run in runs if points(run, run.metric) and final_value(run, run.metric) is None]
    if lost:
        notes.append(
            f"{_count(len(lost), 'run')} left out of the mean and the median: the last "
            f"{lost[0].metric} is not finite, such as in {lost[0].path}."
        )
    for group in groups:
        seeds = {(run.config["init_seeds"], run.config["seeds"]) for run in group.runs}
        if len(seeds) < len(group.runs):
            notes.append(
                f"{group.name}: {len(group.runs)} runs have {_count(len(seeds), 'seed')} between "
                "them; the spread is smaller than that of as many seeds."
            )
    if skipped:
        notes.append(
            f"{_count(len(skipped), 'directory', 'directories')} skipped: "
            + "; ".join(reason for _, reason in skipped[:3])
            + ("; ..." if len(skipped) > 3 else ".")
        )
    return notes


def _count(number: int, word: str, words: str | None = None) -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"


def _fail(error: BaseException, code: int) -> int:
    message = str(error)
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename} cannot be written or read: {os.strerror(error.errno or 0)}"
    for line in message.splitlines():
        print(f"gnp: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
