"""--mode=inspect: shapes and counts, without computing anything."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

import config as configs
import ds_pipeline
import model
import optimizer
from gnp.main.tables import print_config, print_layers, print_parameters
from gnp.training.objective import output_size


def run(config: ml_collections.ConfigDict) -> int:
    """Print the config, the layers and the parameters of a config's model."""
    shape, num_classes = _input(config)
    outputs = output_size(config.loss, num_classes)
    module = model.build_model(config, outputs)
    inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params, layers = model.describe(module, inputs)
    print_config(configs.as_json(config))
    print_layers(layers, config.model.model_name)
    print_parameters(_parameters(config, params))
    return 0


def _input(config: ml_collections.ConfigDict) -> tuple[tuple[int, ...], int]:
    """Return input shape and class count, as the config says them, else from the data."""
    asked = config.dataset
    if asked.image_size and asked.num_channels and asked.num_classes:
        return (asked.image_size, asked.image_size, asked.num_channels), asked.num_classes
    dataset = ds_pipeline.build_dataset(config)
    return dataset.shape, dataset.num_classes


def _parameters(config: ml_collections.ConfigDict, params: Any) -> list[dict[str, Any]]:
    columns = (
        optimizer.build_labels(config)(params),
        optimizer.l2_coefficients(config, params),
        optimizer.decay_mask(params, config.no_weight_decay_on_bn),
    )
    decoupled = config.opt.opt_params.get("weight_decay", 0) > 0
    return [
        {
            "path": jax.tree_util.keystr(path, simple=True, separator="/"),
            "shape": tuple(leaf.shape),
            "count": leaf.size,
            "group": group,
            "decayed": l2 > 0 or (decoupled and decays),
        }
        for (path, leaf), group, l2, decays in zip(
            jax.tree_util.tree_leaves_with_path(params), *map(jax.tree.leaves, columns), strict=True
        )
    ]
