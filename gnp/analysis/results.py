"""The results of a run on the screen, and the tables there."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gnp.terminal import one_line, warn
from gnp.training.early_stopping import best_row
from gnp.training.files import FileFormatError, read_rows
from gnp.training.metrics import number


def print_table(
    title: str,
    rows: Iterable[Sequence[str]],
    columns: Sequence[str] = (),
    numbers: Sequence[str] = (),
) -> None:
    """Print a table, as wide as the terminal, or of 160 columns where there is none.

    Args:
        title: Above it; like all texts, it may be of data, and have anything in it.
        rows: Of texts.
        columns: Their titles; none: no head.
        numbers: Titles of the columns that are set to the right.
    """
    table = Table(title=one_line(title), show_header=bool(columns))
    for column in columns:
        table.add_column(one_line(column), justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*map(one_line, row))
    # `[...]` and `:cat:` in a name are themselves. Printed by Python, as every other line is, so
    # that a reader who has gone is noticed in one place.
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, width=160)
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="")


def show_results(working_dir: Path, has_evolution: bool, metric: str | None = None) -> None:
    """Draw the pictures of a run, print its table, and say where everything is.

    Args:
        working_dir: The run directory.
        has_evolution: Gradients were recorded.
        metric: The number that makes an epoch the best; None: each number has its own best.
    """
    rows = read_rows(working_dir / "metrics.jsonl")
    if not rows:
        return
    # Late, as matplotlib takes its time, and few runs need the pictures of an evolution.
    from gnp.analysis.curves import plot_curves
    from gnp.analysis.figure_files import drawn

    drawn(plot_curves, rows, working_dir / "curves.png")
    best = best_row(rows, metric)
    title = f"best epoch, {best['epoch']}" if best else "best"
    epochs, shown = ("first epoch", title, "last epoch"), []
    for name in rows[-1]:
        # Single parameters' costs, with a / in their names, are in metrics.jsonl.
        if name.split("_")[0] in ("train", "test", "validation") and "/" not in name:
            values = [row[name] for row in rows if name in row]
            three = (values[0], best.get(name) if best else min(values), values[-1])
            shown.append([name.replace("_", " "), *(number(name, value) for value in three)])
    print_table(str(working_dir), shown, ("", *epochs), numbers=epochs)
    seconds, count = sum(row["epoch_seconds"] for row in rows), len(rows)
    names = ("curves.png", "metrics.jsonl", "tensorboard", "checkpoints", "profile")
    files = ", ".join(name for name in names if (working_dir / name).exists())
    print(
        f"{count} epoch{'s' if count > 1 else ''}, {rows[-1]['step']} steps, "
        f"{seconds:.1f} s of training"
    )
    print(f"in {working_dir}: {files}", flush=True)
    if has_evolution:
        from gnp.analysis.evolution import load_evolution, show_evolution

        try:
            show_evolution(load_evolution(working_dir), working_dir, working_dir)
        except FileFormatError as error:
            warn(f"no evolution of the gradients: {error}")
