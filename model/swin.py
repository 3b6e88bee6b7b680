"""Swin transformers: attention within shifted windows (Liu et al., 2021)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.layers import (
    DType,
    Initializer,
    at_least_float32,
    check_images,
    check_rates,
    check_sizes,
    check_variant,
    checkpointed,
    mean_of_pixels,
)
from model.registry import ModelError, register
from model.transformer import (
    NORMAL,
    TIMM,
    VARIANTS,
    Block,
    PatchEmbed,
    Variant,
    check_heads,
    dense,
    growing_rates,
    softmax,
    split_heads,
)

_EPSILON = 1e-5


class WindowAttention(nn.Module):
    """Self-attention within each window, with a bias by head and relative position.

    weights = softmax(q k^T / sqrt(d) + table[row and column of the query less those of the key]).

    Attributes:
        window: height and width of a window in tokens.
        shift: by how many tokens the map is moved up and left, and back in the end; windows that
            then hold tokens from both ends of the map attend to each region on its own.
        num_heads: number of heads.
        dropout_rate: share of the outputs that is dropped in training.
        attention_dropout_rate: share of the softmax's values that is dropped in training.
        dtype: of the computation and the output.
        kernel_init: initializer of the matrices.
    """

    window: tuple[int, int]
    shift: tuple[int, int]
    num_heads: int
    dropout_rate: float
    attention_dropout_rate: float
    dtype: DType
    kernel_init: Initializer = TIMM.attention

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h, w, c], h and w multiples of the window's."""
        b, h, w, c = x.shape
        rows, columns = self.window
        table = self.param(
            "relative_position_bias_table",
            NORMAL,
            ((2 * rows - 1) * (2 * columns - 1), self.num_heads),
        )
        if any(self.shift):
            down, right = self.shift
            x = jnp.roll(x, (-down, -right), axis=(1, 2))
        qkv = dense(3 * c, self.dtype, "qkv", kernel_init=self.kernel_init)(x)
        # Axes: b image, n and m window, i and j query's row and column, k and l the key's, h head.
        # The windows stay where they are in the map: nothing is cut out and put back.
        qkv = qkv.reshape(b, h // rows, rows, w // columns, columns, 3 * c)
        query, key, value = split_heads(qkv, 3, self.num_heads)
        query = query * query.shape[-1] ** -0.5
        scores = jnp.einsum("bnimjhd,bnkmlhd->bnmhijkl", query, key)
        shape, area = scores.shape, rows * columns
        scores = at_least_float32(scores.reshape(b, -1, self.num_heads, area, area))
        # The table is turned, rather than the bias, which is many times larger.
        bias = table.T[:, relative_positions(self.window)]
        scores = scores + bias[None, None]
        if any(self.shift):
            same = same_region((h, w), self.window, self.shift)
            scores = jnp.where(same[None, :, None], scores, -jnp.inf)
        weights = softmax(scores, self.dtype)
        weights = nn.Dropout(self.attention_dropout_rate, deterministic=not train)(weights)
        y = jnp.einsum("bnkmlhd,bnmhijkl->bnimjhd", value, weights.reshape(shape))
        y = dense(c, self.dtype, "proj", kernel_init=self.kernel_init)(y.reshape(x.shape))
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        return jnp.roll(y, self.shift, axis=(1, 2)) if any(self.shift) else y


def relative_positions(window: tuple[int, int]) -> np.ndarray:
    """Return the index into the table of biases for each pair of tokens of a window.

    With (r, s) the query's row and column less the key's, it is (r + rows - 1) times
    (2 columns - 1), plus s + columns - 1.

    Args:
        window: rows and columns.

    Returns:
        [query, key], integers.

    Example:
        >>> relative_positions((1, 2)).tolist()
        [[1, 0], [2, 1]]
    """
    rows, columns = window
    row, column = (axis.ravel() for axis in np.indices(window))
    offset = row[:, None] - row + rows - 1
    index: np.ndarray = offset * (2 * columns - 1) + column[:, None] - column + columns - 1
    return index


def same_region(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> np.ndarray:
    """Mark the pairs of a window's tokens that were neighbors before the map was moved.

    Moved up and left, the last windows of each axis hold `shift` rows or columns from the other
    end of the map, as regions that attend to themselves alone.

    Args:
        size: height and width of the map.
        window: height and width of a window, divisors of the map's.
        shift: how far the map was moved; 0 for an axis that was not.

    Returns:
        [window, query, key], True where they belong together.

    Example:
        >>> same_region((1, 4), (1, 2), (0, 1)).tolist()
        [[[True, True], [True, True]], [[True, False], [False, True]]]
    """
    wrapped = [np.arange(length) >= length - far for length, far in zip(size, shift, strict=True)]
    region = 2 * wrapped[0][:, None] + wrapped[1]
    (h, w), (rows, columns) = size, window
    region = region.reshape(h // rows, rows, w // columns, columns).swapaxes(1, 2)
    region = region.reshape(-1, rows * columns)
    same: np.ndarray = region[:, :, None] == region[:, None, :]
    return same


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens, concatenated, to one of twice the channels: norm, then a matrix."""

    dtype: DType
    kernel_init: Initializer = TIMM.attention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h / 2, w / 2, 2 c]."""
        b, h, w, c = x.shape
        if h % 2 or w % 2:
            raise ModelError(
                f"a map of {h} x {w} tokens cannot be halved: choose another image size or "
                "model_params.patch_size, or fewer stages in model_params.depths"
            )
        # Column by column, as the published weights have it.
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(b, h // 2, w // 2, 4 * c)
        x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x)
        return dense(2 * c, self.dtype, "reduction", False, self.kernel_init)(x)


def _window_and_shift(side: int, window_size: int, is_shifted: bool) -> tuple[int, int]:
    """Return the side of a map's windows and half of it or 0; the map, unmoved, if it is small."""
    if side <= window_size:
        return side, 0
    if side % window_size:
        raise ModelError(
            f"a map with a side of {side} tokens does not divide into windows of {window_size}: "
            "choose another image size, model_params.patch_size or model_params.window_size"
        )
    return window_size, window_size // 2 if is_shifted else 0


class Stage(nn.Module):
    """Blocks on a map of one size, every second one with shifted windows; first, merging.

    Attributes are those of `Swin`, but for this stage alone, the variant itself for its name, and
    `merge`: begin with `PatchMerging`.
    """

    merge: bool
    window_size: int
    num_heads: int
    mlp_ratio: int
    dropout_rate: float
    attention_dropout_rate: float
    stochastic_depth_rates: tuple[float, ...]
    variant: Variant
    dtype: DType
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> the same, or with merging [b, h / 2, w / 2, 2 c]."""
        if self.merge:
            x = PatchMerging(self.dtype, self.variant.attention, name="downsample")(x)
        block = checkpointed(Block, self.remat)
        for index, rate in enumerate(self.stochastic_depth_rates):
            is_shifted = index % 2 == 1
            window, shift = zip(
                *(_window_and_shift(side, self.window_size, is_shifted) for side in x.shape[1:3]),
                strict=True,
            )
            attention = partial(
                WindowAttention,
                window,
                shift,
                self.num_heads,
                self.dropout_rate,
                self.attention_dropout_rate,
                self.dtype,
                self.variant.attention,
            )
            x = block(
                attention,
                self.mlp_ratio,
                self.dropout_rate,
                rate,
                self.dtype,
                epsilon=_EPSILON,
                variant=self.variant,
                name=f"blocks_{index}",
            )(x, train)
        return x


class Head(nn.Module):
    """Logits in float32 from the mean over a map, as the layer `fc`."""

    num_classes: int
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        fc = dense(self.num_classes, None, "fc", kernel_init=self.kernel_init)
        return fc(mean_of_pixels(x))


class Swin(nn.Module):
    """Stages of blocks on a map of patches that halves, while the channels double.

    The subclasses are the published sizes. Their patches of 4 and windows of 7 are for images
    whose sides are multiples of 224; 32 x 32 pixels go with patch_size=2 and window_size=4.

    Variants: "timm" has the exact GELU and starts as the paper's code does; "gnp", of the
    gradient-norm penalty's authors after jax_models, has GELU's tanh approximation; the MLPs and
    patches start at Xavier's uniform distribution, other matrices at LeCun's truncated normal one,
    the biases of positions as ever.

    Attributes:
        patch_size: side of a patch in pixels; must divide the image's sides.
        window_size: side of a window in tokens; must divide each stage's map unless the map is
            smaller, when the window is the map.
        embed_dim: channels of a token in the first stage.
        depths: blocks of each stage.
        num_heads: heads of each stage; must divide its channels.
        mlp_ratio: hidden units of an MLP over the channels of a token.
        dropout_rate: share dropped behind patches, attention and products, in training.
        attention_dropout_rate: share of the softmax's values dropped in training.
        stochastic_depth_rate: probability that an example goes round a branch of the last block,
            in training; it grows in equal steps from 0 at the first.
        variant: "timm" or "gnp".
        num_classes, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(SwinTiny(1000), (224, 224, 3))
        28288354

    References:
        Liu et al., 2021: https://arxiv.org/abs/2103.14030
    """

    num_classes: int
    patch_size: int = 4
    window_size: int = 7
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: int = 4
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.2
    variant: str = "timm"
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ModelError(
                f"model_params.depths = {self.depths} and num_heads = {self.num_heads}: must have "
                "one number for each stage"
            )
        for stage, heads in enumerate(self.num_heads):
            check_heads(self.embed_dim * 2**stage, heads)
        check_sizes(
            patch_size=self.patch_size,
            window_size=self.window_size,
            depths=self.depths,
            mlp_ratio=self.mlp_ratio,
        )
        check_rates(
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            stochastic_depth_rate=self.stochastic_depth_rate,
        )
        check_variant(self.variant, VARIANTS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        variant = VARIANTS[self.variant]
        patches = PatchEmbed(
            self.embed_dim,
            self.patch_size,
            norm=True,
            dtype=self.dtype,
            kernel_init=variant.patches,
            name="patch_embed",
        )
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(patches(x))
        rates = growing_rates(self.stochastic_depth_rate, sum(self.depths))
        for index, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            first = sum(self.depths[:index])
            x = Stage(
                merge=index > 0,
                window_size=self.window_size,
                num_heads=heads,
                mlp_ratio=self.mlp_ratio,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                stochastic_depth_rates=rates[first : first + depth],
                variant=variant,
                dtype=self.dtype,
                remat=self.remat,
                name=f"layers_{index}",
            )(x, train)
        x = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm")(x)
        return Head(self.num_classes, variant.head, name="head")(x)


@register("Swin_Tiny")
class SwinTiny(Swin):
    """`Swin` of 96 channels, 2, 2, 6 and 2 blocks."""


@register("Swin_Small")
class SwinSmall(Swin):
    """`Swin` of 96 channels, 2, 2, 18 and 2 blocks."""

    depths: tuple[int, ...] = (2, 2, 18, 2)
    stochastic_depth_rate: float = 0.3


@register("Swin_Base")
class SwinBase(Swin):
    """`Swin` of 128 channels, 2, 2, 18 and 2 blocks."""

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    stochastic_depth_rate: float = 0.5


class SwinPatch4(Swin):
    """`Swin` of the gradient-norm penalty's authors: windows of 4 x 4 tokens, for 32 x 32 pixels.

    The subclasses have their names. With patch_size=2 they are their `Swin_Tiny`, `Swin_Small` and
    `Swin_Base`; these names stand for the paper's networks here.
    """

    window_size: int = 4
    attention_dropout_rate: float = 0.1
    stochastic_depth_rate: float = 0.0
    variant: str = "gnp"


@register("Swin_Tiny_Patch4")
class SwinTinyPatch4(SwinPatch4):
    """`SwinPatch4` of 96 channels, 2, 2, 6 and 2 blocks."""


@register("Swin_Tiny_224")
class SwinTiny224(SwinPatch4):
    """`SwinPatch4` with windows of 7 x 7 tokens, for 224 x 224 pixels."""

    window_size: int = 7


@register("Swin_Small_Patch4")
class SwinSmallPatch4(SwinPatch4):
    """`SwinPatch4` of 96 channels, 2, 2, 18 and 2 blocks."""

    depths: tuple[int, ...] = (2, 2, 18, 2)


@register("Swin_Base_Patch4")
class SwinBasePatch4(SwinPatch4):
    """`SwinPatch4` of 128 channels, 2, 2, 18 and 2 blocks."""

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
