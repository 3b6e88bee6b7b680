"""sharpness.json and sharpness.npz of a run directory, which are not trusted when they are read."""

from pathlib import Path
from typing import Any

import numpy as np

from gnp.training.files import FileFormatError, read_arrays, read_json

_ANEW = "remove it, and measure the sharpness anew"
# Of what is drawn, each array's axes; those of one letter are of one length.
_AXES = {
    "step": "",
    "density_points": "p",
    "density": "p",
    "gradient_distances": "g",
    "gradient_losses": "g",
    "random_distances": "r",
    "random_losses": "dr",
    "contour_distances": "c",
    "contour_losses": "cc",
}


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a sharpness.json, one a checkpoint, by step; nothing without the file.

    Raises:
        FileFormatError: it is damaged.
        OSError: it cannot be read.
    """
    if not path.exists():
        return []
    found = read_json(path)
    if not isinstance(found, list) or not all(map(_is_checkpoint, found)):
        raise FileFormatError(f"{path} is no list of measured checkpoints; {_ANEW}")
    return sorted(found, key=lambda each: int(each["step"]))


def _is_checkpoint(value: Any) -> bool:
    """Tell whether it has a step, and numbers, lists of them, or nothing under its other names."""
    return (
        isinstance(value, dict)
        and type(value.get("step")) is int
        and all(
            each is None or isinstance(each, (int, float))
            for entry in value.values()
            for each in (entry if isinstance(entry, list) else [entry])
        )
    )


def read_drawn_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a sharpness.npz that pictures are of, float64; none without the file.

    Raises:
        FileFormatError: it is damaged.
        OSError: it cannot be read.
    """
    if not path.exists():
        return {}
    found, lengths = read_arrays(path, _AXES.__contains__), dict[str, int]()
    for name, axes in _AXES.items():
        array = found.get(name)
        if (
            array is None
            or array.dtype.kind not in "iuf"
            or array.ndim != len(axes)
            or any(
                lengths.setdefault(axis, length) != length or not length
                for axis, length in zip(axes, array.shape, strict=True)
            )
        ):
            raise FileFormatError(f"{path} is damaged: no {name} as it should be; {_ANEW}")
    return {name: array.astype(np.float64) for name, array in found.items()}
