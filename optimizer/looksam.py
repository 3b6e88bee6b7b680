"""LookSAM: a penalized step's direction, used again at the plain steps after it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, ScalarOrSchedule, check_scalar
from ._tree import map_present, norm_and_inverse, wide_dtype, widen
from .gradient_norm_penalty import GradientNormPenaltyState, check_penalize, check_real


class LookSAMState(NamedTuple):
    """State of `looksam`: the part that is reused and the state of the penalty inside."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    direction: optax.Updates  # like params, float32 (float64 for float64); g_v / ‖g_v‖
    penalty: optax.OptState


def looksam(
    penalty: optax.GradientTransformationExtraArgs, weight: ScalarOrSchedule
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
    (0.8 % in bfloat16). The arithmetic is in float32 (float64 for float64 trees), the result has
    the dtypes of the gradient. Parameters are real.

    The state holds one more copy of the parameters: in float32 for bfloat16 and float16 ones, so
    twice their bytes.

    Args:
        penalty: The transformation that penalizes: `gradient_norm_penalty(...)`, `per_group` of
          one, or any other that calls `grad_fn` at penalized steps, gives the plain gradient with
          `penalize=False`, and keeps no arrays like params. It is asked for both.
        weight: Length of the reused part, in units of ‖g‖; >= 0. A number, an array of one or a
          schedule of the step.

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
    if not isinstance(penalty, optax.GradientTransformationExtraArgs):
        raise OptimizerError(
            "penalty must take grad_fn and penalize, as gradient_norm_penalty(...) does, "
            f"not be a {type(penalty).__name__}"
        )

    def init_fn(params: optax.Params) -> LookSAMState:
        def nothing(p: Any) -> jax.Array:
            # x + -0.0 is x to the bit, also for x = -0.0.
            return jnp.full_like(p, -0.0, dtype=wide_dtype(p))

        check_real("looksam", params)
        inner = penalty.init(params)
        if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(inner)):
            raise OptimizerError(
                "looksam takes no penalty that keeps arrays from step to step, as momentum does: "
                "put it behind, optax.chain(looksam(penalty, weight), optax.sgd(...))"
            )
        return LookSAMState(
            count=jnp.zeros([], jnp.int32),
            direction=jax.tree.map(nothing, params),
            penalty=inner,
        )

    def update_fn(
        updates: optax.Updates,
        state: LookSAMState,
        params: optax.Params | None = None,
        *,
        penalize: bool = True,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LookSAMState]:
        check_penalize(penalize)
        plain, inner = penalty.update(updates, state.penalty, params, penalize=False, **extra_args)
        count = optax.safe_increment(state.count)
        if penalize:
            u, inner = _penalized(penalty, updates, state.penalty, params, extra_args)
            return u, LookSAMState(count, _orthogonal_unit(u, plain, state.direction), inner)

        length = weight(state.count) if callable(weight) else weight
        norm, _ = norm_and_inverse(map_present(widen, plain))
        factor = jnp.where(jnp.isfinite(norm), jnp.asarray(length, norm.dtype) * norm, 0.0)

        def reuse(g: jax.Array, d: jax.Array) -> jax.Array:
            return (widen(g) + factor.astype(d.dtype) * d).astype(jnp.result_type(g))

        new_state = state._replace(count=count, penalty=inner)
        return map_present(reuse, plain, state.direction), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, GradientNormPenaltyState))
    if not calls and not any(isinstance(node, GradientNormPenaltyState) for node in nodes):
        raise OptimizerError(
            "penalty calls no grad_fn at a penalized step, so there is nothing to reuse: looksam "
            "needs gradient_norm_penalty(...), or per_group of one"
        )
    return result


def _orthogonal_unit(penalized: Any, plain: Any, before: Any) -> Any:
    """Return g_v / ‖g_v‖; zeros where g_v is rounding, `before` where it is not finite."""
    u, g = map_present(widen, penalized), map_present(widen, plain)
    _, inverse_g = norm_and_inverse(g)
    _, inverse_u = norm_and_inverse(u)

    def total(f: Any, *trees: Any) -> jax.Array:
        return jnp.asarray(sum(jax.tree.leaves(map_present(f, *trees)), 0.0), inverse_u.dtype)

    # ⟨u, g⟩/‖g‖², with g scaled to length 1 so that no square leaves the range.
    along = total(lambda a, b: jnp.sum(a * (b * inverse_g)), u, g) * inverse_g
    part = map_present(lambda a, b: a - along * b, u, g)
    # Lengths below are relative to ‖u‖. Both u and g have been rounded to the dtype that came in.
    length = total(lambda x: jnp.sum(jnp.square(x * inverse_u)), part)
    noise = total(
        lambda raw, x: (
            float(jnp.finfo(jnp.result_type(raw)).eps) ** 2 * jnp.sum(jnp.square(x * inverse_u))
        ),
        penalized,
        u,
    )
    _, inverse = norm_and_inverse(part)
    factor = jnp.where(length > noise, inverse, 0.0)
    is_finite = jnp.isfinite(length)

    def leaf(old: Any, x: Any) -> Any:
        if old is None or x is None:
            return old
        return jnp.where(is_finite, (x * factor).astype(old.dtype), old)

    return jax.tree.map(leaf, before, part, is_leaf=lambda x: x is None)
