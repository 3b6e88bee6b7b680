r"""Core of the penalty and its relatives: look uphill, and combine what is seen there.

With g the gradient at the parameters θ,

.. math::
    d = \mathrm{direction}(g), \qquad \epsilon = r \cdot \mathrm{metric}(d), \qquad
    g^+ = \nabla L(\theta + \epsilon), \qquad g' = \mathrm{combination}(g, g^+).

Each of the four is a part of its own:

- a direction is an Optax transformation from g to d, with state if it remembers gradients;
- r is a number or a schedule, or one for each parameter or label;
- a metric is a function (d, params, axis_name) -> the perturbation of radius 1;
- a combination is a function of a `Probe`, which takes further gradients.

When a step is penalized is decided outside, by `penalize`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ._checks import (
    OptimizerError,
    Scalar,
    ScalarOrSchedule,
    check_axis_name,
    check_choice,
    check_flag,
    check_scalar,
)
from ._tree import (
    extend_prefix,
    fill,
    inner,
    is_differentiable,
    map_present,
    norm_and_inverse,
    number_at,
    unit,
    wide,
    wide_dtype,
)
from .parameters import Where, broadcast, leaf_name, resolve_function, resolve_mask

METHODS = ("finite_difference", "hvp")


@dataclass(frozen=True)
class ByLabel:
    """A number or schedule for each label of the parameters.

    Args:
        labels: A pytree of str like params or a prefix of it, or a function of params that makes
          one, as `optax.partition` takes them.
        values: Label -> number or schedule.

    Example:
        >>> from optimizer import ByLabel, gradient_norm_penalty, parameter_kinds
        >>> r = ByLabel(parameter_kinds, {"weight": 0.05, "bias": 0.0, "scale": 0.1, "offset": 0.1})
        >>> penalty = gradient_norm_penalty(r, alpha=0.8)
    """

    labels: Any
    values: Mapping[str, ScalarOrSchedule]


Penalty: TypeAlias = optax.GradientTransformationExtraArgs
Values: TypeAlias = Any  # a number or schedule, a pytree of them like params, or a ByLabel
Metric: TypeAlias = Callable[[Any, Any, Any], Any]


class Probe(NamedTuple):
    """Gradient at θ, and the means to take more of them, for a combination.

    Trees are in float32 or wider, with None for leaves that have no gradient.
    """

    params: Any  # θ
    gradient: Any  # g
    direction: Any  # d
    r: Any  # a number or scalar array, or a pytree of them like params
    read: Callable[[str, Values], Any]  # (name, value) -> what it is at this step, as r
    gradient_at: Callable[[Any], Any]  # params -> ∇L there
    ascend: Callable[..., Any]  # (params, direction, r) -> params + r·metric(direction)
    derivative: Callable[[], Any]  # () -> r·H·metric(d), by forward over reverse
    axis_name: Any = None

    def perturbed(self) -> Any:
        """Return g⁺, the gradient at θ + ε."""
        return self.gradient_at(self.ascend(self.params, self.direction, self.r))

    def inner(self, a: Any, b: Any) -> jax.Array:
        """Return the inner product over the whole tree."""
        return inner(a, b, self.axis_name)

    def norm_and_inverse(self, tree: Any) -> tuple[jax.Array, jax.Array]:
        """Return ‖tree‖ and 1/‖tree‖, both 0 for zeros."""
        return norm_and_inverse(tree, self.axis_name)


Combination: TypeAlias = Callable[[Probe], Any]


class GradientNormPenaltyState(NamedTuple):
    """State of the penalty and its relatives: the step, and what the direction remembers."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    direction: optax.OptState = optax.EmptyState()


# Metrics.


def euclidean(eps: float = 0.0) -> Metric:
    """Return the metric d / (‖d‖ + eps), the norm over the whole tree; zeros stay zeros."""
    return lambda d, params, axis_name: unit(d, axis_name, eps)


def relative(eta: Scalar = 0.0, where: Where = None, eps: float = 0.0) -> Metric:
    r"""Return the metric T²·d / (‖T·d‖ + eps) with T = |θ| + η, which follows a rescaling (ASAM).

    Args:
        eta: η, in the units of θ. The authors' code has 0.01, and their formula 0.
        where: The leaves that have this T, see `penalized_gradient`; T = 1 for the others, as the
          authors' code has it for biases. None: all.
        eps: Added to the norm.
    """

    def metric(d: Any, params: Any, axis_name: Any) -> Any:
        mask = resolve_mask(where, params)

        def scale(d: jax.Array, p: Any, selected: bool) -> jax.Array:
            if not selected:
                return jnp.ones_like(d)
            return jnp.abs(jnp.asarray(p, d.dtype)) + jnp.asarray(eta, d.dtype)

        size = map_present(scale, d, params, mask)
        scaled = unit(map_present(jnp.multiply, size, d), axis_name, eps)
        return map_present(jnp.multiply, size, scaled)

    return metric


