"""VGG networks (Simonyan and Zisserman, 2015), and the variant of the Riemannian optimizers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.layers import (
    FAN_IN,
    HE,
    UNIFORM_HEAD,
    BatchNorm,
    Conv,
    DType,
    at_least_float32,
    check_batch_norm_group,
    check_images,
    check_rates,
    check_sizes,
    check_variant,
    max_pool,
    mean_of_pixels,
)
from model.registry import ModelError, register, registered_name

# Depth -> convolutions of each group; a 2 x 2 max-pool follows each group.
_GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_HEADS = ("cifar", "imagenet")
_VARIANTS = ("paper", "gnp")
# Each group halves an image: this side in pixels leaves one.
_LEAST = 32
# Images up to this width get the CIFAR head, in pixels.
_SMALL = 64
# Side of the ImageNet head's input, in pixels.
_POOLED = 7

# Of the dense layers of the ImageNet head.
_NORMAL = nn.initializers.normal(0.01)
_conv = partial(Conv, kernel_init=HE)


def adaptive_mean_pool(x: jax.Array, side: int) -> jax.Array:
    """Return y[b, i, j, c] = mean of x[b, p, q, c] over window (i, j) of side x side windows.

    Window i of n pixels starts at floor(i n / side) and ends before ceil((i + 1) n / side), so
    that windows overlap where side does not divide n, and repeat pixels where n < side. As
    `torch.nn.AdaptiveAvgPool2d`.

    Args:
        x: [b, h, w, c].
        side: height and width of y, in pixels.

    Returns:
        [b, side, side, c].

    Example:
        >>> adaptive_mean_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
        [[2.0, 3.0], [5.0, 6.0]]
    """
    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (jnp.asarray(_window_means(n, side), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ip,jq,bpqc->bijc", rows, columns, x)


def _window_means(size: int, side: int) -> np.ndarray:
    """Return [side, size]: the weight of each pixel in each window."""
    index, pixel = np.arange(side)[:, None], np.arange(size)[None, :]
    inside = (pixel >= index * size // side) & (pixel < -(-(index + 1) * size // side))
    return inside / inside.sum(1, keepdims=True)


def _check_groups(
    name: str, depth: int, widths: tuple[int, ...], dense: int, groups: tuple[int, ...] = ()
) -> None:
    if depth not in _GROUPS:
        allowed = ", ".join(map(str, _GROUPS))
        raise ModelError(f"{name}: the depth must be one of {allowed}")
    if len(widths) != (len(groups) or 5):
        wanted = len(groups) or "five"
        raise ModelError(f"model_params.widths = {widths}: must be {wanted} numbers, one a group")
    check_sizes(widths=widths, dense=dense, groups=groups or (1,))


@register("VGG{depth:int}", examples=tuple(f"VGG{depth}" for depth in _GROUPS))
class VGG(nn.Module):
    """Five groups of 3 x 3 convolutions with ReLU, each before a 2 x 2 max-pool, and dense layers.

    The ImageNet head averages what is left to 7 x 7 pixels (which they are for images of 224) and
    has two dense layers of 4096 with ReLU and dropout. The CIFAR head is one dense layer of the
    mean over what is left (one pixel for images of 32). Parameters are named as in PyTorch,
    `features.3` as `features_3`. Pixels enter `classifier_0` channel by channel as they do there,
    so that its kernel is the transposed weight.

    The variant "gnp" is the network that the gradient-norm penalty was published with: whatever
    the image's size, the two dense layers get what is left as it is, pixel by pixel, and start
    from a uniform distribution, as the last one does.

    Attributes:
        depth: 11, 13, 16 or 19.
        batch_norm: a batch norm behind each convolution.
        head: "cifar", "imagenet", or None: the first for images up to 64 pixels wide. The variant
            has one of its own.
        variant: "paper" or "gnp".
        groups: convolutions of each group; (): those of the depth.
        widths: channels of each group's convolutions.
        dense: width of the dense layers.
        dense_norm: a batch norm behind each dense layer but the last.
        dropout_rate: share of each dense layer's outputs that is dropped in training.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(VGG(1000, depth=16), (224, 224, 3))
        138357544
        >>> count_parameters(VGG(10, depth=16, batch_norm=True, variant="gnp"), (32, 32, 3))
        33646666

    References:
        Simonyan and Zisserman, 2015: https://arxiv.org/abs/1409.1556
        The gradient-norm penalty's code: https://github.com/zhaoyang-0204/gnp
    """

    num_classes: int
    depth: int
    batch_norm: bool = False
    head: str | None = None
    variant: str = "paper"
    groups: tuple[int, ...] = ()
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dense: int = 4096
    dense_norm: bool = False
    dropout_rate: float = 0.5
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        name = registered_name(self)
        _check_groups(name, self.depth, self.widths, self.dense, self.groups)
        if self.head not in (None, *_HEADS):
            raise ModelError(
                f"model_params.head = {self.head!r}: must be one of {', '.join(_HEADS)}, or None"
            )
        check_variant(self.variant, _VARIANTS)
        if self.variant == "gnp" and self.head is not None:
            raise ModelError(
                f"model_params.head = {self.head!r} with model_params.variant = 'gnp', which has a "
                "head of its own: set one of them"
            )
        if self.batch_norm_group is not None and not (self.batch_norm or self.dense_norm):
            raise ModelError(
                f"model_params.batch_norm_group = {self.batch_norm_group}: VGG{self.depth} has no "
                f"batch norm; VGG{self.depth}BN has"
            )
        check_rates(dropout_rate=self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        groups = self.groups or _GROUPS[self.depth]
        check_images(self, x, 2 ** len(groups))
        head = self.head or ("cifar" if x.shape[2] <= _SMALL else "imagenet")
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)

        # It ends with its pooling: in front of that, the next group's input, which `remat` keeps,
        # is four times as large.
        def group(
            module: nn.Module, x: jax.Array, *, first: int, count: int, features: int
        ) -> jax.Array:
            for index in range(first, first + count * step, step):
                conv = _conv(features, use_bias=True, dtype=self.dtype, name=f"features_{index}")
                x = conv(x)
                if self.batch_norm:
                    x = norm(name=f"features_{index + 1}")(x, train)
                x = nn.relu(x)
            return max_pool(x)

        # The layers' indices are PyTorch's, which count activations and poolings too.
        first, step = 0, 3 if self.batch_norm else 2
        for count, features in zip(groups, self.widths, strict=True):
            body = partial(group, first=first, count=count, features=features)
            x = (nn.remat(body) if self.remat else body)(self, x)
            first += count * step + 1
        if self.variant == "gnp":
            names, kernel_init = ("dense_1", "dense_2", "head"), UNIFORM_HEAD
        elif head == "cifar":
            return nn.Dense(self.num_classes, name="classifier")(mean_of_pixels(x))
        else:
            x = adaptive_mean_pool(x, _POOLED).transpose(0, 3, 1, 2)
            names, kernel_init = ("classifier_0", "classifier_3", "classifier_6"), _NORMAL
        dense = partial(nn.Dense, kernel_init=kernel_init)
        x = x.reshape(x.shape[0], -1)
        for name in names[:-1]:
            x = dense(self.dense, dtype=self.dtype, name=name)(x)
            if self.dense_norm:
                x = norm(name=f"{name}_norm")(x, train)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
        return dense(self.num_classes, name=names[-1])(at_least_float32(x))


@register("VGG{depth:int}BN", examples=tuple(f"VGG{depth}BN" for depth in _GROUPS))
class VGGBN(VGG):
    """`VGG` with a batch norm behind each convolution.

    Example:
        >>> VGGBN(10, depth=16).batch_norm
        True

    References:
        Simonyan and Zisserman, 2015: https://arxiv.org/abs/1409.1556
        Ioffe and Szegedy, 2015: https://arxiv.org/abs/1502.03167
    """

    batch_norm: bool = True


@register("VGG{depth:int}Riemannian", examples=("VGG13Riemannian", "VGG19Riemannian"))
class VGGRiemannian(nn.Module):
    """VGG for images of 32 pixels, every convolution and dense layer followed by a batch norm.

    relu(bn(w x)) throughout, two dense layers of 512, and logits w x + b. The batch norms have no
    scale and the layers in front no bias: the length of w changes nothing, so that each column of
    a kernel is a point of a Grassmann manifold.

    Dropout comes behind each group's pooling, at one rate, and is off by default: that is where
    the authors' code has it, and their published command for VGG leaves it off.

    Attributes:
        depth: 11, 13, 16 or 19.
        widths: channels of each group's convolutions.
        dense: width of the dense layers.
        dropout_rate: share of each group's outputs that is dropped in training.
        variant: "riemannian" alone, so that what is set for their `WideResNet` fits.
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(VGGRiemannian(10, depth=13), (32, 32, 3))
        9935434

    References:
        Cho and Lee, 2017: https://arxiv.org/abs/1709.09603
        Their code, 2017: https://github.com/MinhyungCho/riemannian-batch-normalization
    """

    num_classes: int
    depth: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dense: int = 512
    dropout_rate: float = 0.0
    variant: str = "riemannian"
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        _check_groups(registered_name(self), self.depth, self.widths, self.dense)
        check_variant(self.variant, ("riemannian",))
        check_rates(dropout_rate=self.dropout_rate)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x, _LEAST)
        fan_in_dense = partial(nn.Dense, kernel_init=FAN_IN)
        norm = partial(
            BatchNorm,
            momentum=0.99,
            use_scale=False,
            dtype=self.dtype,
            group=self.batch_norm_group,
        )

        def convolutions(
            module: nn.Module, x: jax.Array, *, group: str, n: int, c: int
        ) -> jax.Array:
            for i in range(n):
                x = Conv(c, kernel_init=FAN_IN, dtype=self.dtype, name=f"{group}_conv_{i + 1}")(x)
                x = nn.relu(norm(name=f"{group}_norm_{i + 1}")(x, train))
            return max_pool(x)

        sizes = zip(_GROUPS[self.depth], self.widths, strict=True)
        for group, (count, features) in enumerate(sizes):
            body = partial(convolutions, group=f"group_{group + 1}", n=count, c=features)
            x = (nn.remat(body) if self.remat else body)(self, x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        for name in ("dense_1", "dense_2"):
            dense = fan_in_dense(self.dense, use_bias=False, dtype=self.dtype, name=name)
            x = nn.relu(norm(name=f"{name}_norm")(dense(x), train))
        return fan_in_dense(self.num_classes, name="head")(at_least_float32(x))
