"""Residual networks (He et al., 2016), with the names of PyTorch's parameters."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import (
    HE,
    BatchNorm,
    Conv,
    DType,
    check_batch_norm_group,
    check_images,
    check_sizes,
    checkpointed,
    mean_of_pixels,
    overlapping_max_pool,
)
from model.registry import ModelError, register

# Depth -> blocks of each stage.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
_STEMS = ("cifar", "imagenet")
# Images up to this width get the CIFAR stem, in pixels.
_SMALL = 64

_conv = partial(Conv, kernel_init=HE)


class BasicBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), both convolutions of 3 x 3.

    Where the shape changes, x goes through a convolution of 1 x 1 and a batch norm.
    """

    features: int
    strides: int = 1
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features]."""
        conv = partial(_conv, self.features, padding=1, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        y = nn.relu(norm(name="bn1")(conv(strides=self.strides, name="conv1")(x), train))
        y = norm(name="bn2")(conv(name="conv2")(y), train)
        return nn.relu(_shortcut(self, x, y, train) + y)


class Bottleneck(nn.Module):
    """relu(x + bn(conv1(relu(bn(conv3(relu(bn(conv1(x))))))))), convN of N x N pixels.

    The 3 x 3 convolution has the strides and the last one four times the features. Where the
    shape changes, x goes through a convolution of 1 x 1 and a batch norm.
    """

    features: int
    strides: int = 1
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), 4 features]."""
        conv = partial(_conv, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        y = conv(self.features, (1, 1), name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train))
        y = conv(self.features, strides=self.strides, padding=1, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, train))
        y = conv(4 * self.features, (1, 1), name="conv3")(y)
        y = norm(name="bn3")(y, train)
        return nn.relu(_shortcut(self, x, y, train) + y)


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
    """Return what a block adds to y; called in the block, which holds its parameters."""
    if x.shape[-1] == y.shape[-1] and block.strides == 1:
        return x
    x = _conv(y.shape[-1], (1, 1), block.strides, dtype=block.dtype, name="downsample_0")(x)
    norm = BatchNorm(dtype=block.dtype, group=block.batch_norm_group, name="downsample_1")
    return norm(x, train)


@register(
    "ResNet{depth:int}", examples=tuple(f"ResNet{depth}" for depth in (*_BASIC, *_BOTTLENECK))
)
class ResNet(nn.Module):
    """Four stages of residual blocks at falling resolution, then the mean over pixels.

    ResNet18 and 34 are made of `BasicBlock`, the others of `Bottleneck` ("v1.5": with the stride
    on the 3 x 3 convolution). The ImageNet stem is a convolution of 7 x 7 in steps of 2, batch
    norm, ReLU and `overlapping_max_pool`; the CIFAR stem a convolution of 3 x 3, batch norm and
    ReLU. Parameters are named as in PyTorch, `layer2.0.downsample.0` as `layer2_0/downsample_0`.

    With 10 classes and the CIFAR stem, ResNet18 has 11,173,962 parameters, ResNet50 23,520,842.
    The numbers 11,150,874 and 23,504,090 belong to stems of 16 channels, as in wide residual
    networks, which give the first stage a shortcut convolution even in a ResNet18:
    `stem_features=16` makes the second network, and the first but for the 4,800 biases that
    every convolution of its blocks has in front of its batch norm, where they change nothing.

    Attributes:
        depth: 18, 34, 50, 101, 152 or 200.
        stem: "cifar", "imagenet", or None: the first for images up to 64 pixels wide.
        stages: blocks of each stage; empty: those of the depth.
        widths: `features` of each stage's blocks.
        stem_features: channels of the stem.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(ResNet(1000, depth=50), (224, 224, 3))
        25557032

    References:
        He et al., 2016: https://arxiv.org/abs/1512.03385
    """

    num_classes: int
    depth: int
    stem: str | None = None
    stages: tuple[int, ...] = ()
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_features: int = 64
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        depths = {**_BASIC, **_BOTTLENECK}
        if self.depth not in depths:
            allowed = ", ".join(map(str, depths))
            raise ModelError(f"ResNet{self.depth}: the depth must be one of {allowed}")
        if self.stem not in (None, *_STEMS):
            raise ModelError(
                f"model_params.stem = {self.stem!r}: must be one of {', '.join(_STEMS)}, or None"
            )
        stages = self.stages or depths[self.depth]
        if len(stages) != len(self.widths):
            raise ModelError(
                f"model_params.stages = {stages} and model_params.widths = {self.widths}: "
                "must be of the same length"
            )
        check_sizes(stages=stages, widths=self.widths, stem_features=self.stem_features)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        stem = self.stem or ("cifar" if x.shape[2] <= _SMALL else "imagenet")
        if stem == "cifar":
            x = _conv(self.stem_features, dtype=self.dtype, name="conv1")(x)
        else:
            conv = _conv(self.stem_features, (7, 7), 2, padding=3, dtype=self.dtype, name="conv1")
            x = conv(x)
        norm = BatchNorm(dtype=self.dtype, group=self.batch_norm_group, name="bn1")
        x = nn.relu(norm(x, train))
        if stem == "imagenet":
            x = overlapping_max_pool(x)
        block_class = checkpointed(BasicBlock if self.depth in _BASIC else Bottleneck, self.remat)
        blocks = self.stages or {**_BASIC, **_BOTTLENECK}[self.depth]
        for stage, (count, features) in enumerate(zip(blocks, self.widths, strict=True)):
            for block in range(count):
                x = block_class(
                    features=features,
                    strides=2 if stage > 0 and block == 0 else 1,
                    dtype=self.dtype,
                    batch_norm_group=self.batch_norm_group,
                    name=f"layer{stage + 1}_{block}",
                )(x, train)
        return nn.Dense(self.num_classes, name="fc")(mean_of_pixels(x))
