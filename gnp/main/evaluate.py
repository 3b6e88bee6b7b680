"""--mode=eval: a checkpoint, or pretrained weights, on the evaluation set."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

import config as configs
import ds_pipeline
from config import default, rules
from gnp.analysis.results import print_table
from gnp.experiment import Experiment, build_experiment, device_count
from gnp.terminal import printable, warn
from gnp.training.checkpoint import read_checkpoint
from gnp.training.distributed import is_first, on_first
from gnp.training.early_stopping import BEST
from gnp.training.metrics import evaluate, number
from gnp.training.run_directory import (
    has_checkpoints,
    read_config,
    read_data,
    refuse_other_config,
)
from gnp.training.state import TrainState
from gnp.training.tasks import TASKS


def run(
    config: ml_collections.ConfigDict | None,
    working_dir: Path | None,
    checkpoint: int | Path | str | None,
    overrides: Sequence[tuple[str, str]] = (),
) -> int:
    """Evaluate a checkpoint of a directory; print a table and a JSON line.

    Where the config names pretrained weights and the directory has no checkpoint, those weights
    are evaluated; the directory is neither read nor written.

    Args:
        config: Complete, each key checked; None: the directory's own.
        working_dir: The run directory; None: the config names pretrained weights.
        checkpoint: As in `read_checkpoint`; None: the best where the run has one.
        overrides: (key, text) pairs for the directory's own config.
    """
    weights = config is not None and config.model.pretrained
    if weights and checkpoint is None and not _has_checkpoints(working_dir):
        return _evaluate_weights(config)
    assert working_dir is not None, "the command line asks for it"
    stored, devices = read_config(working_dir), device_count()
    if config is None:
        # What the command line says of these devices stands, right or wrong.
        config = configs.on_devices(configs.from_flat(stored), devices)
        config, _ = configs.apply_overrides(config, overrides)
    else:
        refuse_other_config(
            working_dir,
            configs.as_json(configs.with_group_size(config, stored, devices)),
            default.FREE_KEYS,
            configs.as_json(default.get_config()),
            advice="leave --config out, or give the keys that it was trained with",
        )
    if checkpoint is None and config.early_stopping.metric is not None:
        checkpoint = BEST
    rules.check(config, devices=devices, training=False)
    # What the data were called and normalized by in training holds for others, too.
    dataset = ds_pipeline.build_dataset(config, working_dir, known=read_data(working_dir) or None)
    experiment = build_experiment(config, dataset)
    restored = read_checkpoint(working_dir, experiment.abstract_state, checkpoint)
    for warning in (*dataset.warnings, *restored.warnings) if is_first() else ():
        warn(warning)
    return _evaluate(experiment, restored.state, restored.step)


def _has_checkpoints(working_dir: Path | None) -> bool:
    return bool(working_dir and on_first(lambda: has_checkpoints(working_dir), OSError))


def _evaluate_weights(config: ml_collections.ConfigDict) -> int:
    """Evaluate the pretrained weights that a run of this config would begin with."""
    rules.check(config, devices=device_count(), training=False)
    dataset = ds_pipeline.build_dataset(config)
    rules.check(config, task=dataset.task, losses=TASKS[dataset.task].losses)
    experiment = build_experiment(config, dataset)
    state, report = experiment.initialize()
    if report and is_first():
        for warning in dataset.warnings:
            warn(warning)
        said = f"{config.model.pretrained}, before any training: {report.summary()}"
        print(printable(said), file=sys.stderr)
        for line in report.lines():
            warn(f"pretrained weights, {line}")
    return _evaluate(experiment, state, step=0)


def _evaluate(experiment: Experiment, state: TrainState, step: int) -> int:
    """Evaluate a state; print its metrics as a table and a JSON line."""
    dataset = experiment.dataset
    values, examples = evaluate(experiment.eval_step, state, experiment.eval_batches())
    if not is_first():
        return 0
    result: dict[str, Any] = {"step": step, "examples": examples}
    result |= {
        f"{dataset.evaluation_name}_{metric}": value if math.isfinite(value) else None
        for metric, value in values.items()
    }
    print_table(
        f"{dataset.name}, {dataset.evaluation_name} set",
        [(name.replace("_", " "), number(name, value)) for name, value in result.items()],
    )
    print(json.dumps(result))
    return 0
