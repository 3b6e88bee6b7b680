"""The sums of an epoch's gradients, layer by layer, written while a run goes on.

For epoch e and layer l: G, the sum of the epoch's gradients; A, the sum of G over the epochs so
far; D = sum |G| - |A| >= 0, what the epochs' gradients took from one another ("dissolving").
"""

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from gnp.training.files import FileFormatError, replaced
from gnp.training.mesh import WHOLE
from gnp.training.state import TrainState, leaf_names
from optimizer import GradientEvolution, end_epoch

FOLDER = "evolution"
FIELDS = ("gradient", "accumulated", "dissolving")
# A network of so few parameters has pictures of all elements, a larger one of so many cells a side.
SMALL, CELLS = 2**16, 32


def summarize(evolution: GradientEvolution) -> dict[str, Any]:
    """Return an epoch's numbers of each layer: mean and maximum of |G|, |A|, D, and pictures.

    Args:
        evolution: Of an epoch, with L layers.

    Returns:
        "steps" [], and for each of gradient, accumulated, dissolving: "mean/FIELD" [L],
        "max/FIELD" [L], "map/FIELD" (a list of L matrices: all elements, or, of a network with more
        than 65,536, at most 32 x 32 cells; see `cells`).

    Example:
        >>> ones = {"w": jnp.ones((2, 3))}
        >>> found = summarize(GradientEvolution(ones, ones, ones, jnp.int32(4)))
        >>> float(found["mean/gradient"][0]), found["map/accumulated"][0].shape
        (1.0, (2, 3))
    """
    gradient = [jnp.abs(x) for x in jax.tree.leaves(evolution.epoch)]
    accumulated = [jnp.abs(x) for x in jax.tree.leaves(evolution.running)]
    absolute = jax.tree.leaves(evolution.absolute)
    # Rounding may take it below zero where nothing dissolved.
    dissolving = [jnp.maximum(total - a, 0) for total, a in zip(absolute, accumulated, strict=True)]
    most = most_cells(sum(x.size for x in gradient))
    found: dict[str, Any] = {"steps": evolution.steps}
    for field, layers in zip(FIELDS, (gradient, accumulated, dissolving), strict=True):
        found[f"mean/{field}"] = jnp.stack([x.mean() for x in layers])
        found[f"max/{field}"] = jnp.stack([x.max() for x in layers])
        found[f"map/{field}"] = [cells(x, most) for x in layers]
    return found


def most_cells(parameters: int) -> int:
    """Return how many cells a side the pictures of a network may have."""
    return SMALL if parameters <= SMALL else CELLS


def cells(values: Any, most: int = CELLS) -> Any:
    """Lay an array out as a matrix, cut it into cells, and return each cell's largest value.

    Rows are the leading axes, columns the last one; a vector is one row. All cells are of one
    size, the smallest that gives at most `most` of them along a side; the last ones may be cut off.

    Args:
        values: Any rank, not negative; of JAX or numpy.
        most: Cells along a side.

    Returns:
        A matrix with at most `most` rows and columns.

    Example:
        >>> cells(np.arange(5.0), most=2)
        array([[2., 4.]])
    """
    columns = values.shape[-1] if values.ndim else 1
    matrix = values.reshape(-1, columns)
    height, width = (max(1, math.ceil(n / most)) for n in matrix.shape)
    pad = jnp.pad if isinstance(values, jax.Array) else np.pad
    matrix = pad(matrix, [(0, -matrix.shape[0] % height), (0, -columns % width)])
    rows, columns = matrix.shape
    return matrix.reshape(rows // height, height, columns // width, width).max((1, 3))


def _end_epoch(opt_state: Any) -> tuple[dict[str, Any], Any]:
    evolution, opt_state = end_epoch(opt_state)
    return summarize(evolution), opt_state


class EvolutionWriter:
    """Write a file an epoch into DIR/evolution/.

    Args:
        directory: The run directory.
        abstract_state: Shapes and shardings of the state, whose optimizer has a recorder.
        from_epoch: Files of later epochs are removed: they will be written again.
        active: False: the recorder is read, as all processes must, and nothing is written.

    Raises:
        FileFormatError: a file of an epoch up to `from_epoch` is missing.
    """

    def __init__(
        self, directory: Path, abstract_state: TrainState, from_epoch: int = 0, active: bool = True
    ) -> None:
        self.folder, self.active = directory / FOLDER, active
        leaves = jax.tree.leaves(abstract_state.params)
        self.names = leaf_names(abstract_state.params)
        self.sizes = tuple(leaf.size for leaf in leaves)
        # The optimizer's state stays where it is; every process has the numbers whole.
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state.opt_state)
        whole = NamedSharding(leaves[0].sharding.mesh, WHOLE)
        self._end_epoch = jax.jit(_end_epoch, donate_argnums=0, out_shardings=(whole, shardings))
        if active:
            self._remove_after(directory, from_epoch)

    def _remove_after(self, directory: Path, from_epoch: int) -> None:
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob(".epoch_*"):  # of a process that was killed as it wrote
            left.unlink()
        files = epoch_files(directory)
        for epoch in range(1, from_epoch + 1):
            if epoch not in files:
                raise FileFormatError(
                    f"{self.folder} lacks epoch {epoch}, which this run has recorded: put "
                    "its file back, or start over with --config.retrain=True"
                )
        for epoch, path in files.items():
            if epoch > from_epoch:
                path.unlink()

    def __call__(self, state: TrainState, epoch: int) -> TrainState:
        """Write an epoch, and return the state that begins the next one.

        Args:
            state: Its `opt_state` is donated.
            epoch: From 1 on.
        """
        found, opt_state = self._end_epoch(state.opt_state)
        if self.active:
            flat: dict[str, Any] = {"names": np.array(self.names), "sizes": np.array(self.sizes)}
            for name, value in jax.device_get(found).items():
                if isinstance(value, list):
                    flat |= {f"{name}/{i}": layer for i, layer in enumerate(value)}
                else:
                    flat[name] = value
            write_npz(self.folder / f"epoch_{epoch:05d}.npz", flat)
        return state._replace(opt_state=opt_state)


def epoch_files(directory: Path) -> dict[int, Path]:
    """Return epoch -> its file, in order, of a run directory."""
    found = {
        int(match[1]): path
        for path in (directory / FOLDER).glob("epoch_*.npz")
        if (match := re.fullmatch(r"epoch_([0-9]{1,9})\.npz", path.name))
    }
    return dict(sorted(found.items()))


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz so that a reader, or a crash, sees the old one or the new one whole.

    Raises:
        OSError: it could not be written; the old file is untouched.
    """
    with replaced(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
