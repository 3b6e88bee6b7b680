"""The numbers of a recorded run: norms, highest elements, and what they say."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gnp.terminal import one_line
from gnp.training.evolution import CELLS, FIELDS, FOLDER, cells, epoch_files
from gnp.training.files import FileFormatError, read_arrays
from gnp.training.gradient_files import FOLDER as GRADIENTS
from gnp.training.gradient_files import INDEX, Index, read_index
from gnp.training.gradient_files import read_rows as read_gradients

# Steps that are read at once take up to so many bytes, in float64.
_CHUNK = 2**25
# Epochs whose pictures are kept.
MAPS = 40
_ANEW = "put it back, or record the run anew with --config.retrain=True"


class Evolution(NamedTuple):
    r"""Sums of a run's gradients, for E epochs and L layers.

    With G_l(e) the sum of epoch e's gradients of layer l and A_l(e) = G_l(1) + ... + G_l(e):

    .. math::
        s_l = \max_e \max |A_l(e)| \quad (1 \text{ where that is } 0)

    Attributes:
        names: of the layers.
        sizes: elements of each; [L].
        epochs: their numbers; [E].
        steps: of each epoch; [E].
        gradient_norm: standardized L1 norm of G, the sum over l of ‖G_l‖₁/size_l; [E].
        accumulated_norm: the same of A; [E].
        summed_norm: the running sum of gradient_norm; [E].
        dissolving_norm: summed_norm - accumulated_norm; [E].
        scale: s; [L].
        highest_gradient: max |G_l| / s_l; [L, E].
        highest_accumulated: max |A_l| / s_l; [L, E].
        highest_dissolving: max D_l / s_l, of the dissolving gradient D = Σ|G| - |A|; [L, E].
        map_epochs: the epochs that have pictures, at most 40, evenly spaced; [K].
        maps: gradient, accumulated, dissolving -> for each layer |G_l|, |A_l|, D_l as matrices of
            at most 32 x 32 cells, each the largest of its elements; [K, rows, columns].
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    epochs: np.ndarray
    steps: np.ndarray
    gradient_norm: np.ndarray
    accumulated_norm: np.ndarray
    summed_norm: np.ndarray
    dissolving_norm: np.ndarray
    scale: np.ndarray
    highest_gradient: np.ndarray
    highest_accumulated: np.ndarray
    highest_dissolving: np.ndarray
    map_epochs: np.ndarray
    maps: dict[str, list[np.ndarray]]


class Verdict(NamedTuple):
    """A claim of the article, held against a run's numbers.

    Attributes:
        claim: of the article.
        holds: None: the run is too short to tell.
        numbers: which say so.
    """

    claim: str
    holds: bool | None
    numbers: str


def load_evolution(directory: Path) -> Evolution:
    """Return the evolution of a run, from what it recorded of each epoch.

    Args:
        directory: of a run with config.record.gradients=True; it may be in progress.

    Raises:
        FileFormatError: nothing was recorded, or a file is damaged; names it.
    """
    return _evolution(read_evolution(directory))


def load_from_steps(directory: Path, every: int | None = None) -> Evolution:
    """Return the evolution of a run, computed in float64 from every step's gradient.

    The gradients are read in chunks; the memory is three times that of the largest layer.

    Args:
        directory: of a run with config.record.steps=True.
        every: steps that count as an epoch here; None: those of the run. The steps of an epoch
            that is not complete are left out.

    Raises:
        FileFormatError: the files are missing or damaged, or hold not one epoch.
    """
    index = read_index(directory)
    every = every or index.steps_per_epoch
    if index.steps < every:
        raise FileFormatError(
            f"{directory / GRADIENTS} holds {index.steps} steps, and an epoch has {every}: train on"
        )
    return _evolution(_from_steps(index, every))


def has_steps(directory: Path) -> bool:
    """Tell whether a run directory holds every step's gradient."""
    return (directory / GRADIENTS / INDEX).exists()


def map_epochs(epochs: int, most: int = MAPS) -> list[int]:
    """Choose the epochs, counted from 0, whose pictures are read: all, or evenly spaced ones.

    Args:
        epochs: How many there are.
        most: How many are read, the first and the last among them.

    Example:
        >>> map_epochs(3), map_epochs(9, most=3)
        ([0, 1, 2], [0, 4, 8])
    """
    chosen = np.linspace(0, epochs - 1, min(epochs, most)).round().astype(int)
    return list(map(int, chosen))


