"""Networks of the gradient-centralization and the gradient-evolution experiments.

Each is the one by which the Keras or TensorFlow examples know its data set, with Keras' defaults:
Glorot's uniform initialization, batch norms of momentum 0.99 and epsilon 0.001.
"""

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
    check_series,
    check_sizes,
    max_pool,
)
from model.perceptron import MLP
from model.registry import register

_GLOROT = nn.initializers.glorot_uniform()

_conv = partial(Conv, use_bias=True, kernel_init=_GLOROT)
_dense = partial(nn.Dense, kernel_init=_GLOROT)
_norm = partial(BatchNorm, 0.99, 1e-3)


@register("HorsesOrHumansCNN")
class HorsesOrHumansCNN(nn.Module):
    """Five unpadded 3 x 3 convolutions with ReLU, each before a 2 x 2 max-pool; a dense layer.

    Dropout comes behind the second and the third convolution, in front of their pooling, and
    behind the flattening. With `num_classes=1` the logit is that of "human", for the loss
    sigmoid_cross_entropy.

    Attributes:
        features: channels of each convolution.
        dense: width of the dense layer.
        dropout_rate: share dropped at each of the three, in training.
        num_classes, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(HorsesOrHumansCNN(1), (300, 300, 3))
        1704097

    References:
        Dagli, 2021: https://keras.io/examples/vision/gradient_centralization
    """

    num_classes: int
    features: tuple[int, ...] = (16, 32, 64, 64, 64)
    dense: int = 512
    dropout_rate: float = 0.5
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(features=self.features, dense=self.dense)
        check_rates(dropout_rate=self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 94 for five convolutions."""
        check_images(self, x, _least_side(self.features))
        dropout = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        def convolution(module: nn.Module, x: jax.Array, *, features: int, index: int) -> jax.Array:
            conv = _conv(features, padding="VALID", dtype=self.dtype, name=f"conv_{index}")
            x = nn.relu(conv(x))
            if index in (2, 3):
                x = dropout(name=f"dropout_{index}")(x)
            return max_pool(x)

        for i, features in enumerate(self.features):
            body = partial(convolution, features=features, index=i + 1)
            x = (nn.remat(body) if self.remat else body)(self, x)
        x = dropout(name="dropout")(x.reshape(x.shape[0], -1))
        x = nn.relu(_dense(self.dense, dtype=self.dtype, name="dense")(x))
        return _dense(self.num_classes, name="head")(at_least_float32(x))


@register("EvolutionMnistCNN")
class EvolutionMnistCNN(nn.Module):
    """Two unpadded 3 x 3 convolutions with ReLU, each before a 2 x 2 max-pool; dropout; logits.

    For MNIST (28 x 28 x 1).

    Attributes:
        features: channels of each convolution.
        dropout_rate: share of the flattened image that is dropped in training.
        num_classes, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(EvolutionMnistCNN(10), (28, 28, 1))
        34826

    References:
        Chollet, 2015: https://keras.io/examples/vision/mnist_convnet
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64)
    dropout_rate: float = 0.5
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(features=self.features)
        check_rates(dropout_rate=self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 10 for two convolutions."""
        check_images(self, x, _least_side(self.features))

        def convolution(module: nn.Module, x: jax.Array, *, features: int, index: int) -> jax.Array:
            conv = _conv(features, padding="VALID", dtype=self.dtype, name=f"conv_{index}")
            return max_pool(nn.relu(conv(x)))

        for i, features in enumerate(self.features):
            body = partial(convolution, features=features, index=i + 1)
            x = (nn.remat(body) if self.remat else body)(self, x)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return _dense(self.num_classes, name="head")(at_least_float32(x))


@register("EvolutionCifarCNN")
class EvolutionCifarCNN(nn.Module):
    """Blocks of a padded and an unpadded 3 x 3 convolution with ReLU, pooled; a dense layer.

    For CIFAR-10 and CIFAR-100 (32 x 32 x 3). Dropout comes behind each block's 2 x 2 max-pool and
    behind the dense layer.

    Attributes:
        features: channels of each block.
        dense: width of the dense layer.
        block_dropout_rate: share of each block's outputs that is dropped in training.
        dropout_rate: share of the dense layer's outputs that is dropped in training.
        num_classes, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(EvolutionCifarCNN(10), (32, 32, 3))
        1250858

    References:
        Chollet et al., 2015: https://github.com/keras-team/keras/blob/2.3.1/examples/cifar10_cnn.py
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64)
    dense: int = 512
    block_dropout_rate: float = 0.25
    dropout_rate: float = 0.5
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(features=self.features, dense=self.dense)
        check_rates(block_dropout_rate=self.block_dropout_rate, dropout_rate=self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 10 for two blocks."""
        check_images(self, x, _least_side(self.features))
        conv = partial(_conv, dtype=self.dtype)

        def block(module: nn.Module, x: jax.Array, *, features: int, name: str) -> jax.Array:
            x = nn.relu(conv(features, name=f"{name}_conv_1")(x))
            return max_pool(nn.relu(conv(features, padding="VALID", name=f"{name}_conv_2")(x)))

        for i, features in enumerate(self.features):
            body = partial(block, features=features, name=f"block_{i + 1}")
            x = (nn.remat(body) if self.remat else body)(self, x)
            x = nn.Dropout(self.block_dropout_rate, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(_dense(self.dense, dtype=self.dtype, name="dense")(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return _dense(self.num_classes, name="head")(at_least_float32(x))


@register("EvolutionCifar10CNN")
class EvolutionCifar10CNN(nn.Module):
    """Padded 3 x 3 convolutions, ReLU, batch norm; a 2 x 2 max-pool between blocks; dense layers.

    That of the article on CIFAR-10; `EvolutionCifar100CNN` is that on CIFAR-100.

    Attributes:
        features: channels of each block's convolutions.
        dense: widths of the dense layers, each with a ReLU.
        norm_dense: batch norms follow the dense layers, not the convolutions.
        flat_dropout_rate: share of the flattened image that is dropped in training.
        dropout_rate: share of the last dense layer's outputs, in front of its batch norm.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(EvolutionCifar10CNN(10), (32, 32, 3))
        2396330

    References:
        ywcb00, 2024: https://github.com/ywcb00/gradient_evolution
    """

    num_classes: int
    features: tuple[tuple[int, ...], ...] = ((32, 32), (64, 64), (128, 128), ())
    dense: tuple[int, ...] = (1024,)
    norm_dense: bool = False
    flat_dropout_rate: float = 0.2
    dropout_rate: float = 0.2
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(features=sum(self.features, ()), dense=self.dense)
        check_rates(flat_dropout_rate=self.flat_dropout_rate, dropout_rate=self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 8 for four blocks."""
        check_images(self, x, 2 ** (len(self.features) - 1))
        norm = partial(_norm, dtype=self.dtype, group=self.batch_norm_group)

        def block(
            module: nn.Module, x: jax.Array, *, features: tuple[int, ...], index: int
        ) -> jax.Array:
            for i, channels in enumerate(features):
                name = f"{index}_{i + 1}"
                x = nn.relu(_conv(channels, dtype=self.dtype, name=f"conv_{name}")(x))
                if not self.norm_dense:
                    x = norm(name=f"norm_{name}")(x, train)
            return x

        for i, features in enumerate(self.features):
            body = partial(block, features=features, index=i + 1)
            x = (nn.remat(body) if self.remat else body)(self, max_pool(x) if i else x)
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(self.flat_dropout_rate, deterministic=not train)(x)
        for i, width in enumerate(self.dense):
            x = nn.relu(_dense(width, dtype=self.dtype, name=f"dense_{i + 1}")(x))
            if i == len(self.dense) - 1:
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            if self.norm_dense:
                x = norm(name=f"norm_{i + 1}")(x, train)
        return _dense(self.num_classes, name="head")(at_least_float32(x))


@register("EvolutionCifar100CNN")
class EvolutionCifar100CNN(EvolutionCifar10CNN):
    """`EvolutionCifar10CNN` for CIFAR-100: four convolutions, batch norms behind the dense layers.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(EvolutionCifar100CNN(100), (32, 32, 3))
        8578820
    """

    features: tuple[tuple[int, ...], ...] = ((16, 32, 64), (128,))
    dense: tuple[int, ...] = (256, 256)
    norm_dense: bool = True
    flat_dropout_rate: float = 0.0
    dropout_rate: float = 0.3


@register("EvolutionFordACNN")
class EvolutionFordACNN(nn.Module):
    """Three 1-D convolutions of width 3, each with batch norm and ReLU; the mean over time; logits.

    For FordA (500 values of one sensor, 2 classes) and other time series.

    Attributes:
        features: channels of each convolution.
        window: width of the convolutions, in time steps.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(EvolutionFordACNN(2), (500, 1))
        25474

    References:
        Fawaz, 2020: https://keras.io/examples/timeseries/timeseries_classification_from_scratch
        Wang et al., 2017: https://arxiv.org/abs/1611.06455
    """

    num_classes: int
    features: tuple[int, ...] = (64, 64, 64)
    window: int = 3
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(features=self.features, window=self.window)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, length, channels] -> [b, num_classes]; [b, length] has one channel."""
        check_series(self, x)

        def block(module: nn.Module, x: jax.Array, *, features: int, index: int) -> jax.Array:
            conv = _conv(features, (self.window, 1), dtype=self.dtype, name=f"conv_{index}")
            norm = _norm(dtype=self.dtype, group=self.batch_norm_group, name=f"norm_{index}")
            return nn.relu(norm(conv(x), train))

        # A series is an image of width 1, which has the convolutions of images.
        x = x.reshape(*x.shape[:2], 1, -1)
        for i, features in enumerate(self.features):
            body = partial(block, features=features, index=i + 1)
            x = (nn.remat(body) if self.remat else body)(self, x)
        return _dense(self.num_classes, name="head")(at_least_float32(x).mean((1, 2)))


@register("EvolutionIrisMLP")
class EvolutionIrisMLP(MLP):
    """`MLP` for Iris (4 features, 3 classes): two hidden layers of 10.

    Example:
        >>> EvolutionIrisMLP(3).widths
        (10, 10)

    References:
        TensorFlow's walkthrough:
        https://www.tensorflow.org/tutorials/customization/custom_training_walkthrough
    """

    widths: tuple[int, ...] = (10, 10)


@register("EvolutionBostonMLP")
class EvolutionBostonMLP(MLP):
    """`MLP` for Boston Housing (13 features, one price): two hidden layers of 64.

    Example:
        >>> EvolutionBostonMLP(1).widths
        (64, 64)

    References:
        Chollet, 2017, Deep Learning with Python, section 3.6:
        https://github.com/fchollet/deep-learning-with-python-notebooks
    """

    widths: tuple[int, ...] = (64, 64)


def _least_side(features: tuple[int, ...]) -> int:
    """Return the least side in pixels for unpadded 3 x 3 convolutions, each pooled."""
    # From the last pooling's one pixel back: each is of twice as many, and a convolution takes two.
    side = 1
    for _ in features:
        side = 2 * side + 2
    return side
