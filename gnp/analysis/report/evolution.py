"""The evolution of a recorded run's gradients, small enough for a page."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from gnp.analysis.evolution_numbers import Evolution, evenly_spaced, load_evolution
from gnp.analysis.report.figures import Panel, figure, label, line, titled
from gnp.analysis.report.groups import Group
from gnp.terminal import describe
from gnp.training.evolution import epoch_files
from gnp.training.files import FileFormatError

MOST_RUNS = 8
MOST_LAYERS = 16
MOST_CELLS = 3_000_000  # of all heatmaps on the page; a byte each
_MAPS = {
    "gradient": "|G|, sum of the epoch's gradients",
    "dissolving": "Dissolving gradient, Σ|G| − |A|",
    "accumulated": "|A|, sum over the epochs so far",
}


def evolutions(groups: Sequence[Group]) -> tuple[list[tuple[Group, Evolution]], list[str]]:
    """Read the first recorded run of each group; and say what could not be read, or is not shown.

    Args:
        groups: of the page; the first MOST_RUNS that recorded are taken.
    """
    recorded = {
        group.name: (group, run.path)
        for group in groups
        for run in reversed(group.measured)
        if epoch_files(run.path)
    }
    found, warnings = [], []
    if (more := len(recorded) - MOST_RUNS) > 0:
        warnings.append(f"gradients are shown of {MOST_RUNS} groups; {more} more recorded theirs")
    for group, path in list(recorded.values())[:MOST_RUNS]:
        try:
            found.append((group, load_evolution(path)))
        except (FileFormatError, OSError) as error:
            warnings.append(f"no gradient evolution: {describe(error)}")
    return found, warnings


def heatmaps(recorded: Evolution, most_cells: int) -> dict[str, Any]:
    """Draw |G|, D and |A| of a layer, with a menu of the layers and a slider over the epochs.

    Epochs are left out where the heatmaps would have more cells than `most_cells`.
    """
    layers = shown_layers(recorded)
    cells = sum(recorded.maps[field][i][0].size for field in _MAPS for i in layers)
    shown = evenly_spaced(len(recorded.map_epochs), max(2, most_cells // max(cells, 1)))
    first = int(np.argmax(recorded.sizes[layers]))
    names = [str(epoch) for epoch in recorded.map_epochs[shown]]
    frames: list[dict[str, Any]] = [{"name": name, "data": []} for name in names]
    panels = []
    for field, title in _MAPS.items():
        traces = []
        for place, layer in enumerate(layers):
            pictures, largest = _in_percent(recorded.maps[field][layer][shown])
            traces.append({
                "type": "heatmap", "z": _encoded(pictures[-1]), "coloraxis": "coloraxis",
                "visible": place == first,
                "hovertemplate": f"row %{{y}}, column %{{x}}: %{{z}}% of {largest:.3g}"
                                 "<extra></extra>",
            })  # fmt: skip
            for frame, picture in zip(frames, pictures, strict=True):
                frame["data"].append({"type": "heatmap", "z": _encoded(picture)})
        bare = {"showticklabels": False, "ticks": ""}
        panels.append(Panel(title, traces, bare, bare | {"autorange": "reversed"}))
    at_once = {"mode": "immediate", "transition": {"duration": 0}}
    slider = {
        "active": len(shown) - 1, "currentvalue": {"prefix": "epoch "}, "pad": {"t": 30},
        "steps": [
            {"label": name, "method": "animate",
             "args": [[name], at_once | {"frame": {"duration": 0, "redraw": True}}]}
            for name in names
        ],
    }  # fmt: skip
    menu = {
        "active": first, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
        "buttons": [
            {"label": label(f"{recorded.names[i]}: {recorded.sizes[i]:,} values"),
             "method": "restyle",
             "args": ["visible", [each == at for each in range(len(layers))] * len(_MAPS)]}
            for at, i in enumerate(layers)
        ],
    }  # fmt: skip
    play = {
        "type": "buttons", "direction": "left", "x": 0, "xanchor": "left", "y": 0,
        "yanchor": "top", "pad": {"t": 110}, "showactive": False,
        "buttons": [
            {"label": "Play", "method": "animate",
             "args": [None, at_once | {"frame": {"duration": 350, "redraw": True}}]},
            {"label": "Stop", "method": "animate", "args": [[None], at_once]},
        ],
    }  # fmt: skip
    found = figure(
        panels, columns=1, height=250, sliders=[slider], updatemenus=[menu, play],
        coloraxis={
            "cmin": 0, "cmax": 100, "colorscale": "Cividis",
            "colorbar": {"ticksuffix": "%", "thickness": 12},
        },
    )  # fmt: skip
    return found | {"frames": frames}


def shown_layers(recorded: Evolution) -> list[int]:
    """Return the largest layers, in their order."""
    return sorted(np.argsort(-recorded.sizes, kind="stable")[:MOST_LAYERS].tolist())


def _in_percent(frames: np.ndarray) -> tuple[np.ndarray, float]:
    """Return frames in percent of the largest value of all of them, a byte each; and that value."""
    frames = np.nan_to_num(frames.astype(np.float64), posinf=0.0)
    largest = float(frames.max())
    return np.rint(frames / (largest or 1.0) * 100).astype(np.uint8), largest


def _encoded(values: np.ndarray) -> dict[str, str]:
    """Return bytes as plotly writes arrays in JSON."""
    text = base64.b64encode(values.tobytes()).decode()
    return {"dtype": "u1", "bdata": text, "shape": ", ".join(map(str, values.shape))}


def norms(recorded: Evolution) -> dict[str, Any]:
    """Draw the norms of the gradients, and each layer's highest elements, over the epochs."""

    def lines(values: dict[str, np.ndarray], legend: str) -> list[dict[str, Any]]:
        return [
            line(zip(recorded.epochs.tolist(), each.tolist(), strict=True), i, name)
            | {"legend": legend, "legendgroup": f"{legend} {i}"}
            for i, (name, each) in enumerate(values.items())
        ]

    sums = {"|A|": recorded.accumulated_norm, "sum of |G|": recorded.summed_norm,
            "|G|": recorded.gradient_norm}  # fmt: skip
    traces = lines(sums, "legend")
    traces[1] |= {"fill": "tonexty", "fillcolor": "rgba(127, 127, 127, 0.2)"}
    title = "Norms: Σ over layers of ‖·‖₁ / size\nbetween the sums: the dissolving norm"
    shown = {recorded.names[i]: i for i in shown_layers(recorded)}
    highest = [
        trace | {"line": trace["line"] | {"dash": dash}}
        for values, dash in (
            (recorded.highest_gradient, "solid"), (recorded.highest_accumulated, "dash"),
        )
        for trace in lines({name: values[i] for name, i in shown.items()}, "legend2")
    ]  # fmt: skip
    words = "Highest elements, over the layer's largest |A|\nsolid: |G|, dashed: |A|"
    panels = [
        Panel(title, traces, titled("epoch"), {"rangemode": "tozero"}),
        Panel(words, highest, titled("epoch"), {"rangemode": "tozero"}),
    ]
    legend = {"orientation": "h", "y": -0.08, "yanchor": "top"}
    return figure(panels, columns=1, height=270, legend2=legend)
