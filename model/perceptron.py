"""Multilayer perceptrons."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import DType, at_least_float32, check_not_empty, check_rates, check_sizes
from model.registry import register


@register("MLP")
class MLP(nn.Module):
    """Dense layers with ReLU and dropout of a flattened input, then logits.

    Attributes:
        widths: outputs of each hidden layer; empty: a linear model.
        dropout_rate: share of each hidden layer's outputs that is dropped in training.
        num_classes, dtype, remat: see `get_model`.

    Example:
        >>> x = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
        >>> model = MLP(10, widths=(300, 100))
        >>> shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
        >>> shapes["params"]["dense_1"]["kernel"].shape
        (784, 300)
    """

    num_classes: int
    widths: tuple[int, ...] = (128, 128)
    dropout_rate: float = 0.0
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        if self.widths:
            check_sizes(widths=self.widths)
        check_rates(dropout_rate=self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, ...] -> [b, num_classes]."""
        check_not_empty(self, x)
        # Keras' default, which the examples that these networks come from were made with.
        glorot = nn.initializers.glorot_uniform()
        x = x.reshape(x.shape[0], -1)

        def hidden(module: nn.Module, x: jax.Array, *, width: int, index: int) -> jax.Array:
            name = f"dense_{index}"
            x = nn.Dense(width, dtype=self.dtype, kernel_init=glorot, name=name)(x)
            # remat starts to count unnamed modules anew: each layer would drop the same units.
            dropout = nn.Dropout(
                self.dropout_rate, deterministic=not train, name=f"Dropout_{index - 1}"
            )
            return dropout(nn.relu(x))

        for i, width in enumerate(self.widths):
            body = partial(hidden, width=width, index=i + 1)
            x = (nn.remat(body) if self.remat else body)(self, x)
        x = at_least_float32(x)
        return nn.Dense(self.num_classes, kernel_init=glorot, name="head")(x)
