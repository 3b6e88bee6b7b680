"""A run directory: which config it holds, and whether a run may go on in it."""

import json
import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import config as configs
from gnp.training.files import write_json

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
    "loss_and_metrics.png",
    "highest_elements.png",
    "animation.gif",
    "sharpness.json",
    "sharpness.npz",
    "sharpness_spectrum.png",
    "sharpness_curves.png",
    "sharpness_contour.png",
    "curves.png",
    "config.json",
)
# Keys that may differ between the machines of a run.
_OF_A_MACHINE = ("dataset.data_dir", "dataset.workers")


class RunDirectoryError(ValueError):
    """A working_dir that cannot be used as asked; one line."""


def check(
    path: Path,
    config: Mapping[str, Any],
    *,
    retrain: bool,
    free: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Make the directory, or check that a run with this config may go on in it.

    Args:
        path: The directory.
        config: Dotted key -> JSON value, complete.
        retrain: Another run may be here, as it is going to be removed.
        free: Keys that may differ, as results do not depend on them.
        defaults: Of keys that an older run does not know.

    Raises:
        RunDirectoryError: not a directory, not writable, or it holds another config.
    """
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"--working_dir={path} is a file; a directory is needed")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(
            f"--working_dir={path} cannot be made: {error.strerror}; choose another directory"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunDirectoryError(f"--working_dir={path} is not writable; choose another directory")
    if retrain:
        return
    if (path / "config.json").exists():
        refuse_other_config(path, config, free, defaults)
    elif inside := _runs_of_seeds(path):
        raise RunDirectoryError(
            f"--working_dir={path} holds the runs of several seeds ({inside}): go on with one in "
            "its own directory, or choose another"
        )
    elif (path / "checkpoints").exists():
        raise RunDirectoryError(
            f"--working_dir={path} holds checkpoints but no config.json; choose another "
            "directory, or start over with --config.retrain=True"
        )


def has_checkpoints(path: Path) -> bool:
    """Return whether the directory has a checkpoint, whole or damaged."""
    return any(each.name.isdigit() for each in (path / "checkpoints").glob("*"))


def claim(path: Path, config: Mapping[str, Any], *, retrain: bool) -> None:
    """Write the config into a directory that was checked.

    Args:
        path: The directory.
        config: Dotted key -> JSON value, complete.
        retrain: Remove what an earlier run left here, first.
    """
    if retrain:
        remove_run(path)
    write_json(path / "config.json", dict(config))


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
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise RunDirectoryError(f"{file} is not the config of a run (a JSON object is needed)")
    return configs.without_removed(config)


def _runs_of_seeds(path: Path) -> str:
    return ", ".join(sorted(each.parent.name for each in path.glob("seed-*/config.json")))


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
