"""The gradient-norm penalty: a pure function, and a transformation that is one line in a chain."""

import functools
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, ScalarOrSchedule, check_choice, check_flag, check_scalar
from ._tree import map_present, norm_and_inverse, unit, wide_dtype, widen
from .parameters import Where, leaf_name, resolve_mask

METHODS = ("finite_difference", "hvp")


class GradientNormPenaltyState(NamedTuple):
    """State of `gradient_norm_penalty`: the step, at which r and alpha are read."""

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
    r"""Turn the gradient of L into that of L + λ‖∇L‖, with one more gradient.

    With g the gradient at θ and α = λ / r the new gradient is

    .. math::
        g' = (1 - \alpha)\, g(\theta) + \alpha\, g(\theta + r\, g / \|g\|).

    α = 0 is the plain gradient and α = 1 is SAM. `penalized_gradient` is the same as a pure
    function, and says what holds for zeros, dtypes and None.

    Place it first in the chain: it needs the raw gradient of all parameters. To perturb a part of
    them use `where`, not `optax.partition` or `optax.masked` around the penalty, where `grad_fn`
    would be handed params with holes. To accumulate gradients put it before `optax.MultiSteps`:
    inside it would mix the mean over several batches with the gradient of the last one alone.

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
          them, no unit. A number, an array of one or a schedule of the step.
        alpha: λ / r, no unit; >= 0. A number, an array of one or a schedule of the step.
        normalize: Mix g / ‖g‖ in place of g(θ), see `penalized_gradient`.
        adaptive: Perturb along |θ|²·g (ASAM), see `penalized_gradient`.
        method: `'finite_difference'` or `'hvp'`, see `penalized_gradient`.
        where: Which parameters are perturbed, see `penalized_gradient`; None: all.
        has_aux: `grad_fn` gives `(grads, aux)`, as `jax.grad(..., has_aux=True)` does. This aux is
          dropped, as it belongs to the perturbed point: take metrics and batch statistics from the
          gradient that you hand to `update`.

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
    for name, value in (("r", r), ("alpha", alpha)):
        check_scalar(name, value, schedule=True)
    _check_options(normalize, adaptive, method)
    check_flag("has_aux", has_aux)

    def init_fn(params: optax.Params) -> GradientNormPenaltyState:
        check_real("gradient_norm_penalty", params)
        return GradientNormPenaltyState(count=jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: GradientNormPenaltyState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params], Any] | None = None,
        penalized: optax.Updates | None = None,
        penalize: bool = True,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientNormPenaltyState]:
        del extra_args
        check_penalize(penalize)
        new_state = GradientNormPenaltyState(count=optax.safe_increment(state.count))
        if not penalize:
            return updates, new_state
        if penalized is not None:
            return check_penalized(penalized, updates), new_state
        check_penalized_step(params, grad_fn, "grad_fn(params)")
        assert grad_fn is not None
        result = penalized_gradient(
            (lambda p: _drop_aux(grad_fn(p))) if has_aux else grad_fn,
            params,
            updates,
            r(state.count) if callable(r) else r,
            alpha(state.count) if callable(alpha) else alpha,
            normalize=normalize,
            adaptive=adaptive,
            method=method,
            where=where,
        )
        return result, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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
    unchanged. The arithmetic is in float32 (float64 for float64 trees), the result has the dtypes
    of `grads`. Parameters are real. Leaves that are None stay None; a parameter whose gradient is
    None is not perturbed.

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
    _check_options(normalize, adaptive, method)
    check_real("penalized_gradient", params)
    check_real("penalized_gradient", grads)
    radius, weight = _widened(r), _widened(alpha)
    if _is_zero(radius) or (_is_zero(weight) and not normalize):
        return grads

    gradient = map_present(widen, grads)
    perturbable = gradient if where is None else _select(gradient, where, params)
    direction = _adaptive_direction(perturbable, params) if adaptive else unit(perturbable)

    def gradient_at(params: optax.Params) -> optax.Updates:
        result = _without_aux(grad_fn(params), grads)
        fix = (
            "it must return the gradient with the structure and shapes of the one that is given; "
            "of value_and_grad's (value, grads) return grads"
        )
        _check_gradient(result, grads, "what grad_fn returns", fix)
        return result

    # The result is a·g + b·there, a and b scalars.
    a, b = 1 - weight, weight
    if normalize:
        _, inverse = norm_and_inverse(gradient)
        a = jnp.asarray(a, inverse.dtype) * inverse
    if method == "hvp":
        # g + r·H·d takes the place of g(θ + r·d).
        a = a + jnp.asarray(b, a.dtype) if normalize else 1.0
        there = _derivative(gradient_at, params, direction, radius)
    else:
        there = gradient_at(_move(params, direction, radius))

    # Where b is 0 no NaN of `there` may come through. False needs no selection per element.
    is_plain = _any_zero(radius) if normalize else _any_zero(radius, weight)
    is_unmixed = _any_zero(weight) if normalize else False

    def mix(raw: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
        kept = jnp.asarray(a, here.dtype) * here
        mixed = kept + jnp.asarray(b, here.dtype) * jnp.asarray(there, here.dtype)
        if is_unmixed is not False:
            mixed = jnp.where(is_unmixed, kept, mixed)
        mixed = mixed.astype(jnp.result_type(raw))
        return mixed if is_plain is False else jnp.where(is_plain, raw, mixed)

    return map_present(mix, grads, gradient, there)


def check_penalize(penalize: object) -> None:
    """Raise unless `penalize` is a Python bool."""
    if not isinstance(penalize, bool):
        raise OptimizerError(
            "penalize must be a Python bool, known while tracing: choose on the host between "
            "two compiled steps"
        )


def check_penalized_step(params: Any, grad_fn: Any, signature: str) -> None:
    """Raise unless a penalized step has its arguments."""
    if params is None:
        raise OptimizerError("a penalized step needs params: update(grads, state, params, ...)")
    if grad_fn is None:
        raise OptimizerError(
            f"a penalized step needs {signature} -> grads: update(..., grad_fn=...); "
            "for a plain step pass penalize=False"
        )


def check_penalized(penalized: Any, grads: Any) -> Any:
    """Return the caller's penalized gradient in the dtypes of `grads`; raise unless it fits."""
    _check_gradient(
        penalized, grads, "penalized", "give it the structure and shapes of update's first argument"
    )
    return map_present(lambda g, p: jnp.asarray(p, jnp.result_type(g)), grads, penalized)


