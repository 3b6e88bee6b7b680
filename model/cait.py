"""Class-attention in image transformers, CaiT (Touvron et al., 2021)."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import (
    DType,
    Initializer,
    check_images,
    check_rates,
    check_sizes,
    check_variant,
    checkpointed,
)
from model.registry import ModelError, register
from model.transformer import (
    TIMM,
    VARIANTS,
    Block,
    Mlp,
    PatchEmbed,
    SelfAttention,
    Variant,
    check_heads,
    dense,
    scaled,
    softmax,
    split_heads,
)

# Channels of a token -> number of blocks -> rate of stochastic depth, from the paper's table of
# models.
_STOCHASTIC_DEPTH = {
    192: {24: 0.05, 36: 0.1},
    288: {24: 0.05, 36: 0.1},
    384: {24: 0.1, 36: 0.2, 48: 0.3},
    768: {24: 0.2, 36: 0.3, 48: 0.4},
}


class ClassAttention(nn.Module):
    """Attention of the class token alone, to itself and to all patches; without dropout."""

    num_heads: int
    dtype: DType
    kernel_init: Initializer = TIMM.attention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, 1 + n, c], the class token first -> [b, 1, c]."""
        c = x.shape[-1]
        layer = partial(dense, c, self.dtype, kernel_init=self.kernel_init)
        (query,) = split_heads(layer("q")(x[:, 0]), 1, self.num_heads)
        (key,) = split_heads(layer("k")(x), 1, self.num_heads)
        (value,) = split_heads(layer("v")(x), 1, self.num_heads)
        query = query * query.shape[-1] ** -0.5
        weights = softmax(jnp.einsum("bhd,bkhd->bhk", query, key), self.dtype)
        y = jnp.einsum("bkhd,bhk->bhd", value, weights).reshape(-1, 1, c)
        return layer("proj")(y)


