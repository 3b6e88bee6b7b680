"""Vision transformers (Dosovitskiy et al., 2020)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import DType, check_images, check_rates, check_sizes, check_variant, checkpointed
from model.registry import register
from model.transformer import (
    TIMM,
    ZEROS,
    Block,
    PatchEmbed,
    SelfAttention,
    Variant,
    check_heads,
    dense,
    growing_rates,
)

_VARIANTS = {
    "timm": TIMM._replace(token=nn.initializers.normal(1e-6)),
    "gnp": Variant(
        tanh_gelu=True,
        token=ZEROS,
        # Xavier's, of queries, keys and values each: as many outputs as inputs.
        attention=nn.initializers.lecun_uniform(),
        mlp=nn.initializers.xavier_uniform(),
        mlp_bias=nn.initializers.normal(1e-6),
        head=ZEROS,
    ),
}


class ViT(nn.Module):
    """Patches as tokens, a class token before them, `depth` blocks; logits of the class token.

    The subclasses are the published sizes. Defaults of the dropout rates are those of the
    gradient-norm penalty's experiments.

    Variants: "timm" has the exact GELU, and weights start as its authors start them, but for
    `patch_embed`: they leave it PyTorch's default, here it is LeCun's normal distribution. "gnp",
    of the penalty's authors after vision_transformer, has GELU's tanh approximation; the matrices
    start at Xavier's uniform distribution, head and class token at 0.

    Attributes:
        patch: side of a patch in pixels; must divide the image's sides.
        embed_dim: channels of a token.
        depth: number of blocks.
        num_heads: heads of an attention; must divide embed_dim.
        mlp_ratio: hidden units of an MLP over embed_dim; rounded to whole units.
        dropout_rate: share dropped behind position embedding, attention and products, in training.
        attention_dropout_rate: share of the softmax's values dropped in training.
        stochastic_depth_rate: probability that an example goes round a branch of the last block,
            in training; it grows in equal steps from 0 at the first.
        representation_size: channels of a dense layer with tanh before the head; None: none.
        variant: "timm" or "gnp".
        num_classes, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(ViTSmall(1000, patch=16), (224, 224, 3))
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
    mlp_ratio: float = 4
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    stochastic_depth_rate: float = 0.0
    representation_size: int | None = None
    variant: str = "timm"
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads)
        check_sizes(patch=self.patch, depth=self.depth, mlp_ratio=self.mlp_ratio)
        if self.representation_size is not None:
            check_sizes(representation_size=self.representation_size)
        check_rates(
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            stochastic_depth_rate=self.stochastic_depth_rate,
        )
        check_variant(self.variant, _VARIANTS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        variant = _VARIANTS[self.variant]
        x = PatchEmbed(
            self.embed_dim,
            self.patch,
            dtype=self.dtype,
            kernel_init=variant.patches,
            name="patch_embed",
        )(x)
        b, h, w, c = x.shape
        token = self.param("cls_token", variant.token, (1, 1, c))
        token = jnp.broadcast_to(token.astype(self.dtype), (b, 1, c))
        x = jnp.concatenate([token, x.reshape(b, h * w, c)], axis=1)
        x = x + self.param("pos_embed", variant.positions, (1, 1 + h * w, c)).astype(self.dtype)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        rates = self.dropout_rate, self.attention_dropout_rate
        attention = partial(
            SelfAttention, self.num_heads, *rates, self.dtype, kernel_init=variant.attention
        )
        block = checkpointed(Block, self.remat)
        for index, rate in enumerate(growing_rates(self.stochastic_depth_rate, self.depth)):
            x = block(
                attention,
                self.mlp_ratio,
                self.dropout_rate,
                rate,
                self.dtype,
                variant=variant,
                name=f"blocks_{index}",
            )(x, train)
        # Norm and head treat each token alone: only the class token's result is asked for.
        x = nn.LayerNorm(name="norm")(x[:, 0])
        if self.representation_size is not None:
            x = nn.tanh(nn.Dense(self.representation_size, name="pre_logits")(x))
        return dense(self.num_classes, None, "head", kernel_init=variant.head)(x)


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