def unnormalized() -> Metric:
    """Return the metric d itself, whose length is that of the direction."""
    return lambda d, params, axis_name: d


# Combinations.


def mix(alpha: Values, normalize: bool = False, method: str = "finite_difference") -> Combination:
    """Return the combination (1 - α)·g + α·g⁺; see `gradient_norm_penalty` for its arguments."""
    check_values("alpha", alpha)
    check_flag("normalize", normalize)
    check_choice("method", method, METHODS)

    def combine(probe: Probe) -> Any:
        weight = probe.read("alpha", alpha)
        if _is_zero(weight) and not normalize:
            return probe.gradient
        # The result is a·g + b·there.
        a, b = jax.tree.map(lambda w: 1 - w, weight), weight
        if normalize:
            _, inverse = probe.norm_and_inverse(probe.gradient)
            a = jax.tree.map(lambda a: jnp.asarray(a, inverse.dtype) * inverse, a)
        if method == "hvp":
            # g + r·H·d takes the place of g⁺.
            a = jax.tree.map(lambda a, b: a + jnp.asarray(b, a.dtype) if normalize else 1.0, a, b)
            there = probe.derivative()
        else:
            there = probe.perturbed()

        def leaf(here: jax.Array, there: jax.Array, a: Any, b: Any) -> jax.Array:
            kept = jnp.asarray(a, here.dtype) * here
            mixed = kept + jnp.asarray(b, here.dtype) * there
            # Where b is 0 no NaN of `there` may come through. False needs no selection.
            unmixed = _any_zero(b)
            return mixed if unmixed is False else jnp.where(unmixed, kept, mixed)

        return map_present(leaf, probe.gradient, there, spread(a, probe), spread(b, probe))

    return combine


def spread(value: Any, probe: Probe) -> Any:
    """Return a pytree like params of a number, or of a pytree of them."""
    return extend_prefix(value, probe.params, is_leaf=lambda x: x is None)


# The transformation, and the pure function.