def read_evolution(directory: Path) -> dict[str, Any]:
    """Read all epochs of a run directory.

    Returns:
        "names" [L], "sizes" [L], "epochs" [E], "steps" [E], "mean/FIELD" [E, L],
        "max/FIELD" [E, L], and of K epochs their pictures: "map_epochs" [K], and "map/FIELD", a
        list of L arrays [K, rows, columns]. See `summarize`.

    Raises:
        FileFormatError: no epoch was recorded, or a file is missing or damaged; names it.
    """
    files = epoch_files(directory)
    if not files:
        raise FileFormatError(
            f"{directory} has no recorded gradients: train it with --config.record.gradients=True"
        )
    for expected, number in enumerate(files, start=1):
        if number != expected:
            raise FileFormatError(
                f"{directory / FOLDER} lacks epoch {expected}: put its file back, or record the "
                "run anew"
            )
    shown = map_epochs(len(files))
    epochs = [_read_epoch(path, number in shown) for number, path in enumerate(files.values())]
    first = epochs[0]
    for path, epoch in zip(files.values(), epochs, strict=True):
        # Whatever the epochs that are shown have, the first has.
        if not all(
            np.array_equal(value, first[name])
            if name in ("names", "sizes")
            else value.shape == first[name].shape
            for name, value in epoch.items()
        ):
            raise FileFormatError(f"{path} is of another model than {files[1]}")
    together = {
        name: np.stack([epoch[name] for epoch in epochs])
        for name in first
        if not name.startswith("map/") and name not in ("names", "sizes")
    }
    maps = {
        f"map/{field}": [
            np.stack([epochs[k][f"map/{field}/{i}"] for k in shown])
            for i in range(len(first["names"]))
        ]
        for field in FIELDS
    }
    return {
        "names": first["names"],
        "sizes": first["sizes"],
        "epochs": np.array(list(files)),
        "map_epochs": np.array(list(files))[shown],
        **together,
        **maps,
    }


def _read_epoch(path: Path, with_maps: bool) -> dict[str, np.ndarray]:
    """Read the arrays of an epoch's file."""
    found = read_arrays(path, lambda name: with_maps or not name.startswith("map/"))
    layers = found["names"].size if "names" in found else 0
    # Name -> kind and rank; all but the pictures have a value a layer.
    wanted = {"names": ("U", 1), "sizes": ("iu", 1), "steps": ("iu", 0)}
    wanted |= {f"{kind}/{field}": ("f", 1) for kind in ("mean", "max") for field in FIELDS}
    if with_maps:
        wanted |= {f"map/{field}/{i}": ("f", 2) for field in FIELDS for i in range(layers)}
    for name, (kind, rank) in wanted.items():
        array = found.get(name, np.array(None))
        if (
            array.dtype.kind not in kind
            or array.ndim != rank
            or (rank == 1 and not 0 < array.size == layers)
            or (rank == 2 and not 0 < min(array.shape) <= max(array.shape) <= CELLS)
            or (kind != "U" and (array < 0).any())
        ):
            raise FileFormatError(f"{path} is damaged: no {name} as it should be; {_ANEW}")
    return {name: found[name] for name in wanted}


@np.errstate(over="ignore", invalid="ignore")  # of a run that diverged
def _evolution(found: dict[str, Any]) -> Evolution:
    """Return the evolution from what `read_evolution` gives."""
    mean = {field: found[f"mean/{field}"].astype(np.float64) for field in FIELDS}
    highest = {field: found[f"max/{field}"].astype(np.float64).T for field in FIELDS}
    gradient_norm, accumulated_norm = mean["gradient"].sum(1), mean["accumulated"].sum(1)
    summed_norm = np.cumsum(gradient_norm)
    scale = highest["accumulated"].max(1)
    scale[scale == 0] = 1.0
    return Evolution(
        names=tuple(map(one_line, found["names"])),
        sizes=found["sizes"],
        epochs=found["epochs"],
        steps=found["steps"],
        gradient_norm=gradient_norm,
        accumulated_norm=accumulated_norm,
        summed_norm=summed_norm,
        dissolving_norm=summed_norm - accumulated_norm,
        scale=scale,
        highest_gradient=highest["gradient"] / scale[:, None],
        highest_accumulated=highest["accumulated"] / scale[:, None],
        highest_dissolving=highest["dissolving"] / scale[:, None],
        map_epochs=found["map_epochs"],
        maps={field: found[f"map/{field}"] for field in FIELDS},
    )


@np.errstate(over="ignore", invalid="ignore")
def _from_steps(index: Index, every: int) -> dict[str, Any]:
    """Compute what `read_evolution` gives from the steps' gradients."""
    epochs, layers = index.steps // every, len(index.names)
    shown = map_epochs(epochs)
    found: dict[str, Any] = {
        f"{kind}/{field}": np.zeros((epochs, layers))
        for kind in ("mean", "max")
        for field in FIELDS
    }
    maps: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
    bar = tqdm(total=layers * epochs, desc="reading gradients", unit="epoch", disable=None)
    for layer, file in enumerate(index.files):
        pictures: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
        for epoch, sums in enumerate(_epoch_sums(read_gradients(file), every, epochs)):
            for field, values in zip(FIELDS, sums, strict=True):
                found[f"mean/{field}"][epoch, layer] = values.mean()
                found[f"max/{field}"][epoch, layer] = values.max()
                if epoch in shown:
                    pictures[field].append(cells(values))
            bar.update()
        for field in FIELDS:
            maps[field].append(np.stack(pictures[field]))
    bar.close()
    numbers = np.arange(1, epochs + 1)
    return {
        **found,
        **{f"map/{field}": maps[field] for field in FIELDS},
        "names": np.array(index.names),
        "sizes": np.array([int(np.prod(shape)) for shape in index.shapes]),
        "epochs": numbers,
        "map_epochs": numbers[shown],
        "steps": np.full(epochs, every),
    }


