"""Wide residual networks for images of 32 x 32 pixels (Zagoruyko and Komodakis, 2016)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import (
    BatchNorm,
    Conv,
    DType,
    check_batch_norm_group,
    check_dropout_rate,
    check_images,
    checkpointed,
    mean_of_pixels,
)
from model.registry import ModelError, register

_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), with a 1 x 1 convolution of relu(bn(x)) for x where
    the shape changes, and dropout before the second convolution.

    Attributes:
        features: output channels.
        strides: step of the first convolution, in pixels.
        dropout_rate: share of the inputs of the second convolution that is dropped in training.
        dtype: of the computation.
        batch_norm_group: of its batch norms; see `BatchNorm`.
    """  # noqa: D205

    features: int
    strides: int
    dropout_rate: float
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h / strides, w / strides, features]."""
        conv = partial(Conv, kernel_init=_HE, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        y = nn.relu(norm(name="norm_1")(x, train))
        if x.shape[-1] != self.features or self.strides != 1:
            x = conv(self.features, (1, 1), self.strides, name="shortcut")(y)
        y = conv(self.features, strides=self.strides, name="conv_1")(y)
        y = nn.relu(norm(name="norm_2")(y, train))
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        return x + conv(self.features, name="conv_2")(y)


@register(
    "WideResNet_{depth:int}_{width:int}",
    examples=("WideResNet_16_4", "WideResNet_22_8", "WideResNet_28_10", "WideResNet_40_10"),
)
class WideResNet(nn.Module):
    """Three groups of (depth - 4) / 6 pre-activation blocks of 16, 32 and 64 times width channels.

    Attributes:
        num_classes: number of logits.
        depth: number of convolutions, 6 n + 4.
        width: factor of the channels.
        dropout_rate: share dropped between the convolutions of a block, in training.
        batch_norm_group: examples of a group with batch statistics of its own; None: the batch.
        dtype: of the computation; parameters, statistics and logits are float32.
        remat: compute each block's activations again in the backward pass, for less memory.

    Example:
        >>> x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        >>> model = WideResNet(10, depth=28, width=10)
        >>> shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        36479194

    References:
        Zagoruyko and Komodakis, 2016: https://arxiv.org/abs/1605.07146
    """

    num_classes: int
    depth: int
    width: int
    dropout_rate: float = 0.0
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            lower = max(10, self.depth - (self.depth - 4) % 6)
            raise ModelError(
                f"WideResNet_{self.depth}_{self.width}: the depth must be 6n + 4, at least 10; "
                f"nearest: {lower if self.depth - lower <= 3 else lower + 6}"
            )
        check_dropout_rate(self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        block_class = checkpointed(Block, self.remat)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        x = Conv(16, kernel_init=_HE, dtype=self.dtype, name="stem")(x)
        for group in range(3):
            for block in range((self.depth - 4) // 6):
                x = block_class(
                    features=16 * self.width * 2**group,
                    strides=2 if group > 0 and block == 0 else 1,
                    dropout_rate=self.dropout_rate,
                    dtype=self.dtype,
                    batch_norm_group=self.batch_norm_group,
                    name=f"group_{group + 1}_block_{block + 1}",
                )(x, train)
        x = nn.relu(norm(name="norm")(x, train))
        return nn.Dense(self.num_classes, name="head")(mean_of_pixels(x))
