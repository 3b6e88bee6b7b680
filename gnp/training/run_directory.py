"""A run directory: whose it is, which config and data it holds, whether a run may go on in it."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import config as configs
from gnp.terminal import describe, warn
from gnp.training.files import FileFormatError, read_json, read_rows, write_json

# config.json has this beside the keys of the config. Other programs have a config.json, too.
_MARK = {"program": "gnp"}
# Runs of earlier versions have no mark, and all of these keys.
KEYS_OF_A_RUN = {
    "dataset.dataset_name",
    "loss",
    "model.model_name",
    "opt.opt_type",
    "total_epochs",
}
_DATA = "dataset.json"
_LOCK = ".gnp-lock"
# A folder with one of these in it is, or was, a checkpoint.
PARTS_OF_A_CHECKPOINT = ("sha256.json", "state", "progress")

# config.json goes last: while it is there, an interrupted removal cannot be taken for another run.
OUTPUTS = (
    "metrics.jsonl",
    "checkpoints",
    "tensorboard",
    "profile",
    "evolution",
    "gradients",
    "evolution.npz",
    "evolution.csv",
    "gradient_norms.png",
    "loss.png",
    "loss_and_metrics.png",
    "highest_elements.png",
    "animation.gif",
    "sharpness.json",
    "sharpness.npz",
    "sharpness_spectrum.png",
    "sharpness_curves.png",
    "sharpness_contour.png",
    "weights.safetensors",
    "curves.png",
    "dataset.json",
    "config.json",
)
# Keys that may differ between the machines of a run.
_OF_A_MACHINE = ("dataset.data_dir", "dataset.labels_file", "dataset.workers")


class RunDirectoryError(ValueError):
    """A working_dir that cannot be used as asked; one line."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the directory, and keep other processes from training in it.

    The system lets go of the lock when the process ends, however it does. Where the file system
    has no locks, a warning says so. A directory that stays empty is removed again.

    Raises:
        RunDirectoryError: not a directory, not writable, or another process trains in it.
    """
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"--working_dir={path} is a file; a directory is needed")
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(
            f"--working_dir={path} cannot be made: {error.strerror}; choose another directory"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunDirectoryError(f"--working_dir={path} is not writable; choose another directory")
    file = path / _LOCK
    descriptor = _lock(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the directory was moved, or is read-only by now
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                file.unlink()
            if is_new:
                path.rmdir()
        os.close(descriptor)


def _lock(file: Path) -> int:
    """Return the descriptor of a file that this process alone has locked."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise RunDirectoryError(
                f"{file} cannot be written: {error.strerror}; choose another directory"
            ) from error
        try:
            # Unlike flock, this lock is not inherited by the processes that read data, which may
            # outlive this one, and holds between machines that share a file system.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # as POSIX allows both
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise RunDirectoryError(
                f"another process trains in --working_dir={file.parent} ({holder or 'unknown'}): "
                "wait for its end, stop it, or choose another directory"
            ) from None
        except OSError as error:
            warn(
                f"{file} cannot be locked ({error.strerror}): make sure that no other process "
                f"trains in {file.parent}"
            )
            return descriptor
        # One that ended in this moment has removed the file under its name.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(file.stat(), os.fstat(descriptor)):
                holder = f"process {os.getpid()} on {socket.gethostname()}"
                with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, holder.encode(), 0)
                return descriptor
        os.close(descriptor)