def sharpness_aware(
    r: Values,
    combination: Combination,
    *,
    direction: optax.GradientTransformation | None = None,
    metric: Metric | None = None,
    where: Where = None,
    has_aux: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Make any method of the family from its parts: direction, radius, metric and combination.

    .. math::
        d = \mathrm{direction}(g), \qquad \epsilon = r \cdot \mathrm{metric}(d), \qquad
        g^+ = \nabla L(\theta + \epsilon), \qquad g' = \mathrm{combination}(g, g^+)

    `gradient_norm_penalty` says what its `update` takes, what it gives for zeros, dtypes and None,
    and where in a chain it goes.

    Args:
        r: Radius of the perturbation; >= 0. A number, an array of one or a schedule of the step; a
          pytree of them like params or a prefix of it; or a `ByLabel`.
        combination: `mix(alpha)` or a function of a `Probe` that returns g', a pytree like the
          probe's gradient.
        direction: An Optax transformation from g to d, such as `running_average(decay)` or
          `centralize()`. Its state moves at plain steps too. None: d = g.
        metric: `euclidean()`, `relative()`, `unnormalized()` or a function (d, params, axis_name)
          -> the perturbation of radius 1. None: `euclidean()`.
        where: Which parameters are perturbed, see `penalized_gradient`; None: all.
        has_aux: `grad_fn` gives `(grads, aux)`; aux is dropped.
        axis_name: Axis (or axes) of `jax.shard_map` over which parameters are split, so that norms
          are those of the whole tree. None: each device holds all of them.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the state `GradientNormPenaltyState`.

    Raises:
        OptimizerError: as `gradient_norm_penalty`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from optimizer import mix, running_average, sharpness_aware, unnormalized
        >>> slow = sharpness_aware(0.1, mix(0.8), direction=running_average(0.9))
        >>> opt = optax.chain(slow, optax.adam(1e-3))  # a penalty along the mean of the gradients
        >>> grad_fn = jax.grad(lambda p: 0.5 * jnp.vdot(p, p))
        >>> params = jnp.array([3.0, 4.0])
        >>> plain = sharpness_aware(0.1, mix(1.0), metric=unnormalized())
        >>> print(plain.update(grad_fn(params), plain.init(params), params, grad_fn=grad_fn)[0])
        [3.3 4.4]
    """
    check_values("r", r)
    check_flag("has_aux", has_aux)
    direction = optax.identity() if direction is None else direction

    def init_fn(params: optax.Params) -> GradientNormPenaltyState:
        check_real("gradient_norm_penalty", params)
        return GradientNormPenaltyState(jnp.zeros([], jnp.int32), direction.init(wide(params)))

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
        d, memory = direction.update(wide(updates), state.direction, wide(params))
        new_state = GradientNormPenaltyState(optax.safe_increment(state.count), memory)
        if not penalize:
            return updates, new_state
        if penalized is not None:
            return check_penalized(penalized, updates), new_state
        check_penalized_step(params, grad_fn, "grad_fn(params)")
        assert grad_fn is not None
        result = combined_gradient(
            (lambda p: _drop_aux(grad_fn(p))) if has_aux else grad_fn,
            params,
            updates,
            r,
            combination,
            direction=d,
            metric=metric,
            where=where,
            axis_name=axis_name,
            count=state.count,
        )
        return result, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def combined_gradient(
    grad_fn: Callable[[optax.Params], optax.Updates],
    params: optax.Params,
    grads: optax.Updates,
    r: Values,
    combination: Combination,
    *,
    direction: Any = None,
    metric: Metric | None = None,
    where: Where = None,
    axis_name: str | tuple[str, ...] | None = None,
    count: jax.Array | int | None = None,
) -> optax.Updates:
    """Return what `sharpness_aware` makes of a gradient, as a pure function.

    Args:
        grad_fn: The function params -> grads, of the same batch and random masks as `grads`.
        params: θ.
        grads: g(θ), a pytree like `params`.
        r: See `sharpness_aware`.
        combination: See `sharpness_aware`.
        direction: d, a pytree like `grads`; None: g.
        metric: See `sharpness_aware`.
        where: See `sharpness_aware`.
        axis_name: See `sharpness_aware`.
        count: The step, which schedules are read at.

    Returns:
        g', a pytree like `grads`, in float32 or wider.
    """
    check_real("penalized_gradient", params)
    check_real("penalized_gradient", grads)
    check_axis_name("the penalty", axis_name)
    metric = euclidean() if metric is None else metric
    point = wide(params)
    # Where a parameter is a whole number its gradient passes untouched, whatever that is.
    gradient = map_present(lambda g, p: None if p is None else g, wide(grads), point)

    def read(name: str, value: Values) -> Any:
        return values_at(name, value, count, params)

    radius = read("r", r)
    if _is_zero(radius):
        return grads
    select = _identity if where is None else functools.partial(_select, where=where, params=params)
    d = select(gradient if direction is None else direction)

    def gradient_at(moved: Any) -> Any:
        result = _without_aux(grad_fn(fill(moved, params)), grads)
        fix = (
            "it must return the gradient with the structure and shapes of the one that is given; "
            "of value_and_grad's (value, grads) return grads"
        )
        _check_gradient(result, grads, "what grad_fn returns", fix)
        return map_present(lambda g, there: jnp.asarray(there, g.dtype), gradient, result)

    def ascend(point: Any, direction: Any, r: Any) -> Any:
        return move(point, metric(select(direction), point, axis_name), r)

    probe = Probe(
        params=point,
        gradient=gradient,
        direction=d,
        r=radius,
        read=read,
        gradient_at=gradient_at,
        ascend=ascend,
        derivative=lambda: _derivative(gradient_at, point, metric(d, point, axis_name), radius),
        axis_name=axis_name,
    )
    result = combination(probe)
    if result is gradient:  # as with α = 0
        return grads
    # Where r is 0 the gradient passes to the bit. False needs no selection per element.
    is_plain = _any_zero(radius) if _is_one(radius) else False
    if is_plain is not False:
        result = map_present(lambda g, new: jnp.where(is_plain, g, new), gradient, result)
    return fill(result, grads)


# Values.


def check_values(name: str, value: Values) -> None:
    """Raise unless `value` is a number or schedule, a pytree of them, or a `ByLabel`."""
    for leaf in jax.tree.leaves(value.values if isinstance(value, ByLabel) else value):
        check_scalar(name, leaf, schedule=True)


def values_at(name: str, value: Values, count: Any, params: Any) -> Any:
    """Return a number or a pytree of numbers like params, with schedules read at step `count`.

    A number is a float where it is known while tracing, else a scalar array in float32 or wider.
    """
    if isinstance(value, ByLabel):
        labels = resolve_function(value.labels, params, lambda leaf: isinstance(leaf, str))
        for label in jax.tree.leaves(labels):
            check_choice(f"a label of {name}", label, value.values)
        value = jax.tree.map(lambda label: value.values[label], labels)
    numbers = jax.tree.map(lambda leaf: number_at(name, leaf, count), value)
    if _is_one(numbers):
        return numbers
    expected = "a number, or a pytree of numbers like params or a prefix of it"
    return broadcast(name, numbers, params, expected, lambda _, leaf: leaf)


def _is_one(value: Any) -> bool:
    """Return whether a value is one number, not a pytree of them."""
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(value))


def _is_zero(value: Any) -> bool:
    """Return True if all of `value` is known to be 0 while tracing."""
    return all(isinstance(leaf, Real) and leaf == 0 for leaf in jax.tree.leaves(value))


def _any_zero(*values: Any) -> Any:
    """Return whether one of them is 0, as a scalar array; False if none is, known in tracing."""
    unknown = [jnp.equal(v, 0) for v in values if _is_zero(v) or not isinstance(v, Real)]
    return functools.reduce(jnp.logical_or, unknown) if unknown else False


# Checks.


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
    """Return the caller's penalized gradient in float32 or wider; raise unless it fits `grads`."""
    _check_gradient(
        penalized, grads, "penalized", "give it the structure and shapes of update's first argument"
    )

    def leaf(g: Any, p: Any) -> Any:
        return jnp.asarray(p, wide_dtype(g)) if is_differentiable(g) else g

    return map_present(leaf, grads, penalized)


def check_real(name: str, params: Any) -> None:
    """Raise at the first complex leaf."""
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        if is_differentiable(p) and jnp.issubdtype(jnp.result_type(p), jnp.complexfloating):
            raise OptimizerError(
                f"{name} needs real parameters, {leaf_name(path)} is {jnp.result_type(p)}: hold "
                "its real and imaginary parts as two"
            )


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
    more = [leaf_name(path) for path in given if path not in wanted]
    for path, g in wanted.items():
        if not is_differentiable(g):
            continue
        if path not in given:
            instead = f", and has {more[0]} instead" if more else ""
            raise OptimizerError(f"{name} lacks {leaf_name(path)}{instead}: {fix}")
        if jnp.shape(given[path]) != jnp.shape(g):
            raise OptimizerError(
                f"{name} has {leaf_name(path)} of shape {jnp.shape(given[path])}, not "
                f"{jnp.shape(g)}: {fix}"
            )
    structure: Any = jax.tree.structure(grads, is_leaf=lambda x: x is None)
    try:
        structure.flatten_up_to(result)
    except ValueError:
        place = more[0] if more else "a container"
        raise OptimizerError(
            f"{name} has another structure than the gradient, at {place}: {fix}"
        ) from None


# Arithmetic.


def _identity(tree: Any) -> Any:
    return tree


def _select(tree: Any, where: Where, params: Any) -> Any:
    """Return the tree with None in place of the leaves that are not perturbed."""
    mask = resolve_mask(where, params)
    if jax.tree.leaves(mask) and not any(jax.tree.leaves(mask)):
        raise OptimizerError(
            "where must be True for at least one parameter, or no step is penalized"
        )
    return map_present(lambda x, is_perturbed: x if is_perturbed else None, tree, mask)


def move(params: Any, direction: Any, r: Any) -> Any:
    """Return θ + r·direction; leaves with no direction stay."""

    def leaf(p: Any, d: Any, r: Any) -> Any:
        return p if p is None or d is None else p + _times(r, d, p)

    radii = extend_prefix(r, params, is_leaf=lambda x: x is None)
    return jax.tree.map(leaf, params, direction, radii, is_leaf=lambda x: x is None)


def _times(r: Any, d: jax.Array, p: jax.Array) -> jax.Array:
    """Return r·d, in the dtype of `p`."""
    return jnp.asarray(r, p.dtype) * d.astype(p.dtype)


def _derivative(f: Callable[[Any], Any], params: Any, direction: Any, r: Any) -> Any:
    """Return the derivative of f(θ + s·r·direction) in s at 0."""
    is_none: Callable[[Any], bool] = lambda x: x is None  # noqa: E731
    leaves = jax.tree.leaves(params, is_leaf=is_none)
    structure: Any = jax.tree.structure(params, is_leaf=is_none)
    directions = structure.flatten_up_to(direction)
    radii = structure.flatten_up_to(extend_prefix(r, params, is_leaf=is_none))
    moving = [i for i, d in enumerate(directions) if d is not None and leaves[i] is not None]
    # At θ itself, not at θ + 0·d: so XLA sees that f(θ) has been computed already.
    points = [leaves[i] for i in moving]
    tangents = [_times(radii[i], directions[i], p) for i, p in zip(moving, points, strict=True)]

    def at_moved(values: list[jax.Array]) -> Any:
        moved = dict(zip(moving, values, strict=True))
        return f(structure.unflatten([moved.get(i, leaf) for i, leaf in enumerate(leaves)]))

    return jax.jvp(at_moved, (points,), (tangents,))[1]