def check_real(name: str, params: Any) -> None:
    """Raise at the first complex leaf, or gradient of whole numbers (jax.grad's allow_int)."""
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        if getattr(p, "dtype", None) == jax.dtypes.float0:
            raise OptimizerError(
                f"{name} needs real parameters, {leaf_name(path)} has whole numbers, which have no "
                "gradient: leave them out, for example by optax.partition"
            )
        if jnp.issubdtype(jnp.result_type(p), jnp.complexfloating):
            raise OptimizerError(
                f"{name} needs real parameters, {leaf_name(path)} is {jnp.result_type(p)}: hold "
                "its real and imaginary parts as two"
            )


def _check_options(normalize: bool, adaptive: bool, method: str) -> None:
    check_flag("normalize", normalize)
    check_flag("adaptive", adaptive)
    check_choice("method", method, METHODS)


def _widened(value: Any) -> Any:
    """Return a float, known while tracing, or a scalar array in float32 or wider."""
    if isinstance(value, Real):
        return float(value)
    return widen(value) if isinstance(value, jax.Array) else float(value.item())


def _is_zero(value: Any) -> bool:
    """Return True if `value` is known to be 0 while tracing."""
    return isinstance(value, Real) and value == 0


def _any_zero(*values: Any) -> Any:
    """Return whether one of them is 0, as a scalar array; False if none is, known in tracing."""
    unknown = [jnp.equal(v, 0) for v in values if _is_zero(v) or not isinstance(v, Real)]
    return functools.reduce(jnp.logical_or, unknown) if unknown else False


