"""Layers that the families share, in the formulations that measure fastest.

All images are [b, h, w, c]. Each layer equals its counterpart in flax.linen, parameter names
included; where there is a difference, it is in the way to the same numbers, and only on the CPU
(see `conv`).

Precision: parameters and batch statistics are float32. `dtype` is that of the computation and of
the output, float32 or bfloat16; what adds up many values (statistics, means) does so in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata

from model.registry import ModelError

Initializer = Callable[..., jax.Array]
DType = Any
Module = TypeVar("Module", bound=nn.Module)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: int = 1,
    padding: str | int = "SAME",
    groups: int = 1,
) -> jax.Array:
    """y[b, i, j, o] = sum_{u, v, c} x[b, s i + u - p, s j + v - p, c] kernel[u, v, c, o].

    As `lax.conv_general_dilated` does it, but for two things on the CPU. For one input channel in
    float32, where that is six times slower, the value of the same-padded one is a sum of shifted
    products; the derivative in the kernel's direction stays that of the plain one. For the others
    the kernel's gradient takes the images from a copy of their own (see `_turned`). Forward and
    reverse differentiation, and one over the other, work in every case.

    Args:
        x: [b, h, w, c].
        kernel: [kh, kw, c / groups, o], of the same dtype.
        strides: step in pixels, in both directions.
        padding: "SAME", "VALID", or the pixels p of zeros at each edge. With strides of 2, "SAME"
            puts the odd pixel at the end of an even side; PyTorch's p puts one at both ends.
        groups: parts of the channels that are convolved each on its own.

    Returns:
        [b, ceil(h / strides), ceil(w / strides), o] for "SAME"; the sides of others are
        floor((h + 2 p - kh) / strides) + 1.

    Example:
        >>> conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    # In bfloat16 a sum of products would round at each term.
    one_channel = x.shape[-1] == 1 and x.dtype == jnp.float32
    if one_channel and (strides, padding) == (1, "SAME") and jax.default_backend() == "cpu":
        return _one_channel_conv(x, kernel)
    if groups == 1 and jax.default_backend() == "cpu":
        return _cpu_conv(strides, padding, x, kernel)
    return _plain_conv(x, kernel, strides, padding, groups)


