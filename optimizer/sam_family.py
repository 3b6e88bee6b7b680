r"""Published relatives of the gradient-norm penalty, each a line that names its parts.

Each is made by `sharpness_aware` and takes its further arguments: `where`, `has_aux`, `axis_name`
and, but for `asam`, `metric`. What their `update` takes, and what they give for zeros, dtypes and
None, is said in `gradient_norm_penalty`. Numbers are as in the papers: rho is the radius, in the
units of the parameters. Below g = ∇L(θ), g⁺ = ∇L(θ + ε), and ε = ρ·g/‖g‖ unless said otherwise;
norms and inner products are those of the whole tree.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, Scalar, ScalarOrSchedule, check_number, check_scalar
from ._tree import fill, map_present, number_at, only_differentiable, widen
from .parameters import Where, is_normalization
from .perturbation import (
    Penalty,
    Probe,
    Values,
    check_values,
    mix,
    relative,
    sharpness_aware,
    spread,
    unnormalized,
)


def sam(rho: Values = 0.05, **options: Any) -> Penalty:
    """Make SAM: g' = g⁺, the penalty with α = 1.

    References:
        Foret et al., `Sharpness-Aware Minimization <https://arxiv.org/abs/2010.01412>`_, 2020.
    """
    return sharpness_aware(rho, mix(1.0), **options)


def asam(rho: Values = 0.5, eta: Scalar = 0.0, weights: Where = None, **options: Any) -> Penalty:
    r"""Make ASAM: g' = g⁺ with ε = ρ·T²g/‖T·g‖, T = |θ| + η.

    Args:
        rho: ρ, relative to the parameters, no unit.
        eta: η, in the units of θ. The authors' code has 0.01.
        weights: The leaves with this T; T = 1 for the others. The authors' code leaves out biases:
          `lambda params: jax.tree.map(lambda p: p.ndim > 1, params)`. None: all.
        **options: See `sharpness_aware`.

    References:
        Kwon et al., `ASAM <https://arxiv.org/abs/2102.11600>`_, 2021.
    """
    check_scalar("eta", eta)
    return sharpness_aware(rho, mix(1.0), metric=relative(eta, weights), **options)


def sam_on(rho: Values = 0.05, **options: Any) -> Penalty:
    """Make SAM-ON: SAM that perturbs the scales and offsets of normalization layers only.

    References:
        Mueller et al., `Normalization Layers Are All That Sharpness-Aware Minimization Needs
        <https://arxiv.org/abs/2306.04226>`_, 2023.
    """
    return sharpness_aware(rho, mix(1.0), **{"where": is_normalization} | options)


def wsam(rho: Values = 0.05, gamma: Scalar = 0.9, **options: Any) -> Penalty:
    r"""Make WSAM: g' = g + γ/(1 - γ)·(g⁺ - g), the penalty with α = γ/(1 - γ).

    For its decoupled form see `decouple`.

    Args:
        rho: ρ.
        gamma: γ, the weight of the sharpness, in [0, 1): 0.5 is SAM.
        **options: See `sharpness_aware`.

    References:
        Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
        Term <https://arxiv.org/abs/2305.15817>`_, 2023.
    """
    check_scalar("gamma", gamma, high=1.0, below=True)
    return sharpness_aware(rho, mix(gamma / (1.0 - gamma)), **options)


def gsam(rho: Values = 0.05, alpha: Values = 0.4, **options: Any) -> Penalty:
    r"""Make GSAM: g' = g⁺ - α·(the part of g that is orthogonal to g⁺).

    Args:
        rho: ρ. In the paper it follows the learning rate: `proportional_radius`.
        alpha: Weight of the part along which the surrogate gap falls; >= 0.
        **options: See `sharpness_aware`.

    References:
        Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
        <https://arxiv.org/abs/2203.08065>`_, 2022.
    """
    check_values("alpha", alpha)

    def combine(probe: Probe) -> Any:
        there = probe.perturbed()
        _, inverse = probe.norm_and_inverse(there)
        along = probe.inner(probe.gradient, there) * inverse * inverse
        weight = spread(probe.read("alpha", alpha), probe)

        def leaf(g: jax.Array, there: jax.Array, weight: Any) -> jax.Array:
            return there - jnp.asarray(weight, g.dtype) * (g - along.astype(g.dtype) * there)

        return map_present(leaf, probe.gradient, there, weight)

    return sharpness_aware(rho, combine, **options)


def proportional_radius(
    learning_rate: optax.Schedule,
    rho_min: float,
    rho_max: float,
    rate_min: float,
    rate_max: float,
) -> optax.Schedule:
    r"""Return GSAM's radius, which follows the learning rate η between two bounds.

    .. math:: \rho = \rho_{min} + (\rho_{max} - \rho_{min})
        \frac{\eta - \eta_{min}}{\eta_{max} - \eta_{min}}

    Args:
        learning_rate: Schedule of η.
        rho_min: ρ where η is rate_min; >= 0.
        rho_max: ρ where η is rate_max; >= 0.
        rate_min: The smallest η.
        rate_max: The largest η, above rate_min.

    Example:
        >>> import optax
        >>> from optimizer import gsam, proportional_radius
        >>> rate = optax.linear_schedule(0.1, 0.0, 10)
        >>> rho = proportional_radius(rate, 0.02, 0.2, 0.0, 0.1)
        >>> round(float(rho(5)), 3)
        0.11
        >>> opt = optax.chain(gsam(rho, alpha=0.4), optax.sgd(rate))
    """
    for name, value in (("rho_min", rho_min), ("rho_max", rho_max), ("rate_min", rate_min)):
        check_number(name, value)
    check_number("rate_max", rate_max)
    if rate_max <= rate_min:
        raise OptimizerError(f"rate_max={rate_max!r} must be above rate_min={rate_min!r}")
    slope = (rho_max - rho_min) / (rate_max - rate_min)
    return lambda step: rho_min + slope * (learning_rate(step) - rate_min)


def stable_sam(rho: Values = 0.05, **options: Any) -> Penalty:
    """Make StableSAM: g' = g⁺·‖g‖/‖g⁺‖, the direction of SAM with the length of the gradient.

    References:
        Tan et al., `Stabilizing Sharpness-Aware Minimization Through a Simple Renormalization
        Strategy <https://arxiv.org/abs/2401.07250>`_, 2024.
    """

    def combine(probe: Probe) -> Any:
        there = probe.perturbed()
        length, _ = probe.norm_and_inverse(probe.gradient)
        _, inverse = probe.norm_and_inverse(there)
        return map_present(lambda g: g * (length * inverse).astype(g.dtype), there)

    return sharpness_aware(rho, combine, **options)


def friendly_sam(
    rho: Values = 0.05, sigma: Scalar = 1.0, lmbda: Scalar = 0.9, **options: Any
) -> Penalty:
    r"""Make F-SAM: SAM along d = g - σ·m, m the running mean of the gradients before this one.

    The mean m ← λ·m + (1 - λ)·g begins with the first gradient, for which d = g.

    Args:
        rho: ρ; ε = ρ·d/‖d‖.
        sigma: σ >= 0, the share of the mean that is taken away.
        lmbda: λ in [0, 1).
        **options: See `sharpness_aware`.

    References:
        Li et al., `Friendly Sharpness-Aware Minimization <https://arxiv.org/abs/2403.12350>`_,
        2024.
    """
    check_scalar("sigma", sigma)
    check_scalar("lmbda", lmbda, high=1.0, below=True)

    def apart(g: jax.Array, before: jax.Array, after: jax.Array, first: jax.Array) -> jax.Array:
        return jnp.where(first, g, g - jnp.asarray(sigma, g.dtype) * before)

    return sharpness_aware(rho, mix(1.0), **_then(_averaging(lmbda, apart), options))


def vasso(rho: Values = 0.05, theta: Scalar = 0.4, **options: Any) -> Penalty:
    r"""Make VaSSO: SAM along the running mean of the gradients, m ← (1 - θ)·m + θ·g.

    Args:
        rho: ρ; ε = ρ·m/‖m‖.
        theta: θ in (0, 1], the weight of the new gradient.
        **options: See `sharpness_aware`.

    References:
        Li and Giannakis, `Enhancing Sharpness-Aware Optimization Through Variance Suppression
        <https://arxiv.org/abs/2309.15639>`_, 2023.
    """
    check_scalar("theta", theta, high=1.0, positive=True)
    return sharpness_aware(rho, mix(1.0), **_then(running_average(1.0 - theta), options))


def unnormalized_sam(rho: Values = 0.05, **options: Any) -> Penalty:
    """Make USAM: g' = g⁺ with ε = ρ·g, not brought to length ρ.

    References:
        Andriushchenko and Flammarion, `Towards Understanding Sharpness-Aware Minimization
        <https://arxiv.org/abs/2206.06232>`_, 2022.
    """
    return sharpness_aware(rho, mix(1.0), **{"metric": unnormalized()} | options)


def cr_sam(rho: Values = 0.05, gamma: Scalar = 0.1, beta: Scalar = 0.01, **options: Any) -> Penalty:
    r"""Make CR-SAM: SAM with a penalty on the curvature along ε, by three gradients.

    With g⁻ = ∇L(θ - ε) it is g' = g⁺ + γ·(g⁺ + g⁻ - 2g) + β·(g⁺ - g⁻).

    Args:
        rho: ρ.
        gamma: γ >= 0, the weight of the second difference.
        beta: β >= 0, the weight of the first difference.
        **options: See `sharpness_aware`.

    References:
        Wu et al., `CR-SAM: Curvature Regularized Sharpness-Aware Minimization
        <https://arxiv.org/abs/2312.13555>`_, 2023.
    """
    check_scalar("gamma", gamma)
    check_scalar("beta", beta)

    def combine(probe: Probe) -> Any:
        behind = probe.ascend(probe.params, map_present(jnp.negative, probe.direction), probe.r)
        ahead, behind = probe.perturbed(), probe.gradient_at(behind)

        def leaf(g: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
            second, first = jnp.asarray(gamma, g.dtype), jnp.asarray(beta, g.dtype)
            return up + second * (up + down - 2.0 * g) + first * (up - down)

        return map_present(leaf, probe.gradient, ahead, behind)

    return sharpness_aware(rho, combine, **options)


def gam(
    rho: Values = 0.2,
    norm_rho: Scalar = 0.02,
    betas: tuple[float, float, float] = (0.6, 0.5, 0.4),
    gamma: Scalar = 0.03,
    **options: Any,
) -> Penalty:
    r"""Make GAM, which penalizes the largest norm of the gradient in a ball, by four gradients.

    With u(v) = v/‖v‖, g₁ = ∇L(θ + ρ'·u(g)), the point θ⁺ = θ + ρ·u(g₁ - g), g₂ = ∇L(θ⁺) and
    g₃ = ∇L(θ⁺ + ρ'·u(g₂)), let m = g + β₂·g₂ and d = β₁·g₁ + β₃·g₃; then
    g' = d - γ·(the part of m that is orthogonal to d).

    Args:
        rho: ρ, the radius of the ball.
        norm_rho: ρ', the step of the difference that stands for the norm's gradient; > 0.
        betas: β₁, β₂, β₃, each >= 0.
        gamma: γ >= 0.
        **options: See `sharpness_aware`.

    References:
        Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
        Generalization <https://arxiv.org/abs/2303.03108>`_, 2023.
    """
    check_scalar("norm_rho", norm_rho, positive=True)
    check_scalar("gamma", gamma)
    if len(betas) != 3:
        raise OptimizerError(f"betas={betas!r} must be three numbers, such as (0.6, 0.5, 0.4)")
    for beta in betas:
        check_scalar("each of betas", beta)
    beta1, beta2, beta3 = betas

    def combine(probe: Probe) -> Any:
        g0 = probe.gradient
        g1 = probe.gradient_at(probe.ascend(probe.params, g0, norm_rho))
        steeper = probe.ascend(probe.params, map_present(jnp.subtract, g1, g0), probe.r)
        g2 = probe.gradient_at(steeper)
        g3 = probe.gradient_at(probe.ascend(steeper, g2, norm_rho))
        mean = map_present(lambda a, b: a + beta2 * b, g0, g2)
        step = map_present(lambda a, b: beta1 * a + beta3 * b, g1, g3)
        _, inverse = probe.norm_and_inverse(step)
        along = probe.inner(mean, step) * inverse * inverse

        def leaf(d: jax.Array, m: jax.Array) -> jax.Array:
            return d - jnp.asarray(gamma, d.dtype) * (m - along.astype(d.dtype) * d)

        return map_present(leaf, step, mean)

    return sharpness_aware(rho, combine, **options)


def decouple(
    penalty: Penalty,
    base: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
) -> Penalty:
    r"""Apply a penalty beside an optimizer, not through it: WSAM's decoupled form.

    The update is base(g) - η·(g' - g), with g' what the penalty gives: momentum and second moments
    see the plain gradient alone.

    Args:
        penalty: `wsam(...)`, or any other of the family.
        base: The optimizer, with its learning rate inside.
        learning_rate: η of the second term; a number or a schedule of the step.

    Example:
        >>> import optax
        >>> from optimizer import decouple, wsam
        >>> opt = decouple(wsam(0.05, gamma=0.9), optax.adam(1e-3), learning_rate=1e-3)

    References:
        Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
        Term <https://arxiv.org/abs/2305.15817>`_, 2023.
    """
    check_scalar("learning_rate", learning_rate, schedule=True)
    base = optax.with_extra_args_support(base)

    def init_fn(params: optax.Params) -> DecoupledState:
        return DecoupledState(jnp.zeros([], jnp.int32), penalty.init(params), base.init(params))

    def update_fn(
        updates: optax.Updates, state: DecoupledState, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, DecoupledState]:
        penalized, inner = penalty.update(updates, state.penalty, params, **extra_args)
        steps, outer = base.update(updates, state.base, params, **extra_args)
        rate = number_at("learning_rate", learning_rate, state.count)

        def leaf(step: jax.Array, g: Any, new: Any) -> jax.Array:
            return widen(step) - jnp.asarray(rate, widen(step).dtype) * (widen(new) - widen(g))

        real = only_differentiable(steps)
        moved = fill(map_present(leaf, real, updates, penalized), steps)
        return moved, DecoupledState(optax.safe_increment(state.count), inner, outer)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class DecoupledState(NamedTuple):
    """State of `decouple`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    penalty: optax.OptState
    base: optax.OptState


def functional_gradients(
    outputs: Callable[[optax.Params], Any], loss: Callable[[Any], jax.Array]
) -> Callable[[optax.Params], tuple[optax.Updates, Callable[[optax.Params], optax.Updates]]]:
    r"""Return the gradient and the `grad_fn` of functional SAM, g⁺ = J(θ + ε)ᵀ·∂L/∂z(θ).

    J is the Jacobian of the outputs z: the perturbed pass moves the function alone, and keeps the
    loss's gradient at the outputs.

    Args:
        outputs: params -> z, the model's outputs for a batch.
        loss: z -> the loss.

    Returns:
        A function params -> (gradient, grad_fn), for `update(gradient, ..., grad_fn=grad_fn)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from optimizer import functional_gradients, sam
        >>> x, y = jnp.array([[1.0, 2.0]]), jnp.array([1.0])
        >>> at = functional_gradients(lambda w: x @ w, lambda z: jnp.sum((z - y) ** 2) / 2)
        >>> w = jnp.array([1.0, 0.5])
        >>> gradient, grad_fn = at(w)
        >>> opt = sam(0.1)  # of a linear model: J does not change, so neither does the gradient
        >>> print(opt.update(gradient, opt.init(w), w, grad_fn=grad_fn)[0])
        [1. 2.]

    References:
        Singh et al., `Avoiding Spurious Sharpness Minimization Broadens Applicability of SAM
        <https://arxiv.org/abs/2502.02407>`_, 2025.
    """

    def at(params: optax.Params) -> tuple[optax.Updates, Callable[[Any], optax.Updates]]:
        z, pull_back = jax.vjp(outputs, params)
        slope = jax.grad(loss)(z)

        def grad_fn(moved: optax.Params) -> optax.Updates:
            return jax.vjp(outputs, moved)[1](slope)[0]

        return pull_back(slope)[0], grad_fn

    return at


# Directions with a memory.


def _then(own: optax.GradientTransformation, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with a method's own direction behind the caller's, if there is one."""
    given = options.get("direction")
    return options | {"direction": own if given is None else optax.chain(given, own)}


class AverageState(NamedTuple):
    """State of a direction that averages gradients."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    average: optax.Updates  # like params, float32 or wider


def running_average(decay: Scalar) -> optax.GradientTransformation:
    """Make the direction m ← decay·m + (1 - decay)·g, which begins with the first gradient.

    Args:
        decay: In [0, 1).
    """
    check_scalar("decay", decay, high=1.0, below=True)
    return _averaging(decay, lambda g, before, after, first: after)


def _averaging(decay: Scalar, direction: Callable[..., jax.Array]) -> optax.GradientTransformation:
    """Make the direction `direction(g, m before, m after, whether it is the first)`."""

    def init_fn(params: optax.Params) -> AverageState:
        return AverageState(jnp.zeros([], jnp.int32), map_present(jnp.zeros_like, params))

    def update_fn(
        updates: optax.Updates, state: AverageState, params: Any = None
    ) -> tuple[optax.Updates, AverageState]:
        del params
        first = state.count == 0

        def average(g: jax.Array, m: jax.Array) -> jax.Array:
            share = jnp.asarray(decay, g.dtype)
            return jnp.where(first, g, share * m + (1.0 - share) * g)

        after = map_present(average, updates, state.average)
        d = map_present(lambda *x: direction(*x, first), updates, state.average, after)
        count = optax.safe_increment(state.count)
        return d, AverageState(count, fill(after, state.average))

    return optax.GradientTransformation(init_fn, update_fn)
