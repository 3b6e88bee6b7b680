"""Pyramidal residual networks for images of 32 x 32 pixels (Han et al., 2016), and ShakeDrop."""

from fractions import Fraction
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
    check_variant,
    checkpointed,
    mean_of_pixels,
    pool_and_pad,
    with_slope_of,
)
from model.registry import ModelError, register

_STEM = 16  # channels that the first block starts from


def shake_drop(
    x: jax.Array,
    survival: float,
    alphas: tuple[float, ...],
    key: jax.Array | None,
    betas: tuple[float, ...] = (),
) -> jax.Array:
    """Return y[b] = x[b] (k[b] + a[b] - k[b] a[b]): x where k = 1, a x where k = 0.

    k is 1 with probability p and a uniform in `alphas`, both for each example. Evaluation (no
    key) multiplies by the expectation, p + (1 - p) E[a].

    The backward pass has the same k and a, so the derivative is the one of the value. The paper
    draws another factor b there, in `betas`, and what it then follows is the gradient of no
    function.
    The gradient-norm penalty needs one: it compares the gradient at theta with that at a second
    point.

    Args:
        x: [b, h, w, c], the branch of a residual block.
        survival: p.
        alphas: lower and upper bound of a.
        key: of the draws; None in evaluation.
        betas: lower and upper bound of b, which takes the place of a in the derivative; (): a.

    Returns:
        [b, h, w, c], of the dtype of x.

    Example:
        >>> shake_drop(jnp.ones((1, 1, 1, 1)), 0.5, (-1.0, 1.0), None).item()
        0.5

    References:
        Yamada et al., 2018, equation 6: https://arxiv.org/abs/1802.02375
    """
    if key is None:
        return x * (survival + (1 - survival) * sum(alphas) / 2)
    keep_key, factor_key = jax.random.split(key)
    shape = (x.shape[0], 1, 1, 1)
    keep = jax.random.bernoulli(keep_key, jnp.float32(survival), shape)

    def shaken(key: jax.Array, bounds: tuple[float, ...]) -> jax.Array:
        factor = jax.random.uniform(key, shape, jnp.float32, *bounds)
        return x * jnp.where(keep, jnp.float32(1), factor).astype(x.dtype)

    y = shaken(factor_key, alphas)
    return with_slope_of(y, shaken(jax.random.fold_in(factor_key, 1), betas)) if betas else y


