"""Layers that the vision transformers share: patches, heads, softmax, the MLP, checks.

Tokens are [b, n, c], maps of them [b, h, w, c]. Names of parameters are PyTorch's, so that
published weights fit. Precision: matrix products and activations are of the model's dtype;
parameters, softmax and the statistics of layer norm are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.layers import Conv, DType, at_least_float32, check_dropout_rate
from model.registry import ModelError

# The published code cuts this distribution at -2 and 2, a hundred standard deviations: not at all.
NORMAL = nn.initializers.normal(0.02)


class PatchEmbed(nn.Module):
    """Each patch of p x p pixels, flattened, times a matrix; then, for some models, layer norm.

    Attributes:
        embed_dim: channels of a token.
        patch_size: p, side of a patch in pixels.
        norm: layer norm (epsilon 1e-5) of the tokens.
        dtype: of the computation and the output.

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
            self.embed_dim, (p, p), p, use_bias=True, padding="VALID", dtype=self.dtype, name="proj"
        )
        x = proj(x)
        return nn.LayerNorm(1e-5, dtype=self.dtype, name="norm")(x) if self.norm else x


class Mlp(nn.Module):
    """y = W_2 gelu(W_1 x + b_1) + b_2, for each token; gelu(x) = x Phi(x), the exact one.

    Attributes:
        hidden: outputs of W_1.
        dropout_rate: share of the outputs of each product that is dropped in training.
        dtype: of the computation and the output.

    Example:
        >>> x = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
        >>> def initialize(x):
        ...     return Mlp(hidden=32).init(jax.random.key(0), x, train=False)["params"]
        >>> jax.eval_shape(initialize, x)["fc1"]["kernel"].shape
        (8, 32)

    References:
        Hendrycks and Gimpel, 2016: https://arxiv.org/abs/1606.08415
    """

    hidden: int
    dropout_rate: float = 0.0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[..., c] -> [..., c]."""
        y = nn.gelu(dense(self.hidden, self.dtype, "fc1")(x), approximate=False)
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        y = dense(x.shape[-1], self.dtype, "fc2")(y)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)


def dense(features: int, dtype: DType, name: str, use_bias: bool = True) -> nn.Dense:
    """Build a dense layer as transformers start it: weights of standard deviation 0.02, biases 0.

    Args:
        features: number of outputs.
        dtype: of the computation and the output.
        name: of the layer.
        use_bias: add a bias.

    Example:
        >>> dense(3, jnp.float32, "proj").features
        3
    """
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=NORMAL, name=name)


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
    """Return exp(s_k) / sum_l exp(s_l) over the last axis, computed in float32.

    Args:
        scores: [..., k].
        dtype: of the result.

    Example:
        >>> softmax(jnp.zeros((1, 4), jnp.bfloat16), jnp.bfloat16).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
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


def check_rates(**rates: float) -> None:
    """Raise ModelError unless each 0 <= rate < 1; keywords are the model's parameters.

    Example:
        >>> check_rates(dropout_rate=0.1, stochastic_depth_rate=0.0)
    """
    for name, rate in rates.items():
        check_dropout_rate(rate, name)


def check_sizes(**sizes: int) -> None:
    """Raise ModelError unless each is at least 1; keywords are the model's parameters.

    Example:
        >>> check_sizes(patch_size=4)
    """
    for name, size in sizes.items():
        if size < 1:
            raise ModelError(f"model_params.{name} = {size}: must be at least 1")


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
