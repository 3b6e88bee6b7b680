"""Every step's gradient on disk: DIR/gradients/, a .npy file a layer and an index."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gnp.training.files import DAMAGED_ARRAYS, FileFormatError, opened, read_json, write_json
from gnp.training.state import leaf_names

FOLDER = "gradients"
INDEX = "index.json"
_DTYPE = np.dtype("<f4")
_ANEW = "start over with --config.retrain=True"


class DiskSpaceError(OSError):
    """The disk has no room for the gradients; one line."""


class Index(NamedTuple):
    """Contents of the files.

    Attributes:
        names: of the layers.
        files: their paths.
        shapes: of their parameters.
        steps_per_epoch: of the run.
        total_steps: rows of each file.
        steps: how many of them are written for certain; the others may be zeros.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    steps_per_epoch: int
    total_steps: int
    steps: int


def size_line(directory: Path, parameters: int, steps: int) -> str:
    """Return how much room the gradients are going to take, for the user.

    Example:
        >>> size_line(Path("runs/a"), 34826, 2340)
        '34,826 parameters x 2,340 steps x 4 bytes = 0.304 GiB in runs/a/gradients'
    """
    gib = parameters * steps * _DTYPE.itemsize / 2**30
    return (
        f"{parameters:,} parameters x {steps:,} steps x {_DTYPE.itemsize} bytes = {gib:.3g} GiB "
        f"in {directory / FOLDER}"
    )


def check_space(directory: Path, parameters: int, steps: int) -> None:
    """Raise unless the disk of a run directory has room for the gradients.

    Args:
        directory: Is there; the room that its gradients take already is used again.
        parameters: How many.
        steps: Of the whole run.

    Raises:
        DiskSpaceError: there is too little room.
    """
    there = sum(file.stat().st_blocks * 512 for file in (directory / FOLDER).glob("*.npy"))
    free = shutil.disk_usage(directory).free
    if parameters * steps * _DTYPE.itemsize - there > free:
        raise DiskSpaceError(
            f"record.steps = True needs {size_line(directory, parameters, steps)}, and "
            f"{(free + there) / 2**30:.3g} GiB are free there: choose another --working_dir, fewer "
            "epochs, or --config.record.steps=False"
        )


class GradientFiles:
    """Write a step's gradients as a row of each layer's file.

    `numpy.load(file, mmap_mode="r")` reads them at any time. A step whose update was dropped, as
    it was not finite, is NaN.

    Args:
        directory: The run directory.
        params: Parameters or their shapes; each leaf is a layer.
        steps_per_epoch: Of the run.
        total_steps: Of the run.
        from_step: Steps that are there already; the later ones are written again.

    Raises:
        FileFormatError: the files of those steps are missing, or of another model.
        OSError: they cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        params: Any,
        steps_per_epoch: int,
        total_steps: int,
        from_step: int = 0,
    ) -> None:
        self.folder = directory / FOLDER
        names = leaf_names(params)
        files = tuple(
            self.folder / f"{i:03d}_{name.replace('/', '.')}.npy" for i, name in enumerate(names)
        )
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(params))
        self.index = Index(names, files, shapes, steps_per_epoch, total_steps, from_step)
        if from_step == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            for file, shape in zip(files, self.index.shapes, strict=True):
                _make(file, (total_steps, *shape))
        elif read_index(directory)._replace(steps=from_step) != self.index:
            raise FileFormatError(f"{self.folder} is of another model or length; {_ANEW}")
        self._rows = [np.load(file, mmap_mode="r").offset for file in files]
        self._descriptors = [os.open(file, os.O_WRONLY) for file in files]
        self._write_index()

    def __call__(self, step: int, gradients: Any) -> None:
        """Write the gradients of a step.

        Args:
            step: from 1 on.
            gradients: a pytree like the parameters.
        """
        leaves = jax.tree.leaves(jax.device_get(gradients))
        for i, leaf in enumerate(leaves):
            data = np.asarray(leaf, _DTYPE).tobytes()
            try:
                _write_at(self._descriptors[i], data, self._rows[i] + (step - 1) * len(data))
            except OSError as error:
                raise DiskSpaceError(
                    f"{self.index.files[i]} cannot be written: {error.strerror}; make room, and "
                    "the same command goes on"
                ) from error
        self.index = self.index._replace(steps=step)

    def flush(self) -> None:
        """Return when everything is on the disk; a checkpoint may follow."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        self._write_index()

    def close(self) -> None:
        """Flush, and let go of the files."""
        self.flush()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _write_index(self) -> None:
        write_json(
            self.folder / INDEX,
            {**self.index._asdict(), "files": [file.name for file in self.index.files]},
        )


def read_index(directory: Path) -> Index:
    """Return the contents of a run directory's gradient files.

    Raises:
        FileFormatError: there are none, or one is missing, cut off or damaged; names it.
    """
    folder = directory / FOLDER
    try:
        index = _parse_index(read_json(folder / INDEX), folder)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError) as error:
        raise FileFormatError(f"{folder / INDEX} is missing or damaged; {_ANEW}") from error
    for file, shape in zip(index.files, index.shapes, strict=True):
        rows = read_rows(file)
        if rows.dtype != _DTYPE or rows.shape != (index.total_steps, *shape):
            raise FileFormatError(f"{file} is not what {folder / INDEX} says; {_ANEW}")
    return index


def _parse_index(values: Any, folder: Path) -> Index:
    """Return an index as JSON has it; TypeError, ValueError or KeyError where it is none."""
    names, files, shapes = ([*values[key]] for key in ("names", "files", "shapes"))
    numbers = [values[key] for key in ("steps_per_epoch", "total_steps", "steps")]
    every, total, steps = numbers
    if not (
        len(names) == len(files) == len(shapes)
        and all(isinstance(text, str) for text in names + files)
        and all(Path(file).name == file for file in files)  # none of another folder
        and all(type(n) is int for n in numbers + [n for shape in shapes for n in shape])
        and every > 0
        and 0 <= steps <= total
    ):
        raise ValueError("other values than are written")
    places = tuple(folder / file for file in files)
    return Index(tuple(names), places, tuple(map(tuple, shapes)), every, total, steps)


def read_rows(file: Path) -> np.ndarray:
    """Return a layer's gradients [steps, ...], read from the disk as they are used.

    Raises:
        FileFormatError: the file is missing or damaged.
        OSError: it cannot be read.
    """
    try:
        # A pipe would hang.
        with opened(file), warnings.catch_warnings(action="error", category=UserWarning):
            return np.lib.format.open_memmap(file, mode="r")
    except (FileNotFoundError, *DAMAGED_ARRAYS) as error:
        raise FileFormatError(f"{file} is missing or damaged; {_ANEW}") from error


def _make(file: Path, shape: tuple[int, ...]) -> None:
    """Make a .npy file of zeros that takes no room yet."""
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(
            out, {"shape": shape, "fortran_order": False, "descr": _DTYPE.str}
        )
        out.truncate(out.tell() + int(np.prod(shape)) * _DTYPE.itemsize)


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    """Write unbuffered, so that it outlives the process; a full disk would kill a memory map."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        view, place = view[written:], place + written
