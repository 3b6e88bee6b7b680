"""Small convolutional networks for small images."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import (
    BatchNorm,
    Conv,
    DType,
    at_least_float32,
    check_batch_norm_group,
    check_images,
    check_rates,
    check_sizes,
    max_pool,
)
from model.registry import register


@register("DigitsCNN")
class DigitsCNN(nn.Module):
    """Two blocks (convolution, batch norm, ReLU, 2 x 2 max-pool) and a dense layer.

    For scikit-learn's digits (8 x 8 x 1); any image of at least 4 x 4 pixels works.

    Attributes:
        features: channels of each block.
        dense: width of the dense layer.
        dropout_rate: share of the dense layer's outputs that is dropped in training.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(DigitsCNN(10), (8, 8, 1))
        53098
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64)
    dense: int = 128
    dropout_rate: float = 0.0
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(features=self.features, dense=self.dense)
        check_rates(dropout_rate=self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x, 2 ** len(self.features))
        he = nn.initializers.he_normal()

        def block(module: nn.Module, x: jax.Array, *, features: int, index: int) -> jax.Array:
            conv = Conv(features, kernel_init=he, dtype=self.dtype, name=f"Conv_{index}")
            norm = BatchNorm(
                dtype=self.dtype, group=self.batch_norm_group, name=f"BatchNorm_{index}"
            )
            return max_pool(nn.relu(norm(conv(x), train)))

        for i, features in enumerate(self.features):
            body = partial(block, features=features, index=i)
            x = (nn.remat(body) if self.remat else body)(self, x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.dense, kernel_init=he, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(at_least_float32(x))


@register("MnistTutorialCNN")
class MnistTutorialCNN(nn.Module):
    """The CNN of a custom-training-loop tutorial on MNIST (28 x 28 x 1).

    Three blocks of 1, 2 and 3 convolutions with 16, 32 and 64 filters of 3 x 3, each followed by
    ReLU and then batch norm, a 2 x 2 max-pool after each block; then a dense layer with ReLU,
    batch norm and dropout. Initialization and batch norm have Keras' defaults; images' running
    variance is the unbiased one, as TensorFlow computes it.

    Attributes:
        dropout_rate: share of the dense layer's outputs that is dropped in training.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(MnistTutorialCNN(10), (28, 28, 1))
        257738
    """

    num_classes: int
    dropout_rate: float = 0.5
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_rates(dropout_rate=self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 8."""
        check_images(self, x, 8)
        glorot = nn.initializers.glorot_uniform()
        conv = partial(Conv, use_bias=True, kernel_init=glorot, dtype=self.dtype)
        norm = partial(BatchNorm, 0.99, 1e-3, dtype=self.dtype, group=self.batch_norm_group)

        def block(module: nn.Module, x: jax.Array, *, features: int, indices: range) -> jax.Array:
            for i in indices:
                x = nn.relu(conv(features, name=f"Conv_{i}")(x))
                x = norm(name=f"BatchNorm_{i}", unbiased=True)(x, train)
            return max_pool(x)

        for features, indices in ((16, range(1)), (32, range(1, 3)), (64, range(3, 6))):
            body = partial(block, features=features, indices=indices)
            x = (nn.remat(body) if self.remat else body)(self, x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(256, kernel_init=glorot, dtype=self.dtype)(x))
        x = norm(name="BatchNorm_6")(x, train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=glorot)(at_least_float32(x))


@register("DeepOBS2c2d")
class DeepOBS2c2d(nn.Module):
    """Two 5 x 5 convolutions with ReLU, each before a 2 x 2 max-pool; a dense layer; logits.

    That of DeepOBS' test problems on MNIST and Fashion-MNIST (28 x 28 x 1). Weights begin normally
    distributed with deviation 0.05, cut off at two deviations, and biases at 0.05.

    Attributes:
        features: channels of each convolution.
        dense: width of the dense layer.
        num_classes, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(DeepOBS2c2d(10), (28, 28, 1))
        3274634

    References:
        Schneider, Balles, Hennig, 2019: https://arxiv.org/abs/1903.05499
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64)
    dense: int = 1024
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(features=self.features, dense=self.dense)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 4 for two convolutions."""
        check_images(self, x, 2 ** len(self.features))
        normal, constant = nn.initializers.truncated_normal(0.05), nn.initializers.constant(0.05)
        conv = partial(
            Conv, window=(5, 5), use_bias=True, kernel_init=normal, bias_init=constant,
            dtype=self.dtype,
        )  # fmt: skip
        dense = partial(nn.Dense, kernel_init=normal, bias_init=constant)

        def block(module: nn.Module, x: jax.Array, *, features: int, index: int) -> jax.Array:
            return max_pool(nn.relu(conv(features, name=f"Conv_{index}")(x)))

        for i, features in enumerate(self.features):
            body = partial(block, features=features, index=i)
            x = (nn.remat(body) if self.remat else body)(self, x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(dense(self.dense, dtype=self.dtype)(x))
        return dense(self.num_classes)(at_least_float32(x))
