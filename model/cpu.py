"""Formulations that are faster on the CPU, behind one switch: `is_target` says when they apply.

Each has the arguments of its namesake in `model.layers`, and the value and the derivatives of the
plain formulation that other devices use.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata


def is_target() -> bool:
    """Return whether the program that is being traced is for the CPU.

    The mesh that `jax.set_mesh` has set decides. Only without one is jax's default backend asked,
    since a program can be compiled for devices that this process does not use by default, or does
    not have.

    Example:
        >>> mesh = jax.sharding.AbstractMesh(
        ...     (4,), ("data",), abstract_device=jax.sharding.AbstractDevice("H200", None, "gpu")
        ... )
        >>> with jax.sharding.use_abstract_mesh(mesh):
        ...     is_target()
        False
    """
    # None where there is no mesh, or a mesh of sizes and names alone.
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    platform = jax.default_backend() if device is None else device.platform
    return bool(platform == "cpu")


def compiler_options(platform: str) -> dict[str, str]:
    """Return options for `jax.jit(..., compiler_options=...)` with which models run fastest.

    On the CPU, XLA since jax 0.10.1 gives convolutions to YNNPACK, which runs them on one core;
    XLA's own use all. On two cores a step of WideResNet_16_4 took 0.88 s with the default and
    0.64 s with these options, which leave YNNPACK what it is good at, matrix products and
    reductions. Elsewhere there is nothing to change.

    Args:
        platform: of the devices that run the program, such as "cpu" or "gpu".

    Example:
        >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options("cpu"))
        >>> int(step(1))
        2
        >>> compiler_options("gpu")
        {}
    """
    if platform != "cpu":
        return {}
    return {
        "xla_cpu_experimental_ynn_fusion_type": (
            "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        )
    }


def fori_loop(count: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """Call carry = body(index, carry) for 0, 1, ..., count - 1, and return the last carry.

    On the CPU `body` is traced once for each index: inside XLA's control flow, model code runs 4 to
    8 times slower there. On other devices it is traced once, inside `jax.lax.fori_loop`, which
    keeps the program and its memory small.

    Args:
        count: At least 1.
        body: (index, carry) -> carry, of the same shapes. The index is a Python int or a traced
            int32 scalar: index with it, do not branch on it.
        carry: Pytree of arrays.

    Example:
        >>> x = jnp.arange(6.0).reshape(3, 2)
        >>> fori_loop(3, lambda index, total: total + x[index].sum(), 0.0).item()
        15.0
    """
    if not is_target():
        return lax.fori_loop(0, count, body, carry)
    for index in range(count):
        carry = body(index, carry)
    return carry


def conv(
    x: jax.Array, kernel: jax.Array, strides: int = 1, padding: str | int = "SAME"
) -> jax.Array:
    """Convolve as `plain_conv` does, for one group of channels, faster on the CPU.

    For one input channel in float32, where XLA's convolution is six times slower, the value of the
    same-padded one is a sum of shifted products; the derivative in the kernel's direction stays
    that of the plain one. For the others, the kernel's gradient takes the images from a copy of
    their own (see `_channels_first`). In float64, for which XLA's convolution has no fast way, it
    is a sum of matrix products. Forward and reverse differentiation, and one over the other, work
    in every case.
    """
    if x.dtype == jnp.float64:
        return _sum_of_products(x, kernel, strides, padding)
    # In bfloat16 a sum of products would round at each term.
    one_channel = x.shape[-1] == 1 and x.dtype == jnp.float32
    if one_channel and (strides, padding) == (1, "SAME"):
        return _one_channel_conv(x, kernel)
    return _conv(strides, padding, x, kernel)


def plain_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: int = 1,
    padding: str | int = "SAME",
    groups: int = 1,
    axes: str = "NHWC",
) -> jax.Array:
    """Convolve with `lax.conv_general_dilated`, as other devices do it; see `model.layers.conv`.

    The axes are those of x, in the letters of `lax.conv_general_dilated`.
    """
    edges = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        edges,
        dimension_numbers=(axes, "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _sum_of_products(
    x: jax.Array, kernel: jax.Array, strides: int, padding: str | int
) -> jax.Array:
    """Add up, over the taps of the window, the pixels that each reads times its matrix."""
    window, steps = kernel.shape[:2], (strides, strides)
    edges: Any = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    if isinstance(padding, str):
        edges = lax.padtype_to_pads(x.shape[1:3], window, steps, padding)
    x = jnp.pad(x, ((0, 0), *edges, (0, 0)))
    h, w = (strides * ((x.shape[1 + i] - window[i]) // strides) + 1 for i in (0, 1))
    taps = [(row, column) for row in range(window[0]) for column in range(window[1])]
    return sum(x[:, i : i + h : strides, j : j + w : strides] @ kernel[i, j] for i, j in taps)  # type: ignore[return-value]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _conv(strides: int, padding: str | int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return plain_conv(x, kernel, strides, padding)


def _conv_jvp(strides: int, padding: str | int, primals: Any, tangents: Any) -> Any:
    """Apply the product rule; its transpose, the kernel's gradient, reads the copied images."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _conv(strides, padding, x, kernel)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy = _conv(strides, padding, dx, kernel)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + plain_conv(_channels_first(x), dkernel, strides, padding, axes="CHWN")
    return y, dy


