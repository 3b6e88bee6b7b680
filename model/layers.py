"""Layers that the families share.

All images are [b, h, w, c]. Each layer equals its counterpart in flax.linen, parameter names
included. Programs for the CPU get to the same values by the formulations of `model.cpu`.

Precision: parameters and batch statistics are float32. `dtype` is that of the computation and of
the output, float32 or bfloat16; what adds up many values (statistics, means) does so in float32.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from model import cpu
from model.registry import ModelError, registered_name

Initializer = Callable[..., jax.Array]
DType = Any
Module = TypeVar("Module", bound=nn.Module)
# Kernels in front of ReLU (He et al., 2015): the variance is 2 over the outputs of a pixel.
HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Last layers of SAM's and the gradient-norm penalty's networks: +-1 / sqrt(outputs).
UNIFORM_HEAD = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
# Variant of a convolutional network -> initializer of its last layer.
HEADS = {"paper": nn.initializers.lecun_normal(), "gnp": UNIFORM_HEAD}
# Kernels of the Riemannian authors' networks: normal with a variance of 2.6 over the inputs, then
# cut off at two deviations, which leaves 0.88 of the deviation.
FAN_IN = nn.initializers.variance_scaling(
    2.6 * 0.87962566103423978**2, "fan_in", "truncated_normal"
)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: int = 1,
    padding: str | int = "SAME",
    groups: int = 1,
) -> jax.Array:
    """Return y[b, i, j, o] = sum_{u, v, c} x[b, s i + u - p, s j + v - p, c] kernel[u, v, c, o].

    Args:
        x: [b, h, w, c].
        kernel: [kh, kw, c / groups, o], of the same dtype.
        strides: step in pixels, in both directions.
        padding: "SAME", "VALID", or the pixels p of zeros at each edge. With strides of 2, "SAME"
            puts the odd pixel at the end of an even side; PyTorch's p puts one at both ends.
        groups: groups of channels, each convolved on its own.

    Returns:
        [b, ceil(h / strides), ceil(w / strides), o] for "SAME"; the sides of others are
        floor((h + 2 p - kh) / strides) + 1.

    Example:
        >>> conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    if groups == 1 and cpu.is_target():
        return cpu.conv(x, kernel, strides, padding)
    return cpu.plain_conv(x, kernel, strides, padding, groups)


