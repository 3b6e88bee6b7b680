"""sharpness_spectrum.png, sharpness_curves.png and sharpness_contour.png."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gnp.analysis.figure_files import BLUE, GRAY, GREEN, ORANGE, drawn, picture

# isort: split

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.patheffects import withStroke

Arrays = Mapping[str, npt.NDArray[Any]]


def draw(values: Mapping[str, Any], arrays: Arrays, folder: Path) -> list[str]:
    """Draw the three pictures; return the names of those that were, and warn of the others.

    Args:
        values: the numbers of a checkpoint, as `measure_sharpness` gives them, and its step.
        arrays: likewise.
        folder: where; pictures that are there are replaced whole.
    """
    plots = {"spectrum": _spectrum, "curves": _curves, "contour": _contour}
    names = {f"sharpness_{name}.png": plot for name, plot in plots.items()}
    return [name for name, plot in names.items() if drawn(plot, values, arrays, folder / name)]


def _spectrum(values: Mapping[str, Any], arrays: Arrays, path: Path) -> None:
    points, density = arrays["density_points"], arrays["density"]
    largest, smallest = values["hessian_eigenvalues"], values["hessian_smallest_eigenvalue"]
    # Less than a third of one eigenvalue is not shown.
    floor = 0.3 / values["parameters"] / (values["density_width"] * np.sqrt(2 * np.pi))
    seen = np.where(density > floor, density, np.nan)
    trace = f"trace {values['hessian_trace']:.4g} ± {values['hessian_trace_error']:.2g}"
    with picture(path, (9, 4.8), mathtext=True) as figure:
        axis = figure.subplots()
        axis.fill_between(points, floor, np.maximum(density, floor), color=BLUE, alpha=0.25, lw=0)
        axis.plot(points, seen, label="density")
        marks: dict[str, Any] = {"ms": 8, "ls": "none", "clip_on": False}
        label = f"{len(largest)} largest" if len(largest) > 1 else "largest"
        axis.plot(largest, [floor * 1.25] * len(largest), marker="v", label=label, **marks)
        axis.plot(smallest, floor * 1.25, marker="s", color=GREEN, label="smallest", **marks)
        axis.set(yscale="log", xlabel="eigenvalue of the Hessian", ylabel="density")
        axis.set_ylim(bottom=floor)
        detail = f"largest {largest[0]:.4g}, {trace}"
        _title(axis, f"Spectral density, step {values['step']:,}", detail)
        axis.legend()


def _curves(values: Mapping[str, Any], arrays: Arrays, path: Path) -> None:
    radius, losses = values["sam_radius"], (arrays["gradient_losses"], arrays["random_losses"])
    with picture(path, (11, 4.6), mathtext=True) as figure:
        left, right = axes = figure.subplots(1, 2)
        left.axvspan(-radius, radius, color=GRAY, alpha=0.2, lw=0, label=f"within r = {radius:g}")
        left.plot(arrays["gradient_distances"], losses[0], lw=1.8)
        left.set(xlabel="distance along the gradient", ylabel="loss")
        _title(left, "Along the gradient", f"gradient norm {values['gradient_norm']:.3g}")
        labels = [f"direction {number + 1}" for number in range(len(losses[1]))]
        right.plot(arrays["random_distances"], losses[1].T, lw=1.8, label=labels)
        right.set_xlabel("share of the filters' norms")
        _title(right, "Along random directions", "filter-normalized")
        for axis, color, shown in zip(axes, (ORANGE, GREEN), losses, strict=True):
            axis.plot(0, values["loss"], "o", color=color, label="checkpoint")
            if _spans_decades(shown):
                axis.set_yscale("log")
            axis.legend()


def _contour(values: Mapping[str, Any], arrays: Arrays, path: Path) -> None:
    grid, losses = arrays["contour_distances"], arrays["contour_losses"]
    losses = np.where(np.isfinite(losses), losses, np.nan)
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    spaced = np.geomspace if _spans_decades(losses) else np.linspace
    levels = spaced(low, max(high, low + 1e-6), 13)
    with picture(path, (7, 6), mathtext=True) as figure:
        axis = figure.subplots()
        axis.grid(visible=False)
        scale = BoundaryNorm(levels, 256)
        filled = axis.contourf(grid, grid, losses, levels=levels, cmap="cividis", norm=scale)
        lines = axis.contour(grid, grid, losses, levels=levels[1:-1:2], colors="white")
        for text in axis.clabel(lines, fmt="%.2g", fontsize=9, colors="black"):
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        axis.plot(0, 0, "o", mfc="white", mec="black", ms=8, label="checkpoint")
        bar = figure.colorbar(filled, ax=axis, label="loss", ticks=levels[::2], format="%.3g")
        bar.outline.set_visible(False)
        axis.set(xlabel="share of the filters' norms, direction 1", ylabel="direction 2")
        axis.set_aspect("equal")
        detail = f"{values['loss']:.4g} at the checkpoint"
        _title(axis, f"Loss around step {values['step']:,}", detail)
        axis.legend(frameon=True, loc="upper right")


def _title(axis: Axes, title: str, detail: str) -> None:
    axis.set_title(f"{title}\n", fontsize=12)
    axis.text(0, 1.015, detail, transform=axis.transAxes, fontsize=9.5, color=GRAY, va="bottom")


def _spans_decades(losses: npt.NDArray[Any]) -> bool:
    finite = losses[np.isfinite(losses)]
    return bool(finite.size and finite.min() > 0 and finite.max() / finite.min() > 20)
