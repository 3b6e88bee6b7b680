"""Class-attention in image transformers, CaiT (Touvron et al., 2021)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import DType, StochasticDepth, check_images, checkpointed
from model.registry import ModelError, register
from model.transformer import (
    NORMAL,
    Mlp,
    PatchEmbed,
    check_heads,
    check_rates,
    check_sizes,
    dense,
    softmax,
    split_heads,
)

_EPSILON = 1e-6
# Channels of a token -> number of blocks -> rate of stochastic depth, from the paper's table of
# models.
_STOCHASTIC_DEPTH = {
    192: {24: 0.05, 36: 0.1},
    288: {24: 0.05, 36: 0.1},
    384: {24: 0.1, 36: 0.2, 48: 0.3},
    768: {24: 0.2, 36: 0.3, 48: 0.4},
}


class MixHeads(nn.Module):
    """y_g = sum_h kernel_hg x_h + bias_g, between the heads of an attention.

    Attributes:
        dtype: of the computation and the output.
    """

    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, heads, q, k] -> [b, heads, q, k]."""
        b, heads = x.shape[:2]
        kernel = self.param("kernel", NORMAL, (heads, heads)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (heads,)).astype(self.dtype)
        # The kernel is repeated for each image: a product in batches leaves the heads where they
        # are, one over all images would move them outwards and back.
        kernels = jnp.broadcast_to(kernel, (b, heads, heads))
        return jnp.einsum("bhg,bhqk->bgqk", kernels, x) + bias.reshape(1, heads, 1, 1)


class TalkingHeads(nn.Module):
    """Self-attention whose heads are mixed before (`proj_l`) and after the softmax (`proj_w`).

    Attributes:
        num_heads: number of heads.
        dropout_rate: share of the outputs that is dropped in training.
        attention_dropout_rate: share of the mixed weights that is dropped in training.
        dtype: of the computation and the output.

    References:
        Shazeer et al., 2020: https://arxiv.org/abs/2003.02436
    """

    num_heads: int
    dropout_rate: float
    attention_dropout_rate: float
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, n, c] -> [b, n, c]."""
        qkv = dense(3 * x.shape[-1], self.dtype, "qkv")(x)
        query, key, value = split_heads(qkv, 3, self.num_heads)
        query = query * query.shape[-1] ** -0.5
        scores = MixHeads(self.dtype, name="proj_l")(jnp.einsum("bqhd,bkhd->bhqk", query, key))
        weights = MixHeads(self.dtype, name="proj_w")(softmax(scores, self.dtype))
        weights = nn.Dropout(self.attention_dropout_rate, deterministic=not train)(weights)
        y = jnp.einsum("bkhd,bhqk->bqhd", value, weights).reshape(x.shape)
        y = dense(x.shape[-1], self.dtype, "proj")(y)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)


class ClassAttention(nn.Module):
    """Attention of the class token alone, to itself and to all patches; without dropout.

    Attributes:
        num_heads: number of heads.
        dtype: of the computation and the output.
    """

    num_heads: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, 1 + n, c], the class token first -> [b, 1, c]."""
        c = x.shape[-1]
        (query,) = split_heads(dense(c, self.dtype, "q")(x[:, 0]), 1, self.num_heads)
        (key,) = split_heads(dense(c, self.dtype, "k")(x), 1, self.num_heads)
        (value,) = split_heads(dense(c, self.dtype, "v")(x), 1, self.num_heads)
        query = query * query.shape[-1] ** -0.5
        weights = softmax(jnp.einsum("bhd,bkhd->bhk", query, key), self.dtype)
        y = jnp.einsum("bkhd,bhk->bhd", value, weights).reshape(-1, 1, c)
        return dense(c, self.dtype, "proj")(y)


