"""sharpness_spectrum.png, sharpness_curves.png and sharpness_contour.png."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gnp.analysis.figure_files import drawn, picture

# isort: split

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.patheffects import AbstractPathEffect

# Okabe and Ito's colors, which stay apart without color vision, and different dashes.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
NAMES = ("sharpness_spectrum.png", "sharpness_curves.png", "sharpness_contour.png")

Arrays = Mapping[str, npt.NDArray[Any]]


def draw(values: Mapping[str, Any], arrays: Arrays, folder: Path) -> list[str]:
    """Draw the three pictures; return the names of those that were, and warn of the others.

    Args:
        values: the numbers of a checkpoint, as `measure_sharpness` gives them, and its step.
        arrays: likewise.
        folder: where; pictures that are there are replaced whole.
    """
    plots = zip(NAMES, (_spectrum, _curves, _contour), strict=True)
    return [name for name, plot in plots if drawn(plot, values, arrays, folder / name)]


def _spectrum(values: Mapping[str, Any], arrays: Arrays, path: Path) -> None:
    with picture(path, mathtext=True, figsize=(9, 4.8), layout="constrained") as figure:
        axis = figure.subplots()
        points, density = arrays["density_points"], arrays["density"]
        floor = 0.3 / values["parameters"] / (values["density_width"] * np.sqrt(2 * np.pi))
        axis.fill_between(points, floor, np.maximum(density, floor), color=BLUE, alpha=0.25, lw=0)
        seen = np.where(density > floor, density, np.nan)
        axis.plot(points, seen, color=BLUE, lw=1.5, label="density")
        largest = values["hessian_eigenvalues"]
        axis.plot(
            largest, [floor * 1.25] * len(largest), "v", color=ORANGE, ms=8, clip_on=False,
            label=f"{len(largest)} largest" if len(largest) > 1 else "largest",
        )  # fmt: skip
        axis.plot(
            [values["hessian_smallest_eigenvalue"]], [floor * 1.25], "s", color=GREEN, ms=7,
            clip_on=False, label="smallest",
        )  # fmt: skip
        axis.set_yscale("log")
        axis.set_ylim(bottom=floor)
        axis.set_xlabel("eigenvalue of the Hessian")
        axis.set_ylabel("density")
        trace = f"trace {values['hessian_trace']:.4g} ± {values['hessian_trace_error']:.2g}"
        _title(
            axis, f"Spectral density, step {values['step']:,}", f"largest {largest[0]:.4g}, {trace}"
        )
        _tidy(axis)
        axis.legend(frameon=False)


def _curves(values: Mapping[str, Any], arrays: Arrays, path: Path) -> None:
    with picture(path, mathtext=True, figsize=(11, 4.6), layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        radius = values["sam_radius"]
        left.axvspan(-radius, radius, color=GRAY, alpha=0.2, lw=0, label=f"within r = {radius:g}")
        left.plot(arrays["gradient_distances"], arrays["gradient_losses"], color=BLUE, lw=1.8)
        left.plot([0], [values["loss"]], "o", color=ORANGE, ms=6, label="checkpoint")
        left.set_xlabel("distance along the gradient")
        left.set_ylabel("loss")
        _title(left, "Along the gradient", f"gradient norm {values['gradient_norm']:.3g}")
        styles = ((BLUE, "-"), (ORANGE, "--"))
        for number, losses in enumerate(arrays["random_losses"]):
            color, dashes = styles[number]
            right.plot(
                arrays["random_distances"], losses, color=color, ls=dashes, lw=1.8,
                label=f"direction {number + 1}",
            )  # fmt: skip
        right.plot([0], [values["loss"]], "o", color=GREEN, ms=6, label="checkpoint")
        right.set_xlabel("share of the filters' norms")
        _title(right, "Along random directions", "filter-normalized")
        for axis, losses in ((left, arrays["gradient_losses"]), (right, arrays["random_losses"])):
            _tidy(axis)
            if _spans_decades(losses):
                axis.set_yscale("log")
            axis.legend(frameon=False)


def _contour(values: Mapping[str, Any], arrays: Arrays, path: Path) -> None:
    with picture(path, mathtext=True, figsize=(7, 6), layout="constrained") as figure:
        axis = figure.subplots()
        grid = arrays["contour_distances"]
        losses = np.where(np.isfinite(arrays["contour_losses"]), arrays["contour_losses"], np.nan)
        low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
        if _spans_decades(losses):
            levels = np.geomspace(low, high, 13)
        else:
            levels = np.linspace(low, high if high > low else low + 1e-6, 13)
        scale = BoundaryNorm(levels, 256)
        filled = axis.contourf(grid, grid, losses, levels=levels, cmap="cividis", norm=scale)
        lines = axis.contour(
            grid, grid, losses, levels=levels[1:-1:2], colors="white", linewidths=1.0
        )
        halo: list[AbstractPathEffect] = [patheffects.withStroke(linewidth=2.5, foreground="white")]
        for text in axis.clabel(lines, fmt="%.2g", fontsize=9, colors="black"):
            text.set_path_effects(halo)
        axis.plot([0], [0], "o", mfc="white", mec="black", ms=8, label="checkpoint")
        bar = figure.colorbar(filled, ax=axis, label="loss", ticks=levels[::2], format="%.3g")
        bar.outline.set_visible(False)
        axis.set_aspect("equal")
        axis.set_xlabel("share of the filters' norms, direction 1")
        axis.set_ylabel("direction 2")
        _title(
            axis, f"Loss around step {values['step']:,}", f"{values['loss']:.4g} at the checkpoint"
        )
        axis.legend(frameon=True, loc="upper right")


def _title(axis: Axes, title: str, detail: str) -> None:
    axis.set_title(f"{title}\n", loc="left", fontsize=12)
    axis.text(0, 1.015, detail, transform=axis.transAxes, fontsize=9.5, color=GRAY, va="bottom")


def _tidy(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _spans_decades(losses: npt.NDArray[Any]) -> bool:
    finite = losses[np.isfinite(losses)]
    return bool(finite.size and finite.min() > 0 and finite.max() / finite.min() > 20)