def _epoch_sums(
    rows: np.ndarray, every: int, epochs: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return |G|, |A| and D of each epoch, from a layer's gradients [steps, ...]."""
    shape = rows.shape[1:]
    accumulated, absolute = np.zeros(shape), np.zeros(shape)
    chunk = max(1, _CHUNK // (8 * max(1, int(np.prod(shape)))))
    for epoch in range(epochs):
        gradient = np.zeros(shape)
        end = (epoch + 1) * every
        for start in range(epoch * every, end, chunk):
            part = np.asarray(rows[start : min(start + chunk, end)], np.float64)
            # NaN: a step whose update was dropped.
            gradient += np.nan_to_num(part, copy=False, nan=0.0).sum(0)
        accumulated += gradient
        absolute += np.abs(gradient)
        dissolving = np.maximum(absolute - np.abs(accumulated), 0)
        yield np.abs(gradient), np.abs(accumulated), dissolving


def verdicts(evolution: Evolution) -> list[Verdict]:
    """Hold what the article reports of six data sets against a run's numbers."""
    return [
        Verdict("the norm of the accumulated gradient grows slower than linearly",
                *_sublinear(evolution)),
        Verdict("the gradient's norm falls over the epochs", *_falls(evolution)),
        Verdict("the layers' highest elements separate", *_separate(evolution)),
    ]  # fmt: skip


def growth_exponent(epochs: np.ndarray, norms: np.ndarray) -> float:
    """Return the exponent p of the least-squares fit norm = c·epochᵖ, on logarithms.

    Args:
        epochs: from 1 on; at least 2.
        norms: positive.

    Example:
        >>> round(growth_exponent(np.array([1.0, 4.0, 9.0]), np.array([2.0, 4.0, 6.0])), 6)
        0.5
    """
    return float(np.polyfit(np.log(epochs), np.log(norms), 1)[0])


def _sublinear(evolution: Evolution) -> tuple[bool | None, str]:
    norms = evolution.accumulated_norm
    if len(norms) < 3 or not (np.isfinite(norms) & (norms > 0)).all():
        return None, "it takes three epochs of gradients to tell"
    exponent = growth_exponent(evolution.epochs, norms)
    return exponent < 1, f"fitted exponent {exponent:.2f} (1: linear)"


def _falls(evolution: Evolution) -> tuple[bool | None, str]:
    norms = evolution.gradient_norm
    if len(norms) < 2 or not (np.isfinite(norms[[0, -1]]).all() and norms[0] > 0):
        return None, "it takes two epochs to tell"
    ratio = norms[-1] / norms[0]
    return bool(ratio < 1), f"last over first {ratio:.3g}"


def _separate(evolution: Evolution) -> tuple[bool | None, str]:
    """Tell whether the layers' lines lie further apart in the last epoch than in the first."""
    spreads = [_spread(evolution.highest_gradient[:, epoch]) for epoch in (0, -1)]
    if len(evolution.epochs) < 2 or None in spreads:
        return None, "it takes two epochs and two layers to tell"
    first, last = (float(spread or 0) for spread in spreads)
    return last > first, f"largest over smallest: {first:.3g} at first, {last:.3g} at last"


def _spread(values: np.ndarray) -> float | None:
    """Return the largest over the smallest, layers without gradients left out."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(positive.max() / positive.min()) if len(positive) > 1 else None


def table(evolution: Evolution) -> str:
    """Return evolution.csv: a row an epoch."""
    norms = ("gradient_norm", "accumulated_norm", "summed_norm", "dissolving_norm")
    highest = ("highest_gradient", "highest_accumulated")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["epoch", "steps", *norms]
        + [f"{kind}/{name}" for kind in highest for name in evolution.names]
    )
    show: Callable[[float], str] = lambda value: f"{value:.9g}"  # noqa: E731
    for k, (epoch, steps) in enumerate(zip(evolution.epochs, evolution.steps, strict=True)):
        values = [getattr(evolution, name)[k] for name in norms]
        for kind in highest:
            values += list(getattr(evolution, kind)[:, k])
        writer.writerow([int(epoch), int(steps), *map(show, values)])
    return out.getvalue()


@np.errstate(over="ignore")
def arrays(evolution: Evolution) -> dict[str, np.ndarray]:
    """Return evolution.npz: every attribute by its name, the pictures as `maps/FIELD/LAYER`."""
    flat = {k: np.asarray(v) for k, v in evolution._asdict().items() if k != "maps"}
    for field, layers in evolution.maps.items():
        for name, layer in zip(evolution.names, layers, strict=True):
            flat[f"maps/{field}/{name}"] = layer.astype(np.float32)
    return flat
