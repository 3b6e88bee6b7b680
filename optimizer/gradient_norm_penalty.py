"""The gradient-norm penalty, one line in an Optax chain."""

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, check_choice, check_flag, check_number

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
      one was.
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

    Returns:
        An `optax.GradientTransformationExtraArgs` with the state `GradientNormPenaltyState`.

    Raises:
        OptimizerError: r or alpha is negative, a flag is no bool, the method is unknown. In
          `update`: a penalised step lacks `grad_fn` or `params`, or `penalize` is no Python bool.

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
    """
    for name, value in (("r", r), ("alpha", alpha)):
        if not callable(value) and not isinstance(value, jax.Array):
            check_number(name, value)
    check_flag("normalize", normalize)
    check_flag("adaptive", adaptive)
    check_choice("method", method, METHODS)

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
        if not isinstance(penalize, bool):
            raise OptimizerError(
                "penalize must be a Python bool, known while tracing: choose on the host between "
                "two compiled steps"
            )
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

        gradient = _map(_widen, updates)
        unit = _unit(gradient)
        direction = _adaptive_direction(gradient, params) if adaptive else unit

        def gradient_at(distance: jax.Array) -> optax.Updates:
            return grad_fn(_move(params, direction, distance))

        distance = jnp.asarray(radius, float)
        if method == "hvp":
            # The derivative of g(θ + s·d) in s at 0, times r, is r·H·d.
            _, change = jax.jvp(gradient_at, (jnp.zeros_like(distance),), (distance,))
            perturbed = _map(jnp.add, gradient, change)
        else:
            perturbed = gradient_at(distance)

        def mix(raw: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
            mixed = (1 - weight) * here + weight * _widen(there)
            return jnp.where(distance == 0, raw, mixed.astype(jnp.result_type(raw)))

        return _map(mix, updates, unit if normalize else gradient, perturbed), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_zero(value: Any) -> bool:
    """Whether `value` is known to be 0 while tracing."""
    return isinstance(value, Real) and value == 0


def _map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` that leaves None where the first tree has None, whatever the others have."""

    def leaf(x: Any, *others: Any) -> Any:
        return None if x is None else f(x, *others)

    return jax.tree.map(leaf, tree, *rest, is_leaf=lambda x: x is None)


def _widen(x: Any) -> jax.Array:
    """To float32, unless the dtype is wider."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _unit(tree: Any) -> Any:
    """The tree divided by its norm; zeros stay zeros."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return tree
    # Dividing by the largest element first keeps the squares of tiny and of huge ones in range.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]))
    is_zero = largest < jnp.finfo(largest.dtype).tiny
    inverse = jnp.where(is_zero, 0.0, 1.0 / jnp.where(is_zero, 1.0, largest))
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x * inverse)) for x in leaves))
    # One factor for all: XLA goes through the chain of scalars in every loop that reads it, and a
    # division or a selection per element there made the step of a small network half as long again.
    factor = inverse / jnp.maximum(norm, 1.0)  # norm is 0 or at least 1
    return _map(lambda x: x * factor, tree)


def _adaptive_direction(gradient: Any, params: Any) -> Any:
    """|θ|²·g / ‖|θ|·g‖."""
    size = _map(lambda g, p: jnp.abs(_widen(p)), gradient, params)
    return _map(jnp.multiply, size, _unit(_map(jnp.multiply, size, gradient)))


def _move(params: Any, direction: Any, distance: jax.Array) -> Any:
    """θ + distance·direction, in the dtypes of θ."""

    def leaf(p: Any, d: Any) -> Any:
        return p if d is None else (_widen(p) + distance * d).astype(jnp.result_type(p))

    return jax.tree.map(leaf, params, direction, is_leaf=lambda x: x is None)
