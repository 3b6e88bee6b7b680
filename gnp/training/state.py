"""The state that a train step changes, and the model as plain functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from model import ModelError

Params = Any
ModelState = Any


class TrainState(NamedTuple):
    """Everything that a step reads and writes on the device.

    The step number is not in here: the loop keeps it on the host, where reading it costs nothing.

    Attributes:
        params: Pytree of trained arrays.
        model_state: Pytree of the rest (batch statistics), from the clean pass only.
        opt_state: State of the optimizer.
        ema: Exponential moving average of the parameters, with their structure; None: there is
            none.
    """

    params: Params
    model_state: ModelState
    opt_state: optax.OptState
    ema: Params | None = None


# (params, model_state, inputs, train, key) -> (outputs [b, ...], new model_state).
Apply = Callable[
    [Params, ModelState, jax.Array, bool, jax.Array | None], tuple[jax.Array, ModelState]
]


class Model(NamedTuple):
    """A model as two pure functions; nothing that is given one sees Flax.

    Attributes:
        initialize: key -> (params, model_state).
        apply: See `Apply`.
    """

    initialize: Callable[[jax.Array], tuple[Params, ModelState]]
    apply: Apply


def from_linen(
    module: Any,
    normalize: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    *,
    output_shape: tuple[int, ...] | None = None,
    always_inference: bool = False,
) -> Model:
    """Return a Flax Linen module as plain functions.

    Args:
        module: Called as `module(x, train)`, with the collections `params` and, at most,
            `batch_stats`, and the random stream `dropout`.
        normalize: Raw inputs -> inputs of the module; part of the compiled step.
        shape: Of one raw input.
        output_shape: Of one example's outputs, as its task needs them; None: any.
        always_inference: Training too calls it with `train=False`, and keeps the rest as it is.

    Raises:
        ModelError: by `initialize`, where the outputs have another shape.

    Example:
        >>> import flax.linen as nn
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train):
        ...         return nn.Dense(2)(x)
        >>> initialize, apply = from_linen(Linear(), lambda x: x, (3,))
        >>> params, model_state = initialize(jax.random.key(0))
        >>> apply(params, model_state, jnp.ones((5, 3)), False, None)[0].shape
        (5, 2)
    """

    def initialize(key: jax.Array) -> tuple[Params, ModelState]:
        inputs = normalize(jnp.zeros((1, *shape), jnp.float32))
        rngs = {"params": key, "dropout": key}
        outputs, variables = module.init_with_output(rngs, inputs, train=False)
        if output_shape is not None and outputs.shape[1:] != output_shape:
            raise ModelError(
                f"{type(module).__name__} gives outputs of {size_text(outputs.shape[1:])} an "
                f"example, and the task needs {size_text(output_shape)}: choose another model_name"
            )
        variables = dict(variables)
        return _at_full_precision(variables.pop("params")), _at_full_precision(variables)

    def apply(
        params: Params,
        model_state: ModelState,
        inputs: jax.Array,
        train: bool,
        key: jax.Array | None,
    ) -> tuple[jax.Array, ModelState]:
        variables = {"params": params, **model_state}
        if always_inference or not train:
            return module.apply(variables, normalize(inputs), train=False), model_state
        outputs, updated = module.apply(
            variables,
            normalize(inputs),
            train=True,
            mutable=list(model_state),
            rngs={"dropout": key},
        )
        return outputs, dict(updated)

    return Model(initialize, apply)


def size_text(shape: tuple[int, ...]) -> str:
    """Return an array's shape for people.

    Example:
        >>> size_text((3, 5)), size_text(())
        ('3 x 5', 'one number')
    """
    return " x ".join(map(str, shape)) or "one number"


def _at_full_precision(tree: Any) -> Any:
    """Return float64 for float32 where JAX_ENABLE_X64=1 asks for it; Flax makes some of each."""
    return jax.tree.map(
        lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, tree
    )


def leaf_names(tree: Any) -> tuple[str, ...]:
    """Return the paths of a pytree's leaves, such as `Dense_0/kernel`, in their order.

    Example:
        >>> leaf_names({"b": {"kernel": 0, "bias": 1}, "a": 2})
        ('a', 'b/bias', 'b/kernel')
    """
    return tuple(
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    )
