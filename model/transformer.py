"""What the vision transformers share: patches, attention, the MLP, their block, checks.

Tokens are [b, n, c], maps of them [b, h, w, c]. Names of parameters are PyTorch's, so that
published weights fit. Precision: matrix products and activations are of the model's dtype;
parameters, softmax and the statistics of layer norm are float32.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import Conv, DType, Initializer, at_least_float32, check_sizes
from model.registry import ModelError

# The published code cuts this distribution at -2 and 2, a hundred standard deviations: not at all.
NORMAL = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros


class Variant(NamedTuple):
    """In what implementations of one transformer differ: the form of GELU, and how weights start.

    Attributes:
        tanh_gelu: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 instead of x Phi(x).
        patches, token, positions, attention, mlp, mlp_bias, head: initializers of the matrix of
            the patches, class token, position embedding, other matrices outside the MLPs, those
            within, their biases, matrix of the logits. Other biases start at 0.

    References:
        Hendrycks and Gimpel, 2016: https://arxiv.org/abs/1606.08415
    """

    tanh_gelu: bool = False
    patches: Initializer = nn.initializers.lecun_normal()
    token: Initializer = NORMAL
    positions: Initializer = NORMAL
    attention: Initializer = NORMAL
    mlp: Initializer = NORMAL
    mlp_bias: Initializer = ZEROS
    head: Initializer = NORMAL


TIMM = Variant()
# CaiT and Swin of the gradient-norm penalty's authors are those of the package jax_models.
JAX_MODELS = Variant(
    tanh_gelu=True,
    patches=nn.initializers.xavier_uniform(),
    token=ZEROS,
    positions=ZEROS,
    attention=nn.initializers.lecun_normal(),
    mlp=nn.initializers.xavier_uniform(),
    head=nn.initializers.lecun_normal(),
)
# Of CaiT and Swin.
VARIANTS = {"timm": TIMM, "gnp": JAX_MODELS}


class PatchEmbed(nn.Module):
    """Each patch of p x p pixels, flattened, times a matrix; then, for some models, layer norm.

    Attributes:
        embed_dim: channels of a token.
        patch_size: p, side of a patch in pixels.
        norm: layer norm (epsilon 1e-5) of the tokens.
        dtype: of the computation and the output.
        kernel_init: initializer of the matrix.

    Example:
        >>> x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        >>> patches = PatchEmbed(embed_dim=24, patch_size=4)
        >>> jax.eval_shape(lambda x: patches.init_with_output(jax.random.key(0), x)[0], x).shape
        (2, 8, 8, 24)
    """

    embed_dim: int
    patch_size: int
    norm: bool = False
    dtype: DType = jnp.float32
    kernel_init: Initializer = TIMM.patches

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h / p, w / p, embed_dim]."""
        h, w, p = *x.shape[1:3], self.patch_size
        if h % p or w % p:
            raise ModelError(
                f"an image of {h} x {w} pixels does not divide into patches of {p} x {p}: "
                f"height and width must be multiples of {p}"
            )
        proj = Conv(
            self.embed_dim,
            (p, p),
            p,
            use_bias=True,
            kernel_init=self.kernel_init,
            padding="VALID",
            dtype=self.dtype,
            name="proj",
        )
        x = proj(x)
        return nn.LayerNorm(1e-5, dtype=self.dtype, name="norm")(x) if self.norm else x


class SelfAttention(nn.Module):
    """y = W concat_h(softmax(q_h k_h^T / sqrt(d)) v_h), with q, k, v linear in x; d = c / heads.

    Attributes:
        num_heads: number of heads.
        dropout_rate: share of the outputs that is dropped in training.
        attention_dropout_rate: share of the weights of the values that is dropped in training.
        dtype: of the computation and the output.
        talking: mix the heads before (`proj_l`) and after the softmax (`proj_w`).
        kernel_init: initializer of the matrices.

    References:
        Vaswani et al., 2017: https://arxiv.org/abs/1706.03762
        Shazeer et al., 2020 (talking heads): https://arxiv.org/abs/2003.02436
    """

    num_heads: int
    dropout_rate: float
    attention_dropout_rate: float
    dtype: DType
    talking: bool = False
    kernel_init: Initializer = TIMM.attention

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, n, c] -> [b, n, c]."""
        qkv = dense(3 * x.shape[-1], self.dtype, "qkv", kernel_init=self.kernel_init)(x)
        query, key, value = split_heads(qkv, 3, self.num_heads)
        query = query * query.shape[-1] ** -0.5
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
        if self.talking:
            scores = MixHeads(self.dtype, self.kernel_init, name="proj_l")(scores)
        weights = softmax(scores, self.dtype)
        if self.talking:
            weights = MixHeads(self.dtype, self.kernel_init, name="proj_w")(weights)
        weights = nn.Dropout(self.attention_dropout_rate, deterministic=not train)(weights)
        y = jnp.einsum("bkhd,bhqk->bqhd", value, weights).reshape(x.shape)
        y = dense(x.shape[-1], self.dtype, "proj", kernel_init=self.kernel_init)(y)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)


class MixHeads(nn.Module):
    """y_g = sum_h kernel_hg x_h + bias_g, between the heads of an attention."""

    dtype: DType
    kernel_init: Initializer = TIMM.attention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, heads, q, k] -> [b, heads, q, k]."""
        b, heads = x.shape[:2]
        kernel = self.param("kernel", self.kernel_init, (heads, heads)).astype(self.dtype)
        bias = self.param("bias", ZEROS, (heads,)).astype(self.dtype)
        # The kernel is repeated for each image: a product in batches leaves the heads where they
        # are, one over all images would move them outwards and back.
        kernels = jnp.broadcast_to(kernel, (b, heads, heads))
        return jnp.einsum("bhg,bhqk->bgqk", kernels, x) + bias.reshape(1, heads, 1, 1)


