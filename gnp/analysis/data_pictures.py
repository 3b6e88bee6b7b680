"""Pictures of a data set: how many examples each class has, how large images are, examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gnp.analysis.figure_files import picture
from gnp.terminal import one_line

# isort: split

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

# Colors that stay apart without color vision (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_LINES = ("-", "--", "-.", ":")

# More classes than this get no bar with a name each.
MOST_NAMED_CLASSES = 50
MOST_PANELS = 30
_BINS = 30
_GRAY = "#555555"


def plot_class_counts(names: Sequence[str], counts: Sequence[int], title: str, path: Path) -> None:
    """Draw the number of examples of each class; above 50 classes sorted and without names.

    Args:
        names: of the classes.
        counts: of examples, one a class.
        title: of the picture.
        path: the PNG to write; replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    size = (9, 4.5) if len(names) > MOST_NAMED_CLASSES else (8, 1.2 + 0.3 * max(len(names), 4))
    with picture(path, figsize=size, layout="constrained") as figure:
        axis = figure.subplots()
        axis.set_title(title, loc="left", fontsize=12)
        _plain(axis)
        if len(names) > MOST_NAMED_CLASSES:
            _draw_sorted(axis, counts)
        else:
            _draw_bars(axis, names, counts)


def _draw_sorted(axis: Axes, counts: Sequence[int]) -> None:
    axis.fill_between(
        np.arange(len(counts) + 1), [*sorted(counts, reverse=True), min(counts)],
        step="post", color=COLORS[0],
    )  # fmt: skip
    axis.set_xlim(0, len(counts))
    axis.set_ylim(0, 1.08 * max(counts))
    axis.set_xlabel(f"{len(counts):,} classes, sorted by their number of examples")
    axis.set_ylabel("examples")


def _draw_bars(axis: Axes, names: Sequence[str], counts: Sequence[int]) -> None:
    places = np.arange(len(names))
    axis.barh(places, counts, color=COLORS[0], height=0.75)
    axis.set_yticks(places, [shortened(name, 30) for name in names])
    for place, count in zip(places, counts, strict=True):
        axis.annotate(
            f"{count:,}", (count, place), (4, 0), textcoords="offset points",
            va="center", fontsize=9, color=_GRAY,
        )  # fmt: skip
    axis.set_xlim(0, 1.12 * max([*counts, 1]))
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("examples")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def plot_targets(targets: npt.NDArray[np.floating], title: str, path: Path) -> None:
    """Draw a histogram of the numbers that a regression predicts."""
    with picture(path, figsize=(8, 4), layout="constrained") as figure:
        axis = figure.subplots()
        axis.hist(targets, bins=_edges(targets), color=COLORS[0])
        axis.set_xlabel("target")
        axis.set_ylabel("examples")
        axis.set_title(title, loc="left", fontsize=12)
        _plain(axis)