def _plain_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: int = 1,
    padding: str | int = "SAME",
    groups: int = 1,
    axes: str = "NHWC",
) -> jax.Array:
    edges = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        edges,
        dimension_numbers=(axes, "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _cpu_conv(strides: int, padding: str | int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _plain_conv(x, kernel, strides, padding)


def _cpu_conv_jvp(strides: int, padding: str | int, primals: Any, tangents: Any) -> Any:
    """The product rule; its transpose, the kernel's gradient, reads the images `_turned`."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _cpu_conv(strides, padding, x, kernel)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy = _cpu_conv(strides, padding, dx, kernel)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + _plain_conv(_turned(x), dkernel, strides, padding, axes="CHWN")
    return y, dy


_cpu_conv.defjvp(_cpu_conv_jvp, symbolic_zeros=True)


def _turned(x: jax.Array) -> jax.Array:
    """The images as [c, h, w, b], the order in which XLA convolves them for a kernel's gradient.

    In a call that XLA does not inline: else it fuses into this copy what they are made of (batch
    norm, ReLU) and computes that once more in strided order, which takes three times as long.
    """
    with set_xla_metadata(inlineable="false"):
        return _transposed(x)


@jax.jit
def _transposed(x: jax.Array) -> jax.Array:
    return x.transpose(3, 1, 2, 0)


@jax.custom_jvp
def _one_channel_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _shifted_products(x, kernel)


def _one_channel_conv_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The product rule. Images have no tangent in training: symbolic zeros save that term."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _one_channel_conv(x, kernel)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy = _one_channel_conv(dx, kernel)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + _plain_conv(x, dkernel)
    return y, dy


_one_channel_conv.defjvp(_one_channel_conv_jvp, symbolic_zeros=True)


def _shifted_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    products = [
        _product(shifted, tap)
        for shifted, tap in zip(
            _shifts(x, kernel.shape[:2]), kernel.reshape(-1, *kernel.shape[2:]), strict=True
        )
    ]
    return sum(products[1:], products[0])


def _shifts(x: jax.Array, window: tuple[int, ...]) -> list[jax.Array]:
    """For each tap of a same-padded window, x moved to where the tap reads."""
    zero = jnp.zeros((), x.dtype)
    offsets = [
        (row - (window[0] - 1) // 2, column - (window[1] - 1) // 2)
        for row in range(window[0])
        for column in range(window[1])
    ]
    return [
        lax.pad(x, zero, ((0, 0, 0), (-down, down, 0), (-right, right, 0), (0, 0, 0)))
        for down, right in offsets
    ]


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


class Conv(nn.Module):
    """Convolution of [b, h, w, c], parameters as in `nn.Conv`; see `conv`.

    Attributes:
        features: output channels.
        window: kernel height and width in pixels.
        strides: step in pixels, in both directions.
        use_bias: add a bias to each channel.
        kernel_init: initialiser of the kernel [kh, kw, c / groups, features].
        padding: "SAME", "VALID", or pixels of zeros at each edge.
        groups: parts of the channels that are convolved each on its own.
        dtype: of the computation and the output.

    Example:
        >>> variables = Conv(16).init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> variables["params"]["kernel"].shape
        (3, 3, 3, 16)
    """

    features: int
    window: tuple[int, int] = (3, 3)
    strides: int = 1
    use_bias: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()
    padding: str | int = "SAME"
    groups: int = 1
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features] for "SAME"."""
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ModelError(
                f"{x.shape[-1]} and {self.features} channels do not divide into {self.groups} "
                "groups of a convolution"
            )
        shape = (*self.window, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            self.padding,
            self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + lax.broadcast_in_dim(bias.astype(self.dtype), y.shape, (y.ndim - 1,))
        return y


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, per channel (the last axis).

    In training, mean and var are the batch's, over all other axes (of the global batch, where it
    is sharded), with var = E[x^2] - E[x]^2, and the running ones move towards them:
    running <- momentum * running + (1 - momentum) * batch. In evaluation they are the running
    ones. Values, parameters and statistics are those of `nn.BatchNorm`. All of it is computed in
    float32, whatever the dtype of x and y.

    With groups, in training, mean and var are those of examples i g ... (i + 1) g - 1 for each of
    them, and the running ones move towards the groups' mean.

    Attributes:
        momentum: weight of the running statistics' old value.
        epsilon: added to the variance.
        use_scale: multiply by a parameter; else by 1.
        dtype: of the output.
        group: g, examples of a group; it divides the batch, the first axis. None: the batch.

    Example:
        >>> x = jnp.array([[1.0], [3.0]])
        >>> norm = BatchNorm()
        >>> variables = norm.init(jax.random.key(0), x, train=False)
        >>> y, state = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        >>> [round(float(value), 3) for value in y[:, 0]]
        [-1.0, 1.0]

    References:
        Ioffe and Szegedy, 2015: https://arxiv.org/abs/1502.03167
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    dtype: DType = jnp.float32
    group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[..., c] -> [..., c]."""
        shape, whole = x.shape[-1:], x.shape
        x = at_least_float32(x)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean, var = running_mean.value, running_var.value
        if train:
            if self.group is not None:
                x = _in_groups(x, self.group)
            axes = tuple(range(0 if self.group is None else 1, x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.maximum(lax.square(x).mean(axes) - lax.square(mean), 0.0)
            if not self.is_initializing():
                running_mean.value = self._moved(running_mean.value, mean)
                running_var.value = self._moved(running_var.value, var)
        factor = lax.rsqrt(var + self.epsilon)
        if scale is not None:
            factor = factor * jnp.broadcast_to(scale, factor.shape)
        y = (x - _spread(mean, x)) * _spread(factor, x) + _spread(bias, x)
        return y.reshape(whole).astype(self.dtype)

    def _moved(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        if self.group is not None:
            batch = batch.mean(0)
        return self.momentum * running + (1 - self.momentum) * batch


def _in_groups(x: jax.Array, group: int) -> jax.Array:
    """[b, ..., c] -> [b / group, group, ..., c]."""
    check_batch_norm_group(group)
    if len(x) % group:
        raise ModelError(
            f"model_params.batch_norm_group = {group} does not divide a batch of {len(x)} examples "
            "into whole groups"
        )
    return x.reshape(-1, group, *x.shape[1:])


def _spread(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values of each channel [c], or of each group and channel, in the shape of x."""
    axes = (0, x.ndim - 1)[-values.ndim :]
    return lax.broadcast_in_dim(values, x.shape, axes)


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over non-overlapping windows of 2 x 2 pixels; an odd last row or column is dropped.

    Written as a reshape and maxima of pairs, whose gradient is cheaper on the CPU than that of
    `nn.max_pool`. Pixels of a window that share the maximum share its gradient: the two of a pair
    in equal parts, then the two pairs. `nn.max_pool` gives all of it to the first.

    Args:
        x: [b, h, w, c].

    Returns:
        [b, h // 2, w // 2, c].

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    b, h, w, c = x.shape
    if h < 2 or w < 2:
        raise ModelError(f"an image of {h} x {w} pixels cannot be halved: use larger images")
    even = x[:, : h // 2 * 2, : w // 2 * 2]
    windows = even.reshape(b, h // 2, 2, w // 2, 2, c)
    rows = jnp.maximum(windows[:, :, 0], windows[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def mean_of_pixels(x: jax.Array) -> jax.Array:
    """y[b, c] = mean over i, j of x[b, i, j, c], in float32 (global average pooling).

    Args:
        x: [b, h, w, c].

    Returns:
        [b, c], float32 also where x is bfloat16.

    Example:
        >>> mean_of_pixels(jnp.arange(4, dtype=jnp.bfloat16).reshape(1, 2, 2, 1)).tolist()
        [[1.5]]
    """
    return jnp.mean(at_least_float32(x), axis=(1, 2))


def at_least_float32(x: jax.Array) -> jax.Array:
    """The array in float32 where its dtype has fewer bits, else the array itself.

    Example:
        >>> at_least_float32(jnp.ones(1, jnp.bfloat16)).dtype.name
        'float32'
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def drop_path(x: jax.Array, rate: float, train: bool, key: jax.Array | None) -> jax.Array:
    """y[b] = x[b] k[b] / (1 - rate), with k[b] = 1 with probability 1 - rate, else 0.

    Stochastic depth: x is the branch of a residual block, which is left out for whole examples.
    The division keeps the expectation, so evaluation returns x as it is.

    Args:
        x: [b, ...].
        rate: probability that an example's branch is dropped, at least 0 and below 1.
        train: False: return x.
        key: of the draw; None where nothing is drawn (rate 0, or evaluation).

    Returns:
        [b, ...], of the dtype of x.

    Example:
        >>> y = drop_path(jnp.ones((6, 2)), 0.5, True, jax.random.key(0))
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]

    References:
        Huang et al., 2016: https://arxiv.org/abs/1603.09382
    """
    if not train or rate == 0:
        return x
    if key is None:
        raise ModelError("stochastic depth in training needs a random key")
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    # The mask has x's shape before the product: a select of one, and dtypes stay.
    return jnp.where(jnp.broadcast_to(keep, x.shape), x / (1 - rate), jnp.zeros_like(x))


class StochasticDepth(nn.Module):
    """`drop_path` with a key of the stream `dropout`; holds no parameters.

    Attributes:
        rate: probability that an example's branch is dropped in training.

    Example:
        >>> StochasticDepth(0.1).apply({}, jnp.ones((1, 2)), train=False).tolist()
        [[1.0, 1.0]]

    References:
        Huang et al., 2016: https://arxiv.org/abs/1603.09382
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, ...] -> [b, ...]."""
        key = self.make_rng("dropout") if train and self.rate > 0 else None
        return drop_path(x, self.rate, train, key)


def checkpointed(block: type[Module], remat: bool) -> type[Module]:
    """The block's class, or one whose activations are computed again in the backward pass.

    Parameters, their names (the block needs a `name`), values and random masks stay the same.

    Args:
        block: a module called as `block(x, train)`.
        remat: False: return the class itself.

    Example:
        >>> checkpointed(StochasticDepth, False) is StochasticDepth
        True
    """
    return nn.remat(block, static_argnums=(2,)) if remat else block


def check_dropout_rate(rate: float, name: str = "dropout_rate") -> None:
    """Raises ModelError unless 0 <= rate < 1.

    Args:
        rate: a probability.
        name: of the model's parameter, for the message.

    Example:
        >>> check_dropout_rate(0.5)
    """
    if not 0 <= rate < 1:
        raise ModelError(f"model_params.{name} = {rate}: must be at least 0 and below 1")


def check_batch_norm_group(group: int | None) -> None:
    """Raises ModelError unless the group is None or at least 1.

    Args:
        group: examples that share batch statistics.

    Example:
        >>> check_batch_norm_group(32)
    """
    if group is not None and group < 1:
        raise ModelError(
            f"model_params.batch_norm_group = {group}: must be at least 1, or None for the batch"
        )
