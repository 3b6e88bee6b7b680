"""A run directory opened again: its parts, its data and a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import ml_collections

import config as configs
import ds_pipeline
from config import rules
from gnp.experiment import Experiment, build_experiment, device_count
from gnp.training.checkpoint import Restored, read_checkpoint
from gnp.training.run_directory import read_config, read_data

Config: TypeAlias = ml_collections.ConfigDict


class OpenedRun(NamedTuple):
    """A run directory that was read.

    Attributes:
        config: Its own, on these devices.
        experiment: Its parts.
        restored: The checkpoint.
        warnings: Of the data, and of newer checkpoints that are damaged, a line each.
    """

    config: Config
    experiment: Experiment
    restored: Restored
    warnings: list[str]


def open_run(
    directory: Path,
    checkpoint: int | str | None = None,
    change: Callable[[Config], Config] = lambda config: config,
) -> OpenedRun:
    """Open a run directory, which is left as it is.

    Args:
        directory: Of the run.
        checkpoint: As in `read_checkpoint`.
        change: Its config -> that of the experiment.

    Raises:
        RunDirectoryError, ConfigError, ModelError, DataError, CheckpointError: one line each.
    """
    devices = device_count()
    config = change(configs.on_devices(configs.from_flat(read_config(directory)), devices))
    rules.check(config, devices=devices, training=False)
    dataset = ds_pipeline.build_dataset(config, directory, known=read_data(directory) or None)
    experiment = build_experiment(config, dataset)
    restored = read_checkpoint(directory, experiment.abstract_state, checkpoint)
    return OpenedRun(config, experiment, restored, [*dataset.warnings, *restored.warnings])