class ClassBlock(nn.Module):
    """`Block` for the class token alone; the patches are read and stay as they are.

    As the authors have it, nothing is dropped here, whatever the model's rates.
    """

    num_heads: int
    mlp_ratio: int
    layer_scale: float
    dtype: DType
    variant: Variant = TIMM

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, 1 + n, c], the class token first -> the class token [b, 1, c], float32."""
        variant = self.variant
        attention = ClassAttention(self.num_heads, self.dtype, variant.attention, name="attn")
        mlp = Mlp(self.mlp_ratio * x.shape[-1], dtype=self.dtype, variant=variant, name="mlp")
        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        token = x[:, :1] + scaled(self, "gamma_1", attention(y))
        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(token)
        return token + scaled(self, "gamma_2", mlp(y, train))


class CaiT(nn.Module):
    """Patches as tokens, `depth` blocks of them alone, then two in which a class token reads them.

    The subclasses are the published sizes.

    Variants: "timm" has the exact GELU and starts as the paper's code does; "gnp", of the
    gradient-norm penalty's authors after jax_models, has GELU's tanh approximation; the MLPs and
    patches start at Xavier's uniform distribution, class token and positions at 0, other matrices
    at LeCun's truncated normal one.

    Attributes:
        depth: number of blocks of self-attention.
        class_depth: number of blocks of class-attention.
        patch_size: side of a patch in pixels; must divide the image's sides.
        embed_dim: channels of a token.
        num_heads: heads of an attention; must divide embed_dim.
        mlp_ratio: hidden units of an MLP over embed_dim.
        layer_scale: initial factor of each branch. None: 0.1 up to a depth of
            18, 1e-5 up to 24, 1e-6 above, as the paper and an author say; the code released later
            has 1e-5 for XXS36. "gnp" has 1e-6 for 768 channels, else 1e-5, whatever the depth.
        dropout_rate: share dropped behind position embedding, and behind attention and products
            of the blocks of self-attention, in training.
        attention_dropout_rate: share of the self-attention's weights dropped in training.
        stochastic_depth_rate: probability that an example goes round a branch, the same in every
            block of self-attention; in training. None: as published for the nearest depth that is
            not larger (0.05 to 0.4), 0 for smaller ones and for "gnp".
        variant: "timm" or "gnp".
        dtype: of the computation; parameters, softmax, the tokens from block to block and logits
            are float32.
        num_classes, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(CaiTXXS(1000, depth=24), (224, 224, 3))
        11956264

    References:
        Touvron et al., 2021: https://arxiv.org/abs/2103.17239
        An author on layer scale, 2021: https://github.com/facebookresearch/deit/issues/122
    """

    num_classes: int
    depth: int
    class_depth: int = 2
    patch_size: int = 16
    embed_dim: int = 384
    num_heads: int = 8
    mlp_ratio: int = 4
    layer_scale: float | None = None
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    stochastic_depth_rate: float | None = None
    variant: str = "timm"
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads)
        check_sizes(
            depth=self.depth,
            class_depth=self.class_depth,
            patch_size=self.patch_size,
            mlp_ratio=self.mlp_ratio,
        )
        check_rates(
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            stochastic_depth_rate=self.stochastic_depth_rate or 0.0,
        )
        if self.layer_scale is not None and not 0 <= self.layer_scale < math.inf:
            raise ModelError(
                f"model_params.layer_scale = {self.layer_scale}: must be a finite number of at "
                "least 0, or None"
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
            dtype=self.dtype,
            kernel_init=variant.patches,
            name="patch_embed",
        )
        x = patches(x)
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        x = x + self.param("pos_embed", variant.positions, (1, h * w, c))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        layer_scale, rate = self.layer_scale, self.stochastic_depth_rate
        if layer_scale is None and self.variant == "gnp":
            layer_scale = 1e-6 if c >= 768 else 1e-5
        elif layer_scale is None:
            layer_scale = initial_layer_scale(self.depth)
        if rate is None:
            published = published_stochastic_depth(self.embed_dim, self.depth)
            rate = 0.0 if self.variant == "gnp" else published
        shared = {
            "mlp_ratio": self.mlp_ratio,
            "layer_scale": layer_scale,
            "dtype": self.dtype,
            "variant": variant,
        }
        attention = partial(
            SelfAttention,
            self.num_heads,
            self.dropout_rate,
            self.attention_dropout_rate,
            self.dtype,
            talking=True,
            kernel_init=variant.attention,
        )
        block, class_block = (checkpointed(each, self.remat) for each in (Block, ClassBlock))
        for index in range(self.depth):
            x = block(
                attention,
                dropout_rate=self.dropout_rate,
                stochastic_depth_rate=rate,
                **shared,
                name=f"blocks_{index}",
            )(x, train)
        token = jnp.broadcast_to(self.param("cls_token", variant.token, (1, 1, c)), (b, 1, c))
        for index in range(self.class_depth):
            tokens = jnp.concatenate([token, x], axis=1)
            token = class_block(self.num_heads, **shared, name=f"blocks_token_only_{index}")(
                tokens, train
            )
        token = nn.LayerNorm(name="norm")(token[:, 0])
        return dense(self.num_classes, None, "head", kernel_init=variant.head)(token)


def initial_layer_scale(depth: int) -> float:
    """Return the initial factor of the branches in a network of `depth` blocks.

    Example:
        >>> [initial_layer_scale(depth) for depth in (12, 24, 36)]
        [0.1, 1e-05, 1e-06]
    """
    if depth <= 18:
        return 0.1
    return 1e-5 if depth <= 24 else 1e-6


def published_stochastic_depth(embed_dim: int, depth: int) -> float:
    """Return the rate published for the nearest depth that is not larger; 0 without one.

    Example:
        >>> [published_stochastic_depth(384, depth) for depth in (12, 24, 30, 36)]
        [0.0, 0.1, 0.1, 0.2]
    """
    published = _STOCHASTIC_DEPTH.get(embed_dim, {})
    return max((rate for blocks, rate in published.items() if blocks <= depth), default=0.0)


@register("CaiT_XXS{depth:int}", examples=("CaiT_XXS12", "CaiT_XXS24", "CaiT_XXS36"))
class CaiTXXS(CaiT):
    """`CaiT` of 192 channels in 4 heads."""

    embed_dim: int = 192
    num_heads: int = 4


@register("CaiT_XS{depth:int}", examples=("CaiT_XS12", "CaiT_XS24"))
class CaiTXS(CaiT):
    """`CaiT` of 288 channels in 6 heads."""

    embed_dim: int = 288
    num_heads: int = 6


@register("CaiT_S{depth:int}", examples=("CaiT_S12", "CaiT_S24", "CaiT_S36"))
class CaiTS(CaiT):
    """`CaiT` of 384 channels in 8 heads."""


@register("CaiT_M{depth:int}", examples=("CaiT_M24", "CaiT_M36", "CaiT_M48"))
class CaiTM(CaiT):
    """`CaiT` of 768 channels in 16 heads."""

    embed_dim: int = 768
    num_heads: int = 16