class Block(nn.Module):
    """x <- x + gamma_1 attention(norm(x)); x <- x + gamma_2 mlp(norm(x)), gamma by channel.

    Attributes:
        num_heads: number of heads.
        mlp_ratio: hidden units of the MLP over channels of a token.
        layer_scale: initial value of gamma_1 and gamma_2.
        dropout_rate: share dropped behind each product, in training.
        attention_dropout_rate: share of the attention's weights dropped in training.
        stochastic_depth_rate: probability that an example goes round a branch in training.
        dtype: of the computation; x and the output are float32.
    """

    num_heads: int
    mlp_ratio: int
    layer_scale: float
    dropout_rate: float
    attention_dropout_rate: float
    stochastic_depth_rate: float
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, n, c] -> [b, n, c]."""
        attention = TalkingHeads(
            self.num_heads,
            self.dropout_rate,
            self.attention_dropout_rate,
            self.dtype,
            name="attn",
        )
        mlp = Mlp(self.mlp_ratio * x.shape[-1], self.dropout_rate, self.dtype, name="mlp")
        gamma_1, gamma_2 = _layer_scales(self, x.shape[-1], self.layer_scale)
        y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm1")(x)
        x = x + StochasticDepth(self.stochastic_depth_rate)(gamma_1 * attention(y, train), train)
        y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm2")(x)
        return x + StochasticDepth(self.stochastic_depth_rate)(gamma_2 * mlp(y, train), train)


class ClassBlock(nn.Module):
    """The block for the class token alone; the patches are read and stay as they are.

    As the authors have it, nothing is dropped here, whatever the model's rates.

    Attributes:
        num_heads: number of heads.
        mlp_ratio: hidden units of the MLP over channels of a token.
        layer_scale: initial value of gamma_1 and gamma_2.
        dtype: of the computation; x and the output are float32.
    """

    num_heads: int
    mlp_ratio: int
    layer_scale: float
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, 1 + n, c], the class token first -> the class token [b, 1, c]."""
        attention = ClassAttention(self.num_heads, self.dtype, name="attn")
        mlp = Mlp(self.mlp_ratio * x.shape[-1], dtype=self.dtype, name="mlp")
        gamma_1, gamma_2 = _layer_scales(self, x.shape[-1], self.layer_scale)
        y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm1")(x)
        token = x[:, :1] + gamma_1 * attention(y)
        y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm2")(token)
        return token + gamma_2 * mlp(y, train)


def _layer_scales(block: nn.Module, channels: int, start: float) -> tuple[jax.Array, jax.Array]:
    """Return the block's parameters gamma_1 and gamma_2, [1, 1, c].

    They are float32, and make what they multiply float32: so are the tokens from block to block.
    In bfloat16, a branch times 1e-5 would be lost in the sum.
    """
    constant = nn.initializers.constant(start)
    gamma_1 = block.param("gamma_1", constant, (channels,))
    gamma_2 = block.param("gamma_2", constant, (channels,))
    return gamma_1.reshape(1, 1, channels), gamma_2.reshape(1, 1, channels)


class CaiT(nn.Module):
    """Patches as tokens, `depth` blocks of them alone, then two in which a class token reads them.

    The subclasses are the published sizes.

    Attributes:
        num_classes: number of logits.
        depth: number of blocks of self-attention.
        class_depth: number of blocks of class-attention.
        patch_size: side of a patch in pixels; must divide the image's sides.
        embed_dim: channels of a token.
        num_heads: heads of an attention; must divide embed_dim.
        mlp_ratio: hidden units of an MLP over embed_dim.
        layer_scale: initial factor of each branch. None: 0.1 up to a depth of
            18, 1e-5 up to 24, 1e-6 above, as the paper and an author say; the code released later
            has 1e-5 for XXS36.
        dropout_rate: share dropped behind position embedding, and behind attention and products
            of the blocks of self-attention, in training.
        attention_dropout_rate: share of the self-attention's weights dropped in training.
        stochastic_depth_rate: probability that an example goes round a branch, the same in every
            block of self-attention; in training. None: as published for the nearest depth that is
            not larger (0.05 to 0.4), 0 for smaller ones.
        dtype: of the computation; parameters, softmax, the tokens from block to block and logits
            are float32.
        remat: compute each block's activations again in the backward pass, to save memory.

    Example:
        >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        >>> model = CaiTXXS(1000, depth=24)
        >>> shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
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
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        x = PatchEmbed(self.embed_dim, self.patch_size, dtype=self.dtype, name="patch_embed")(x)
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        x = x + self.param("pos_embed", NORMAL, (1, h * w, c))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        shared = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "layer_scale": initial_layer_scale(self.depth)
            if self.layer_scale is None
            else self.layer_scale,
            "dtype": self.dtype,
        }
        rate = (
            published_stochastic_depth(self.embed_dim, self.depth)
            if self.stochastic_depth_rate is None
            else self.stochastic_depth_rate
        )
        for index in range(self.depth):
            block = checkpointed(Block, self.remat)
            x = block(
                **shared,
                dropout_rate=self.dropout_rate,
                attention_dropout_rate=self.attention_dropout_rate,
                stochastic_depth_rate=rate,
                name=f"blocks_{index}",
            )(x, train)
        token = self.param("cls_token", NORMAL, (1, 1, c))
        token = jnp.broadcast_to(token, (b, 1, c))
        for index in range(self.class_depth):
            class_block = checkpointed(ClassBlock, self.remat)
            tokens = jnp.concatenate([token, x], axis=1)
            token = class_block(**shared, name=f"blocks_token_only_{index}")(tokens, train)
        token = nn.LayerNorm(_EPSILON, name="norm")(token[:, 0])
        return dense(self.num_classes, jnp.float32, "head")(token)


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
