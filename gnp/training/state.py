"""What a training step changes, and the function that it trains."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

Params = Any
ModelState = Any


class TrainState(NamedTuple):
    """Everything that a step reads and writes on the device.

    The step number is not in here: the loop keeps it on the host, where reading it costs nothing.

    Attributes:
        params: pytree of trained arrays.
        model_state: pytree of the rest (batch statistics), from the clean pass only.
        opt_state: the optimizer's state.
        ema: exponential moving average of the parameters, like params; None: there is none.
    """

    params: Params
    model_state: ModelState
    opt_state: optax.OptState
    ema: Params | None = None


class Apply(Protocol):
    """A model: (params, model_state, inputs, train, key) -> (outputs [b, k], new model_state)."""

    def __call__(
        self,
        params: Params,
        model_state: ModelState,
        inputs: jax.Array,
        train: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, ModelState]:
        """Outputs and new model state."""


Initialise = Callable[[jax.Array], tuple[Params, ModelState]]


def from_linen(
    module: Any, normalize: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]
) -> tuple[Initialise, Apply]:
    """A Flax Linen module as plain functions; nothing after this sees Flax.

    Args:
        module: a module called as `module(x, train)` with the collections `params` and, at most,
            `batch_stats`, and the random stream `dropout`.
        normalize: raw inputs -> what the module is given; part of the compiled step.
        shape: of one raw input.

    Returns:
        `initialise(key) -> (params, model_state)` and `apply` (see `Apply`).

    Example:
        >>> import flax.linen as nn
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train):
        ...         return nn.Dense(2)(x)
        >>> initialise, apply = from_linen(Linear(), lambda x: x, (3,))
        >>> params, model_state = initialise(jax.random.key(0))
        >>> apply(params, model_state, jnp.ones((5, 3)), False, None)[0].shape
        (5, 2)
    """

    def initialise(key: jax.Array) -> tuple[Params, ModelState]:
        inputs = normalize(jnp.zeros((1, *shape), jnp.float32))
        variables = module.init({"params": key, "dropout": key}, inputs, train=False)
        return variables["params"], _without_params(variables)

    def apply(
        params: Params,
        model_state: ModelState,
        inputs: jax.Array,
        train: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, ModelState]:
        variables = {"params": params, **model_state}
        if not train:
            return module.apply(variables, normalize(inputs), train=False), model_state
        outputs, updated = module.apply(
            variables,
            normalize(inputs),
            train=True,
            mutable=list(model_state),
            rngs={"dropout": key},
        )
        return outputs, dict(updated)

    return initialise, apply


def _without_params(variables: Any) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name != "params"}
