"""curves.png: how a run went, over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnp.analysis.figure_files import BLUE, GREEN, ORANGE, picture
from gnp.training.tasks import metric

_TRAIN: dict[str, Any] = {"color": BLUE, "linestyle": "-"}
_EVALUATION: dict[str, Any] = {"color": ORANGE, "linestyle": "--"}
_AVERAGED: dict[str, Any] = {"color": GREEN, "linestyle": "-."}
# "ema" is the average of the parameters.
_STYLES = {
    "train": _TRAIN,
    "test": _EVALUATION,
    "validation": _EVALUATION,
    "test ema": _AVERAGED,
    "validation ema": _AVERAGED,
}


def plot_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss, metrics, learning rate, gradient norm, alpha and r over steps.

    Args:
        rows: the objects of metrics.jsonl.
        path: the PNG to write; replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    found = dict.fromkeys(metric(name) for row in rows for name in row)
    measured = ("loss", *filter(None, found))
    panels = (*measured, "learning_rate", "gradient_norm", "alpha", "r")
    columns = -(-len(panels) // 2)
    with picture(path, (4 * columns, 6.5), mathtext=True) as figure:
        axes = figure.subplots(2, columns, sharex=True)
        if len(panels) % 2:
            axes[-1, -1].set_axis_off()
            axes[0, -1].tick_params(labelbottom=True)
        for axis, panel in zip(axes.flat, panels, strict=False):
            values: list[float] = []
            for split, style in _STYLES.items() if panel in measured else [("", _TRAIN)]:
                name = f"{split} {panel}".strip().replace(" ", "_")
                points = [(row["step"], row[name]) for row in rows if name in row]
                values += [value for _, value in points]
                if points:
                    axis.plot(*zip(*points, strict=True), label=split, marker=".", **style)
            axis.set_title(panel.replace("_", " "))
            if panel not in ("loss", "gradient_norm"):
                axis.set_ylim(bottom=0)
            elif values and min(values) > 0 and max(values) / min(values) > 10:
                axis.set_yscale("log")
            if len(axis.lines) > 1:
                axis.legend()
        for axis in axes[-1]:
            axis.set_xlabel("step")