def plot_sizes(sizes: npt.NDArray[np.integer], title: str, path: Path) -> None:
    """Draw width against height of encoded images, and a histogram of the shorter side.

    Args:
        sizes: [n, 2], height and width in pixels.
        title: of the picture.
        path: the PNG to write; replaced whole.
    """
    with picture(path, figsize=(10, 4.5), layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        left.scatter(sizes[:, 1], sizes[:, 0], s=10, alpha=0.35, color=COLORS[0], linewidths=0)
        most = 1.05 * sizes.max()
        left.plot([0, most], [0, most], color=_GRAY, linewidth=0.8, linestyle=":")
        left.annotate("square", (0.97 * most, 0.97 * most), color=_GRAY, fontsize=9, ha="right")
        left.set(xlim=(0, most), ylim=(0, most), xlabel="width, pixels", ylabel="height, pixels")
        left.set_aspect("equal")
        right.hist(sizes.min(axis=1), bins=_BINS, color=COLORS[0])
        right.yaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(xlabel="shorter side, pixels", ylabel="images")
        for axis in (left, right):
            _plain(axis)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def plot_images(
    rows: Sequence[Sequence[npt.NDArray[np.uint8]]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    cell_names: Sequence[Sequence[str]],
    title: str,
    path: Path,
) -> None:
    """Draw a grid of images.

    Args:
        rows: of images uint8 [h, w, 3].
        row_names: left of each row; (): none.
        column_names: above each column; (): none.
        cell_names: above each image; (): none.
        title: of the picture.
        path: the PNG to write; replaced whole.
    """
    # In inches, from the top left corner.
    side, gap = 1.25, 0.06
    high = side + gap + (0.16 if cell_names else 0)
    left = 0.12 + (0.1 + _text_width(row_names, 9) if row_names else 0)
    top = 0.5 + (0.2 if column_names else 0)
    width = max(left + max(len(row) for row in rows) * (side + gap), 4)
    height = top + len(rows) * high + gap
    with picture(path, figsize=(width, height)) as figure:
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.text(0.12, 0.17, title, va="top", fontsize=12)
        for j, name in enumerate(column_names):
            middle = left + j * (side + gap) + side / 2
            axis.text(middle, top - 0.06, name, ha="center", color=_GRAY, fontsize=9)
        for i, row in enumerate(rows):
            bottom = top + (i + 1) * high - gap
            if row_names:
                axis.text(left - 0.08, bottom - side / 2, row_names[i], ha="right", va="center",
                          fontsize=9)  # fmt: skip
            for j, image in enumerate(row):
                x = left + j * (side + gap)
                _draw_image(axis, image, x, bottom, side)
                if cell_names:
                    axis.text(x + side / 2, bottom - side - 0.03, cell_names[i][j], ha="center",
                              fontsize=8)  # fmt: skip
        axis.set(xlim=(0, width), ylim=(height, 0))


def _draw_image(
    axis: Axes, image: npt.NDArray[np.uint8], x: float, bottom: float, side: float
) -> None:
    """Draw an image as large as fits into a square, its middle in the square's."""
    rows, columns = image.shape[:2]
    wide, high = side * columns / max(rows, columns), side * rows / max(rows, columns)
    right, down = x + (side + wide) / 2, bottom - (side - high) / 2
    axis.imshow(image, extent=(right - wide, right, down, down - high), aspect="auto")


def plot_series(
    series: npt.NDArray[np.floating], labels: Sequence[int], names: Sequence[str], title: str,
    path: Path,
) -> None:  # fmt: skip
    """Draw a line for each series.

    Args:
        series: [n, length, channels].
        labels: a class each.
        names: of all classes.
        title: of the picture.
        path: the PNG to write; replaced whole.
    """
    wide = 4
    high = -(-len(series) // wide)
    with picture(path, figsize=(12, 0.6 + 1.25 * high), layout="constrained") as figure:
        axes = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(series) :]:
            axis.set_axis_off()
        for axis, values, label in zip(axes.flat, series, labels, strict=False):
            for channel in range(values.shape[-1]):
                color = COLORS[label % 7] if values.shape[-1] == 1 else COLORS[channel % 7]
                axis.plot(values[:, channel].astype(np.float64), color=color, linewidth=0.8)
            name = f"class {names[label]}" if len(names[label]) < 3 else names[label]
            axis.set_title(
                shortened(name, 24) if len(names) > 1 else "", loc="left", fontsize=9, pad=3
            )
            _plain(axis)
            axis.tick_params(labelsize=8)
        figure.supxlabel("step", fontsize=9)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def plot_columns(
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[Any],
    names: Sequence[str],
    columns: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Draw each column of a table: a histogram a class, or the target against it.

    Args:
        inputs: [n, d]; the first 30 columns are drawn.
        labels: [n], classes, or targets where there are no class names.
        names: of the classes; (): a regression.
        columns: their names.
        title: of the picture.
        path: the PNG to write; replaced whole.
    """
    count = min(inputs.shape[1], MOST_PANELS)
    wide = min(count, 2 if count <= 4 else 4 if count <= 16 else 5)
    high = -(-count // wide)
    size = max(2.7 * wide, 7), 0.9 + 1.9 * high
    with picture(path, figsize=size, layout="constrained") as figure:
        axes = figure.subplots(high, wide, squeeze=False)
        for axis in axes.flat[count:]:
            axis.set_axis_off()
        for column, axis in enumerate(axes.flat[:count]):
            values = inputs[:, column].astype(np.float64)  # float32 has no room for margins
            if not names:
                axis.scatter(values, labels, s=8, alpha=0.4, color=COLORS[0], linewidths=0)
            else:
                _histograms(axis, values, labels, names)
            axis.set_title(shortened(columns[column], 26), loc="left", fontsize=10, pad=3)
            _plain(axis)
            axis.tick_params(labelsize=8)
        for row in axes:
            row[0].set_ylabel("examples" if names else "target", fontsize=9)
        if 1 < len(names) <= len(COLORS):
            handles, _ = axes.flat[0].get_legend_handles_labels()
            figure.legend(
                handles, [shortened(name, 24) for name in names], loc="outside lower center",
                ncols=min(len(names), 5), frameon=False, fontsize=9,
            )  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def _histograms(
    axis: Axes, values: npt.NDArray[np.floating], labels: npt.NDArray[Any], names: Sequence[str]
) -> None:
    """Draw outlines, one a class, where there are few; else one for all."""
    if len(names) > len(COLORS):
        axis.hist(values, bins=_edges(values), color=COLORS[0])
        return
    edges = _edges(values, bins=20)
    for label in range(len(names)):
        style: dict[str, Any] = {"color": COLORS[label], "linestyle": _LINES[label % 4]}
        counts = np.histogram(values[labels == label], bins=edges)[0]
        axis.stairs(counts, edges, label=f"class {label}", linewidth=1.5, **style)
        axis.stairs(counts, edges, fill=True, alpha=0.12, color=COLORS[label])


def _edges(values: npt.NDArray[np.floating], bins: int = _BINS) -> list[float]:
    """Return the edges of a histogram's bins, also of values that are one, or close neighbors."""
    low, high = float(values.min()), float(values.max())
    least = 1e-12 * max(abs(low), abs(high))
    if high - low <= least:
        low, high = low - max(0.5, least), high + max(0.5, least)
    return np.linspace(low, high, bins + 1).tolist()


def _text_width(texts: Sequence[str], size: float) -> float:
    """Return the width of the widest text, in inches."""
    font = FontProperties(size=size)
    return max(TextPath((0, 0), text or " ", prop=font).get_extents().width for text in texts) / 72


def shortened(name: str, most: int) -> str:
    """Return a name on one line, of at most so many characters.

    Example:
        >>> shortened("a long name", 6)
        'a lon…'
    """
    name = one_line(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="both")
    axis.set_axisbelow(True)
