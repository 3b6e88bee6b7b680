"""The evolution of a run's gradients: numbers and pictures of a recorded run.

    python -m gnp.analysis.evolution DIR [--out=DIR] [--every=STEPS]

DIR is a run directory, trained with --config.record.gradients=True. Where it holds every step's
gradient (--config.record.steps=True), all is computed from them in float64, else from what was
recorded of each epoch. docs/evolution.md says what the numbers and the pictures are.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gnp.analysis.command_line import Parser, local_path, make_folder, run, whole
from gnp.analysis.evolution_numbers import (
    Evolution,
    Verdict,
    arrays,
    has_steps,
    load_evolution,
    load_from_steps,
    table,
    verdicts,
)
from gnp.analysis.evolution_pictures import (
    plot_animation,
    plot_highest_elements,
    plot_loss,
    plot_loss_and_metrics,
    plot_norms,
)
from gnp.analysis.figure_files import drawn
from gnp.terminal import one_line, prepare_streams
from gnp.training.evolution import write_npz
from gnp.training.files import FileFormatError, read_rows, write_atomic

__all__ = ["Evolution", "Verdict", "load_evolution", "load_from_steps", "verdicts"]


def write_evolution(
    evolution: Evolution, rows: Sequence[Mapping[str, Any]], out: Path
) -> list[str]:
    """Write numbers and pictures into a folder, and return the names of the files.

    A picture that cannot be drawn is a warning.

    Args:
        evolution: of a run.
        rows: the objects of its metrics.jsonl; none: no loss_and_metrics.png; without metrics of
            the whole training set, which earlier versions did not measure: no loss.png.
        out: is there.

    Raises:
        OSError: the numbers cannot be written.
    """
    write_npz(out / "evolution.npz", arrays(evolution))
    write_atomic(out / "evolution.csv", table(evolution))
    pictures: list[tuple[Callable[..., None], Any, str]] = [
        (plot_norms, evolution, "gradient_norms.png"),
        (plot_highest_elements, evolution, "highest_elements.png"),
        (plot_animation, evolution, "animation.gif"),
    ]
    pictures += [(plot_loss_and_metrics, rows, "loss_and_metrics.png")] if rows else []
    has_loss = any("train_set_loss" in row for row in rows)
    pictures += [(plot_loss, rows, "loss.png")] if has_loss else []
    shown = [name for plot, what, name in pictures if drawn(plot, what, out / name)]
    return ["evolution.npz", "evolution.csv", *shown]


def show_evolution(evolution: Evolution, directory: Path, out: Path) -> None:
    """Write the evolution of a run into a folder; print whether what the article reports holds."""
    written = write_evolution(evolution, read_rows(directory / "metrics.jsonl"), out)
    words = {True: "yes", False: "no", None: "?"}
    for each in verdicts(evolution):
        print(f"{words[each.holds]:<3}  {each.claim}: {each.numbers}")
    print(f"in {one_line(out)}: {', '.join(written)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, None being the process' own, and return the exit code."""
    return run(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m gnp.analysis.evolution", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=local_path, help="run directory")
    parser.add_argument("--out", type=local_path, help="folder for the files (default: DIR)")
    every = "steps that count as an epoch (record.steps)"
    parser.add_argument("--every", type=whole(1), metavar="STEPS", help=every)
    options = parser.parse_args(arguments)
    directory = options.directory
    if not directory.is_dir():
        raise FileFormatError(f"{directory} is not a run directory: there is no such folder")
    out = options.out or directory
    make_folder(out)
    if has_steps(directory):
        evolution = load_from_steps(directory, options.every)
    elif options.every is None:
        evolution = load_evolution(directory)
    else:
        raise FileFormatError(
            f"--every={options.every} needs every step's gradient, which {directory} does not "
            "hold: train it with --config.record.steps=True"
        )
    show_evolution(evolution, directory, out)


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main())
