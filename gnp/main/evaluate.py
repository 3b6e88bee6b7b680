"""--mode=eval: a checkpoint on the evaluation set."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

import config as configs
import ds_pipeline
from config import default, rules
from gnp.analysis.results import print_table
from gnp.experiment import build_experiment, device_count
from gnp.terminal import warn
from gnp.training.checkpoint import BEST, read_checkpoint
from gnp.training.distributed import is_first
from gnp.training.metrics import evaluate, number
from gnp.training.run_directory import read_config, read_data, refuse_other_config


def run(
    config: ml_collections.ConfigDict | None,
    working_dir: Path,
    checkpoint: int | Path | str | None,
    overrides: Sequence[tuple[str, str]] = (),
) -> int:
    """Evaluate a checkpoint of a directory; print a table and a JSON line.

    Args:
        config: Complete, each key checked; None: the directory's own.
        working_dir: The run directory.
        checkpoint: As in `read_checkpoint`; None: the best where the run has one.
        overrides: (key, text) pairs for the directory's own config.
    """
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
    values, examples = evaluate(experiment.eval_step, restored.state, experiment.eval_batches())
    if not is_first():
        return 0
    result: dict[str, Any] = {"step": restored.step, "examples": examples}
    result |= {
        f"{dataset.evaluation_name}_{metric}": value if math.isfinite(value) else None
        for metric, value in values.items()
    }
    print_table(
        f"{config.dataset.dataset_name}, {dataset.evaluation_name} set",
        [(name.replace("_", " "), number(name, value)) for name, value in result.items()],
    )
    print(json.dumps(result))
    return 0
