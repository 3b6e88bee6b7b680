"""A picture of every augmentation, on a photograph that scikit-learn brings along.

python -m gnp.analysis.augmentations --out=docs/augmentations.png
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from ds_pipeline import Batch
from ds_pipeline.augment import Augment, Mix, get_augment, get_erase, get_mix
from ds_pipeline.augment.operations import OPERATIONS, cutout_gray
from ds_pipeline.augment.policies import parameter
from gnp.analysis.command_line import Parser, local_path, run
from gnp.analysis.figure_files import picture
from gnp.terminal import prepare_streams

_SIDE = 96
_COLUMNS = 6
_LEVEL = 9
# Decimals and unit of each operation's parameter.
_UNITS: dict[str, tuple[int, str]] = {
    "Posterize": (0, "bits"),
    "Solarize": (0, "threshold"),
    "SolarizeAdd": (0, "added"),
    "Rotate": (0, "degrees"),
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), (2, "times")),
    **dict.fromkeys(("ShearX", "ShearY"), (2, "slope")),
    **dict.fromkeys(("TranslateX", "TranslateY", "Cutout"), (0, "pixels")),
}


class Panel(NamedTuple):
    """One picture of the grid.

    Attributes:
        name: of the augmentation.
        strength: its parameter with a unit, or what it is.
        image: uint8 [h, w, 3].
    """

    name: str
    strength: str
    image: np.ndarray


def draw_panels() -> list[Panel]:
    """Return the photograph, what each operation makes of it, and the named augmentations.

    Example:
        >>> [panel.name for panel in draw_panels()][:3]
        ['original', 'AutoContrast', 'Equalize']
    """
    image, partner = (_photograph(name) for name in ("china.jpg", "flower.jpg"))
    panels = [Panel("original", f"{_SIDE} x {_SIDE} pixels", image)]
    panels += [_operation(name, image) for name in (*OPERATIONS, "Cutout")]
    panels += _named(image, partner)
    return panels


def plot_augmentations(path: Path) -> None:
    """Draw all panels with their names as a PNG, replaced whole; OSError where it cannot be."""
    panels = draw_panels()
    rows = math.ceil(len(panels) / _COLUMNS)
    with picture(path, (2 * _COLUMNS, 2.45 * rows), dpi=90) as figure:
        axes = figure.subplots(rows, _COLUMNS, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, panel in zip(axes.flat, panels, strict=False):
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(f"{panel.name}\n{panel.strength}", fontsize=10, loc="center")


def _photograph(name: str) -> np.ndarray:
    """Return the middle square of a photograph, made smaller."""
    whole = Image.fromarray(load_sample_image(name))
    return np.array(ImageOps.fit(whole, (_SIDE, _SIDE), Image.Resampling.BOX))


def _operation(name: str, image: np.ndarray) -> Panel:
    value = parameter(name, _LEVEL, _SIDE, published=False)
    values = np.array([value])
    if name == "Cutout":
        place = np.array([_SIDE // 2])
        result = cutout_gray(image[None], values, place, place)[0]
    else:
        result = OPERATIONS[name](image[None], values)[0]
    if name not in _UNITS:
        return Panel(name, "no parameter", result)
    decimals, unit = _UNITS[name]
    return Panel(name, f"level {_LEVEL}: {value:.{decimals}f} {unit}", result)


def _named(image: np.ndarray, partner: np.ndarray) -> list[Panel]:
    batch, other = (
        {"input": x[None], "label": np.array([y])} for x, y in ((image, 0), (partner, 1))
    )
    panels, shape, dtype = list[Panel](), image.shape, image.dtype
    for name, strength in (
        ("basic", "flip, pad 4, crop"),
        ("autoaugment", "cifar, then basic"),
        ("randaugment", "2 of level 9, flip"),
        ("keras", "flips, turn, zoom"),
    ):
        augment = get_augment(name, shape=shape, dtype=dtype)
        panels.append(Panel(name, strength, _changed(augment, batch)))
    side, mean = _SIDE // 2, image.mean(axis=(0, 1))
    cutout = get_erase("cutout", shape=shape, mean=mean, dtype=dtype, cutout_size=side)
    panels.append(Panel("cutout", f"{side} pixels, mean", _changed(cutout, batch)))
    mixes = {name: get_mix(name, num_classes=2) for name in ("mixup", "cutmix")}
    return panels + [_mixed(name, mix, batch, other) for name, mix in mixes.items()]


def _changed(augment: Augment | None, batch: Batch) -> np.ndarray:
    """Return the first of examples 0, 1, 2, ... that differs much and still shows something."""
    assert augment is not None
    before = batch["input"][0]
    image = before
    for index in range(100):
        image = augment(batch, 0, 0, np.array([index]))["input"][0]
        if image.std() > 30 and np.abs(image.astype(float) - before).mean() > 40:
            break
    return np.asarray(image)


def _mixed(name: str, mix: Mix | None, batch: Batch, partner: Batch) -> Panel:
    """Return the first step that leaves the image between 60% and 70% of the weight."""
    assert mix is not None
    for step in range(100):
        mixed = mix(batch, partner, 0, step)
        weight = float(mixed["label"][0, 0])
        if 0.6 <= weight <= 0.7:
            break
    return Panel(
        name, f"label {weight:.2f} and {1 - weight:.2f}", mixed["input"][0].astype(np.uint8)
    )


def main(arguments: Sequence[str]) -> int:
    """Write the picture; return the exit code."""
    parser = Parser("python -m gnp.analysis.augmentations", "Draws every augmentation.")
    parser.add_argument("--out", type=local_path, required=True, help="the PNG to write")
    return run(lambda: plot_augmentations(parser.parse_args(arguments).out))


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
