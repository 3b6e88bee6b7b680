"""The numbers of a recorded run: norms, highest elements, and what they say."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gnp.terminal import one_line
from gnp.training.evolution import FIELDS, FOLDER, SMALL, cells, epoch_files, most_cells
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
        maps: gradient, accumulated, dissolving -> for each layer |G_l|, |A_l|, D_l as matrices;
            of a network with more than 65,536 parameters of at most 32 x 32 cells, each the
            largest of its elements; [K, rows, columns].
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


def evenly_spaced(count: int, most: int = MAPS) -> list[int]:
    """Return at most so many of the indices below count, the first and the last among them.

    Example:
        >>> evenly_spaced(3), evenly_spaced(9, most=3)
        ([0, 1, 2], [0, 4, 8])
    """
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


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
    shown = evenly_spaced(len(files))
    epochs = [_read_epoch(path, number in shown) for number, path in enumerate(files.values())]
    first, numbers = epochs[0], np.array(list(files))
    for path, epoch in zip(files.values(), epochs, strict=True):
        # Of a run that an earlier version began, the first epochs have cells in any case.
        epoch |= {
            name: cells(value)
            for name, value in epoch.items()
            if name.startswith("map/") and value.shape != first.get(name, value).shape
        }
        # Whatever the epochs that are shown have, the first has.
        if not all(
            np.array_equal(value, first[name])
            if name in ("names", "sizes")
            else value.shape == first[name].shape
            for name, value in epoch.items()
        ):
            raise FileFormatError(f"{path} is of another model than {files[1]}")
    names = [name for name in first if not name.startswith("map/")]
    found: dict[str, Any] = {name: np.stack([epoch[name] for epoch in epochs]) for name in names}
    for field in FIELDS:
        found[f"map/{field}"] = [
            np.stack([epochs[k][f"map/{field}/{i}"] for k in shown])
            for i in range(len(first["names"]))
        ]
    found |= {"names": first["names"], "sizes": first["sizes"]}
    return found | {"epochs": numbers, "map_epochs": numbers[shown]}


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
            or (rank == 2 and not 0 < array.size <= SMALL)
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
    sizes = np.array([int(np.prod(shape)) for shape in index.shapes])
    shown, most = evenly_spaced(epochs), most_cells(int(sizes.sum()))
    found: dict[str, Any] = {
        f"{kind}/{field}": np.zeros((epochs, layers))
        for kind in ("mean", "max")
        for field in FIELDS
    }
    found |= {f"map/{field}": [] for field in FIELDS}
    bar = tqdm(total=layers * epochs, desc="reading gradients", unit="epoch", disable=None)
    for layer, file in enumerate(index.files):
        pictures: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS}
        for epoch, sums in enumerate(_epoch_sums(read_gradients(file), every, epochs)):
            for field, values in zip(FIELDS, sums, strict=True):
                found[f"mean/{field}"][epoch, layer] = values.mean()
                found[f"max/{field}"][epoch, layer] = values.max()
                if epoch in shown:
                    pictures[field].append(cells(values, most))
            bar.update()
        for field in FIELDS:
            found[f"map/{field}"].append(np.stack(pictures[field]))
    bar.close()
    numbers = np.arange(1, epochs + 1)
    return found | {
        "names": np.array(index.names),
        "sizes": sizes,
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
    norms, sums = evolution.gradient_norm, evolution.accumulated_norm
    grows: tuple[bool | None, str] = None, "it takes three epochs of gradients to tell"
    if len(sums) >= 3 and (np.isfinite(sums) & (sums > 0)).all():
        exponent = float(np.polyfit(np.log(evolution.epochs), np.log(sums), 1)[0])
        grows = exponent < 1, f"fitted exponent {exponent:.2f} (1: linear)"

    falls: tuple[bool | None, str] = None, "it takes two epochs to tell"
    if len(norms) >= 2 and np.isfinite(norms[[0, -1]]).all() and norms[0] > 0:
        ratio = norms[-1] / norms[0]
        falls = bool(ratio < 1), f"last over first {ratio:.3g}"

    separate: tuple[bool | None, str] = None, "it takes two epochs of gradients to tell"
    # In the first epoch both are the same. Layers without gradients are left out.
    moves = (evolution.highest_accumulated > 0).any(1)
    gradient, accumulated = evolution.highest_gradient[moves], evolution.highest_accumulated[moves]
    if len(norms) >= 2 and moves.any() and np.isfinite([gradient, accumulated]).all():
        most, least = float(gradient[:, -1].max()), float(accumulated[:, -1].min())
        words = f"at the end, gradients at most {most:.3g}, accumulated at least {least:.3g}"
        separate = most < least, words
    return [
        Verdict("the norm of the accumulated gradient grows slower than linearly", *grows),
        Verdict("the gradient's norm falls over the epochs", *falls),
        Verdict("the highest elements of gradients and accumulated gradients separate", *separate),
    ]


def table(evolution: Evolution) -> str:
    """Return evolution.csv: a row an epoch."""
    columns = {"epoch": evolution.epochs, "steps": evolution.steps}
    for name in ("gradient_norm", "accumulated_norm", "summed_norm", "dissolving_norm"):
        columns[name] = getattr(evolution, name)
    for kind in ("highest_gradient", "highest_accumulated"):
        pairs = zip(evolution.names, getattr(evolution, kind), strict=True)
        columns |= {f"{kind}/{name}": values for name, values in pairs}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    rows = zip(*columns.values(), strict=True)
    writer.writerows([f"{value:.9g}" for value in row] for row in rows)
    return out.getvalue()


@np.errstate(over="ignore")
def arrays(evolution: Evolution) -> dict[str, np.ndarray]:
    """Return evolution.npz: every attribute by its name, the pictures as `maps/FIELD/LAYER`."""
    flat = {k: np.asarray(v) for k, v in evolution._asdict().items() if k != "maps"}
    for field, layers in evolution.maps.items():
        for name, layer in zip(evolution.names, layers, strict=True):
            flat[f"maps/{field}/{name}"] = layer.astype(np.float32)
    return flat