class Bottleneck(nn.Module):
    """shortcut(x) + shake_drop(bn(1x1(relu(bn(3x3(relu(bn(1x1(bn(x)))))))))).

    The shortcut is `pool_and_pad`. The 3 x 3 convolution has the strides.
    At a survival of 1 nothing is drawn.
    """

    features: int
    strides: int
    survival: float
    alphas: tuple[float, ...]
    betas: tuple[float, ...] = ()
    dtype: DType = jnp.float32
    batch_norm_group: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), 4 features]."""
        conv = partial(Conv, kernel_init=HE, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        y = conv(self.features, (1, 1), name="conv_1")(norm(name="norm_1")(x, train))
        y = nn.relu(norm(name="norm_2")(y, train))
        y = conv(self.features, strides=self.strides, name="conv_2")(y)
        y = nn.relu(norm(name="norm_3")(y, train))
        y = conv(4 * self.features, (1, 1), name="conv_3")(y)
        y = norm(name="norm_4")(y, train)
        if self.survival < 1:
            key = self.make_rng("dropout") if train else None
            y = shake_drop(y, self.survival, self.alphas, key, self.betas)
        return pool_and_pad(x, self.strides, 4 * self.features) + y


@register(
    "PyramidNet_{depth:int}_{alpha:int}",
    examples=(
        "PyramidNet_164_48",
        "PyramidNet_164_270",
        "PyramidNet_200_240",
        "PyramidNet_272_200",
    ),
)
class PyramidNet(nn.Module):
    """Three groups of n = (depth - 2) / 9 bottlenecks, each wider than the one before.

    Bottleneck k = 1 .. 3n has 16 + alpha k / (3n) channels inside, rounded, and four times as many
    outside. The paper's formula cuts the fraction off instead of rounding it; SAM and the
    gradient-norm penalty were published with rounding and without a batch norm behind the first
    convolution (`stem_norm`), and so are the sizes of this class. In the variant "gnp" it has
    their last layer too, which starts from a uniform distribution.

    Attributes:
        depth: number of convolutions and the dense layer, 9 n + 2.
        alpha: channels that the bottlenecks gain in all.
        stem_norm: batch norm behind the first convolution, as in the paper's code.
        survival: probability that the last branch is kept as it is in training; that of
            bottleneck k is 1 - (1 - survival) k / (3n). 1: no ShakeDrop.
        alphas: bounds of ShakeDrop's factor where a branch is not kept; see `shake_drop`.
        betas: bounds of the factor that takes its place in the gradient, with `backward_noise`.
        backward_noise: the gradient has random factors of its own, as in the paper. In a step with
            a penalty that is the perturbed one alone, as in the gradient-norm penalty's code: the
            direction is that of a gradient.
        variant: "paper" or "gnp".
        num_classes, batch_norm_group, dtype, remat: see `get_model`.

    Example:
        >>> from model.describe import count_parameters
        >>> count_parameters(PyramidNet(10, depth=11, alpha=48), (32, 32, 3))
        121370

    References:
        Han et al., 2016: https://arxiv.org/abs/1610.02915
        Foret et al., 2020: https://arxiv.org/abs/2010.01412
    """

    num_classes: int
    depth: int
    alpha: int
    stem_norm: bool = False
    survival: float = 1.0
    alphas: tuple[float, ...] = (-1.0, 1.0)
    betas: tuple[float, ...] = (0.0, 1.0)
    backward_noise: bool = False
    variant: str = "paper"
    batch_norm_group: int | None = None
    dtype: DType = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        if self.depth < 11 or (self.depth - 2) % 9:
            nearest = max(11, 2 + 9 * round((self.depth - 2) / 9))
            raise ModelError(
                f"PyramidNet_{self.depth}_{self.alpha}: the depth must be 9n + 2, at least 11; "
                f"nearest: {nearest}"
            )
        if not 0 < self.survival <= 1:
            raise ModelError(
                f"model_params.survival = {self.survival}: must be above 0 and at most 1"
            )
        for name, bounds in {"alphas": self.alphas, "betas": self.betas}.items():
            if len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise ModelError(
                    f"model_params.{name} = {bounds}: must be a lower and an upper bound"
                )
        check_variant(self.variant, HEADS)
        check_batch_norm_group(self.batch_norm_group)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, num_classes]."""
        check_images(self, x)
        block_class = checkpointed(Bottleneck, self.remat)
        norm = partial(BatchNorm, dtype=self.dtype, group=self.batch_norm_group)
        blocks = (self.depth - 2) // 9
        x = Conv(_STEM, kernel_init=HE, dtype=self.dtype, name="stem")(x)
        if self.stem_norm:
            x = norm(name="stem_norm")(x, train)
        for index in range(1, 3 * blocks + 1):
            group, block = divmod(index - 1, blocks)
            share = Fraction(index, 3 * blocks)
            x = block_class(
                # Exact, so that a half is rounded the same for every alpha: to the even number.
                features=round(_STEM + self.alpha * share),
                strides=2 if group > 0 and block == 0 else 1,
                survival=1 - (1 - self.survival) * float(share),
                alphas=self.alphas,
                betas=self.betas if self.backward_noise else (),
                dtype=self.dtype,
                batch_norm_group=self.batch_norm_group,
                name=f"group_{group + 1}_block_{block + 1}",
            )(x, train)
        x = nn.relu(norm(name="norm")(x, train))
        head = nn.Dense(self.num_classes, kernel_init=HEADS[self.variant], name="head")
        return head(mean_of_pixels(x))


@register(
    "PyramidNet_{depth:int}_{alpha:int}_ShakeDrop",
    examples=("PyramidNet_164_48_ShakeDrop", "PyramidNet_272_200_ShakeDrop"),
)
class PyramidNetShakeDrop(PyramidNet):
    """`PyramidNet` with ShakeDrop, and with batch norm behind the first convolution.

    Attributes:
        stem_norm: True, as the variants with ShakeDrop were published (32 parameters more).
        survival: 1/2, and so 1 - k / (6n) for bottleneck k of 3n.

    Example:
        >>> PyramidNetShakeDrop(10, depth=272, alpha=200).survival
        0.5

    References:
        Yamada et al., 2018: https://arxiv.org/abs/1802.02375
    """

    stem_norm: bool = True
    survival: float = 0.5
