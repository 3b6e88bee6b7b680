"""Tables that a person reads on the screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gnp.analysis.curves import plot_curves
from gnp.training.files import read_rows


def show_results(working_dir: Path, has_evolution: bool) -> None:
    """Draw the pictures of a run and print its table."""
    rows = read_rows(working_dir / "metrics.jsonl")
    if not rows:
        return
    plot_curves(rows, working_dir / "curves.png")
    print_results(rows, working_dir)
    if has_evolution:
        from gnp.analysis.evolution import show_evolution

        show_evolution(working_dir)


def print_results(rows: Sequence[Mapping[str, Any]], working_dir: Path) -> None:
    """Print the run's table: first, best and last epoch, total time, and where everything is.

    Args:
        rows: the objects of metrics.jsonl, at least one.
        working_dir: the run directory.
    """
    # Single parameters' costs, with a / in their names, are in metrics.jsonl.
    measured = [
        name
        for name in rows[-1]
        if name.split("_")[0] in ("train", "test", "validation") and "/" not in name
    ]
    table = Table(title=f"{working_dir}")
    for title in ("", "first epoch", "best", "last epoch"):
        table.add_column(title, justify="left" if not title else "right")
    for name in measured:
        values = [row[name] for row in rows if name in row]
        table.add_row(
            _words(name),
            *(_number(name, value) for value in (values[0], min(values), values[-1])),
        )
    _console().print(table)
    seconds = sum(row["epoch_seconds"] for row in rows)
    files = ", ".join(
        name
        for name in ("curves.png", "metrics.jsonl", "tensorboard", "checkpoints", "profile")
        if (working_dir / name).exists()
    )
    epochs = rows[-1]["epoch"]
    print(
        f"{epochs} epoch{'s' if epochs > 1 else ''}, {rows[-1]['step']} steps, "
        f"{seconds:.1f} s of training"
    )
    print(f"in {working_dir}: {files}", flush=True)


def print_metrics(values: Mapping[str, Any], title: str) -> None:
    """Print names and values, a row each."""
    table = Table(title=title, show_header=False)
    for name, value in values.items():
        table.add_row(_words(name), _number(name, value))
    _console().print(table)


def print_config(config: Mapping[str, Any]) -> None:
    """Print the resolved config, a key a row."""
    table = Table(title="config", show_header=False)
    for name in sorted(config):
        table.add_row(name, str(config[name]))
    _console().print(table)


def print_layers(layers: Sequence[Any], name: str) -> None:
    """Print the layers with the shapes of what they give out, in the order of the forward pass.

    Args:
        layers: each with path, layer, shape and parameters.
        name: the model's name.
    """
    table = Table(title=f"{name}: layers")
    for title in ("path", "layer", "output shape", "parameters"):
        table.add_column(title, justify="right" if title == "parameters" else "left")
    for layer in layers:
        table.add_row(
            layer.path or "(the model)", layer.layer, _shape(layer.shape), f"{layer.parameters:,}"
        )
    _console().print(table)


def print_parameters(parameters: Sequence[Mapping[str, Any]]) -> None:
    """Print the parameters, and as the last line how many there are.

    Args:
        parameters: each with path, shape, count, group and decayed.
    """
    table = Table(title="parameters")
    for title in ("path", "shape", "count", "group", "decayed"):
        table.add_column(title, justify="right" if title == "count" else "left")
    for each in parameters:
        table.add_row(
            each["path"],
            _shape(each["shape"]),
            f"{each['count']:,}",
            each["group"],
            "yes" if each["decayed"] else "no",
        )
    _console().print(table)
    print(f"parameters: {sum(each['count'] for each in parameters)}")


def _console() -> Console:
    """Return a console as wide as the terminal, or of 160 columns; `[...]` is no markup."""
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=160)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(name: str, value: Any) -> str:
    if value is None:
        return "not finite"
    if name.endswith("error_rate"):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
