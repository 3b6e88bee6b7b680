"""Checkpoints: asynchronous, atomic, checked when they are read."""

import hashlib
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from gnp.training import processes
from gnp.training.state import TrainState

_HASHES = "sha256.json"
_ITEMS = ("state", "progress")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; one line."""


class Restored(NamedTuple):
    """A checkpoint: its step, the state, what the host keeps, and a line a damaged newer one."""

    step: int
    state: TrainState
    progress: dict[str, Any]
    warnings: list[str]


class Checkpoints:
    """The checkpoints of one run directory, in `DIR/checkpoints/STEP`.

    Writing goes on in the background; a checkpoint appears under its name only when it is
    complete, with the SHA-256 of each of its files in it, which reading compares.

    Args:
        directory: the run directory.
        keep: how many of the newest are kept.
        read_only: nothing is written or removed.

    Example:
        >>> import tempfile
        >>> Checkpoints(Path(tempfile.mkdtemp()), keep=2).steps()
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

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint; waits for the one before.

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
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_arrays(state)),
                    progress=ocp.args.JsonSave(progress),
                ),
            )
        except Exception as error:
            raise self._write_error(error) from error
        if not saved:
            raise CheckpointError(
                f"checkpoint {step} was not written to {self.directory}: there are later ones, of "
                f"{', '.join(map(str, self.steps()))}"
            )

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which are going to be written again."""
        later = [each for each in processes.decide(self.steps) if each > step]
        if later:
            self._remove(later)

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error(error) from error

    def restore(self, like: TrainState, step: int | None = None) -> Restored | None:
        """The newest undamaged checkpoint, or the one of a step; None where there is none.

        Damaged ones that are newer are removed, each with a warning in the result.

        Args:
            like: a state, or its shapes (jax.ShapeDtypeStruct), of the same structure.
            step: None: the newest.

        Raises:
            CheckpointError: the step has no checkpoint, all are damaged, or they are of
                another model.
        """
        steps = processes.decide(self.steps)
        if step is not None:
            if step not in steps:
                there = ", ".join(map(str, steps)) or "none"
                raise CheckpointError(f"no checkpoint of step {step} in {self.directory}; "
                                      f"there are: {there}")  # fmt: skip
            damage = processes.decide(lambda: self._damage(step))
            if damage:
                raise CheckpointError(f"checkpoint {step} in {self.directory} is damaged: {damage}")
            return self._read(step, like, [])
        warnings: list[str] = []
        for candidate in reversed(steps):
            damage = processes.decide(partial(self._damage, candidate))
            if damage is None:
                if not self._read_only:
                    self._remove(steps[steps.index(candidate) + 1 :])
                return self._read(candidate, like, warnings)
            warnings.append(f"checkpoint {candidate} is damaged ({damage}): "
                            "going on from the one before")  # fmt: skip
        if steps:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged ({warnings[0]}); "
                "--config.retrain=True starts over"
            )
        return None

    def close(self) -> None:
        """Waits and lets go of the directory.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        try:
            self._manager.close()
        except Exception as error:
            raise self._write_error(error) from error

    def _read(self, step: int, like: TrainState, warnings: list[str]) -> Restored:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(like))
        self._check_structure(step, abstract)
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {_first_line(error)}"
            ) from error
        return Restored(step, TrainState(**items["state"]), items["progress"], warnings)

    def _check_structure(self, step: int, abstract: Any) -> None:
        """The checkpoint holds the same arrays, by path and shape, as the model asks for."""
        stored = self._manager.item_metadata(step)["state"]
        there = _shapes(getattr(stored, "tree", stored))
        here = _shapes(abstract)
        different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        if different:
            name = different[0]
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is of another model or optimizer: {name} "
                f"is {there.get(name, 'absent')} there and {here.get(name, 'absent')} in the "
                f"config ({len(different)} such differences)"
            )

    def _folder(self, step: int) -> Path:
        """The step's folder, under its temporary name while it is being written."""
        final = self.directory / str(step)
        return next(self.directory.glob(f"{step}.orbax-checkpoint-tmp*"), final)

    def _write_hashes(self) -> None:
        if processes.is_first():
            folder = self._folder(self._saving)
            (folder / _HASHES).write_text(json.dumps(_hashes(folder)))

    def _damage(self, step: int) -> str | None:
        folder = self.directory / str(step)
        try:
            expected = json.loads((folder / _HASHES).read_text())
            actual = _hashes(folder)
        except (OSError, ValueError) as error:
            return f"{_HASHES}: {_first_line(error)}"
        for name in sorted({*expected, *actual}):
            if name not in actual:
                return f"{name} is missing"
            if expected.get(name) != actual[name]:
                return f"{name} has changed"
        return None

    def _remove(self, steps: list[int]) -> None:
        def remove() -> None:
            for step in steps:
                shutil.rmtree(self.directory / str(step))

        processes.decide(remove)
        self._manager.reload()

    def _write_error(self, error: Exception) -> CheckpointError:
        good = [step for step in self.steps() if step != self._saving]
        kept = f"the newest good one is of step {good[-1]}" if good else "there is none before it"
        return CheckpointError(
            f"checkpoint {self._saving} could not be written to {self.directory}: "
            f"{_first_line(error)}; {kept}"
        )


def _arrays(state: TrainState) -> dict[str, Any]:
    """The parts of a state; without an average, as before there were any."""
    return {name: part for name, part in state._asdict().items() if part is not None}


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the items; what orbax adds after them describes, and is not read."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for item in _ITEMS
        for file in sorted((folder / item).rglob("*"))
        if file.is_file() and file.name != "commit_success.txt"
    }


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # TensorStore's messages name every layer; what the system said comes last.
    system = re.search(r"([^:]+) \[os_error_code=", lines[0])
    return system[1].strip() if system else lines[0][:300]
