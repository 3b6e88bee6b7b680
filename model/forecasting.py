"""Forecasters of several series at once: a window [lookback, channels] -> the next `horizon` steps.

All of them normalize each window (RevIN), mix what is in it, map each channel's past to its future
by one dense layer, and take the normalization back. Inside, a window is [channels, lookback]: what
mixes time steps, the dense layers among it, is along the last axis.

Precision: as in `model.layers`; RevIN and the sum that each block adds to are float32.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from model.layers import (
    BatchNorm,
    DType,
    Initializer,
    at_least_float32,
    check_batch_norm_group,
    check_rates,
    check_series,
    check_sizes,
    checkpointed,
)
from model.registry import register
from model.transformer import softmax

# Keras' default, which the authors' networks start with; biases start at 0.
GLOROT = nn.initializers.glorot_uniform()


class Dense(nn.Dense):
    """y = x W + b along the last axis, with all other axes as one.

    On the CPU the gradients of one product of matrices are faster than those of a batch of them.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., n] -> [..., features]."""
        y = super().__call__(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], self.features)


class RevIN(nn.Module):
    """y = scale (x - mean) / sqrt(var + epsilon) + bias, for each window and channel, and back.

    mean and var are those of the window's time steps, without Bessel's correction, in float32 or
    wider; no gradient goes through them. Scale and bias are parameters of each channel.

    Attributes:
        epsilon: added to the variance.

    Example:
        >>> x = jnp.array([[[1.0, 3.0]]])
        >>> revin = RevIN()
        >>> y, variables = revin.init_with_output(jax.random.key(0), x)
        >>> [round(float(value), 3) for value in y[0, 0]]
        [-1.0, 1.0]
        >>> forecast = jnp.array([[[0.0, 2.0, 4.0]]])
        >>> y = revin.apply(variables, forecast, x, method="inverse")
        >>> [round(float(value), 3) for value in y[0, 0]]
        [2.0, 4.0, 6.0]

    References:
        Kim et al., 2022: https://openreview.net/forum?id=cGDAkQo1C0p
    """

    epsilon: float = 1e-5

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, channels, time] -> [b, channels, time]."""
        mean, deviation = self._statistics(x)
        scale, bias = self._affine(x.shape[1])
        return (x - mean) / deviation * scale + bias

    def inverse(self, y: jax.Array, x: jax.Array) -> jax.Array:
        """Return (y - bias) / scale sqrt(var + epsilon) + mean, by the statistics of a window.

        Args:
            y: [b, channels, any number of time steps], normalized.
            x: [b, channels, time], the window.
        """
        mean, deviation = self._statistics(x)
        scale, bias = self._affine(x.shape[1])
        return (y - bias) / scale * deviation + mean

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = lax.stop_gradient(at_least_float32(x))
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return mean, jnp.sqrt(var + self.epsilon)

    @nn.compact
    def _affine(self, channels: int) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return scale.reshape(1, -1, 1), bias.reshape(1, -1, 1)


class Forecaster(nn.Module):
    """RevIN, `mix`, one linear map of each channel's past to its future, RevIN's inverse.

    Attributes:
        num_classes: the horizon, in time steps.
        use_revin: normalize each window and take it back, see `RevIN`.
    """

    num_classes: int
    use_revin: bool = True

    def setup(self) -> None:
        """Build the layers."""
        self.revin = RevIN() if self.use_revin else None
        self.head = Dense(self.num_classes, kernel_init=GLOROT)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, lookback, channels] -> [b, num_classes, channels]."""
        window = self.window(x)
        y = self.head(at_least_float32(self.mix(self.normalized(window), train)))
        return (y if self.revin is None else self.revin.inverse(y, window)).swapaxes(1, 2)

    def window(self, x: jax.Array) -> jax.Array:
        """[b, lookback, channels] -> [b, channels, lookback], checked."""
        check_series(self, x, axes=(2,))
        return x.swapaxes(1, 2)

    def normalized(self, window: jax.Array) -> jax.Array:
        """[b, channels, lookback] -> [b, channels, lookback], by RevIN where it is used."""
        return window if self.revin is None else self.revin(window)

    def mix(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, channels, lookback] -> [b, channels, lookback], normalized; here, what it is."""
        return x


@register("LinearForecaster")
class LinearForecaster(Forecaster):
    """y_c = W x_c + b for the normalized past x_c of each channel, with one W for all of them.

    Attributes:
        num_classes, use_revin: see `Forecaster`.
        dtype, remat: see `get_model`; W is float32, and there is no block to compute again.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(LinearForecaster(96), (512, 7))
        49262

    References:
        Zeng et al., 2022: https://arxiv.org/abs/2205.13504
    """

    dtype: DType = jnp.float32
    remat: bool = False


class ChannelAttention(nn.Module):
    """y = softmax(Q K^T / sqrt(d)) V W + b: attention of the channels, whose features are the past.

    Q, K and V are affine in x, by the columns of one matrix, each drawn for itself.

    Attributes:
        key_size: d, columns of Q and K.
        value_size: columns of V; None: as many as there are time steps, and no W and b.
        dtype: of the computation and the output; softmax is computed in float32.
    """

    key_size: int
    value_size: int | None
    dtype: DType = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, channels, time] -> [b, channels, time]."""
        return self.weights_and_output(x)[1]

    @nn.compact
    def weights_and_output(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the softmax [b, channels, channels], a row for each query, and y, as x."""
        time = x.shape[-1]
        sizes = (self.key_size, self.key_size, self.value_size or time)
        init = partial(side_by_side, GLOROT, sizes)
        qkv = Dense(sum(sizes), dtype=self.dtype, kernel_init=init, name="qkv")(x)
        query, key, value = jnp.split(qkv, (self.key_size, 2 * self.key_size), axis=-1)
        query = query * self.key_size**-0.5
        weights = softmax(query @ key.swapaxes(1, 2), self.dtype)
        y = weights @ value
        if self.value_size is not None:
            y = Dense(time, dtype=self.dtype, kernel_init=GLOROT, name="out")(y)
        return weights, y