def _drop_aux(result: Any) -> Any:
    """Return the gradient of `(grads, aux)`."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise OptimizerError(
            f"with has_aux=True grad_fn must return (grads, aux), not {type(result).__name__}"
        )
    return result[0]


def _without_aux(result: Any, grads: Any) -> Any:
    """Return the gradient; raise if it is `(grads, aux)`."""
    if isinstance(result, tuple) and not isinstance(grads, tuple):
        raise OptimizerError(
            "grad_fn must return the gradient alone, not a tuple: of value_and_grad's (value, "
            "grads) return grads; for (grads, aux) make the penalty with has_aux=True"
        )
    return result


def _check_gradient(result: Any, grads: Any, name: str, fix: str) -> None:
    """Raise unless `result` can stand for `grads`; where that has None it may hold anything."""
    wanted = dict(jax.tree_util.tree_leaves_with_path(grads))
    given = dict(jax.tree_util.tree_leaves_with_path(result))
    for path, g in wanted.items():
        if path not in given:
            raise OptimizerError(f"{name} lacks {leaf_name(path)}: {fix}")
        if jnp.shape(given[path]) != jnp.shape(g):
            raise OptimizerError(
                f"{name} has {leaf_name(path)} of shape {jnp.shape(given[path])}, not "
                f"{jnp.shape(g)}: {fix}"
            )
    structure: Any = jax.tree.structure(grads, is_leaf=lambda x: x is None)
    try:
        structure.flatten_up_to(result)
    except ValueError:
        more = [leaf_name(path) for path in given if path not in wanted] or ["a container"]
        raise OptimizerError(
            f"{name} has another structure than the gradient, at {more[0]}: {fix}"
        ) from None


def _select(gradient: Any, where: Where, params: Any) -> Any:
    """Return the gradient with None in place of the leaves that are not perturbed."""
    mask = resolve_mask(where, params)
    if jax.tree.leaves(mask) and not any(jax.tree.leaves(mask)):
        raise OptimizerError(
            "where must be True for at least one parameter, or no step is penalized"
        )
    return map_present(lambda g, is_perturbed: g if is_perturbed else None, gradient, mask)


def _adaptive_direction(gradient: Any, params: Any) -> Any:
    """Return |θ|²·g / ‖|θ|·g‖."""
    size = map_present(lambda g, p: jnp.abs(jnp.asarray(p, g.dtype)), gradient, params)
    return map_present(jnp.multiply, size, unit(map_present(jnp.multiply, size, gradient)))


def _move(params: Any, direction: Any, distance: Any) -> Any:
    """Return θ + distance·direction, in the dtypes of θ."""

    def leaf(p: Any, d: Any) -> Any:
        return p if d is None else (widen(p) + _times(distance, d, p)).astype(jnp.result_type(p))

    return jax.tree.map(leaf, params, direction, is_leaf=lambda x: x is None)


def _times(distance: Any, d: jax.Array, p: Any) -> jax.Array:
    """Return distance·d, in the dtype in which to compute with `p`."""
    dtype = wide_dtype(p)
    return jnp.asarray(distance, dtype) * d.astype(dtype)


def _derivative(
    f: Callable[[optax.Params], optax.Updates], params: Any, direction: Any, distance: Any
) -> Any:
    """Return the derivative of f(θ + s·distance·direction) in s at 0."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: x is None)
    structure: Any = jax.tree.structure(params, is_leaf=lambda x: x is None)
    directions = structure.flatten_up_to(direction)
    moving = [i for i, d in enumerate(directions) if d is not None]
    # At θ itself, not at θ + 0·d: so XLA sees that f(θ) has been computed already.
    points = [jnp.asarray(leaves[i]) for i in moving]
    tangents = [
        _times(distance, directions[i], p).astype(p.dtype)
        for i, p in zip(moving, points, strict=True)
    ]

    def at_moved(values: list[jax.Array]) -> optax.Updates:
        moved = dict(zip(moving, values, strict=True))
        return f(structure.unflatten([moved.get(i, leaf) for i, leaf in enumerate(leaves)]))

    return jax.jvp(at_moved, (points,), (tangents,))[1]