class Block(nn.Module):
    """x <- x + gamma_1 attention(norm(x)); x <- x + gamma_2 mlp(norm(x)), gamma by channel.

    Attributes:
        attention: name -> the attention, a module that is called as `module(x, train)`.
        mlp_ratio: hidden units of the MLP over channels of a token; rounded to whole units.
        dropout_rate: share dropped behind each product of the MLP, in training.
        stochastic_depth_rate: probability that an example goes round a branch in training.
        dtype: of the computation and, without layer scale, of the output.
        layer_scale: initial value of gamma_1 and gamma_2; None: there are none. See `scaled`.
        epsilon: of the layer norms.
        variant: of the MLP.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float
    dropout_rate: float
    stochastic_depth_rate: float
    dtype: DType
    layer_scale: float | None = None
    epsilon: float = 1e-6
    variant: Variant = TIMM

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, ..., c] -> [b, ..., c]."""
        attention = self.attention(name="attn")
        hidden = round(self.mlp_ratio * x.shape[-1])
        mlp = Mlp(hidden, self.dropout_rate, self.dtype, self.variant, name="mlp")
        norm = partial(nn.LayerNorm, self.epsilon, dtype=self.dtype)
        # Stochastic depth drops a branch for whole examples; masks depend on the layer's name.
        rate, axes = self.stochastic_depth_rate, tuple(range(1, x.ndim))
        drop = partial(nn.Dropout, rate, axes, deterministic=not train)
        y = scaled(self, "gamma_1", attention(norm(name="norm1")(x), train))
        x = x + drop(name="StochasticDepth_0")(y)
        y = scaled(self, "gamma_2", mlp(norm(name="norm2")(x), train))
        return x + drop(name="StochasticDepth_1")(y)


def scaled(block: nn.Module, name: str, y: jax.Array) -> jax.Array:
    """Return y times the block's parameter of that name, if `block.layer_scale` is a number.

    The factors are float32, and make what they multiply float32: so are the tokens from block to
    block. In bfloat16, a branch times 1e-5 would be lost in the sum.
    """
    if block.layer_scale is None:
        return y
    gamma = block.param(name, nn.initializers.constant(block.layer_scale), y.shape[-1:])
    return gamma.reshape((1,) * (y.ndim - 1) + gamma.shape) * y


class Mlp(nn.Module):
    """y = W_2 gelu(W_1 x + b_1) + b_2, for each token.

    Attributes:
        hidden: outputs of W_1.
        dropout_rate: share of the outputs of each product that is dropped in training.
        dtype: of the computation and the output.
        variant: form of GELU and initializers.

    Example:
        >>> x = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
        >>> def initialize(x):
        ...     return Mlp(hidden=32).init(jax.random.key(0), x, train=False)["params"]
        >>> jax.eval_shape(initialize, x)["fc1"]["kernel"].shape
        (8, 32)
    """

    hidden: int
    dropout_rate: float = 0.0
    dtype: DType = jnp.float32
    variant: Variant = TIMM

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[..., c] -> [..., c]."""
        variant = self.variant
        layer = partial(dense, kernel_init=variant.mlp, bias_init=variant.mlp_bias)
        y = layer(self.hidden, self.dtype, "fc1")(x)
        y = nn.gelu(y, approximate=variant.tanh_gelu)
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        y = layer(x.shape[-1], self.dtype, "fc2")(y)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)


def dense(
    features: int,
    dtype: DType,
    name: str,
    use_bias: bool = True,
    kernel_init: Initializer = NORMAL,
    bias_init: Initializer = ZEROS,
) -> nn.Dense:
    """Build a dense layer as transformers start it: weights of standard deviation 0.02, biases 0.

    Args:
        features: number of outputs.
        dtype: of the computation and the output.
        name: of the layer.
        use_bias: add a bias.
        kernel_init: initializer of the weights.
        bias_init: initializer of the biases.
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=name,
    )


def split_heads(x: jax.Array, count: int, num_heads: int) -> tuple[jax.Array, ...]:
    """Split one product into queries, keys and values, each with an axis of heads.

    Args:
        x: [..., count * c].
        count: how many arrays there are in x.
        num_heads: number of heads, a divisor of c.

    Returns:
        `count` arrays [..., num_heads, c / num_heads].

    Example:
        >>> query, key, value = split_heads(jnp.ones((2, 5, 24)), count=3, num_heads=4)
        >>> query.shape
        (2, 5, 4, 2)
    """
    features = x.shape[-1] // (count * num_heads)
    x = x.reshape(*x.shape[:-1], count, num_heads, features)
    return tuple(x[..., index, :, :] for index in range(count))


def softmax(scores: jax.Array, dtype: DType) -> jax.Array:
    """Return exp(s_k) / sum_l exp(s_l) over the last axis, computed in float32, in a dtype."""
    return nn.softmax(at_least_float32(scores)).astype(dtype)


def growing_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Return stochastic depth's rate of each block, in equal steps from 0 to `rate`.

    Example:
        >>> growing_rates(0.2, 3)
        (0.0, 0.1, 0.2)

    References:
        Huang et al., 2016: https://arxiv.org/abs/1603.09382
    """
    return tuple(rate * block / max(depth - 1, 1) for block in range(depth))


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise ModelError unless the channels can be dealt out to the heads.

    Example:
        >>> check_heads(embed_dim=192, num_heads=3)
    """
    check_sizes(embed_dim=embed_dim, num_heads=num_heads)
    if embed_dim % num_heads:
        raise ModelError(
            f"model_params.num_heads = {num_heads}: must divide the {embed_dim} channels of a token"
        )
