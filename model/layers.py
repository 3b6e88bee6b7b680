"""Layers that the families share, in the formulations that measure fastest.

All images are [b, h, w, c]; everything is float32. Each layer equals its counterpart in
flax.linen, parameter names included. What differs is the way to the same numbers, and only on
the CPU (see `conv`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from model.registry import ModelError

Initializer = Callable[..., jax.Array]


def conv(x: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    """y[b, i, j, o] = sum_{u, v, c} x[b, s i + u - p, s j + v - p, c] kernel[u, v, c, o].

    Same-padded convolution, as `lax.conv_general_dilated` does it. Only for one input channel on
    the CPU, where that is six times slower, its value is a sum of shifted products; the derivative
    in the kernel's direction stays that of the plain one. Forward and reverse differentiation,
    and one over the other, work in every case.

    Args:
        x: [b, h, w, c] float32.
        kernel: [kh, kw, c, o] float32.
        strides: step in pixels, in both directions.

    Returns:
        [b, ceil(h / strides), ceil(w / strides), o].

    Example:
        >>> conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    if x.shape[-1] == 1 and strides == 1 and jax.default_backend() == "cpu":
        return _one_channel_conv(x, kernel)
    return _plain_conv(x, kernel, strides)


def _plain_conv(x: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


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
    """Same-padded convolution of [b, h, w, c], parameters as in `nn.Conv`; see `conv`.

    Attributes:
        features: output channels.
        window: kernel height and width in pixels.
        strides: step in pixels, in both directions.
        use_bias: add a bias to each channel.
        kernel_init: initialiser of the kernel [kh, kw, c, features].

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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features]."""
        shape = (*self.window, x.shape[-1], self.features)
        y = conv(x, self.param("kernel", self.kernel_init, shape), self.strides)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + lax.broadcast_in_dim(bias, y.shape, (y.ndim - 1,))
        return y


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, per channel (the last axis).

    In training, mean and var are the batch's, over all other axes (of the global batch, where it
    is sharded), with var = E[x^2] - E[x]^2, and the running ones move towards them:
    running <- momentum * running + (1 - momentum) * batch. In evaluation they are the running
    ones. Values, parameters and statistics are those of `nn.BatchNorm`.

    Attributes:
        momentum: weight of the running statistics' old value.
        epsilon: added to the variance.

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

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[..., c] -> [..., c]."""
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.maximum(lax.square(x).mean(axes) - lax.square(mean), 0.0)
            if not self.is_initializing():
                running_mean.value = self._moved(running_mean.value, mean)
                running_var.value = self._moved(running_var.value, var)
        spread = partial(lax.broadcast_in_dim, shape=x.shape, broadcast_dimensions=(x.ndim - 1,))
        factor = lax.rsqrt(var + self.epsilon) * scale
        return (x - spread(mean)) * spread(factor) + spread(bias)

    def _moved(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * batch


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


def check_dropout_rate(rate: float) -> None:
    """Raises ModelError unless 0 <= rate < 1.

    Example:
        >>> check_dropout_rate(0.5)
    """
    if not 0 <= rate < 1:
        raise ModelError(f"model_params.dropout_rate = {rate}: must be at least 0 and below 1")
