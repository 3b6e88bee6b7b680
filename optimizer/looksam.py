"""LookSAM: a penalized step's direction, used again at the plain steps after it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, ScalarOrSchedule, check_axis_name, check_flag, check_scalar
from ._tree import fill, inner, map_present, norm_and_inverse, number_at, only_differentiable, widen
from .axes import Axes, AxesOrFunction, axes_of
from .perturbation import GradientNormPenaltyState, check_penalize, check_real


class LookSAMState(NamedTuple):
    """State of `looksam`: the part that is reused and the state of the penalty inside."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    direction: optax.Updates  # like params, float32 or wider; g_v / ‖g_v‖, None where no gradient
    penalty: optax.OptState


def looksam(
    penalty: optax.GradientTransformationExtraArgs,
    weight: ScalarOrSchedule,
    *,
    per_layer: bool = False,
    eps: float = 0.0,
    axes: AxesOrFunction = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Reuse the part of the penalized gradient that is orthogonal to the plain one.

    A step with `penalize=True` gives what `penalty` gives, u, and keeps the direction of

    .. math::
        g_v = u - \frac{\langle u, g \rangle}{\|g\|^2}\, g,

    with g the plain gradient and both products over the whole tree. A step with `penalize=False`
    gives

    .. math::
        g' = g + \text{weight} \cdot \frac{\|g\|}{\|g_v\|}\, g_v.

    The part g_v changes more slowly than g, so a step in k that is penalized does much of what
    penalizing all of them would, at 1 + 1/k gradients a step. Until the first penalized step, and
    where g or g_v is zero, the other steps are plain ones; so they are where ‖g‖ is not finite. A
    g_v that is not finite is not kept: the direction before it stays. One that is not longer than
    eps·‖u‖ counts as zero, as the rounding of u to its dtype makes about that; eps is the dtype's
    (0.8 % in bfloat16). Arithmetic and result are in float32 (float64 for float64 trees).
    Parameters are real; whole numbers, keys and flags among them pass untouched.

    The state holds one more copy of the parameters: in float32 for bfloat16 and float16 ones, so
    twice their bytes.

    Args:
        penalty: The transformation that penalizes: `gradient_norm_penalty(...)` or one of its
          relatives, `per_group` of one, or any other that calls `grad_fn` at penalized steps, gives
          the plain gradient with `penalize=False`, and keeps no arrays like params. It is asked for
          both.
        weight: Length of the reused part, in units of ‖g‖; >= 0. A number, an array of one or a
          schedule of the step.
        per_layer: Take norms and products leaf by leaf, as some implementations do, in place of
          the whole tree's; in kernels that hold a stack of layers, layer by layer.
        eps: Added to ‖g_v‖ before it divides, as some implementations do; >= 0.
        axes: The axes of each leaf, whose stack `per_layer` reads, see `axes_of`; None: those that
          are known.
        axis_name: Axis (or axes) of `jax.shard_map` over which parameters are split, the one that
          `penalty` has too. None: each device holds all of them.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the state `LookSAMState`. Its `update` takes
        the arguments of `penalty`'s and hands them on, also `penalized` where that one is
        `gradient_norm_penalty` or `per_group`; at steps with `penalize=False` it needs neither
        `grad_fn` nor `penalized`.

    Raises:
        OptimizerError: weight is negative or not one number, or penalty takes no further arguments.
          In `init`: penalty keeps arrays from step to step, or a parameter is complex. In `update`:
          `penalize` is no Python bool, penalty does not penalize, or what `penalty` raises.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from optimizer import gradient_norm_penalty, looksam
        >>> grad_fn = jax.grad(lambda p: 0.5 * (p[0] ** 2 + 4.0 * p[1] ** 2))
        >>> opt = looksam(gradient_norm_penalty(r=0.1, alpha=1.0), weight=0.5)
        >>> params = jnp.array([4.0, 0.75])
        >>> state = opt.init(params)
        >>> u, state = opt.update(grad_fn(params), state, params, grad_fn=grad_fn, penalize=True)
        >>> print(jnp.array_str(state.direction, precision=3))  # orthogonal to g = (4, 3)
        [-0.6  0.8]
        >>> reused, state = opt.update(grad_fn(params), state, params, penalize=False)
        >>> print(jnp.array_str(reused, precision=3))  # g + 0.5·‖g‖·direction
        [2.5 5. ]

    References:
        Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
        <https://arxiv.org/abs/2203.02714>`_, 2022.
    """
    check_scalar("weight", weight, schedule=True)
    check_flag("per_layer", per_layer)
    check_scalar("eps", eps)
    each = functools.partial(_map_layers, axes) if per_layer else _map_whole
    orthogonal_unit = functools.partial(_orthogonal_unit, axis_name=axis_name)
    reuse = functools.partial(_reuse, axis_name=axis_name)
    if not isinstance(penalty, optax.GradientTransformationExtraArgs):
        raise OptimizerError(
            "penalty must take grad_fn and penalize, as gradient_norm_penalty(...) does, "
            f"not be a {type(penalty).__name__}"
        )

    def init_fn(params: optax.Params) -> LookSAMState:
        check_real("looksam", params)
        inner = penalty.init(params)
        others = jax.tree.leaves(inner, is_leaf=_is_penalty)
        if any(jnp.ndim(leaf) for leaf in others if not _is_penalty(leaf)):
            raise OptimizerError(
                "looksam takes no penalty that keeps arrays from step to step, as momentum does: "
                "put it behind, optax.chain(looksam(penalty, weight), optax.sgd(...)); nor one "
                "of a single gradient, as momentum_sam: there is nothing to reuse"
            )
        # x + -0.0 is x to the bit, also for x = -0.0.
        nothing = map_present(lambda p: jnp.full_like(widen(p), -0.0), only_differentiable(params))
        return LookSAMState(jnp.zeros([], jnp.int32), nothing, inner)

    def update_fn(
        updates: optax.Updates,
        state: LookSAMState,
        params: optax.Params | None = None,
        *,
        penalize: bool = True,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LookSAMState]:
        check_penalize(penalize)
        check_axis_name("looksam", axis_name)
        plain, inner = penalty.update(updates, state.penalty, params, penalize=False, **extra_args)
        count = optax.safe_increment(state.count)
        if penalize:
            u, inner = _penalized(penalty, updates, state.penalty, params, extra_args)
            direction = each(orthogonal_unit, only_differentiable(plain), u, state.direction, eps)
            return u, LookSAMState(count, fill(direction, state.direction), inner)

        length = number_at("weight", weight, state.count)
        reused = each(reuse, only_differentiable(plain), state.direction, length)
        return fill(reused, plain), state._replace(count=count, penalty=inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _map_whole(f: Any, plain: Any, *rest: Any) -> Any:
    return f(plain, *rest)


def _map_layers(axes: AxesOrFunction, f: Any, plain: Any, *rest: Any) -> Any:
    """Call f for each layer as if it were the whole tree; the last of the rest is a number."""
    *trees, number = rest

    def leaf(g: Any, its: Axes | None, *leaves: Any) -> Any:
        one = lambda *leaves: f(*leaves, number)  # noqa: E731
        for axis in sorted(its.stack) if its else ():  # the last one outermost
            one = jax.vmap(one, in_axes=axis, out_axes=axis)
        return one(g, *leaves)

    return map_present(leaf, plain, axes_of(plain, axes), *trees)


def _is_penalty(node: Any) -> bool:
    return isinstance(node, GradientNormPenaltyState)


def _reuse(plain: Any, direction: Any, length: Any, axis_name: Any) -> Any:
    """Return g + length·‖g‖·direction."""
    norm, _ = norm_and_inverse(map_present(widen, plain), axis_name)
    factor = jnp.where(jnp.isfinite(norm), jnp.asarray(length, norm.dtype) * norm, 0.0)
    return map_present(lambda g, d: widen(g) + factor.astype(d.dtype) * d, plain, direction)


def _penalized(penalty: Any, updates: Any, state: Any, params: Any, extra_args: Any) -> Any:
    """Take the penalized step; raise if it is none."""
    calls: list[None] = []
    grad_fn = extra_args.get("grad_fn")

    def counted(*args: Any) -> Any:
        calls.append(None)
        return grad_fn(*args)

    more = extra_args if grad_fn is None else extra_args | {"grad_fn": counted}
    result = penalty.update(updates, state, params, penalize=True, **more)
    # Our own needs no second gradient where r or alpha is 0, or where `penalized` is given.
    if not calls and not any(map(_is_penalty, jax.tree.leaves(state, is_leaf=_is_penalty))):
        raise OptimizerError(
            "penalty calls no grad_fn at a penalized step, so there is nothing to reuse: looksam "
            "needs gradient_norm_penalty(...) or one of its relatives, or per_group of one"
        )
    return result


def _orthogonal_unit(plain: Any, penalized: Any, before: Any, eps: float, axis_name: Any) -> Any:
    """Return g_v / ‖g_v‖; zeros where g_v is rounding, `before` where it is not finite."""
    g = map_present(widen, plain)
    u = map_present(lambda g, u: jnp.asarray(u, g.dtype), g, penalized)
    _, inverse_g = norm_and_inverse(g, axis_name)
    _, inverse_u = norm_and_inverse(u, axis_name)
    # ⟨u, g⟩/‖g‖², with g scaled to length 1 so that no square leaves the range.
    along = inner(u, map_present(lambda x: x * inverse_g, g), axis_name) * inverse_g
    part = map_present(lambda a, b: a - along * b, u, g)
    # Lengths below are relative to ‖u‖. g, and so u, has been rounded to the dtype that came in.
    scaled = map_present(lambda x: x * inverse_u, part)
    length = inner(scaled, scaled, axis_name)
    rounding = map_present(
        lambda raw, x: float(jnp.finfo(jnp.result_type(raw)).eps) * (x * inverse_u), plain, u
    )
    norm, inverse = norm_and_inverse(part, axis_name)
    if eps:
        inverse = 1.0 / (norm + eps)
    factor = jnp.where(length > inner(rounding, rounding, axis_name), inverse, 0.0)
    is_finite = jnp.isfinite(length)
    return map_present(lambda x, old: jnp.where(is_finite, x * factor, old), part, before)
