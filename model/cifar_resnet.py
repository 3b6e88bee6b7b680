"""Residual networks of depth 6n + 2 for images of 32 x 32 pixels (He et al., 2016)."""

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
    checkpointed,
    mean_of_pixels,
)
from model.registry import ModelError, register
from model.resnet import BasicBlock


@register(
    "CifarResNet{depth:int}",
    examples=tuple(f"CifarResNet{depth}" for depth in (20, 32, 44, 56, 110)),
)
class CifarResNet(nn.Module):
    """Three stages of (depth - 2) / 6 `BasicBlock`s of 16, 32 and 64 channels, then the mean.

    Shortcuts have no parameters (the paper's option A): where the shape changes, they are
    `subsample_and_pad`. The stem is a convolution of 3 x 3, batch norm and ReLU. Parameters are
    named as in PyTorch, `layer2.0.conv1` as `layer2_0/conv1`.

    Attributes:
        depth: number of layers with weights, 6 n + 2.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(CifarResNet(10, depth=20), (32, 32, 3))
        269722

    References:
        He et al., 2016, section 4.2: https://arxiv.org/abs/1512.03385
        Idelbayev: https://github.com/akamaster/pytorch_resnet_cifar10 (weights)
    """

    num_classes: int
    depth: int
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            lower = max(8, self.depth - (self.depth - 2) % 6)
            raise ModelError(
                f"CifarResNet{self.depth}: the depth must be 6n + 2, at least 8; "
                f"nearest: {lower if self.depth - lower <= 3 else lower + 6}"
            )
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        block_class = checkpointed(BasicBlock, self.remat)
        x = Conv(16, padding=1, kernel_init=HE, dtype=self.dtype, name="conv1")(x)
        norm = BatchNorm(dtype=self.dtype, group=self.batch_norm_group, name="bn1")
        x = nn.relu(norm(x, train))
        for stage, features in enumerate((16, 32, 64)):
            for block in range((self.depth - 2) // 6):
                x = block_class(
                    features=features,
                    strides=2 if stage > 0 and block == 0 else 1,
                    padded=True,
                    dtype=self.dtype,
                    batch_norm_group=self.batch_norm_group,
                    name=f"layer{stage + 1}_{block}",
                )(x, train)
        head = nn.Dense(self.num_classes, kernel_init=HEADS["paper"], name="fc")
        return head(mean_of_pixels(x))
