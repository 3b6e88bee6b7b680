"""--mode=eval."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

import config as configs
from config import default
from gnp import build
from gnp.main.tables import print_metrics
from gnp.training import distributed
from gnp.training.loop import evaluate
from gnp.training.run_directory import read_config, refuse_other_config, seed_directories


def run(
    config: ml_collections.ConfigDict | None,
    working_dir: Path,
    checkpoint: int | None,
    overrides: Sequence[tuple[str, str]] = (),
) -> int:
    """Evaluates a checkpoint of a directory, or of each seed's; prints a table and a JSON line."""
    if config is not None and config.num_seeds > 1:
        for member, directory in zip(*build.members_of(config, working_dir), strict=True):
            print(f"{directory}:")
            run(member, directory, checkpoint)
        return 0
    inside = seed_directories(working_dir)
    if config is None and inside and not (working_dir / "config.json").exists():
        for directory in inside:
            print(f"{directory}:")
            run(None, directory, checkpoint, overrides)
        return 0
    saved = read_config(working_dir)
    if config is None:
        stored = build.on_these_devices(configs.from_flat(saved))
        config, _ = configs.apply_overrides(stored, overrides, default.KEYS)
    else:
        refuse_other_config(
            working_dir,
            build.config_as_json(build.with_group_size(config, saved)),
            default.FREE_KEYS,
            build.config_as_json(default.get_config()),
            advice="leave --config out, or give the keys that it was trained with",
        )
    parts = build.build_run(config, training=False, directory=working_dir)
    restored = build.restore(parts, config, working_dir, checkpoint)
    active = distributed.is_first()
    for warning in (*parts.dataset.warnings, *restored.warnings) if active else ():
        print(f"warning: {warning}", file=sys.stderr)
    values, examples = evaluate(
        parts.evaluation_step, restored.state, build.evaluation_batches(parts)
    )
    if not active:
        return 0
    name = parts.dataset.evaluation_name
    result: dict[str, Any] = {"step": restored.step, "examples": examples}
    result |= {
        f"{name}_{metric}": value if math.isfinite(value) else None
        for metric, value in values.items()
    }
    print_metrics(result, f"{config.dataset.dataset_name}, {name} set")
    print(json.dumps(result))
    return 0
