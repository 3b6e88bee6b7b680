"""Vision transformers (Dosovitskiy et al., 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import DType, StochasticDepth, check_images, checkpointed
from model.registry import register
from model.transformer import (
    NORMAL,
    Mlp,
    PatchEmbed,
    check_heads,
    check_rates,
    check_sizes,
    dense,
    growing_rates,
    softmax,
    split_heads,
)

_EPSILON = 1e-6


class SelfAttention(nn.Module):
    """y = W concat_h(softmax(q_h k_h^T / sqrt(d)) v_h), with q, k, v linear in x; d = c / heads.

    Attributes:
        num_heads: number of heads.
        dropout_rate: share of the outputs that is dropped in training.
        attention_dropout_rate: share of the softmax's values that is dropped in training.
        dtype: of the computation and the output.

    References:
        Vaswani et al., 2017: https://arxiv.org/abs/1706.03762
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
        weights = softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key), self.dtype)
        weights = nn.Dropout(self.attention_dropout_rate, deterministic=not train)(weights)
        y = jnp.einsum("bkhd,bhqk->bqhd", value, weights).reshape(x.shape)
        y = dense(x.shape[-1], self.dtype, "proj")(y)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)


class Block(nn.Module):
    """x <- x + attention(norm(x)); x <- x + mlp(norm(x)).

    Attributes:
        num_heads: number of heads.
        mlp_ratio: hidden units of the MLP over channels of a token.
        dropout_rate: share dropped behind each product, in training.
        attention_dropout_rate: share of the softmax's values dropped in training.
        stochastic_depth_rate: probability that an example goes round a branch in training.
        dtype: of the computation and the output.
    """

    num_heads: int
    mlp_ratio: int
    dropout_rate: float
    attention_dropout_rate: float
    stochastic_depth_rate: float
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, n, c] -> [b, n, c]."""
        attention = SelfAttention(
            self.num_heads,
            self.dropout_rate,
            self.attention_dropout_rate,
            self.dtype,
            name="attn",
        )
        mlp = Mlp(self.mlp_ratio * x.shape[-1], self.dropout_rate, self.dtype, name="mlp")
        y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm1")(x)
        x = x + StochasticDepth(self.stochastic_depth_rate)(attention(y, train), train)
        y = nn.LayerNorm(_EPSILON, dtype=self.dtype, name="norm2")(x)
        return x + StochasticDepth(self.stochastic_depth_rate)(mlp(y, train), train)


class ViT(nn.Module):
    """Patches as tokens, a class token before them, `depth` blocks; logits of the class token.

    The subclasses are the published sizes. Defaults of the dropout rates are those of the
    gradient-norm penalty's experiments. Weights start as the authors of timm start them, but for
    `patch_embed`: they leave it PyTorch's default, here it is LeCun's normal distribution.

    Attributes:
        num_classes: number of logits.
        patch: side of a patch in pixels; must divide the image's sides.
        embed_dim: channels of a token.
        depth: number of blocks.
        num_heads: heads of an attention; must divide embed_dim.
        mlp_ratio: hidden units of an MLP over embed_dim.
        dropout_rate: share dropped behind position embedding, attention and products, in training.
        attention_dropout_rate: share of the softmax's values dropped in training.
        stochastic_depth_rate: probability that an example goes round a branch of the last block,
            in training; it grows in equal steps from 0 at the first.
        dtype: of the computation; parameters, softmax and logits are float32.
        remat: compute each block's activations again in the backward pass, to save memory.

    Example:
        >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        >>> model = ViTSmall(1000, patch=16)
        >>> shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        22050664

    References:
        Dosovitskiy et al., 2020: https://arxiv.org/abs/2010.11929
        Touvron et al., 2020 (the sizes Ti and S): https://arxiv.org/abs/2012.12877
        Zhao et al., 2022 (the dropout rates): https://arxiv.org/abs/2202.03599
    """

    num_classes: int
    patch: int
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    stochastic_depth_rate: float = 0.0
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads)
        check_sizes(patch=self.patch, depth=self.depth, mlp_ratio=self.mlp_ratio)
        check_rates(
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            stochastic_depth_rate=self.stochastic_depth_rate,
        )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        x = PatchEmbed(self.embed_dim, self.patch, dtype=self.dtype, name="patch_embed")(x)
        b, h, w, c = x.shape
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, c))
        token = jnp.broadcast_to(token.astype(self.dtype), (b, 1, c))
        x = jnp.concatenate([token, x.reshape(b, h * w, c)], axis=1)
        x = x + self.param("pos_embed", NORMAL, (1, 1 + h * w, c)).astype(self.dtype)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        for index, rate in enumerate(growing_rates(self.stochastic_depth_rate, self.depth)):
            x = checkpointed(Block, self.remat)(
                self.num_heads,
                self.mlp_ratio,
                self.dropout_rate,
                self.attention_dropout_rate,
                rate,
                self.dtype,
                name=f"blocks_{index}",
            )(x, train)
        # Norm and head treat each token alone: only the class token's result is asked for.
        x = nn.LayerNorm(_EPSILON, name="norm")(x[:, 0])
        return dense(self.num_classes, jnp.float32, "head")(x)


@register("ViT_TI{patch:int}", examples=("ViT_TI16",))
class ViTTiny(ViT):
    """`ViT` of 192 channels in 3 heads, 12 blocks."""

    embed_dim: int = 192
    num_heads: int = 3


@register("ViT_S{patch:int}", examples=("ViT_S4", "ViT_S16"))
class ViTSmall(ViT):
    """`ViT` of 384 channels in 6 heads, 12 blocks."""

    embed_dim: int = 384
    num_heads: int = 6


@register("ViT_B{patch:int}", examples=("ViT_B16",))
class ViTBase(ViT):
    """`ViT` of 768 channels in 12 heads, 12 blocks."""


@register("ViT_L{patch:int}", examples=("ViT_L16",))
class ViTLarge(ViT):
    """`ViT` of 1024 channels in 16 heads, 24 blocks."""

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
