"""Wide residual networks for images of 32 x 32 pixels (Zagoruyko and Komodakis, 2016)."""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import (
    FAN_IN,
    HE,
    HEADS,
    BatchNorm,
    Conv,
    DType,
    Initializer,
    check_batch_norm_group,
    check_images,
    check_rates,
    check_variant,
    checkpointed,
    mean_of_pixels,
    pool_and_pad,
)
from model.registry import ModelError, register

# Initializers of the convolutions and of the last layer, and the batch norms' momentum.
_VARIANTS: Mapping[str, tuple[Initializer, Initializer, float]] = {
    "paper": (HE, HEADS["paper"], 0.9),
    "gnp": (HE, HEADS["gnp"], 0.9),
    "riemannian": (FAN_IN, FAN_IN, 0.99),
}


class Block(nn.Module):
    """x + conv(dropout(relu(bn(conv(relu(bn(x))))))); the first convolution has the strides.

    Where the shape changes, x is a 1 x 1 convolution of relu(bn(x)). Of a pooled block it is
    `pool_and_pad` of x, or of relu(bn(x)) in the first block of the network.
    """

    features: int
    strides: int
    dropout_rate: float
    pooled: bool = False
    first: bool = False
    kernel_init: Initializer = HE
    momentum: float = 0.9
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h / strides, w / strides, features]."""
        conv = partial(Conv, kernel_init=self.kernel_init, dtype=self.dtype)
        norm = partial(BatchNorm, self.momentum, dtype=self.dtype, group=self.batch_norm_group)
        y = nn.relu(norm(name="norm_1")(x, train))
        if self.pooled:
            x = pool_and_pad(y if self.first else x, self.strides, self.features)
        elif x.shape[-1] != self.features or self.strides != 1:
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

    The variant "gnp" is the network that SAM and the gradient-norm penalty were published with:
    its shortcuts have no parameters, and its last layer starts from a uniform distribution. The
    variant "riemannian", that of the Riemannian optimizers, draws kernels by their inputs, and has
    batch norms of momentum 0.99.

    Attributes:
        depth: number of convolutions, 6 n + 4.
        width: factor of the channels.
        dropout_rate: share dropped between the convolutions of a block, in training.
        variant: "paper", "gnp" or "riemannian".
        group_skips: each group's input is added to its output too, and the image to the last
            one's, by `pool_and_pad`; AutoAugment was published so.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(WideResNet(10, depth=28, width=10), (32, 32, 3))
        36479194
        >>> count_parameters(WideResNet(10, depth=28, width=10, variant="gnp"), (32, 32, 3))
        36220634

    References:
        Zagoruyko and Komodakis, 2016: https://arxiv.org/abs/1605.07146
        Zhao et al., 2022: https://github.com/zhaoyang-0204/gnp
        Cho and Lee, 2017: https://github.com/MinhyungCho/riemannian-batch-normalization
    """

    num_classes: int
    depth: int
    width: int
    dropout_rate: float = 0.0
    variant: str = "paper"
    group_skips: bool = False
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
        check_variant(self.variant, _VARIANTS)
        check_rates(dropout_rate=self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        block_class = checkpointed(Block, self.remat)
        kernel_init, head_init, momentum = _VARIANTS[self.variant]
        norm = partial(BatchNorm, momentum, dtype=self.dtype, group=self.batch_norm_group)
        image, published = x, self.variant == "gnp"
        x = Conv(16, kernel_init=kernel_init, dtype=self.dtype, name="stem")(x)
        for group in range(3):
            features, strides = 16 * self.width * 2**group, 2 if group > 0 else 1
            entered = x
            for block in range((self.depth - 4) // 6):
                x = block_class(
                    features=features,
                    strides=strides if block == 0 else 1,
                    dropout_rate=self.dropout_rate,
                    pooled=published,
                    first=group == block == 0,
                    kernel_init=kernel_init,
                    momentum=momentum,
                    dtype=self.dtype,
                    batch_norm_group=self.batch_norm_group,
                    name=f"group_{group + 1}_block_{block + 1}",
                )(x, train)
            if self.group_skips:
                x = x + pool_and_pad(entered, strides, features)
        if self.group_skips:
            x = x + pool_and_pad(image.astype(x.dtype), 4, x.shape[-1])
        x = nn.relu(norm(name="norm")(x, train))
        return nn.Dense(self.num_classes, kernel_init=head_init, name="head")(mean_of_pixels(x))
