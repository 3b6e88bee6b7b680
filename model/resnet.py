"""Residual networks (He et al., 2016), with the names of PyTorch's parameters."""

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
    check_sizes,
    check_variant,
    checkpointed,
    mean_of_pixels,
    overlapping_max_pool,
    subsample_and_pad,
)
from model.registry import ModelError, register

# Depth -> blocks of each stage.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
_STEMS = ("cifar", "imagenet", "none")
# Images up to this width get the CIFAR stem, in pixels.
_SMALL = 64

_conv = partial(Conv, kernel_init=HE)


class BasicBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))), both convolutions of 3 x 3.

    Where the shape changes, x goes through a convolution of 1 x 1 and a batch norm; of a padded
    block, without parameters, through `subsample_and_pad`.
    """

    features: int
    strides: int = 1
    padding: str | int = 1
    padded: bool = False
    use_bias: bool = False
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features]."""
        conv = partial(
            _conv,
            self.features,
            padding=self.padding,
            use_bias=self.use_bias,
            dtype=self.dtype,
        )
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        y = nn.relu(norm(name="bn1")(conv(strides=self.strides, name="conv1")(x), train))
        y = norm(name="bn2")(conv(name="conv2")(y), train)
        if self.padded:
            return nn.relu(subsample_and_pad(x, self.strides, self.features) + y)
        return nn.relu(_shortcut(self, x, y, train) + y)


class Bottleneck(nn.Module):
    """relu(x + bn(conv1(relu(bn(conv3(relu(bn(conv1(x))))))))), convN of N x N pixels.

    The 3 x 3 convolution has the strides and the last one four times the features. Where the
    shape changes, x goes through a convolution of 1 x 1 and a batch norm.
    """

    features: int
    strides: int = 1
    padding: str | int = 1
    use_bias: bool = False
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), 4 features]."""
        conv = partial(_conv, use_bias=self.use_bias, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        y = conv(self.features, (1, 1), name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train))
        y = conv(self.features, strides=self.strides, padding=self.padding, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, train))
        y = conv(4 * self.features, (1, 1), name="conv3")(y)
        y = norm(name="bn3")(y, train)
        return nn.relu(_shortcut(self, x, y, train) + y)


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
    """Return what a block adds to y; called in the block, which holds its parameters."""
    if x.shape[-1] == y.shape[-1] and block.strides == 1:
        return x
    conv = _conv(
        y.shape[-1],
        (1, 1),
        block.strides,
        use_bias=block.use_bias,
        dtype=block.dtype,
        name="downsample_0",
    )
    norm = BatchNorm(dtype=block.dtype, group=block.batch_norm_group, name="downsample_1")
    return norm(conv(x), train)


@register(
    "ResNet{depth:int}", examples=tuple(f"ResNet{depth}" for depth in (*_BASIC, *_BOTTLENECK))
)
class ResNet(nn.Module):
    """Four stages of residual blocks at falling resolution, then the mean over pixels.

    ResNet18 and 34 are made of `BasicBlock`, the others of `Bottleneck` ("v1.5": with the stride
    on the 3 x 3 convolution). The ImageNet stem is a convolution of 7 x 7 in steps of 2, batch
    norm, ReLU and `overlapping_max_pool`; the CIFAR stem a convolution of 3 x 3, batch norm and
    ReLU. Parameters are named as in PyTorch, `layer2.0.downsample.0` as `layer2_0/downsample_0`.

    The variant "gnp" is the network that the gradient-norm penalty was published with. Behind the
    stem's batch norm is no ReLU, the CIFAR stem has 16 channels, as in wide residual networks,
    which give the first stage a shortcut convolution even in a ResNet18; basic blocks'
    convolutions have biases, in front of a batch norm, where they change nothing; strides of 2 put
    the odd pixel of zeros at the end ("SAME"); and the last layer starts from a uniform
    distribution. On CIFAR ResNet18 has 11,150,874 parameters so, ResNet50 23,504,090, instead of
    11,173,962 and 23,520,842.

    Attributes:
        depth: 18, 34, 50, 101, 152 or 200.
        stem: "cifar", "imagenet", "none", or None: the first for images up to 64 pixels wide, else
            the second. Theirs goes by the classes: 10 or 100, 1000, and none for other numbers.
        stages: blocks of each stage; empty: those of the depth.
        widths: `features` of each stage's blocks.
        stem_features: channels of the stem; None: 64, and 16 in the variant's CIFAR stem.
        variant: "paper" or "gnp".
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(ResNet(1000, depth=50), (224, 224, 3))
        25557032
        >>> count_parameters(ResNet(10, depth=50, variant="gnp"), (32, 32, 3))
        23504090

    References:
        He et al., 2016: https://arxiv.org/abs/1512.03385
        Zhao et al., 2022: https://github.com/zhaoyang-0204/gnp
    """

    num_classes: int
    depth: int
    stem: str | None = None
    stages: tuple[int, ...] = ()
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_features: int | None = None
    variant: str = "paper"
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
        check_sizes(stages=stages, widths=self.widths)
        if self.stem_features is not None:
            check_sizes(stem_features=self.stem_features)
        check_variant(self.variant, HEADS)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        stem = self.stem or ("cifar" if x.shape[2] <= _SMALL else "imagenet")
        published = self.variant == "gnp"
        padding: str | int = "SAME" if published else 1
        if stem != "none":
            x = self._stem(x, stem, train)
        block_class = checkpointed(BasicBlock if self.depth in _BASIC else Bottleneck, self.remat)
        blocks = self.stages or {**_BASIC, **_BOTTLENECK}[self.depth]
        for stage, (count, features) in enumerate(zip(blocks, self.widths, strict=True)):
            for block in range(count):
                x = block_class(
                    features=features,
                    strides=2 if stage > 0 and block == 0 else 1,
                    padding=padding,
                    use_bias=published and self.depth in _BASIC,
                    dtype=self.dtype,
                    batch_norm_group=self.batch_norm_group,
                    name=f"layer{stage + 1}_{block}",
                )(x, train)
        head = nn.Dense(self.num_classes, kernel_init=HEADS[self.variant], name="fc")
        return head(mean_of_pixels(x))

    def _stem(self, x: jax.Array, stem: str, train: bool) -> jax.Array:
        published = self.variant == "gnp"
        norm = BatchNorm(dtype=self.dtype, group=self.batch_norm_group, name="bn1")
        conv = partial(_conv, dtype=self.dtype, name="conv1")
        features = self.stem_features or (16 if published and stem == "cifar" else 64)
        if stem == "cifar":
            x = conv(features)(x)
        else:
            x = conv(features, (7, 7), 2, padding="SAME" if published else 3)(x)
        x = norm(x, train)
        if not published:
            x = nn.relu(x)
        if stem == "cifar":
            return x
        return nn.max_pool(x, (3, 3), (2, 2), "SAME") if published else overlapping_max_pool(x)