_conv.defjvp(_conv_jvp, symbolic_zeros=True)


def _channels_first(x: jax.Array) -> jax.Array:
    """Copy images to [c, h, w, b], the order in which XLA convolves them for a kernel's gradient.

    In a call that XLA does not inline: else it fuses into this copy the operations that made the
    images (batch norm, ReLU) and computes them once more in strided order, which takes three times
    as long.
    """
    with set_xla_metadata(inlineable="false"):
        return _transpose(x)


@jax.jit
def _transpose(x: jax.Array) -> jax.Array:
    return x.transpose(3, 1, 2, 0)


@jax.custom_jvp
def _one_channel_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    products = [
        lax.dot_general(shifted, tap, (((3,), (0,)), ((), ())))
        for shifted, tap in zip(
            _shifts(x, kernel.shape[:2]), kernel.reshape(-1, *kernel.shape[2:]), strict=True
        )
    ]
    return sum(products[1:], products[0])


def _one_channel_conv_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Apply the product rule. Symbolic zeros save a term: images have no tangent in training."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _one_channel_conv(x, kernel)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy = _one_channel_conv(dx, kernel)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + plain_conv(x, dkernel)
    return y, dy


_one_channel_conv.defjvp(_one_channel_conv_jvp, symbolic_zeros=True)


def _shifts(x: jax.Array, window: tuple[int, ...]) -> list[jax.Array]:
    """Return, for each tap of a same-padded window, x moved to where the tap reads."""
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


def max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum over windows of 2 x 2 pixels, as a reshape and maxima of pairs.

    Its gradient is cheaper on the CPU than that of `nn.max_pool`, and the same.
    """
    b, h, w, c = x.shape
    even = x[:, : h // 2 * 2, : w // 2 * 2]
    windows = even.reshape(b, h // 2, 2, w // 2, 2, c)
    columns = _larger(windows[..., 0, :], windows[..., 1, :])
    return _larger(columns[:, :, 0], columns[:, :, 1])


def overlapping_max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum over windows of 3 x 3 pixels in steps of 2, as maxima of shifted images.

    First of columns, then of rows: a quarter of the comparisons of `nn.max_pool`, and no scatter
    in the gradient, which is slow on the CPU.
    """
    return _maxima_of_threes(_maxima_of_threes(x, axis=2), axis=1)


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the larger of each pair; of two that are equal a, which has all of the gradient then.

    Pairs within a row first, then rows: so ties go to the pixel that is first in its window, as
    with `nn.max_pool`. The gradient of `jnp.maximum` compares both with the result, and is lost
    where XLA computes one of them once more, with another rounding.
    """
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _maxima_of_threes(x: jax.Array, axis: int) -> jax.Array:
    """Return max(x[2 i - 1], x[2 i], x[2 i + 1]) along an axis, of those that exist."""
    size = x.shape[axis]
    even = lax.slice_in_dim(x, 0, size, stride=2, axis=axis)
    if size == 1:
        return even
    odd = lax.slice_in_dim(x, 1, size, stride=2, axis=axis)

    def padded(before: int, after: int) -> jax.Array:
        edges = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return lax.pad(odd, jnp.array(-jnp.inf, x.dtype), edges)

    # An odd size has one more even than odd index: the last window has no right neighbor.
    return _larger(_larger(padded(1, size % 2 - 1), even), padded(0, size % 2))