class Conv(nn.Module):
    """Convolution of [b, h, w, c], parameters as in `nn.Conv`; see `conv`.

    Attributes:
        features: output channels.
        window: kernel height and width in pixels.
        strides: step in pixels, in both directions.
        use_bias: add a bias to each channel.
        kernel_init: initializer of the kernel [kh, kw, c / groups, features].
        bias_init: initializer of the bias [features].
        padding: "SAME", "VALID", or pixels of zeros at each edge.
        groups: groups of channels, each convolved on its own.
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
    bias_init: Initializer = nn.initializers.zeros
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
            bias = self.param("bias", self.bias_init, (self.features,))
            y = y + lax.broadcast_in_dim(bias.astype(self.dtype), y.shape, (y.ndim - 1,))
        return y


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, per channel (the last axis).

    In training, mean and var are the batch's, over all other axes (of the global batch, where it
    is sharded), with var = E[x^2] - E[x]^2, and the running ones move toward them:
    running <- momentum * running + (1 - momentum) * batch. In evaluation they are the running
    ones. Values, parameters and statistics are those of `nn.BatchNorm`. All of it is computed in
    float32, whatever the dtype of x and y.

    With groups, in training, mean and var are those of examples i g ... (i + 1) g - 1 for each of
    them, and the running ones move toward the groups' mean.

    Attributes:
        momentum: weight of the running statistics' old value.
        epsilon: added to the variance.
        use_scale: multiply by a parameter; else by 1.
        dtype: of the output.
        group: g, examples of a group; it divides the batch, the first axis. None: the batch.
        unbiased: the running variance moves toward n / (n - 1) times that of the n values, as
            TensorFlow's fused operation for images and PyTorch have it.

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
    unbiased: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[..., c] -> [..., c]."""
        shape, input_shape = x.shape[-1:], x.shape
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
            var = lax.square(x).mean(axes) - lax.square(mean)
            # Not jnp.maximum, whose gradient is lost where XLA rounds a second computation
            # otherwise.
            var = jnp.where(var < 0, 0.0, var)
            if not self.is_initializing():
                running_mean.value = self._updated(running_mean.value, mean)
                n = x.size // mean.size
                bessel = n / max(n - 1, 1) if self.unbiased else 1.0
                running_var.value = self._updated(running_var.value, bessel * var)
        factor = lax.rsqrt(var + self.epsilon)
        if scale is not None:
            factor = factor * jnp.broadcast_to(scale, factor.shape)
        y = (x - _spread(mean, x)) * _spread(factor, x) + _spread(bias, x)
        return y.reshape(input_shape).astype(self.dtype)

    def _updated(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        if self.group is not None:
            batch = batch.mean(0)
        return self.momentum * running + (1 - self.momentum) * batch


def _in_groups(x: jax.Array, group: int) -> jax.Array:
    """Reshape [b, ..., c] to [b / group, group, ..., c]."""
    check_batch_norm_group(group)
    if len(x) % group:
        raise ModelError(
            f"model_params.batch_norm_group = {group} does not divide a batch of {len(x)} examples "
            "into whole groups"
        )
    return x.reshape(-1, group, *x.shape[1:])


def _spread(values: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcast values of each channel [c], or of each group and channel, to the shape of x."""
    axes = (0, x.ndim - 1)[-values.ndim :]
    return lax.broadcast_in_dim(values, x.shape, axes)


def max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum over windows of 2 x 2 pixels; an odd last row or column is dropped.

    Where pixels of a window share the maximum, the first has its gradient.

    Args:
        x: [b, h, w, c].

    Returns:
        [b, h // 2, w // 2, c].

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    _, h, w, _ = x.shape
    if h < 2 or w < 2:
        raise ModelError(f"an image of {h} x {w} pixels cannot be halved: use larger images")
    return cpu.max_pool(x) if cpu.is_target() else nn.max_pool(x, (2, 2), (2, 2))


def overlapping_max_pool(x: jax.Array) -> jax.Array:
    """Return y[b, i, j, c] = max of x[b, 2 i - 1 ... 2 i + 1, 2 j - 1 ... 2 j + 1, c].

    Windows of 3 x 3 pixels in steps of 2, cut off at the image's edges. Pixels that share a
    maximum: as in `max_pool`.

    Args:
        x: [b, h, w, c].

    Returns:
        [b, ceil(h / 2), ceil(w / 2), c].

    Example:
        >>> overlapping_max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    if cpu.is_target():
        return cpu.overlapping_max_pool(x)
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def pool_and_pad(x: jax.Array, strides: int, features: int) -> jax.Array:
    """Return a shortcut without parameters: means over windows, then channels of zeros.

    Args:
        x: [b, h, w, c].
        strides: side of a window, and the step to the next, in pixels; one that goes over the
            edge is the mean of what it holds.
        features: channels of the result, at least c: those of x come first.

    Returns:
        [b, ceil(h / strides), ceil(w / strides), features].

    Example:
        >>> pool_and_pad(jnp.arange(4.0).reshape(1, 2, 2, 1), 2, 3).tolist()
        [[[[1.5, 0.0, 0.0]]]]
    """
    if strides > 1:
        window = (strides, strides)
        x = nn.avg_pool(x, window, window, "SAME", count_include_pad=False)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def subsample_and_pad(x: jax.Array, strides: int, features: int) -> jax.Array:
    """Return a shortcut without parameters: every strides-th pixel, between channels of zeros.

    Args:
        x: [b, h, w, c].
        strides: step in pixels, in both directions, from the first row and column.
        features: channels of the result, at least c: those of x come in the middle, where the odd
            channel of zeros is behind them.

    Returns:
        [b, ceil(h / strides), ceil(w / strides), features].

    Example:
        >>> subsample_and_pad(jnp.arange(4.0).reshape(1, 2, 2, 1) + 1, 2, 4).tolist()
        [[[[0.0, 1.0, 0.0, 0.0]]]]
    """
    before, odd = divmod(features - x.shape[-1], 2)
    x = x[:, ::strides, ::strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, before + odd)))


def with_slope_of(y: jax.Array, other: jax.Array) -> jax.Array:
    """Return y, with the derivative of another array of its shape.

    Example:
        >>> jax.value_and_grad(lambda x: with_slope_of(x**2, 5 * x))(3.0)
        (Array(9., dtype=float32, weak_type=True), Array(5., dtype=float32, weak_type=True))
    """
    return other + lax.stop_gradient(y - other)