def side_by_side(
    init: Initializer,
    sizes: tuple[int, ...],
    key: jax.Array,
    shape: tuple[int, int],
    dtype: DType = jnp.float32,
) -> jax.Array:
    """Draw matrices of `sizes` columns, each by itself, and put them side by side: [n, sum(sizes)].

    An initializer, with `init` and `sizes` given, of one product that stands for several layers.
    """
    keys = jax.random.split(key, len(sizes))
    parts = zip(keys, sizes, strict=True)
    return jnp.concatenate([init(k, (shape[0], size), dtype) for k, size in parts], axis=1)


@register("SAMformer")
class SAMformer(Forecaster):
    """RevIN; x <- x + attention between the channels (`ChannelAttention`); one linear map to come.

    One block, one head, no layer norm and no feed-forward network. Channels may change places: the
    forecasts do with them, if RevIN's parameters do.

    Attributes:
        key_size: d, features of a query and a key.
        value_size: features of a value, which a matrix of this rank makes of the past and back.
            None: any matrix [lookback, lookback], as in the authors' package for PyTorch.
        num_classes, use_revin: see `Forecaster`.
        dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(SAMformer(96), (512, 7))
        82590
        >>> module, x = SAMformer(2, key_size=4), jnp.ones((1, 8, 3))
        >>> variables = module.init(jax.random.key(0), x, train=False)
        >>> module.apply(variables, x, method="attention").shape
        (1, 3, 3)

    References:
        Ilbert et al., 2024: https://arxiv.org/abs/2402.10198
    """

    key_size: int = 16
    value_size: int | None = 16
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(key_size=self.key_size)
        if self.value_size is not None:
            check_sizes(value_size=self.value_size)
        super().__post_init__()

    def setup(self) -> None:
        """Build the layers."""
        super().setup()
        block = nn.remat(ChannelAttention) if self.remat else ChannelAttention
        self.attn = block(self.key_size, self.value_size, self.dtype)

    def mix(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, channels, lookback] -> [b, channels, lookback]."""
        return x + self.attn(x)

    def attention(self, x: jax.Array) -> jax.Array:
        """Return how much each channel [b, i] takes from each [b, j]: rows that sum to 1.

        Args:
            x: [b, lookback, channels], as the model is called with.

        Returns:
            [b, channels, channels].
        """
        return self.attn.weights_and_output(self.normalized(self.window(x)))[0]


class MixerBlock(nn.Module):
    """x <- x + relu(W_t norm(x)) over time; x <- x + W_2 relu(W_1 norm(x)) over the channels.

    Each position (channel, time step) has batch statistics, a scale and an offset of its own. The
    outputs of all three products are dropped at the same rate in training.

    Attributes:
        ff_dim: outputs of W_1.
        dropout_rate: share that is dropped in training.
        batch_norm_group, dtype: see `get_model`.
    """

    ff_dim: int
    dropout_rate: float
    batch_norm_group: int | None
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, channels, time] -> [b, channels, time]."""
        dense = partial(Dense, dtype=self.dtype, kernel_init=GLOROT)
        drop = partial(nn.Dropout, self.dropout_rate, deterministic=not train)

        def norm(x: jax.Array, name: str) -> jax.Array:
            layer = BatchNorm(0.99, 1e-3, dtype=self.dtype, group=self.batch_norm_group, name=name)
            return layer(x.reshape(len(x), -1), train).reshape(x.shape)

        y = nn.relu(dense(x.shape[2], name="time")(norm(x, "time_norm")))
        x = x + drop()(y)
        y = norm(x, "channel_norm").swapaxes(1, 2)
        y = drop()(nn.relu(dense(self.ff_dim, name="fc1")(y)))
        y = drop()(dense(x.shape[1], name="fc2")(y))
        return x + y.swapaxes(1, 2)


@register("TSMixer")
class TSMixer(Forecaster):
    """RevIN; blocks that mix time steps, then channels (`MixerBlock`); one linear map to come.

    Attributes:
        depth: number of blocks, each with parameters of its own.
        ff_dim: hidden units between the channels.
        dropout_rate: share of each product's outputs that is dropped in training.
        num_classes, use_revin: see `Forecaster`.
        batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(TSMixer(96), (512, 7))
        605180

    References:
        Chen et al., 2023: https://arxiv.org/abs/2303.06053
    """

    depth: int = 2
    ff_dim: int = 64
    dropout_rate: float = 0.9
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_sizes(depth=self.depth, ff_dim=self.ff_dim)
        check_rates(dropout_rate=self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    def setup(self) -> None:
        """Build the layers."""
        super().setup()
        block = checkpointed(MixerBlock, self.remat)
        self.blocks = [
            block(self.ff_dim, self.dropout_rate, self.batch_norm_group, self.dtype)
            for _ in range(self.depth)
        ]

    def mix(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, channels, lookback] -> [b, channels, lookback]."""
        for block in self.blocks:
            x = block(x, train)
        return x
