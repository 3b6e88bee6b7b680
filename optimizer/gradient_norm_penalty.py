"""The gradient-norm penalty: a pure function, and a transformation that is one line in a chain."""

from collections.abc import Callable

import jax
import optax

from ._checks import check_flag, check_scalar
from .parameters import Where
from .perturbation import (
    Metric,
    Values,
    combined_gradient,
    euclidean,
    mix,
    relative,
    sharpness_aware,
)


def gradient_norm_penalty(
    r: Values,
    alpha: Values,
    *,
    normalize: bool = False,
    adaptive: bool = False,
    method: str = "finite_difference",
    where: Where = None,
    has_aux: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Turn the gradient of L into that of L + λ‖∇L‖, with one more gradient.

    With g the gradient at θ and α = λ / r the new gradient is

    .. math::
        g' = (1 - \alpha)\, g(\theta) + \alpha\, g(\theta + r\, g / \|g\|).

    α = 0 is the plain gradient and α = 1 is SAM. `penalized_gradient` is the same as a pure
    function, and says what holds for zeros, dtypes and None.

    Place it first in the chain: it needs the raw gradient of all parameters. To perturb a part of
    them use `where`, not `optax.partition` or `optax.masked` around the penalty, where `grad_fn`
    would be handed params with holes. To accumulate gradients put it before `optax.MultiSteps`:
    inside it would mix the mean over several batches with the gradient of the last one alone. Put
    `optax.apply_if_finite` around the rest of the chain, not around the penalty: it looks at what
    it is given, and there it would not see a perturbed gradient that overflows.

    `update` takes three more arguments:

    - `grad_fn(params) -> grads` gives the gradient elsewhere. Let it see the same batch and the
      same random masks as the gradient that `update` is given, and average over devices as that
      one was. With `has_aux=True` it gives `(grads, aux)`.
    - `penalized`, the penalized gradient, for loops that compute it themselves, such as the mean of
      the `penalized_gradient` of each micro-batch. It is used in place of `grad_fn`.
    - `penalize=False`, a Python bool, passes the gradient through and counts the step, for loops
      that penalize some steps only. Such a step costs no second gradient.

    Args:
        r: Radius of the perturbation; >= 0. In the units of θ; with `adaptive` it is relative to
          them, no unit. A number, an array of one or a schedule of the step; or one of these for
          each parameter: a pytree like params or a prefix of it, or a `ByLabel`.
        alpha: λ / r, no unit; >= 0. As r.
        normalize: Mix g / ‖g‖ in place of g(θ), see `penalized_gradient`.
        adaptive: Perturb along |θ|²·g (ASAM), see `penalized_gradient`.
        method: `'finite_difference'` or `'hvp'`, see `penalized_gradient`.
        where: Which parameters are perturbed, see `penalized_gradient`; None: all.
        has_aux: `grad_fn` gives `(grads, aux)`, as `jax.grad(..., has_aux=True)` does. This aux is
          dropped, as it belongs to the perturbed point: take metrics and batch statistics from the
          gradient that you hand to `update`.
        axis_name: Axis (or axes) of `jax.shard_map` over which parameters are split, so that ‖·‖
          is that of the whole tree. A leaf that is the same on all devices is counted once, if
          shard_map keeps track of that (check_vma). None: each device holds all of them.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the state `GradientNormPenaltyState`.

    Raises:
        OptimizerError: r or alpha is negative or not one number, a flag is no bool, the method is
          unknown. In `init`: a parameter is complex. In `update`: a penalized step has neither
          `penalized` nor `grad_fn` and `params`, `penalize` is no Python bool, `penalized` does not
          have the structure and shapes of the gradient, what `grad_fn` gives contradicts
          `has_aux`, or what `penalized_gradient` raises.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from optimizer import gradient_norm_penalty
        >>> grad_fn = jax.grad(lambda p: 0.5 * jnp.vdot(p, p))
        >>> opt = optax.chain(gradient_norm_penalty(r=0.1, alpha=0.5), optax.sgd(1.0))
        >>> params = jnp.array([3.0, 4.0])
        >>> state = opt.init(params)
        >>> updates, state = opt.update(grad_fn(params), state, params, grad_fn=grad_fn)
        >>> print(updates)  # minus g·(1 + α·r/‖g‖), as H is the identity
        [-3.03 -4.04]

    References:
        Zhao et al., `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
        Learning <https://arxiv.org/abs/2202.03599>`_, 2022.
        Zhao et al., `When Will Gradient Regularization Be Harmful?
        <https://arxiv.org/abs/2406.09723>`_, 2024.
        Foret et al., `Sharpness-Aware Minimization <https://arxiv.org/abs/2010.01412>`_, 2020.
        Kwon et al., `ASAM <https://arxiv.org/abs/2102.11600>`_, 2021.
        Mueller et al., `Normalization Layers Are All That Sharpness-Aware Minimization Needs
        <https://arxiv.org/abs/2306.04226>`_, 2023.
    """
    return sharpness_aware(
        r,
        mix(alpha, normalize, method),
        metric=_metric(adaptive),
        where=where,
        has_aux=has_aux,
        axis_name=axis_name,
    )


def penalized_gradient(
    grad_fn: Callable[[optax.Params], optax.Updates],
    params: optax.Params,
    grads: optax.Updates,
    r: float | jax.Array,
    alpha: float | jax.Array,
    *,
    normalize: bool = False,
    adaptive: bool = False,
    method: str = "finite_difference",
    where: Where = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.Updates:
    r"""Return the gradient of L + λ‖∇L‖, given the gradient of L and one more call of `grad_fn`.

    With g the gradient at θ, d = g / ‖g‖ and α = λ / r it is

    .. math::
        g' = (1 - \alpha)\, g(\theta) + \alpha\, g(\theta + r\, d),

    where ‖·‖ runs over the whole tree. As g(θ + r·d) ≈ g + r·H·d, this is g + λ·H·d, the gradient
    of the penalized loss.

    A pure function, for loops that penalize the gradient of each micro-batch or group of examples
    on its own. Hand the mean over them to `update(..., penalized=...)` of a chain that has a
    `gradient_norm_penalty`, or straight to a chain that has none.

    A gradient of zeros is not perturbed. Nor is one whose largest element is below the smallest
    normal number (1.2e-38 in float32) or whose norm is above the inverse of that (8.5e37): with
    `normalize` it counts as zero. With r = 0, or α = 0 without `normalize`, the gradient passes
    unchanged. Arithmetic and result are in float32 (float64 for float64 trees), and so is the point
    that `grad_fn` is given, also for bfloat16 and float16, in which perturbation and penalty would
    be lost to rounding: a `grad_fn` that needs the parameters' own dtype casts them itself, and
    momentum behind takes `accumulator_dtype=jnp.float32`, Adam `mu_dtype=jnp.float32`. Parameters
    are real; whole numbers, keys and flags among them pass untouched. Leaves that are None stay
    None; a parameter whose gradient is None is not perturbed.

    Args:
        grad_fn: The function params -> grads, of the same batch and random masks as `grads`.
        params: θ.
        grads: g(θ), a pytree like `params`.
        r: See `gradient_norm_penalty`. A number or a scalar array, which may be traced.
        alpha: See `gradient_norm_penalty`. A number or a scalar array, which may be traced.
        normalize: Mix d = g / ‖g‖ in place of g(θ): (1 - α)·d + α·g(θ + r·d).
        adaptive: Perturb along |θ|²·g, by r·|θ|²·g / ‖|θ|·g‖ (ASAM), which makes the perturbation
          follow a rescaling of the parameters. This is the plain form; the code of Kwon et al. has
          |θ| + 0.01 in place of |θ| for weights, and 1 for biases.
        method: `'finite_difference'` is the formula above. `'hvp'` takes g + r·H·d, by forward over
          reverse, in place of g(θ + r·d); then g' is exactly g + λ·H·d. `grad_fn` must allow
          forward differentiation. A step costs 2.8 gradients in place of 2 (XLA's count of
          operations on an MLP of three layers, 64-128-128-10, jitted with the first gradient).
        where: Which parameters are perturbed: a pytree of bool like params, a function that makes
          one of params, or None: all. ‖·‖ and d then run over these leaves only, the others stay
          where they are; the gradients of all leaves are mixed, with `normalize` too, whose g / ‖g‖
          is the whole tree's. `where=is_normalization` is SAM-ON.
        axis_name: See `gradient_norm_penalty`.

    Returns:
        The penalized gradient, a pytree like `grads`.

    Raises:
        OptimizerError: r or alpha is negative or not one number, a flag is no bool, the method is
          unknown, a parameter is complex, `where` is no mask of params or selects none, or what
          `grad_fn` gives does not have the structure and shapes of `grads`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from optimizer import penalized_gradient
        >>> grad_fn = jax.grad(lambda p: 0.5 * jnp.vdot(p, p))
        >>> params = jnp.array([3.0, 4.0])
        >>> print(penalized_gradient(grad_fn, params, grad_fn(params), r=0.1, alpha=0.5))
        [3.03 4.04]
    """
    check_scalar("r", r)
    check_scalar("alpha", alpha)
    return combined_gradient(
        grad_fn,
        params,
        grads,
        r,
        mix(alpha, normalize, method),
        metric=_metric(adaptive),
        where=where,
        axis_name=axis_name,
    )


def _metric(adaptive: bool) -> Metric:
    check_flag("adaptive", adaptive)
    return relative() if adaptive else euclidean()