def check(
    path: Path,
    config: Mapping[str, Any],
    *,
    retrain: bool,
    free: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Check that a run with this config may begin or go on in a directory.

    Args:
        path: The directory, locked.
        config: Dotted key -> JSON value, complete.
        retrain: Another run may be here, as it is going to be removed.
        free: Keys that may differ, as results do not depend on them.
        defaults: Of keys that an older run does not know.

    Raises:
        RunDirectoryError: it holds another config, results without the checkpoints they came
            with, files of another program, or what cannot be removed.
    """
    there = [name for name in OUTPUTS if _is_something(path / name)]
    if not there:
        if inside := _runs_of_seeds(path):
            raise RunDirectoryError(
                f"--working_dir={path} holds the runs of several seeds ({inside}): go on with one "
                "in its own directory, or choose another"
            )
        return
    if "config.json" not in there:
        raise RunDirectoryError(
            f"--working_dir={path} holds {', '.join(there)} but no config.json of a run, so whose "
            "they are is not known; choose another directory"
        )
    stored = read_config(path)  # refuses that of another program
    if retrain:
        _check_removable(path)
        return
    refuse_other_config(path, config, free, defaults)
    if lost := _lost_checkpoints(path, stored.get("save_ckpt_every_n_epochs")):
        raise RunDirectoryError(
            f"{path} has the results of {lost} epochs in metrics.jsonl but no checkpoint to go on "
            "from: put checkpoints/ back, choose another directory, or start over with "
            "--config.retrain=True, which removes them"
        )


def _is_something(path: Path) -> bool:
    """Return whether there is a file, a link, or a folder with something in it."""
    if path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return os.path.lexists(path)


def _lost_checkpoints(path: Path, every: object) -> int:
    """Return how many epochs' results a run without a checkpoint would write over; 0: go on.

    A run that ended before its first checkpoint was written has to begin again. It is written
    while the next epochs run, at most until the second one is due.
    """
    if has_checkpoints(path):
        return 0
    epochs = len(read_rows(path / "metrics.jsonl"))
    most = 2 * every if isinstance(every, int) else 2
    return epochs if epochs > most or not (path / "checkpoints").is_dir() else 0


def has_checkpoints(path: Path) -> bool:
    """Return whether the directory has a checkpoint, whole or damaged."""
    return bool(steps_with(path / "checkpoints", *PARTS_OF_A_CHECKPOINT))


def steps_with(folder: Path, *names: str) -> list[int]:
    """Return the steps whose folder in `DIR/checkpoints` has one of these in it, ascending."""
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        int(entry.name)
        for entry in entries
        if re.fullmatch("0|[1-9][0-9]*", entry.name)
        and any((entry / name).exists() for name in names)
    )


def claim(
    path: Path, config: Mapping[str, Any], *, retrain: bool, data: Mapping[str, Any] | None = None
) -> None:
    """Write config and data into a directory that was checked.

    Args:
        path: The directory.
        config: Dotted key -> JSON value, complete.
        retrain: Remove what an earlier run left here, first.
        data: What identifies the data.
    """
    if retrain and (path / "config.json").exists():
        remove_run(path)
    for name in OUTPUTS:  # of a process that was killed as it wrote
        for left in path.glob(f".{name}.????????"):
            left.unlink()
    write_json(path / "config.json", {**config, **_MARK})
    write_json(path / _DATA, dict(data or {}))


def read_data(path: Path) -> dict[str, Any]:
    """Return what identifies a run's data; empty for one of an earlier version, without the mark.

    Raises:
        RunDirectoryError: it is missing or damaged.
    """
    data = _read_object(path / _DATA) if (path / _DATA).exists() else {}
    if not data and _MARK.items() <= _read_object(path / "config.json").items():
        raise RunDirectoryError(
            f"{path / _DATA} is missing, which says what data the run was trained on: put it back, "
            "or start over with --config.retrain=True"
        )
    return data


def check_data(path: Path, differences: Sequence[str]) -> None:
    """Raise where the data are not those that the run has begun with.

    Args:
        path: The run directory.
        differences: One phrase each.
    """
    if differences:
        raise RunDirectoryError(
            f"--working_dir={path} holds a run on other data than this process has: "
            f"{'; '.join(differences)}; put those data back, choose another directory, or start "
            "over with --config.retrain=True"
        )


def check_same(config: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Raise unless this process was given the config of process 0, but for a machine's own keys."""
    here = json.loads(json.dumps(dict(config)))
    different = [key for key in first if key not in _OF_A_MACHINE and first[key] != here.get(key)]
    if different:
        raise RunDirectoryError(
            f"this process was given another config than process 0: {', '.join(different)}; "
            "start all with the same command"
        )


def wait_for_claim(path: Path) -> None:
    """Raise unless this process sees the config that process 0 has written."""
    for wait in (0.0, 1.0, 5.0, 30.0):  # a network's file system may be late
        time.sleep(wait)
        if (path / "config.json").is_file():
            return
    raise RunDirectoryError(
        f"--working_dir={path} of process 0 is not seen here: all processes need one on a file "
        "system that their machines share"
    )


def stored_config(path: Path) -> dict[str, Any]:
    """Return the config of a run directory, dotted key -> JSON value; empty where it has none."""
    return read_config(path) if (path / "config.json").is_file() else {}


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of a run directory, dotted key -> JSON value.

    Raises:
        RunDirectoryError: there is none, or it is damaged.
    """
    file = path / "config.json"
    if not file.is_file():
        inside = _runs_of_seeds(path)
        advice = f"; it holds runs of several seeds, name one: {inside}" if inside else ""
        raise RunDirectoryError(f"--working_dir={path} holds no run (no config.json in it){advice}")
    config = _read_object(file)
    if not (_MARK.items() <= config.items() or config.keys() >= KEYS_OF_A_RUN):
        raise RunDirectoryError(
            f"{file} is not the config of a gnp run, but of another program; name another directory"
        )
    return configs.without_removed(
        {name: value for name, value in config.items() if name not in _MARK}
    )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except (OSError, FileFormatError) as error:
        raise RunDirectoryError(f"{file} cannot be read: {describe(error)}") from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{file} is not of a run (a JSON object is needed)")
    return value


def _runs_of_seeds(path: Path) -> str:
    return ", ".join(sorted(each.parent.name for each in path.glob("seed-*/config.json")))


def _check_removable(path: Path) -> None:
    """Raise where a part of a run cannot be removed, before the first one is."""
    for name in OUTPUTS:
        if (path / name).is_symlink():
            raise RunDirectoryError(
                f"{path / name} is a link, and --config.retrain=True removes nothing behind links: "
                "remove it, or choose another directory"
            )
        for folder, _, _ in os.walk(path / name):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise RunDirectoryError(
                    f"{folder} is not writable, so --config.retrain=True cannot remove it; change "
                    "that, or choose another directory"
                )


def remove_run(path: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in OUTPUTS:
        target = path / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def refuse_other_config(
    path: Path,
    config: Mapping[str, Any],
    free: Collection[str],
    defaults: Mapping[str, Any] | None = None,
    advice: str = "choose another directory, or start over with --config.retrain=True",
) -> None:
    """Raise where a directory's config differs in a key that is not free.

    Args:
        path: The directory.
        config: Dotted key -> JSON value, complete.
        free: Keys that may differ.
        defaults: Of keys that an older run does not know.
        advice: What to do, for the message.

    Raises:
        RunDirectoryError: names each such key with both values.
    """
    there = {**(defaults or {}), **read_config(path)}
    here = json.loads(json.dumps(dict(config)))
    different = [
        f"{name} (there {there.get(name, 'absent')!r}, here {here.get(name, 'absent')!r})"
        for name in {**there, **here}
        if name not in free and there.get(name) != here.get(name)
    ]
    if different:
        raise RunDirectoryError(
            f"--working_dir={path} holds a run with another config: {', '.join(different)}; "
            f"{advice}"
        )
