"""The evolution of a recorded run's gradients, small enough for a page."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from gnp.analysis.evolution_numbers import load_evolution, verdicts
from gnp.analysis.report.figures import evenly, rounded
from gnp.analysis.report.groups import Group
from gnp.analysis.report.runs import Run
from gnp.terminal import describe
from gnp.training.evolution import FIELDS, epoch_files
from gnp.training.files import FileFormatError

MOST_RUNS = 8
MOST_LAYERS = 16
MOST_CELLS = 3_000_000  # of all heatmaps on the page; a byte each


def evolutions(groups: Sequence[Group]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a recorded run of each group, for the page's script; and what could not be read.

    Args:
        groups: of the page; the first MOST_RUNS that recorded are taken.
    """
    recorded = [
        (group, next((run for run in group.measured if epoch_files(run.path)), None))
        for group in groups
    ]
    there = [(group, run) for group, run in recorded if run is not None]
    chosen, more = there[:MOST_RUNS], len(there) - MOST_RUNS
    found, warnings = [], []
    if more > 0:
        warnings.append(f"gradients are shown of {MOST_RUNS} groups; {more} more recorded theirs")
    for group, run in chosen:
        try:
            found.append(evolution(run, group.name, MOST_CELLS // len(chosen)))
        except (FileFormatError, OSError) as error:
            warnings.append(f"no gradient evolution: {describe(error)}")
    return found, warnings


def evolution(run: Run, name: str, most_cells: int) -> dict[str, Any]:
    """Read one run's evolution.

    Args:
        run: a recorded one.
        name: to choose it by.
        most_cells: of its heatmaps; epochs are left out beyond.

    Raises:
        FileFormatError: its files are damaged.
    """
    recorded = load_evolution(run.path)
    layers = sorted(np.argsort(-recorded.sizes, kind="stable")[:MOST_LAYERS].tolist())
    cells = sum(recorded.maps[field][i][0].size for field in FIELDS for i in layers)
    shown = evenly(len(recorded.map_epochs), max(2, most_cells // max(cells, 1)))
    return {
        "name": name,
        "epochs": recorded.epochs.tolist(),
        "norms": {
            "gradient": _list(recorded.gradient_norm),
            "accumulated": _list(recorded.accumulated_norm),
            "summed": _list(recorded.summed_norm),
        },
        "frames": recorded.map_epochs[shown].tolist(),
        "hidden": len(recorded.sizes) - len(layers),
        "verdicts": [verdict._asdict() for verdict in verdicts(recorded)],
        "layers": [
            {
                "name": recorded.names[i],
                "size": int(recorded.sizes[i]),
                "highest": {
                    "gradient": _list(recorded.highest_gradient[i]),
                    "accumulated": _list(recorded.highest_accumulated[i]),
                },
                "maps": {field: heatmap(recorded.maps[field][i][shown]) for field in FIELDS},
            }
            for i in layers
        ],
    }


def heatmap(values: np.ndarray) -> dict[str, Any]:
    """Return frames of a heatmap as bytes: 255 is the largest value of all frames.

    Args:
        values: [frames, rows, columns], not negative.

    Example:
        >>> heatmap(np.array([[[0.0, 2.0]]]))
        {'shape': [1, 1, 2], 'largest': 2.0, 'bytes': 'AP8='}
    """
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0)
    largest = float(values.max())
    bytes_ = np.rint(values / (largest or 1.0) * 255).astype(np.uint8).tobytes()
    return {
        "shape": list(values.shape),
        "largest": rounded(largest),
        "bytes": base64.b64encode(bytes_).decode(),
    }


def _list(values: np.ndarray) -> list[float | None]:
    return [rounded(value) for value in values]
