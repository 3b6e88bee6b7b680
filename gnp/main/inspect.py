"""--mode=inspect: config, layers, parameters and their values, without computing anything."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

import config as configs
import ds_pipeline
import model
import optimizer
from gnp.analysis.results import print_table
from gnp.main.command_line import UsageError
from gnp.terminal import warn
from gnp.training.checkpoint import Restored, read_checkpoint
from gnp.training.run_directory import read_config
from gnp.training.state import leaf_names, size_text
from gnp.training.tasks import TASKS


def run(
    config: ml_collections.ConfigDict | None,
    working_dir: Path,
    checkpoint: int | Path | str | None = None,
    values: str | None = None,
) -> int:
    """Print the config, the layers and the parameters of a config's model.

    Args:
        config: Complete; None: that of the run directory.
        working_dir: The run directory.
        checkpoint: As in `read_checkpoint`.
        values: Regular expression; the arrays of the checkpoint whose paths it finds are printed.
    """
    if config is None:
        config = configs.from_flat(read_config(working_dir))
    shape, outputs = _sizes_of(config)
    module = model.build_model(config, outputs)
    params, layers = model.describe(module, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    print_table(
        "config", [(key, str(value)) for key, value in sorted(configs.as_json(config).items())]
    )
    print_table(
        f"{config.model.model_name}: layers",
        [
            (each.path or "(the model)", each.layer, size_text(each.shape), f"{each.parameters:,}")
            for each in layers
        ],
        ("path", "layer", "output shape", "parameters"),
        numbers=("parameters",),
    )
    groups = optimizer.build_labels(config)(params)
    l2 = optimizer.l2_coefficients(config, params)
    decays = optimizer.decay_mask(params, config.no_weight_decay_on_bn)
    decoupled = config.opt.opt_params.get("weight_decay", 0) > 0
    leaves = jax.tree.leaves(params)
    print_table(
        "parameters",
        [
            (
                name,
                size_text(leaf.shape),
                f"{leaf.size:,}",
                group,
                "yes" if coefficient > 0 or (decoupled and decay) else "no",
            )
            for name, leaf, group, coefficient, decay in zip(
                leaf_names(params), leaves, *map(jax.tree.leaves, (groups, l2, decays)), strict=True
            )
        ],
        ("path", "shape", "count", "group", "decayed"),
        numbers=("count",),
    )
    unknown = optimizer.unknown_axes(params)
    if unknown:
        print(
            "axes not known, left alone by centralization and the Grassmann group: "
            f"{', '.join(unknown)}"
        )
    print(f"parameters: {sum(leaf.size for leaf in leaves)}")
    if values is not None:
        _print_values(read_checkpoint(working_dir, None, checkpoint), values)
    return 0


def _print_values(restored: Restored, pattern: str) -> None:
    """Print arrays of a checkpoint, long ones as NumPy abbreviates them."""
    for warning in restored.warnings:
        warn(warning)
    named = dict(zip(leaf_names(restored.state), jax.tree.leaves(restored.state), strict=True))
    found = [name for name in named if re.search(pattern, name)]
    if not found:
        raise UsageError(f"--values={pattern} finds none of {', '.join(named)}")
    for name in found:
        print(f"\n{name}, step {restored.step}: {size_text(named[name].shape)}\n{named[name]}")


def _sizes_of(config: ml_collections.ConfigDict) -> tuple[tuple[int, ...], int]:
    """Return input shape and number of outputs, as the config says them, else from the data."""
    asked = config.dataset
    if asked.image_size and asked.num_channels and asked.num_classes:
        sizes = TASKS["classification"].output_shape(config.loss, asked.num_classes, ())
        return (asked.image_size, asked.image_size, asked.num_channels), sizes[0]
    dataset = ds_pipeline.build_dataset(config)
    task = TASKS[dataset.task]
    sizes = task.output_shape(config.loss, dataset.num_classes, dataset.target_shape)
    return dataset.shape, sizes[0]