def mean_of_pixels(x: jax.Array) -> jax.Array:
    """Return y[b, c] = mean over i, j of x[b, i, j, c], in float32 (global average pooling).

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
    """Return the array in float32 where its dtype has fewer bits, else the array itself.

    Example:
        >>> at_least_float32(jnp.ones(1, jnp.bfloat16)).dtype.name
        'float32'
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def checkpointed(block: type[Module], remat: bool) -> type[Module]:
    """Return the block's class, or one that computes its activations again in the backward pass.

    Parameters, their names (the block needs a `name`), values and random masks stay the same.

    Args:
        block: a module called as `block(x, train)`.
        remat: False: return the class itself.

    Example:
        >>> checkpointed(Conv, False) is Conv
        True
    """
    return nn.remat(block, static_argnums=(2,)) if remat else block


def check_rates(**rates: float) -> None:
    """Raise ModelError unless each 0 <= rate < 1; keywords are the model's parameters.

    Example:
        >>> check_rates(dropout_rate=0.1, stochastic_depth_rate=0.0)
    """
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ModelError(f"model_params.{name} = {rate}: must be at least 0 and below 1")


def check_variant(variant: str, variants: Collection[str]) -> None:
    """Raise ModelError unless the network is one of the variants of its class.

    Example:
        >>> check_variant("gnp", ("paper", "gnp"))
    """
    if variant not in variants:
        raise ModelError(
            f"model_params.variant = {variant!r}: must be one of {', '.join(variants)}"
        )


def check_batch_norm_group(group: int | None) -> None:
    """Raise ModelError unless the group of examples is None or at least 1."""
    if group is not None and group < 1:
        raise ModelError(
            f"model_params.batch_norm_group = {group}: must be at least 1, or None for the batch"
        )


def check_sizes(**sizes: float | tuple[int, ...]) -> None:
    """Raise ModelError unless each is at least 1 and finite; keywords are the model's parameters.

    Of a tuple, there must be a first one, and each must be.

    Example:
        >>> check_sizes(patch_size=4, widths=(300, 100))
    """
    for name, size in sizes.items():
        least = min(size, default=0) if isinstance(size, tuple) else size
        if not 1 <= least < math.inf:
            allowed = "whole numbers of at least 1" if isinstance(size, tuple) else "at least 1"
            raise ModelError(f"model_params.{name} = {size}: must be {allowed}")


def check_images(model: nn.Module, x: jax.Array, least: int = 1) -> None:
    """Raise ModelError unless x is a batch of images, with sides of at least `least` pixels.

    Example:
        >>> check_images(nn.Dense(3), jnp.ones((2, 4)))
        Traceback (most recent call last):
        ...
        model.registry.ModelError: model.model_name = Dense cannot take inputs of shape (4,): a
        vector, not an image; docs/models.md says what each model is for
    """
    shape = x.shape[1:]
    if len(shape) != 3:
        raise _cannot_take(model, shape, f"{_kind(shape)}, not an image")
    check_not_empty(model, x)
    if min(shape[:2]) < least:
        raise _cannot_take(
            model,
            shape,
            f"an image must be at least {least} x {least} pixels, is {shape[0]} x {shape[1]}",
        )


def check_series(model: nn.Module, x: jax.Array, axes: Collection[int] = (1, 2)) -> None:
    """Raise ModelError unless x is a batch of series, [b, length, channels] or [b, length].

    Args:
        model: what is called.
        x: the batch.
        axes: how many a series may have; (2,): it must come with channels.
    """
    shape = x.shape[1:]
    if len(shape) not in axes:
        raise _cannot_take(model, shape, f"{_kind(shape)}, not a series")
    check_not_empty(model, x)


def check_not_empty(model: nn.Module, x: jax.Array) -> None:
    """Raise ModelError where an example of the batch x has no values."""
    if 0 in x.shape[1:]:
        raise _cannot_take(model, x.shape[1:], "it is empty")


def _kind(shape: tuple[int, ...]) -> str:
    names = ("a number", "a vector", "a series", "an image")
    return names[len(shape)] if len(shape) < len(names) else f"an array of {len(shape)} axes"


def _cannot_take(model: nn.Module, shape: tuple[int, ...], reason: str) -> ModelError:
    name = registered_name(model)
    return ModelError(
        f"model.model_name = {name} cannot take inputs of shape {shape}: {reason}; "
        "docs/models.md says what each model is for"
    )
