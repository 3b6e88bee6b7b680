"""Checkpoints: asynchronous, atomic, checked when they are read."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from gnp.training import distributed
from gnp.training.files import first_line
from gnp.training.state import TrainState, leaf_names

_HASHES = "sha256.json"
_ITEMS = ("state", "progress")
# What orbax raises where files cannot be written or read: TensorStore's errors are ValueErrors.
_FILE_ERRORS = (OSError, ValueError)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; one line."""


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        step: steps taken until then.
        state: the arrays.
        progress: what the host keeps.
        warnings: a line for each newer one that is damaged.
    """

    step: int
    state: TrainState
    progress: dict[str, Any]
    warnings: list[str]


class Checkpoints:
    """Write and read the checkpoints of one run directory, in `DIR/checkpoints/STEP`.

    Writing goes on in the background; a checkpoint appears under its name only when it is
    complete, with the SHA-256 of each of its files in it, which reading compares. A context
    manager: leaving it waits for what is still being written. All processes make the same calls.

    Args:
        directory: the run directory.
        keep: how many of the newest are kept.
        read_only: nothing is written or removed.

    Example:
        >>> import tempfile
        >>> with Checkpoints(Path(tempfile.mkdtemp()), keep=2) as checkpoints:
        ...     checkpoints.steps()
        []
    """

    def __init__(self, directory: Path, keep: int = 3, read_only: bool = False) -> None:
        self.directory = directory.absolute() / "checkpoints"
        self._saving = -1
        self._read_only = read_only
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_hashes),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # A step that failed on the device may have lost another process, for which orbax waits.
        if not (jax.distributed.is_initialized() and isinstance(error, jax.errors.JaxRuntimeError)):
            self.close()

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Start to write a checkpoint; wait for the one before.

        Args:
            step: steps taken so far.
            state: the arrays; may be donated as soon as this returns.
            progress: JSON values that the host keeps.

        Raises:
            CheckpointError: this one or the one before could not be written.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_arrays(state)), progress=ocp.args.JsonSave(progress)
        )
        with self._writing():
            saved = self._manager.save(step, args=args)
        if not saved:
            raise CheckpointError(
                f"checkpoint {step} was not written to {self.directory}: there are later ones, of "
                f"{', '.join(map(str, self.steps()))}"
            )

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            CheckpointError: it could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def restore(self, abstract_state: TrainState, step: int | None = None) -> Restored | None:
        """Read the newest undamaged checkpoint, or that of a step; None where there is none.

        Damaged ones that are newer are removed, each with a warning in the result.

        Args:
            abstract_state: a state, or its shapes (jax.ShapeDtypeStruct), of the same structure.
            step: None: the newest.

        Raises:
            CheckpointError: the step has no checkpoint, all are damaged, or they are of
                another model.
        """
        chosen: int | None = None
        warnings: list[str] = []
        problem = ""
        if distributed.is_first():
            try:
                chosen, warnings = self._choose(step)
            except CheckpointError as error:
                problem = str(error)
        chosen, warnings, problem = distributed.broadcast((chosen, warnings, problem))
        if problem:  # all processes say so, and end
            raise CheckpointError(problem)
        if chosen is None:
            return None
        self._manager.reload()  # process 0 may have removed some
        return self._read(chosen, abstract_state, warnings)

    def close(self) -> None:
        """Wait, and let go of the directory.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        with self._writing():
            self._manager.close()

    def _choose(self, step: int | None) -> tuple[int | None, list[str]]:
        """Return the step to restore, if any, with warnings; remove what is newer and damaged."""
        steps = self.steps()
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"no checkpoint of step {step} in {self.directory}; there are: {there}"
            )
        damaged: dict[int, str] = {}
        for candidate in reversed(steps) if step is None else [step]:
            if damage := self._damage(candidate):
                damaged[candidate] = damage
                continue
            for each in damaged if not self._read_only else ():
                shutil.rmtree(self.directory / str(each))
            return candidate, [
                f"checkpoint {each} is damaged ({damage}): going on from the one before"
                for each, damage in damaged.items()
            ]
        if step is not None:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is damaged: {damaged[step]}"
            )
        if steps:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged, the newest one because "
                f"{damaged[steps[-1]]}; --config.retrain=True starts over"
            )
        return None, []

    def _read(self, step: int, abstract_state: TrainState, warnings: list[str]) -> Restored:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(abstract_state))
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        try:
            stored = self._manager.item_metadata(step)["state"]
            self._check_structure(step, _shapes(getattr(stored, "tree", stored)), _shapes(abstract))
            items = self._manager.restore(step, args=args)
        except _FILE_ERRORS as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {first_line(error)}"
            ) from error
        return Restored(step, TrainState(**items["state"]), items["progress"], warnings)

    def _check_structure(self, step: int, there: dict[str, Any], here: dict[str, Any]) -> None:
        """Refuse a checkpoint whose arrays differ, by path or shape, from the model's."""
        different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        if different:
            name = different[0]
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is of another model, optimizer or "
                f"version: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} in the config ({len(different)} such differences)"
            )

    def _write_hashes(self) -> None:
        """Write the digests into the step's folder, which still has its temporary name."""
        if distributed.is_first():
            final = self.directory / str(self._saving)
            folder = next(self.directory.glob(f"{final.name}.orbax-checkpoint-tmp*"), final)
            (folder / _HASHES).write_text(json.dumps(_hashes(folder)))

    def _damage(self, step: int) -> str | None:
        """Return what is wrong with a checkpoint's files; None: they are as they were written."""
        folder = self.directory / str(step)
        try:
            expected = json.loads((folder / _HASHES).read_text())
            actual = _hashes(folder)
        except _FILE_ERRORS as error:
            return f"{_HASHES}: {first_line(error)}"
        names = [name for name in expected | actual if expected.get(name) != actual.get(name)]
        return f"{names[0]} has changed or is missing" if names else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except _FILE_ERRORS as error:
            good = [step for step in self.steps() if step != self._saving]
            kept = f"the newest good one is of step {good[-1]}" if good else "there is none before"
            raise CheckpointError(
                f"checkpoint {self._saving} could not be written to {self.directory}: "
                f"{first_line(error)}; {kept}"
            ) from error


def _arrays(state: TrainState) -> dict[str, Any]:
    """Return a state's fields by name; without an average, as before there were any."""
    return {name: value for name, value in state._asdict().items() if value is not None}


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the items' files; what orbax adds beside the items is never read."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for item in _ITEMS
        for file in sorted((folder / item).rglob("*"))
        if file.is_file() and file.name != "commit_success.txt"
    }


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a tree, by its path."""
    named = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: tuple(leaf.shape) for name, leaf in named if hasattr(leaf, "shape")}


def read_checkpoint(
    directory: Path, abstract_state: TrainState, step: int | None = None
) -> Restored:
    """Read a checkpoint of a run directory, which is left as it is.

    Args:
        directory: Of the run.
        abstract_state: Shapes, dtypes and shardings of the state.
        step: None: the newest.

    Raises:
        CheckpointError: there is none, or it is damaged or of another model.
    """
    restored = None
    if (directory / "checkpoints").is_dir():
        with Checkpoints(directory, read_only=True) as checkpoints:
            restored = checkpoints.restore(abstract_state, step)
    if restored is None:
        raise CheckpointError(f"no checkpoint in {directory}: train first")
    return restored
