"""Small convolutional networks for small images."""

import flax.linen as nn
import jax

from model.layers import BatchNorm, Conv, check_dropout_rate, max_pool
from model.registry import ModelError, register


@register("DigitsCNN")
class DigitsCNN(nn.Module):
    """Two blocks (convolution, batch norm, ReLU, 2 x 2 max-pool) and a dense layer.

    For scikit-learn's digits (8 x 8 x 1); any image of at least 4 x 4 pixels works.

    Attributes:
        num_classes: number of logits.
        features: channels of each block.
        dense: width of the dense layer.
        dropout_rate: share of the dense layer's outputs that is dropped in training.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
        >>> def initialise(x):
        ...     return DigitsCNN(10).init_with_output(jax.random.key(0), x, train=False)
        >>> jax.eval_shape(initialise, x)[0].shape
        (2, 10)
    """

    num_classes: int
    features: tuple[int, ...] = (32, 64)
    dense: int = 128
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        _check_widths("features", self.features)
        _check_widths("dense", (self.dense,))
        check_dropout_rate(self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        for features in self.features:
            x = Conv(features, kernel_init=nn.initializers.he_normal())(x)
            x = nn.relu(BatchNorm()(x, train))
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.dense, kernel_init=nn.initializers.he_normal())(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


@register("MnistTutorialCNN")
class MnistTutorialCNN(nn.Module):
    """The CNN of a custom-training-loop tutorial on MNIST (28 x 28 x 1).

    Three blocks of 1, 2 and 3 convolutions with 16, 32 and 64 filters of 3 x 3, each followed by
    ReLU and then batch norm, a 2 x 2 max-pool after each block; then a dense layer with ReLU,
    batch norm and dropout. Initialisation and batch norm have Keras' defaults.

    Attributes:
        num_classes: number of logits.
        dropout_rate: share of the dense layer's outputs that is dropped in training.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
        >>> def initialise(x):
        ...     return MnistTutorialCNN(10).init_with_output(jax.random.key(0), x, train=False)
        >>> jax.eval_shape(initialise, x)[0].shape
        (2, 10)
    """

    num_classes: int
    dropout_rate: float = 0.5

    def __post_init__(self) -> None:
        check_dropout_rate(self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]; h and w at least 8."""
        glorot = nn.initializers.glorot_uniform()
        for features, convolutions in ((16, 1), (32, 2), (64, 3)):
            for _ in range(convolutions):
                x = nn.relu(Conv(features, use_bias=True, kernel_init=glorot)(x))
                x = _keras_batch_norm(x, train)
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(256, kernel_init=glorot)(x))
        x = _keras_batch_norm(x, train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=glorot)(x)


def _keras_batch_norm(x: jax.Array, train: bool) -> jax.Array:
    return BatchNorm(momentum=0.99, epsilon=1e-3)(x, train)


def _check_widths(name: str, widths: tuple[int, ...]) -> None:
    if not widths or min(widths) < 1:
        raise ModelError(f"model_params.{name} = {widths}: must be whole numbers of at least 1")
