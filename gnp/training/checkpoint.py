"""Checkpoints: asynchronous, atomic, checked when they are read."""

import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp

from gnp.terminal import describe, one_line
from gnp.training import distributed
from gnp.training.distributed import on_first
from gnp.training.early_stopping import BEST, best_step
from gnp.training.files import first_line, opened, read_json, sync_folder, write_atomic, write_json
from gnp.training.run_directory import PARTS_OF_A_CHECKPOINT, steps_with
from gnp.training.state import TrainState, leaf_names

_DIGESTS = "sha256.json"
_PROGRESS = "progress/metadata"
# Of every checkpoint; what other files hold the arrays is for orbax to decide.
_NEEDED = {"state/_METADATA", _PROGRESS}
# Orbax' name for what is not complete, in the folder of a step as well.
_UNFINISHED = ".orbax-checkpoint-tmp"
# What orbax raises where files cannot be written or read: TensorStore's errors are ValueErrors.
_FILE_ERRORS = (OSError, ValueError)
# And where it parses a description of the arrays that is not one.
_FORMAT_ERRORS = (
    *_FILE_ERRORS, TypeError, LookupError, AttributeError, RecursionError, NotImplementedError,
)  # fmt: skip


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
    complete and outlives a power failure, with the SHA-256 of each of its files in it, which
    reading compares. Other files, there or beside the checkpoints, are left alone. A context
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
        self._keep = keep
        self._read_only = read_only
        self._saving = -1
        self._written: Future[None] | None = None
        if not read_only:
            on_first(self._prepare, CheckpointError)
        self._thread = ThreadPoolExecutor(1)
        self._checkpointer = ocp.StandardCheckpointer(
            # In the background, orbax waits five minutes for a folder that could not be made.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # Orbax would wait for the other processes, which may have lost one to a step that failed on
        # the device, or to files that it could not write.
        lost = isinstance(error, (jax.errors.JaxRuntimeError, CheckpointError, OSError))
        if not (jax.distributed.is_initialized() and lost):
            self.close()

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, ascending."""
        return steps_with(self.directory, _DIGESTS)

    def save(
        self, step: int, state: TrainState, progress: dict[str, Any], best: int | None = None
    ) -> None:
        """Start to write a checkpoint; wait for the one before.

        Args:
            step: steps taken so far.
            state: the arrays; may be donated as soon as this returns.
            progress: JSON values that the host keeps.
            best: step of a checkpoint that is kept beside the newest.

        Raises:
            CheckpointError: this one or the one before could not be written.
        """
        self.wait()
        self._saving = step
        if on_first(lambda: self._begin(step, progress), CheckpointError):
            with self._writing():
                self._checkpointer.save(self._unfinished(step) / "state", _arrays(state))
            self._written = self._thread.submit(self._finish, step, best)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            CheckpointError: it could not be written.
        """
        written, self._written = self._written, None
        if written:
            with self._writing():
                written.result()

    def restore(
        self, abstract_state: TrainState | None, step: int | None = None
    ) -> Restored | None:
        """Read the newest undamaged checkpoint, or that of a step; None where there is none.

        Damaged ones that are newer are set aside, each with a warning in the result.

        Args:
            abstract_state: a state, or its shapes (jax.ShapeDtypeStruct), of the same structure;
                None: whatever is there, in dicts and lists, on one device.
            step: None: the newest.

        Raises:
            CheckpointError: the step has no checkpoint, all are damaged, they are of another model,
                or a file cannot be read, which is no damage.
        """
        while True:
            chosen, warnings = on_first(lambda: self._choose(step), CheckpointError)
            if chosen is None:
                return None
            try:
                return self._read(chosen, abstract_state, warnings)
            except CheckpointError:
                gone = self._read_only and not (self.directory / str(chosen)).exists()
                if not gone or step is not None or jax.distributed.is_initialized():
                    raise
            # A run that trains meanwhile has removed it, and has newer ones.

    def close(self) -> None:
        """Wait, and let go of the directory.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._checkpointer.close()

    def _prepare(self) -> None:
        """Make the directory, and remove what was left unfinished in it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{self.directory} cannot be made: {error.strerror}; a directory is needed there"
            ) from error
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise CheckpointError(f"{self.directory} is not writable; checkpoints are kept there")
        sync_folder(self.directory.parent)
        for folder in self.directory.glob(f"[0-9]*{_UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)  # what stays is looked at by nobody

    def _unfinished(self, step: int) -> Path:
        return self.directory / f"{step}{_UNFINISHED}"

    def _begin(self, step: int, progress: dict[str, Any]) -> bool:
        """Make a checkpoint's folder, all but the arrays; return False where it is there."""
        if later := [each for each in self.steps() if each > step]:
            raise CheckpointError(
                f"checkpoint {step} was not written to {self.directory}: there are later ones, of "
                f"{', '.join(map(str, later))}"
            )
        with self._writing():
            if os.path.lexists(self.directory / str(step)):
                if self._damage(step) is None:
                    return False
                self._set_aside(step)
            file = self._unfinished(step) / _PROGRESS
            file.parent.parent.mkdir()
            file.parent.mkdir()
            write_atomic(file, json.dumps(progress))
        return True

    def _finish(self, step: int, best: int | None) -> None:
        """Wait for the arrays; give the checkpoint its name once all of it is on the disk."""
        self._checkpointer.wait_until_finished()
        if not distributed.is_first():
            return
        folder = self._unfinished(step)
        found = {f.relative_to(folder).as_posix(): _digest(f, sync=True) for f in _files(folder)}
        # Older versions of this program know checkpoints by digests without orbax' mark.
        digests = {name: found[name] for name in found if name != "state/commit_success.txt"}
        for name in _NEEDED - digests.keys():  # somebody removes the folder
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / name))
        write_json(folder / _DIGESTS, digests)
        for each in (*folder.rglob("*/"), folder):
            sync_folder(each)
        folder.rename(self.directory / str(step))
        sync_folder(self.directory)
        for old in self.steps()[: -self._keep]:
            if old == best:
                continue
            (self.directory / str(old)).rename(self._unfinished(old))  # never half removed
            shutil.rmtree(self._unfinished(old), ignore_errors=True)

    def _choose(self, step: int | None) -> tuple[int | None, list[str]]:
        """Return the step to restore, if any; set newer, damaged ones aside, with warnings."""
        steps = steps_with(self.directory, *PARTS_OF_A_CHECKPOINT)
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(
                f"no checkpoint of step {step} in {self.directory}; there are: {there}"
            )
        damaged: dict[int, str] = {}
        for candidate in reversed(steps) if step is None else [step]:
            try:
                damage = self._damage(candidate)
            except OSError as error:
                raise CheckpointError(
                    f"checkpoint {candidate} cannot be read: {describe(error)}; nothing was changed"
                ) from error
            if damage is None:
                warnings = []
                for each, found in damaged.items():
                    place = "" if self._read_only else f", now {self._set_aside(each)}"
                    warnings.append(
                        f"checkpoint {each} is damaged ({found}){place}: going on from the one "
                        "before"
                    )
                return candidate, warnings
            if not (self.directory / str(candidate)).exists():  # removed by a run that trains
                return self._choose(step)
            damaged[candidate] = damage
        if step is not None:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} is damaged: {damaged[step]}"
            )
        if damaged:
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged, the newest one because "
                f"{damaged[max(damaged)]}; --config.retrain=True starts over"
            )
        return None, []

    def _set_aside(self, step: int) -> Path:
        """Rename what is in the place of a checkpoint; return its new name, which is free."""
        names = (self.directory / f"{step}.damaged-{count}" for count in itertools.count(1))
        target = next(name for name in names if not os.path.lexists(name))
        (self.directory / str(step)).rename(target)
        return target

    def _read(self, step: int, abstract_state: TrainState | None, warnings: list[str]) -> Restored:
        folder = self.directory / str(step)
        try:
            progress = read_json(folder / _PROGRESS)
            stored = self._checkpointer.handler.metadata(folder / "state")
            there = getattr(stored, "tree", stored)
            if abstract_state is None:
                abstract = _on_one_device(there)
            else:
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(abstract_state))
            self._check_structure(step, _shapes(there), _shapes(abstract))
            # Array by array, as what holds none may differ between versions of a transformation.
            target = _rearranged(abstract, there)
            arrays = _rearranged(self._checkpointer.restore(folder / "state", target), abstract)
        except _FORMAT_ERRORS as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.directory} cannot be read: {_reason(error)}"
            ) from error
        if not isinstance(progress, dict) or progress.get("step", step) != step:
            raise CheckpointError(
                f"{folder / _PROGRESS} is not of step {step}; move {folder} away to go on from the "
                "checkpoint before"
            )
        return Restored(step, TrainState(**arrays), progress, warnings)

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

    def _damage(self, step: int) -> str | None:
        """Return what is wrong with a checkpoint's files; None: they are as they were written.

        Raises:
            OSError: a file cannot be read, which does not say what is in it.
        """
        folder = self.directory / str(step)
        name = _DIGESTS
        try:
            digests = read_json(folder / name)
            if not (isinstance(digests, dict) and digests.keys() >= _NEEDED):
                return f"{_DIGESTS} does not name the files of a checkpoint"
            for name, digest in digests.items():
                if _digest(folder / name) != digest:
                    return f"{one_line(name)} has changed"
        except (FileNotFoundError, NotADirectoryError):
            return f"{one_line(name)} is missing"
        except ValueError as error:  # no JSON, or no name of a regular file
            return f"{one_line(name)}: {first_line(error)}"
        return None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except _FILE_ERRORS as error:
            good = [step for step in self.steps() if step != self._saving]
            kept = f"the newest good one is of step {good[-1]}" if good else "there is none before"
            raise CheckpointError(
                f"checkpoint {self._saving} could not be written to {self.directory}: "
                f"{_reason(error)}; {kept}"
            ) from error


