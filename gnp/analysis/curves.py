"""curves.png: how a run went, over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnp.analysis.figure_files import picture

# isort: split

from matplotlib.axes import Axes

# Colors that stay apart without color vision (Okabe and Ito), and different dashes.
_TRAIN: dict[str, Any] = {"color": "#0072B2", "linestyle": "-"}
_EVALUATION: dict[str, Any] = {"color": "#D55E00", "linestyle": "--"}
_AVERAGED: dict[str, Any] = {"color": "#009E73", "linestyle": "-."}


# "ema" is the average of the parameters.
_SPLITS = ("train", "test", "validation", "test_ema", "validation_ema")


def plot_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss, error, learning rate, gradient norm, alpha and r over steps.

    Args:
        rows: the objects of metrics.jsonl.
        path: the PNG to write; replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    error = _error_name(rows)
    panels: list[tuple[str, Sequence[str]]] = [
        ("loss", [f"{split}_loss" for split in _SPLITS]),
        (error.replace("_", " "), [f"{split}_{error}" for split in _SPLITS]),
        ("learning rate", ("learning_rate",)),
        ("gradient norm", ("gradient_norm",)),
        ("alpha", ("alpha",)),
        ("r", ("r",)),
    ]
    with picture(path, mathtext=True, figsize=(12, 6.5), layout="constrained") as figure:
        axes = figure.subplots(2, 3, sharex=True)
        for axis, (title, names) in zip(axes.flat, panels, strict=True):
            _draw(axis, rows, title, names)
        for axis in axes[-1]:
            axis.set_xlabel("step")


def _draw(axis: Axes, rows: Sequence[Mapping[str, Any]], title: str, names: Sequence[str]) -> None:
    several = sum(any(name in row for row in rows) for name in names) > 1
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            label = _split(name) if several else None
            axis.plot(
                *zip(*points, strict=True), label=label, marker=".", markersize=4, **_style(name)
            )
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if title in ("loss", "gradient norm") and _spans_decades(rows, names):
        axis.set_yscale("log")
    elif title not in ("loss", "gradient norm"):
        axis.set_ylim(bottom=0)
    if several:
        axis.legend(frameon=False)


def _split(name: str) -> str:
    words = name.split("_")
    return " ".join(words[:2]) if words[1] == "ema" else words[0]


def _style(name: str) -> dict[str, Any]:
    if name.startswith(("test_ema", "validation_ema")):
        return _AVERAGED
    return _EVALUATION if name.startswith(("test", "validation")) else _TRAIN


def _error_name(rows: Sequence[Mapping[str, Any]]) -> str:
    regression = any("train_mean_absolute_error" in row for row in rows)
    return "mean_absolute_error" if regression else "error_rate"


def _spans_decades(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    values = [row[name] for row in rows for name in names if name in row]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 10
