"""Pictures of a data set: how many examples each class has, how large images are, examples.

Each is replaced whole, or ends in an OSError.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gnp.analysis.figure_files import COLORS, GRAY, picture
from gnp.terminal import one_line

# isort: split

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

# More classes than this get no bar with a name each.
MOST_NAMED_CLASSES = 50
MOST_PANELS = 30


def plot_class_counts(names: Sequence[str], counts: Sequence[int], title: str, path: Path) -> None:
    """Draw the number of examples of each class; above 50 classes sorted and without names."""
    many = len(names) > MOST_NAMED_CLASSES
    with picture(path, (9, 4.5) if many else (8, 1.2 + 0.3 * max(len(names), 4))) as figure:
        axis = figure.subplots()
        axis.set_title(title)
        if many:
            edges = np.arange(len(counts) + 1)
            axis.stairs(sorted(counts, reverse=True), edges, fill=True, color=COLORS[0])
            axis.set(xlabel=f"{len(counts):,} classes, sorted by their number of examples",
                     ylabel="examples", xlim=(0, len(counts)))  # fmt: skip
            return
        bars = axis.barh(range(len(names)), counts)
        axis.bar_label(bars, [f"{count:,}" for count in counts], padding=4, color=GRAY, fontsize=9)
        axis.set_yticks(range(len(names)), [shortened(name, 30) for name in names])
        axis.set(xlabel="examples", xlim=(0, 1.12 * max([*counts, 1])))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(visible=False, axis="y")
        axis.invert_yaxis()


def plot_targets(targets: npt.NDArray[np.floating], title: str, path: Path) -> None:
    """Draw a histogram of the numbers that a regression predicts."""
    with picture(path, (8, 4)) as figure:
        axis = figure.subplots()
        axis.hist(targets, bins=_edges(targets, 30))
        axis.set(xlabel="target", ylabel="examples", title=title)


def plot_sizes(sizes: npt.NDArray[np.integer], title: str, path: Path) -> None:
    """Draw width against height of encoded images, and a histogram of the shorter side.

    Args:
        sizes: [n, 2], height and width in pixels.
        title: of the picture.
        path: the PNG to write.
    """
    with picture(path, (10, 4.5)) as figure:
        left, right = figure.subplots(1, 2)
        left.scatter(sizes[:, 1], sizes[:, 0], s=10, alpha=0.35, color=COLORS[0], linewidths=0)
        most = 1.05 * np.max(sizes)
        left.axline((0, 0), slope=1, color=GRAY, linewidth=0.8, linestyle=":")
        left.annotate("square", (0.97 * most, 0.97 * most), color=GRAY, fontsize=9, ha="right")
        left.set(xlim=(0, most), ylim=(0, most), xlabel="width, pixels", ylabel="height, pixels")
        left.set_aspect("equal")
        right.hist(sizes.min(axis=1), bins=30)
        right.yaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(xlabel="shorter side, pixels", ylabel="images")
        _head(figure, title)


def plot_images(
    images: Sequence[npt.NDArray[np.uint8]],
    names: Sequence[str],
    wide: int,
    row_names: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Draw a grid of images.

    Args:
        images: uint8 [h, w, 3] each, row by row.
        names: above each image; "": none.
        wide: images in a row.
        row_names: left of each row; (): none.
        title: of the picture.
        path: the PNG to write.
    """
    high = -(-len(images) // wide)
    size = 1.35 * wide + 0.08 * max(map(len, row_names), default=0), 0.6 + 1.5 * high
    with picture(path, size, layout="compressed") as figure:
        axes = figure.subplots(high, wide, squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, image, name in zip(axes.flat, images, names, strict=False):
            axis.imshow(image)
            axis.set_title(name, loc="center", fontsize=8, pad=3)
        for axis, name in zip(axes[:, 0], row_names, strict=False):
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        _head(figure, title)


def plot_series(
    series: npt.NDArray[np.floating], names: Sequence[str], colors: Sequence[int], title: str,
    path: Path,
) -> None:  # fmt: skip
    """Draw each series, a line a channel.

    Args:
        series: [n, length, channels].
        names: above each; "": none.
        colors: a number for each, such as its class: the color where there is one channel.
        title: of the picture.
        path: the PNG to write.
    """
    high = -(-len(series) // 4)
    with picture(path, (12, 0.6 + 1.25 * high)) as figure:
        axes = figure.subplots(high, 4, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(series) :]:
            axis.set_axis_off()
        for axis, values, name, color in zip(axes.flat, series, names, colors, strict=False):
            for channel, line in enumerate(values.T.astype(np.float64)):
                shade = COLORS[(channel if values.shape[-1] > 1 else color) % len(COLORS)]
                axis.plot(line, color=shade, linestyle="-", linewidth=0.8)
            _name(axis, shortened(name, 24))
        figure.supxlabel("step", fontsize=9)
        _head(figure, title)


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
        names: of the classes; (): a regression. More than eight share one histogram.
        columns: their names.
        title: of the picture.
        path: the PNG to write.
    """
    count = min(inputs.shape[1], MOST_PANELS)
    wide = min(count, 2 if count <= 4 else 4 if count <= 16 else 5)
    high = -(-count // wide)
    several = 1 < len(names) <= len(COLORS)
    with picture(path, (max(2.7 * wide, 7), 0.9 + 1.9 * high)) as figure:
        axes = figure.subplots(high, wide, squeeze=False)
        for axis in axes.flat[count:]:
            axis.set_axis_off()
        for axis, column, name in zip(axes.flat, inputs.T[:count], columns, strict=False):
            values = column.astype(np.float64)  # float32 has no room for margins
            if not names:
                axis.scatter(values, labels, s=8, alpha=0.4, linewidths=0)
            elif several:
                edges = _edges(values, 20)
                for label in range(len(names)):
                    axis.hist(values[labels == label], bins=edges, histtype="stepfilled",
                              label=f"class {label}", linewidth=1.5,
                              edgecolor=COLORS[label], facecolor=(COLORS[label], 0.12),
                              linestyle=("-", "--", "-.", ":")[label % 4])  # fmt: skip
            else:
                axis.hist(values, bins=_edges(values, 30))
            _name(axis, shortened(name, 26))
        for axis in axes[:, 0]:
            axis.set_ylabel("examples" if names else "target", fontsize=9)
        if several:
            handles, _ = axes[0, 0].get_legend_handles_labels()
            texts = [shortened(name, 24) for name in names]
            figure.legend(handles, texts, loc="outside lower center", ncols=min(len(names), 5),
                          fontsize=9)  # fmt: skip
        _head(figure, title)


def _edges(values: npt.NDArray[np.floating], bins: int) -> list[float]:
    """Return the edges of a histogram's bins, also of values that are one, or close neighbors."""
    low, high = float(np.min(values)), float(np.max(values))
    least = 1e-12 * max(abs(low), abs(high))
    if high - low <= least:
        low, high = low - max(0.5, least), high + max(0.5, least)
    return np.linspace(low, high, bins + 1).tolist()


def _head(figure: Any, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left")


def _name(axis: Axes, name: str) -> None:
    axis.set_title(name, fontsize=9, pad=3)
    axis.tick_params(labelsize=8)


def shortened(name: str, most: int) -> str:
    """Return a name on one line, of at most so many characters.

    Example:
        >>> shortened("a long name", 6)
        'a lon…'
    """
    name = one_line(name)
    return name if len(name) <= most else name[: most - 1] + "…"