def _arrays(state: TrainState) -> dict[str, Any]:
    """Return a state's fields by name; without an average, as before there were any."""
    return {name: value for name, value in state._asdict().items() if value is not None}


def _on_one_device(stored: Any) -> Any:
    """Return the shapes of stored arrays, to be read as they are."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored
    )


def _reason(error: Exception) -> str:
    return describe(error) if isinstance(error, OSError) else first_line(error)


def _files(folder: Path) -> list[Path]:
    """Return the files under a folder; hidden ones are of desktops and network file systems."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]


def _digest(path: Path, sync: bool = False) -> str:
    """Return a file's SHA-256; with `sync`, the file outlives a power failure then."""
    with opened(path) as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rearranged(tree: Any, other: Any) -> Any:
    """Return the leaves of a tree in the structure of another one that has the same paths."""
    leaves = dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    structure: Any = jax.tree.structure(other)
    return structure.unflatten([leaves[name] for name in leaf_names(other)])


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a tree, by its path."""
    named = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: tuple(leaf.shape) for name, leaf in named if hasattr(leaf, "shape")}


def run_of(checkpoint: Path) -> tuple[Path, int | None]:
    """Return the run directory and the step of DIR/checkpoints/STEP, or DIR and None of DIR.

    Example:
        >>> run_of(Path("runs/a/checkpoints/44"))
        (PosixPath('runs/a'), 44)
    """
    if checkpoint.parent.name == "checkpoints" and checkpoint.name.isdecimal():
        return checkpoint.parent.parent, int(checkpoint.name)
    return checkpoint, None


def read_checkpoint(
    directory: Path, abstract_state: TrainState | None, checkpoint: int | Path | str | None = None
) -> Restored:
    """Read a checkpoint of a run directory, which is left as it is.

    Args:
        directory: Of the run.
        abstract_state: As in `Checkpoints.restore`.
        checkpoint: Its step; a path as `run_of` takes it, also of another run; BEST: that of the
            best epoch; None: the newest.

    Raises:
        CheckpointError: there is none, or it is damaged or of another model.
    """
    restored = None
    if isinstance(checkpoint, Path):
        directory, checkpoint = run_of(checkpoint)
    step = best_step(directory) if checkpoint == BEST else checkpoint
    assert not isinstance(step, str)
    if (directory / "checkpoints").is_dir():
        with Checkpoints(directory, read_only=True) as checkpoints:
            restored = checkpoints.restore(abstract_state, step)
    if restored is None:
        raise CheckpointError(f"no checkpoint in {directory}: train first")
    return restored
