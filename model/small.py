"""Small convolutional networks for small images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import (
    BatchNorm,
    Conv,
    DType,
    at_least_float32,
    check_batch_norm_group,
    check_dropout_rate,
    check_images,
    check_positive,
    max_pool,
)
from model.registry import register


@register("DigitsCNN")
class DigitsCNN(nn.Module):
    """Two blocks (convolution, batch norm, ReLU, 2 x 2 max-pool) and a dense layer.

    For scikit-learn's digits (8 x 8 x 1); any image of at least 4 x 4 pixels works.

    Attributes:
        num_classes: number of logits.
        features: channels of each block.
        dense: width of the dense layer.
        dropout_rate: share of the dense layer's outputs that is dropped in training.
        batch_norm_group: examples of a group with batch statistics of its own; None: the batch.
        dtype: of the computation; parameters, statistics and logits are float32.
        remat: compute each block's activations again in the backward pass, for less memory.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
        >>> def initialize(x):
        ...     return DigitsCNN(10).init_with_output(jax.random.key(0), x, train=False)
        >>> jax.eval_shape(initialize, x)[0].shape
        (2, 10)
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64)
    dense: int = 128
    dropout_rate: float = 0.0
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_positive("features", self.features)
        check_positive("dense", (self.dense,))
        check_dropout_rate(self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x, 2 ** len(self.features))
        he = nn.initializers.he_normal()
        for i, features in enumerate(self.features):
            x = _run(partial(_digits_block, features=features, index=i, train=train), self, x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.dense, kernel_init=he, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(at_least_float32(x))


def _digits_block(
    model: DigitsCNN, x: jax.Array, features: int, index: int, train: bool
) -> jax.Array:
    conv = Conv(
        features,
        kernel_init=nn.initializers.he_normal(),
        dtype=model.dtype,
        name=f"Conv_{index}",
    )
    norm = BatchNorm(dtype=model.dtype, group=model.batch_norm_group, name=f"BatchNorm_{index}")
    return max_pool(nn.relu(norm(conv(x), train)))


@register("MnistTutorialCNN")
class MnistTutorialCNN(nn.Module):
    """The CNN of a custom-training-loop tutorial on MNIST (28 x 28 x 1).

    Three blocks of 1, 2 and 3 convolutions with 16, 32 and 64 filters of 3 x 3, each followed by
    ReLU and then batch norm, a 2 x 2 max-pool after each block; then a dense layer with ReLU,
    batch norm and dropout. Initialization and batch norm have Keras' defaults.

    Attributes:
        num_classes: number of logits.
        dropout_rate: share of the dense layer's outputs that is dropped in training.
        batch_norm_group: examples of a group with batch statistics of its own; None: the batch.
        dtype: of the computation; parameters, statistics and logits are float32.
        remat: compute each block's activations again in the backward pass, for less memory.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
        >>> def initialize(x):
        ...     return MnistTutorialCNN(10).init_with_output(jax.random.key(0), x, train=False)
        >>> jax.eval_shape(initialize, x)[0].shape
        (2, 10)
    """

    num_classes: int
    dropout_rate: float = 0.5
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_dropout_rate(self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 8."""
        check_images(self, x, 8)
        glorot = nn.initializers.glorot_uniform()
        first = 0
        for features, convolutions in ((16, 1), (32, 2), (64, 3)):
            indices = range(first, first + convolutions)
            x = _run(
                partial(_mnist_block, features=features, indices=indices, train=train), self, x
            )
            first += convolutions
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(256, kernel_init=glorot, dtype=self.dtype)(x))
        x = _keras_batch_norm(self, first)(x, train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=glorot)(at_least_float32(x))


def _mnist_block(
    model: MnistTutorialCNN, x: jax.Array, features: int, indices: range, train: bool
) -> jax.Array:
    for index in indices:
        conv = Conv(
            features,
            use_bias=True,
            kernel_init=nn.initializers.glorot_uniform(),
            dtype=model.dtype,
            name=f"Conv_{index}",
        )
        x = _keras_batch_norm(model, index)(nn.relu(conv(x)), train)
    return max_pool(x)


def _keras_batch_norm(model: MnistTutorialCNN, index: int) -> BatchNorm:
    return BatchNorm(
        momentum=0.99,
        epsilon=1e-3,
        dtype=model.dtype,
        group=model.batch_norm_group,
        name=f"BatchNorm_{index}",
    )


def _run(block: Callable[..., jax.Array], model: Any, x: jax.Array) -> jax.Array:
    """Run a block inside a model; it names its modules itself, as `remat` counts them anew."""
    run = nn.remat(block) if model.remat else block
    return run(model, x)
