"""Costs that are added to the data's loss: the weight cost and the orthogonality penalty."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gnp.training.state import Params, leaf_names
from model.layers import at_least_float32
from optimizer import axes_of, orthogonality_penalty

# cost -> path of a parameter -> scalar, float32.
Costs = dict[str, dict[str, jax.Array]]
Regularizer = Callable[[Params], Costs]


def build_regularizer(
    l2: Callable[[Params], Any],
    labels: Callable[[Params], Any],
    omega: float = 0.0,
) -> Regularizer:
    """Return params -> costs that are added to the loss, by the cost's name and the path.

    weight_cost: l2 / 2 * |theta|^2; orthogonality: omega / 2 * |V'V - I|^2 of the Grassmann group.
    A cost that no parameter has is left out, and so are parameters without a cost.

    Args:
        l2: params -> pytree of numbers, the coefficient of each parameter.
        labels: params -> pytree of "grassmann" and "euclidean".
        omega: Weight of the orthogonality penalty.

    Example:
        >>> regularize = build_regularizer(
        ...     l2=lambda params: {"kernel": 0.5, "bias": 0.0},
        ...     labels=lambda params: {"kernel": "euclidean", "bias": "euclidean"},
        ... )
        >>> regularize({"kernel": jnp.ones(8), "bias": jnp.ones(2)})
        {'weight_cost': {'kernel': Array(2., dtype=float32)}}
    """

    def regularize(params: Params) -> Costs:
        paths, leaves = leaf_names(params), jax.tree.leaves(params)
        groups = jax.tree.leaves(labels(params))
        structure: Any = jax.tree.structure(params)
        axes = structure.flatten_up_to(axes_of(params))
        weight_cost = {
            path: coefficient / 2 * jnp.sum(jnp.square(at_least_float32(leaf)))
            for path, leaf, coefficient in zip(
                paths, leaves, jax.tree.leaves(l2(params)), strict=True
            )
            if coefficient
        }
        orthogonality = {
            path: orthogonality_penalty(leaf, group, omega, its)
            for path, leaf, group, its in zip(paths, leaves, groups, axes, strict=True)
            if omega and group == "grassmann"
        }
        named = {"weight_cost": weight_cost, "orthogonality": orthogonality}
        return {name: costs for name, costs in named.items() if costs}

    return regularize


def total(costs: Costs) -> jax.Array:
    """Return the sum of all costs.

    Example:
        >>> float(total({"weight_cost": {"a": jnp.float32(1), "b": jnp.float32(2)}}))
        3.0
    """
    return sum((value for each in costs.values() for value in each.values()), jnp.float32(0))


def summarize(costs: Costs, per_layer: bool) -> dict[str, jax.Array]:
    """Return each cost's sum by its name, and with `per_layer` each parameter's by name/path.

    Example:
        >>> costs = {"weight_cost": {"a": jnp.float32(1), "b": jnp.float32(2)}}
        >>> {name: float(value) for name, value in summarize(costs, per_layer=True).items()}
        {'weight_cost': 3.0, 'weight_cost/a': 1.0, 'weight_cost/b': 2.0}
    """
    sums = {name: sum(each.values(), jnp.float32(0)) for name, each in costs.items()}
    if not per_layer:
        return sums
    per_parameter = {
        f"{name}/{path}": value for name, each in costs.items() for path, value in each.items()
    }
    return sums | per_parameter
