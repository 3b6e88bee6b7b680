"""The gradient-norm penalty, one line in an Optax chain."""

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, check_choice, check_flag, check_number
from ._tree import map_present, unit, widen
from .parameters import Where, resolve_mask

METHODS = ("finite_difference", "hvp")

ScalarOrSchedule: TypeAlias = float | jax.Array | Callable[[Any], Any]


class GradientNormPenaltyState(NamedTuple):
    """State of `gradient_norm_penalty`: the step number, at which r and alpha are read."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32


def gradient_norm_penalty(
    r: ScalarOrSchedule,
    alpha: ScalarOrSchedule,
    *,
    normalize: bool = False,
    adaptive: bool = False,
    method: str = "finite_difference",
    where: Where = None,
    has_aux: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the gradient of L into that of L + λ‖∇L‖, with one more gradient.

    With g the gradient at θ, d = g / ‖g‖ and α = λ / r the new gradient is

    .. math::
        g' = (1 - \alpha)\, g(\theta) + \alpha\, g(\theta + r\, d),

    where ‖·‖ runs over the whole tree. As g(θ + r·d) ≈ g + r·H·d, this is g + λ·H·d, the gradient
    of the penalised loss. α = 0 is the plain gradient and α = 1 is SAM.

    Place it first in the chain: it needs the raw gradient. `update` takes two more arguments:

    - `grad_fn(params) -> grads` gives the gradient elsewhere. Let it see the same batch and the
      same random masks as the gradient that `update` is given, and average over devices as that
      one was. With `has_aux=True` it gives `(grads, aux)`.
    - `penalize=False`, a Python bool, passes the gradient through and counts the step, for loops
      that penalise some steps only. Such a step costs no second gradient.

    A gradient of zeros is not perturbed; one whose largest element is below the smallest normal
    number counts as zero. At a step with r = 0 the gradient passes unchanged. The arithmetic is
    in float32 (float64 for float64 trees), the result has the dtypes of the gradient that came in.
    Leaves that are None stay None; a parameter whose gradient is None is not perturbed.

    Args:
        r: Radius of the perturbation, in the units of θ; >= 0. A float or a schedule of the step.
        alpha: λ / r, no unit; >= 0. A float or a schedule of the step.
        normalize: Mix d = g / ‖g‖ in place of g(θ): (1 - α)·d + α·g(θ + r·d).
        adaptive: Perturb along |θ|²·g, by r·|θ|²·g / ‖|θ|·g‖ (ASAM), which makes the perturbation
          follow a rescaling of the parameters.
        method: `'finite_difference'` is the formula above. `'hvp'` takes g + r·H·d, by forward over
          reverse, in place of g(θ + r·d); then g' is exactly g + λ·H·d. It costs about one more
          gradient than the difference, and `grad_fn` must allow forward differentiation.
        where: Which parameters are perturbed: a pytree of bool like params, a function that makes
          one of params, or None: all. ‖·‖ and d then run over these leaves only, the others stay
          where they are; the gradients of all leaves are mixed, with `normalize` too, whose g / ‖g‖
          is the whole tree's. `where=is_normalization` is SAM-ON. Inside `optax.partition` or
          `optax.masked`, which hide a part of params, give the function.
        has_aux: `grad_fn` gives `(grads, aux)`, as `jax.grad(..., has_aux=True)` does. This aux is
          dropped, as it belongs to the perturbed point: take metrics and batch statistics from the
          gradient that you hand to `update`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the state `GradientNormPenaltyState`.

    Raises:
        OptimizerError: r or alpha is negative, a flag is no bool, the method is unknown. In
          `update`: a penalised step lacks `grad_fn` or `params`, `penalize` is no Python bool,
          `where` is no mask of params or selects none, or what `grad_fn` gives contradicts
          `has_aux`.

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
        Foret et al., `Sharpness-Aware Minimization <https://arxiv.org/abs/2010.01412>`_, 2021.
        Kwon et al., `ASAM <https://arxiv.org/abs/2102.11600>`_, 2021.
        Mueller et al., `Normalization Layers Are All That Sharpness-Aware Minimization Needs
        <https://arxiv.org/abs/2306.04226>`_, 2023.
    """
    for name, value in (("r", r), ("alpha", alpha)):
        if not callable(value) and not isinstance(value, jax.Array):
            check_number(name, value)
    check_flag("normalize", normalize)
    check_flag("adaptive", adaptive)
    check_choice("method", method, METHODS)
    check_flag("has_aux", has_aux)

    def init_fn(params: optax.Params) -> GradientNormPenaltyState:
        del params
        return GradientNormPenaltyState(count=jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: GradientNormPenaltyState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params], optax.Updates] | None = None,
        penalize: bool = True,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientNormPenaltyState]:
        del extra_args
        check_penalize(penalize)
        new_state = GradientNormPenaltyState(count=optax.safe_increment(state.count))
        if not penalize:
            return updates, new_state
        if params is None:
            raise OptimizerError("a penalised step needs params: update(grads, state, params, ...)")
        if grad_fn is None:
            raise OptimizerError(
                "a penalised step needs grad_fn(params) -> grads: update(..., grad_fn=...); "
                "for a plain step pass penalize=False"
            )

        radius = r(state.count) if callable(r) else r
        weight = alpha(state.count) if callable(alpha) else alpha
        if _is_zero(radius) or (_is_zero(weight) and not normalize):
            return updates, new_state

        gradient = map_present(widen, updates)
        perturbable = gradient if where is None else _select(gradient, where, params)
        direction = unit_gradient = unit(perturbable)
        if normalize and where is not None:
            unit_gradient = unit(gradient)
        if adaptive:
            direction = _adaptive_direction(perturbable, params)

        def gradient_at(distance: jax.Array) -> optax.Updates:
            result = grad_fn(_move(params, direction, distance))
            return _drop_aux(result) if has_aux else _without_aux(result, updates)

        distance = jnp.asarray(radius, float)
        if method == "hvp":
            # The derivative of g(θ + s·d) in s at 0, times r, is r·H·d.
            _, change = jax.jvp(gradient_at, (jnp.zeros_like(distance),), (distance,))
            perturbed = map_present(jnp.add, gradient, change)
        else:
            perturbed = gradient_at(distance)

        def mix(raw: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
            mixed = (1 - weight) * here + weight * widen(there)
            return jnp.where(distance == 0, raw, mixed.astype(jnp.result_type(raw)))

        clean = unit_gradient if normalize else gradient
        return map_present(mix, updates, clean, perturbed), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_zero(value: Any) -> bool:
    """Whether `value` is known to be 0 while tracing."""
    return isinstance(value, Real) and value == 0


def check_penalize(penalize: object) -> None:
    """Raise unless `penalize` is a Python bool."""
    if not isinstance(penalize, bool):
        raise OptimizerError(
            "penalize must be a Python bool, known while tracing: choose on the host between "
            "two compiled steps"
        )


def _drop_aux(result: Any) -> Any:
    """The gradient of `(grads, aux)`."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise OptimizerError(
            f"with has_aux=True grad_fn must return (grads, aux), not {type(result).__name__}"
        )
    return result[0]


def _without_aux(result: Any, updates: Any) -> Any:
    """The gradient, unless it is `(grads, aux)`."""
    if isinstance(result, tuple) and not isinstance(updates, tuple):
        raise OptimizerError(
            "grad_fn must return the gradient alone, not a tuple; "
            "for (grads, aux) make the penalty with has_aux=True"
        )
    return result


def _select(gradient: Any, where: Where, params: Any) -> Any:
    """The gradient with None in place of the leaves that are not perturbed."""
    mask = resolve_mask(where, params)
    if jax.tree.leaves(mask) and not any(jax.tree.leaves(mask)):
        raise OptimizerError(
            "where must be True for at least one parameter, or no step is penalised"
        )
    return map_present(lambda g, is_perturbed: g if is_perturbed else None, gradient, mask)


def _adaptive_direction(gradient: Any, params: Any) -> Any:
    """|θ|²·g / ‖|θ|·g‖."""
    size = map_present(lambda g, p: jnp.abs(widen(p)), gradient, params)
    return map_present(jnp.multiply, size, unit(map_present(jnp.multiply, size, gradient)))


def _move(params: Any, direction: Any, distance: jax.Array) -> Any:
    """θ + distance·direction, in the dtypes of θ."""

    def leaf(p: Any, d: Any) -> Any:
        return p if d is None else (widen(p) + distance * d).astype(jnp.result_type(p))

    return jax.tree.map(leaf, params, direction, is_leaf=lambda x: x is None)
