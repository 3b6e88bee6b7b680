"""The layers and parameters of a model, by shapes alone."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Layer(NamedTuple):
    """One call of one module in the forward pass: path, class, output shape, own parameters."""

    path: str
    layer: str
    shape: tuple[int, ...]
    parameters: int


def describe(module: nn.Module, inputs: jax.ShapeDtypeStruct) -> tuple[Any, list[Layer]]:
    """Return the parameter shapes and layers of a model, computing nothing.

    Args:
        module: called as `module(x, train)`.
        inputs: shape [b, ...] and dtype of the input.

    Returns:
        The pytree of parameters as jax.ShapeDtypeStruct, and the layers that hold parameters, with
        the model itself last, in the order in which they finish.

    Example:
        >>> import jax.numpy as jnp
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
    own = _own_parameters(variables["params"])
    layers = [
        Layer(path, name, tuple(outputs.shape), own.get(path, 0))
        for path, name, outputs in calls
        if path in own or path == ""
    ]
    return variables["params"], layers


def _own_parameters(params: Any) -> dict[str, int]:
    """Map the path of each module to the count of parameters that it holds itself."""
    own: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        module = "/".join(str(key.key) for key in path[:-1])
        own[module] = own.get(module, 0) + leaf.size
    return own
