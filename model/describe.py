"""The layers and parameters of a model, by shapes alone."""

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Layer(NamedTuple):
    """One call of one module in the forward pass: path, class, output shape, own parameters."""

    path: str
    layer: str
    shape: tuple[int, ...]
    parameters: int


def count_parameters(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the number of a model's parameters, computing nothing.

    Args:
        module: called as `module(x, train)`.
        shape: of one input.
    """
    inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def describe(module: nn.Module, inputs: jax.ShapeDtypeStruct) -> tuple[Any, list[Layer]]:
    """Return the parameter shapes and layers of a model, computing nothing.

    Args:
        module: called as `module(x, train)`.
        inputs: shape [b, ...] and dtype of the input.

    Returns:
        The pytree of parameters as jax.ShapeDtypeStruct, and the layers that hold parameters, with
        the model itself last, in the order in which they finish.

    Example:
        >>> class Linear(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train):
        ...         return nn.Dense(2)(x)
        >>> params, layers = describe(Linear(), jax.ShapeDtypeStruct((1, 3), jnp.float32))
        >>> layers[0]
        Layer(path='Dense_0', layer='Dense', shape=(1, 2), parameters=8)
    """
    calls: list[tuple[str, str, Any]] = []

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__":
            path = "/".join(context.module.path)
            calls.append((path, type(context.module).__name__, outputs))
        return outputs

    def initialize(key: jax.Array, x: jax.Array) -> Any:
        with nn.intercept_methods(record):
            return module.init({"params": key, "dropout": key}, x, train=False)

    variables = jax.eval_shape(initialize, jax.random.key(0), inputs)
    own: Counter[str] = Counter()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        own[jax.tree_util.keystr(keys[:-1], simple=True, separator="/")] += leaf.size
    layers = [
        Layer(path, name, tuple(outputs.shape), own[path])
        for path, name, outputs in calls
        if path in own or path == ""
    ]
    return variables["params"], layers
