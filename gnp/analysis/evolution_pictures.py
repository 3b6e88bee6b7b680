"""The pictures of a recorded run; each is replaced whole, or ends in an OSError."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gnp.analysis.evolution_numbers import Evolution, evenly_spaced
from gnp.analysis.figure_files import (
    BLUE,
    COLORS,
    GRAY,
    GREEN,
    ORANGE,
    own_style,
    picture,
    picture_file,
)

# isort: split

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# So many layers have a line with a name of its own; more are colored by their place.
NAMED_LAYERS = len(COLORS)
# The animation shows all layers, or, of more than so many, a few.
ALL_LAYERS, FEW_LAYERS = 32, 8
FRAME_MILLISECONDS = 300
_MOST_VERTICALS = 50
# viridis without its lightest colors, which do not show on white.
_LAYER_COLORS = LinearSegmentedColormap.from_list(
    "layers", colormaps["viridis"](np.linspace(0, 0.85))
)
_FIELDS = {
    "gradient": "Gradient |G|\nthe epoch's, summed",
    "dissolving": "Dissolving gradient Σ|G| − |A|\nwhat epochs took from each other",
    "accumulated": "Accumulated gradient |A|\nall so far, summed",
}


def natural_order(names: Sequence[str]) -> list[int]:
    """Return the indices of the names, sorted so that block_10 comes behind block_2.

    Example:
        >>> natural_order(["block_10", "block_2", "head"])
        [1, 0, 2]
    """

    def key(index: int) -> list[int | str]:  # text and numbers take turns
        return [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", names[index]))]

    return sorted(range(len(names)), key=key)


def plot_norms(evolution: Evolution, path: Path) -> None:
    """Draw gradient_norms.png: norms of G and A, the running sum, the dissolving norm between."""
    epochs, marked = evolution.epochs, max(1, len(evolution.epochs) // 25)
    every = -(-len(epochs) // _MOST_VERTICALS)
    verticals = slice((len(epochs) - 1) % every, None, every)
    norms = (
        (evolution.summed_norm, "running sum of ‖G‖", ORANGE, "--s"),
        (evolution.accumulated_norm, "‖A‖: all gradients so far, summed", BLUE, "-o"),
        (evolution.gradient_norm, "‖G‖: an epoch's gradients, summed", GREEN, "-.^"),
    )
    with picture(path, (9, 5.5)) as figure:
        axis = figure.subplots()
        for values, label, color, style in norms:
            axis.plot(epochs, values, style, color=color, label=label, ms=5, markevery=marked)
        axis.vlines(
            epochs[verticals], evolution.accumulated_norm[verticals],
            evolution.summed_norm[verticals], colors=GRAY, linestyles="dashed", linewidth=1,
            zorder=1,
            label="dissolving norm: sum − ‖A‖" + (f" (every {every} epochs)" if every > 1 else ""),
        )  # fmt: skip
        _over_epochs(axis, "Standardized L1 norms of the gradients")
        axis.set_ylabel("Σ over layers of ‖·‖₁ / size")
        axis.set_ylim(bottom=0)
        axis.legend()


def plot_loss_and_metrics(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss_and_metrics.png, training and evaluation over the epochs, of metrics.jsonl."""
    names = ["loss"] + [
        name
        for name in ("error_rate", "top_5_error_rate", "mean_absolute_error")
        if any(f"train_{name}" in row for row in rows)
    ]
    with picture(path, (5.5 * len(names), 4.5)) as figure:
        axes = figure.subplots(1, len(names), squeeze=False)
        for axis, name in zip(axes[0], names, strict=True):
            percent = 100 if name.endswith("error_rate") else 1
            for split, color, style in (
                ("train", BLUE, "-o"), ("validation", ORANGE, "--s"), ("test", ORANGE, "--s"),
            ):  # fmt: skip
                key = f"{split}_{name}"
                points = [(row["epoch"], percent * row[key]) for row in rows if key in row]
                if points:
                    label = "training" if split == "train" else split
                    axis.plot(*zip(*points, strict=True), style, color=color, label=label, ms=5,
                              markevery=max(1, len(points) // 25))  # fmt: skip
            _over_epochs(axis, name.replace("_", " ").replace("top 5", "top-5").capitalize())
            axis.set_ylabel("%" if percent > 1 else "")
            if not _log_where_wide(axis):
                axis.set_ylim(bottom=0)
            axis.legend()


def plot_loss(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss.png: loss and metrics of the training set, each over its largest value.

    They are of all its examples, in inference mode, after each epoch.
    """
    with picture(path, (9, 5.5)) as figure:
        axis = figure.subplots()
        keys = [key for row in rows for key in row if re.match("train_set_(?!ema_)", key)]
        for key in dict.fromkeys(keys):
            epochs, values = np.array([(row["epoch"], row[key]) for row in rows if key in row]).T
            label = key.removeprefix("train_set_").replace("top_", "top-").replace("_", " ")
            if label.endswith("error rate"):
                values, label = 1 - values, label.replace("error rate", "accuracy")
            axis.plot(epochs, values / (values.max() or 1), marker="o", ms=5, label=label,
                      markevery=max(1, len(epochs) // 25))  # fmt: skip
        _over_epochs(axis, "Loss and metrics of the training set, in inference mode")
        axis.set_ylabel("share of the largest")
        axis.set_ylim(bottom=0)
        axis.legend()


def plot_highest_elements(evolution: Evolution, path: Path) -> None:
    """Draw highest_elements.png: of each layer, in a color, G solid and A dashed."""
    order, many = natural_order(evolution.names), len(evolution.names) > NAMED_LAYERS
    epochs = evolution.epochs
    with picture(path, (10, 6.5)) as figure:
        axis = figure.subplots()
        # A layer without gradients has nothing to show.
        shown = [i for i in order if evolution.highest_accumulated[i].max() > 0]
        for i in shown:
            place = order.index(i)
            style: dict[str, Any] = {"color": COLORS[place % 8], "marker": "osD^vPX*"[place % 8]}
            if many:
                style = {"color": _LAYER_COLORS(place / (len(order) - 1)), "lw": 1, "alpha": 0.9}
            style |= {"ms": 5, "markevery": max(1, len(epochs) // 15)}
            axis.plot(epochs, evolution.highest_gradient[i], "-", label=evolution.names[i], **style)
            axis.plot(epochs, evolution.highest_accumulated[i], "--", **style)
        _over_epochs(axis, "Highest elements")
        axis.set_ylabel("share of the layer's largest |A| over all epochs")
        axis.set_ylim(bottom=0)
        kinds = {"-": "|G|, an epoch's gradients", "--": "|A|, all gradients so far"}
        handles = [Line2D([], [], color=GRAY, ls=ls, label=words) for ls, words in kinds.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
        if many:
            _name_outermost(figure, axis, evolution, evolution.highest_gradient, shown)
            colors = ScalarMappable(Normalize(1, len(order)), _LAYER_COLORS)
            bar = figure.colorbar(colors, ax=axis, location="bottom", aspect=60, pad=0.03)
            first, last = (_short(evolution.names[order[i]]) for i in (0, -1))
            bar.set_label(f"layer, in the order of the names: 1 {first}, {len(order)} {last}")
        else:
            figure.legend(handles=axis.lines[::2], loc="outside lower center", ncols=4)


def _name_outermost(
    figure: Figure,
    axis: Axes,
    evolution: Evolution,
    highest: np.ndarray,
    shown: Sequence[int],
    most: int = 4,
) -> None:
    """Name the layers that end highest and lowest, beside the ends of their lines."""
    ranked = sorted(shown, key=lambda i: highest[i, -1])
    chosen = list(dict.fromkeys([*ranked[:most], *ranked[-most:]]))
    axis.margins(x=0.0)
    figure.draw_without_rendering()  # the limits of the axis are only now known
    ends = axis.transData.transform([(evolution.epochs[-1], highest[i, -1]) for i in chosen])
    heights = list(axis.transAxes.inverted().transform(ends)[:, 1])
    for i, height, place in zip(chosen, heights, spread_out(heights, 0.04), strict=True):
        axis.annotate(
            _short(evolution.names[i]), (1.0, height), (1.04, place), xycoords="axes fraction",
            fontsize=8, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRAY, "linewidth": 0.5, "relpos": (0, 0.5),
                        "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights until they are `gap` from one another, between 0 and 1."""
    moved = [float(height) for height in heights]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def plot_animation(evolution: Evolution, path: Path) -> None:
    """Draw animation.gif: |G|, the dissolving gradient and |A| as heatmaps, epoch by epoch.

    At most 40 epochs; the picture says which.
    """
    layers = animated_layers(evolution)
    with own_style():
        figure, images = _heatmaps(evolution, layers)
        title = figure.suptitle("epoch", x=0.01, ha="left", animated=True)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        background = canvas.copy_from_bbox(figure.bbox)
        frames, palette = [], _palette()
        for k, epoch in enumerate(evolution.map_epochs):
            canvas.restore_region(background)
            for (field, layer), image in images.items():
                image.set_data(_pictures(evolution, field, layer)[k])
                image.axes.draw_artist(image)
            title.set_text(f"epoch {epoch} of {evolution.epochs[-1]}")
            figure.draw_artist(title)
            frame = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
            frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [4 * FRAME_MILLISECONDS]
    with picture_file(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations,
                       loop=0)  # fmt: skip


def _palette() -> Image.Image:
    """Return the colors of all frames: a palette for each would flicker."""
    shades = colormaps["viridis"](np.linspace(0, 1, 224))[:, :3]
    grays = np.linspace(0, 1, 32)[:, None].repeat(3, axis=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([shades, grays])).round().astype(np.uint8).tobytes())
    return palette


def animated_layers(evolution: Evolution) -> list[int]:
    """Return the indices of the layers that are shown, in the order of their names.

    All; or, of more than 32, eight: evenly spaced ones among those that are no vector.
    """
    order = natural_order(evolution.names)
    if len(order) <= ALL_LAYERS:
        return order
    matrices = [i for i in order if evolution.maps["gradient"][i].shape[1] > 1]
    order = matrices if len(matrices) >= FEW_LAYERS else order
    return [order[i] for i in evenly_spaced(len(order), FEW_LAYERS)]


def _heatmaps(evolution: Evolution, layers: Sequence[int]) -> tuple[Figure, dict[Any, Any]]:
    """Draw a row a layer, a column a quantity; return (field, layer) -> its image."""
    figure = Figure((9.5, min(14, 1.1 * len(layers)) + 1.6), dpi=100, layout="constrained")
    axes = figure.subplots(len(layers), len(_FIELDS), squeeze=False)
    # Of a large network few values are large: the square root leaves small ones visible.
    shades = Normalize(0, 1) if len(layers) == len(evolution.names) else PowerNorm(0.5, 0, 1)
    images = {}
    for row, layer in zip(axes, layers, strict=True):
        for axis, field in zip(row, _FIELDS, strict=True):
            images[field, layer] = axis.imshow(
                _pictures(evolution, field, layer)[0],
                norm=shades, aspect="auto", interpolation="nearest", animated=True,
            )  # fmt: skip
            axis.set(xticks=[], yticks=[])
        name = _short(evolution.names[layer], 36).replace("/", "/\n")
        words = f"{name}\n{evolution.sizes[layer]:,}"
        row[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8, labelpad=8)
    for axis, words in zip(axes[0], _FIELDS.values(), strict=True):
        axis.set_title(words, fontsize=9, loc="center")
    bar = figure.colorbar(ScalarMappable(shades), ax=axes, aspect=40, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["low", "medium", "high"], fontsize=8)
    figure.supxlabel(_caption(evolution, layers), x=0.01, ha="left", fontsize=8, color=GRAY)
    return figure, images


def _caption(evolution: Evolution, layers: Sequence[int]) -> str:
    shown, epochs = len(layers), len(evolution.map_epochs)
    parts = ["high: the layer's largest in the column over all epochs shown"]
    if any(evolution.maps["gradient"][i][0].size < evolution.sizes[i] for i in layers):
        parts.append("a cell: its largest element")
    if shown < len(evolution.names):
        parts.append(f"{shown} of {len(evolution.names)} layers")
    if epochs < len(evolution.epochs):
        parts.append(f"{epochs} of {len(evolution.epochs)} epochs, evenly spaced")
    return "; ".join(parts)


def _pictures(evolution: Evolution, field: str, layer: int) -> np.ndarray:
    """Return a layer's pictures [K, rows, columns] with their largest value at 1.

    Where they have all elements, these fill a matrix that is nearly a square.
    """
    maps, size = evolution.maps[field][layer], int(evolution.sizes[layer])
    if maps[0].size == size:
        rows = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0)
        maps = maps.reshape(len(maps), rows, -1)
    return maps / (maps.max() or 1.0)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _over_epochs(axis: Axes, title: str) -> None:
    axis.set(title=title, xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _log_where_wide(axis: Axes) -> bool:
    """Make the axis logarithmic where its lines, all positive, span more than a factor of 10."""
    values = np.array([y for line in axis.lines for y in np.asarray(line.get_ydata(), float)])
    positive = values[values > 0]
    if not len(positive) or len(positive) < len(values) or positive.max() / positive.min() <= 10:
        return False
    axis.set_yscale("log")
    # Plain numbers, and only as many as there is room for.
    digits = (1.0, 2.0, 5.0) if positive.max() / positive.min() < 1e3 else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(subs=digits, numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    return True
