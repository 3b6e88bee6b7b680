"""The loss of a batch and its gradient, as pure functions of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gnp.training.objective import Objective
from gnp.training.state import Apply, ModelState, Params

Batch = dict[str, jax.Array]
Aux = tuple[jax.Array, jax.Array, ModelState]


def half_squared_norm(params: Params, mask: Params) -> jax.Array:
    """1/2 sum theta^2 over the leaves whose mask is True, in float32.

    Example:
        >>> float(half_squared_norm({"a": jnp.ones(4), "b": jnp.ones(9)}, {"a": True, "b": False}))
        2.0
    """
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf, keep in leaves if keep]
    return 0.5 * sum(squares, jnp.float32(0))


def build_loss(
    apply: Apply,
    objective: Objective,
    l2: float = 0.0,
    decayed: Callable[[Params], Any] | None = None,
) -> Callable[[Params, ModelState, Batch, jax.Array], tuple[jax.Array, Aux]]:
    """loss(params, model_state, batch, key) -> (L + l2 * 1/2 |theta|^2, (L, outputs, new state)).

    Args:
        apply: the model.
        objective: what is minimised.
        l2: weight of half the squared norm; inside the loss, so that the penalty sees it.
        decayed: params -> pytree of bool, the leaves that count; None: all.
    """

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        outputs, new_state = apply(params, model_state, batch["image"], True, key)
        data_loss = objective.loss(outputs, batch["label"]).mean()
        total = data_loss
        if l2:
            mask = decayed(params) if decayed else jax.tree.map(lambda _: True, params)
            total = total + l2 * half_squared_norm(params, mask)
        return total, (data_loss, outputs, new_state)

    return loss
