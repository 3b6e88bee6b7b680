"""The residual network with Shake-Shake for images of 32 x 32 pixels (Gastaldi, 2017)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import (
    HE,
    HEADS,
    BatchNorm,
    Conv,
    DType,
    check_batch_norm_group,
    check_images,
    check_variant,
    checkpointed,
    mean_of_pixels,
    with_slope_of,
)
from model.registry import ModelError, register


def mix(
    first: jax.Array, second: jax.Array, key: jax.Array | None, backward_noise: bool = False
) -> jax.Array:
    """Return y[b] = w[b] first[b] + (1 - w[b]) second[b].

    The weight w is uniform in [0, 1], or 1/2 without a key. The backward pass has the same w, so
    the derivative is the one of the value. The paper draws another weight there, and what it then
    follows is the gradient of no function. The gradient-norm penalty needs one: it compares the
    gradient at theta with that at a second point, and with a weight of its own in each backward
    pass the difference would be noise instead of the Hessian's product with the direction.

    Args:
        first: [b, h, w, c].
        second: [b, h, w, c].
        key: of the draw; None in evaluation.
        backward_noise: the derivative has another w, as in the paper.

    Returns:
        [b, h, w, c], of the dtype of first.

    Example:
        >>> mix(jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)), None).item()
        0.5
    """
    if key is None:
        return 0.5 * (first + second)

    def mixed(key: jax.Array) -> jax.Array:
        weight = jax.random.uniform(key, (first.shape[0], 1, 1, 1), jnp.float32)
        return second + weight.astype(first.dtype) * (first - second)

    y = mixed(key)
    return with_slope_of(y, mixed(jax.random.fold_in(key, 1))) if backward_noise else y


class Branch(nn.Module):
    """bn(conv(relu(bn(conv(relu(x)))))); the first convolution has the strides."""

    features: int
    strides: int
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features]."""
        conv = partial(Conv, self.features, kernel_init=HE, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        y = conv(strides=self.strides, name="conv_1")(nn.relu(x))
        y = nn.relu(norm(name="norm_1")(y, train))
        return norm(name="norm_2")(conv(name="conv_2")(y), train)


class Shortcut(nn.Module):
    """Batch norm of two halves: 1 x 1 convolutions of x and of x moved up and left by one pixel.

    With strides of 2, the two read the even and the odd pixels of each direction.
    """

    features: int
    strides: int
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features]."""
        half = partial(
            Conv, self.features // 2, (1, 1), self.strides, kernel_init=HE, dtype=self.dtype
        )
        zero = jnp.zeros((), x.dtype)
        moved = jax.lax.pad(x, zero, ((0, 0, 0), (-1, 1, 0), (-1, 1, 0), (0, 0, 0)))
        y = jnp.concatenate([half(name="conv_1")(x), half(name="conv_2")(moved)], axis=-1)
        norm = BatchNorm(dtype=self.dtype, group=self.batch_norm_group, name="norm")
        return norm(y, train)


class Block(nn.Module):
    """x + mix(branch_1(x), branch_2(x)); a `Shortcut` of x where the number of channels changes."""

    features: int
    strides: int
    backward_noise: bool = False
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features]."""
        shape = (self.features, self.strides, self.dtype, self.batch_norm_group)
        first = Branch(*shape, name="branch_1")(x, train)
        second = Branch(*shape, name="branch_2")(x, train)
        key = self.make_rng("dropout") if train else None
        y = mix(first, second, key, self.backward_noise)
        if x.shape[-1] != self.features:
            x = Shortcut(*shape, name="shortcut")(x, train)
        return x + y


@register("WideResNet_2_{width:int}_ShakeShake", examples=("WideResNet_2_96_ShakeShake",))
class ShakeShake(nn.Module):
    """Three groups of (depth - 2) / 6 blocks of 1, 2 and 4 times width channels.

    Each block adds up two branches, with a random weight for each example in training and with
    1/2 in evaluation; see `mix`. The structure is that of the models that SAM and the
    gradient-norm penalty were published with; their 2 x 96 has 26,192,922 parameters, and in the
    variant "gnp" also their last layer, which starts from a uniform distribution.

    Attributes:
        width: channels of the first group, an even number.
        depth: number of convolutions on a path from the image to the logits and the dense layer,
            6 n + 2.
        variant: "paper" or "gnp".
        backward_noise: the gradient has random weights of its own, as in the paper. In a step with
            a penalty that is the perturbed one alone, as in the gradient-norm penalty's code: the
            direction is that of a gradient.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(ShakeShake(10, width=96), (32, 32, 3))
        26192922

    References:
        Gastaldi, 2017: https://arxiv.org/abs/1705.07485
        Foret et al., 2020: https://arxiv.org/abs/2010.01412
    """

    num_classes: int
    width: int
    depth: int = 26
    variant: str = "paper"
    backward_noise: bool = False
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        name = f"WideResNet_2_{self.width}_ShakeShake"
        if self.width < 2 or self.width % 2:
            raise ModelError(f"{name}: the width must be even, at least 2")
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ModelError(
                f"{name}: model_params.depth = {self.depth} must be 6n + 2, at least 8"
            )
        check_variant(self.variant, HEADS)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        block_class = checkpointed(Block, self.remat)
        x = Conv(16, kernel_init=HE, dtype=self.dtype, name="stem")(x)
        norm = BatchNorm(dtype=self.dtype, group=self.batch_norm_group, name="norm")
        x = norm(x, train)
        for group in range(3):
            for block in range((self.depth - 2) // 6):
                x = block_class(
                    features=self.width * 2**group,
                    strides=2 if group > 0 and block == 0 else 1,
                    backward_noise=self.backward_noise,
                    dtype=self.dtype,
                    batch_norm_group=self.batch_norm_group,
                    name=f"group_{group + 1}_block_{block + 1}",
                )(x, train)
        head = nn.Dense(self.num_classes, kernel_init=HEADS[self.variant], name="head")
        return head(mean_of_pixels(nn.relu(x)))
