"""A run directory: which config it holds, and whether this run may go on in it."""

import json
import os
import shutil
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


class RunDirectoryError(ValueError):
    """A working_dir that cannot be used as asked; one line."""


def check_run_directory(
    path: Path,
    config: Mapping[str, Any],
    *,
    retrain: bool,
    free: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Makes the directory, or checks that a run with this config may go on in it.

    Args:
        path: the directory.
        config: dotted key -> JSON value, complete.
        retrain: another run may be here, as it is going to be removed.
        free: keys that may differ, as results do not depend on them.
        defaults: of keys that an older run does not know.

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
    elif (path / "checkpoints").exists():
        raise RunDirectoryError(
            f"--working_dir={path} holds checkpoints but no config.json; choose another "
            "directory, or start over with --config.retrain=True"
        )


def seed_directories(path: Path) -> list[Path]:
    """The run directories of several seeds in one, by number."""
    found = [each.parent for each in path.glob("seed-*/config.json")]
    return sorted(
        (each for each in found if each.name[5:].isdigit()), key=lambda x: int(x.name[5:])
    )


def refuse_mixture(path: Path, seeds: int) -> None:
    """Raises where the run of one seed and those of several would share a directory.

    Args:
        path: the directory.
        seeds: how many are to be trained.

    Raises:
        RunDirectoryError: they would.
    """
    if seeds > 1 and (path / "config.json").exists():
        raise RunDirectoryError(
            f"--working_dir={path} holds the run of one seed; choose another directory for "
            f"num_seeds = {seeds}"
        )
    inside = [each.name for each in seed_directories(path)]
    if seeds == 1 and inside:
        raise RunDirectoryError(
            f"--working_dir={path} holds the runs of several seeds ({', '.join(inside)}): train as "
            "many at once with num_seeds, go on with one in its own directory, or choose another"
        )


def claim_run_directory(path: Path, config: Mapping[str, Any], *, retrain: bool) -> None:
    """Writes the config into a directory that was checked.

    Args:
        path: the directory.
        config: dotted key -> JSON value, complete.
        retrain: remove what an earlier run left here, first.
    """
    if retrain:
        remove_run(path)
    write_json(path / "config.json", dict(config))


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run directory, dotted key -> JSON value.

    Raises:
        RunDirectoryError: there is none, or it is damaged.
    """
    file = path / "config.json"
    if not file.is_file():
        raise RunDirectoryError(f"--working_dir={path} holds no run (no config.json in it)")
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise RunDirectoryError(f"{file} is not the config of a run (a JSON object is needed)")
    return configs.without_removed(config)


def remove_run(path: Path) -> None:
    """Removes what a run writes, and nothing else."""
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
    """Raises where a directory's config differs in a key that is not free.

    Args:
        path: the directory.
        config: dotted key -> JSON value, complete.
        free: keys that may differ.
        defaults: of keys that an older run does not know.
        advice: what to do, for the message.

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
