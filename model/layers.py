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

# Groups of examples whose kernel gradients are computed on their own and added, on the CPU.
_GROUPS = 8


def conv(x: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    """y[b, i, j, o] = sum_{u, v, c} x[b, s i + u - p, s j + v - p, c] kernel[u, v, c, o].

    Same-padded convolution. On the CPU its derivative in the direction of the kernel is taken in
    groups of examples, because XLA's gradient of a kernel runs on one core and over the whole
    batch leaves the cache; with one input channel (where it is far slower) as shifted products
    and one matrix product. Elsewhere it is the plain `lax.conv_general_dilated`. Forward and
    reverse differentiation, and one over the other, work in every case.

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
    if jax.default_backend() != "cpu":
        return _plain_conv(x, kernel, strides)
    return _cpu_conv(x, kernel, strides)


def _plain_conv(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _cpu_conv(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    if _has_one_channel(kernel, strides):
        return _shifted_products(x, kernel)
    return _plain_conv(x, kernel, strides)


def _cpu_conv_jvp(strides: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The product rule; its term for the kernel is written for what its transpose costs."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _cpu_conv(x, kernel, strides)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy = _cpu_conv(dx, kernel, strides)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + _conv_in_groups(x, dkernel, strides)
    return y, dy


_cpu_conv.defjvp(_cpu_conv_jvp, symbolic_zeros=True)


def _conv_in_groups(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    if _has_one_channel(kernel, strides):
        patches = jnp.concatenate(_shifts(x, kernel.shape[:2]), axis=-1)
        return _product(patches, kernel.reshape(-1, kernel.shape[-1]))
    if kernel.shape[:2] == (1, 1) or x.shape[0] % _GROUPS:
        return _plain_conv(x, kernel, strides)
    groups = lax.split(x, (x.shape[0] // _GROUPS,) * _GROUPS)
    return jnp.concatenate([_plain_conv(group, kernel, strides) for group in groups])


def _has_one_channel(kernel: jax.Array, strides: int) -> bool:
    return kernel.shape[2] == 1 and strides == 1


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

    Written as a reshape and a maximum, whose gradient is cheaper on the CPU than that of
    `nn.max_pool`. Where several pixels of a window share the maximum, they share the gradient in
    equal parts; `nn.max_pool` gives all of it to the first.

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
    return even.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def check_dropout_rate(rate: float) -> None:
    """Raises ModelError unless 0 <= rate < 1.

    Example:
        >>> check_dropout_rate(0.5)
    """
    if not 0 <= rate < 1:
        raise ModelError(f"model_params.dropout_rate = {rate}: must be at least 0 and below 1")
