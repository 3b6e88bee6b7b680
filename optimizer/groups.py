"""m-sharpness: each group of examples has a perturbation of its own."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, check_axis_name, check_flag
from ._tree import map_present, widen
from .perturbation import check_penalize, check_penalized, check_penalized_step


def map_groups(f: Callable[[Any], Any], count: int, *, unroll: bool = True) -> Any:
    """Return f(0), f(1), …, f(count - 1), stacked on a new leading axis.

    Unrolled, `f` is called with each index in turn. That is right on the CPU, where model code
    inside XLA's control flow runs 4 to 8 times slower. On accelerators with many groups take
    `unroll=False`: `f` is traced once, inside `jax.lax.map`, which keeps the program small.

    Args:
        f: A function of the group's index, a Python int or a traced int32 scalar; index with it,
          do not branch on it. Gives a pytree of arrays.
        count: How many groups; an int >= 1.
        unroll: False: in a loop of XLA's, one group after another.

    Returns:
        The pytree of `f`, each leaf with a leading axis of `count`.

    Raises:
        OptimizerError: count is no int >= 1, or unroll is no bool.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from optimizer import map_groups
        >>> x = jnp.arange(6.0).reshape(3, 2)  # 3 groups of 2 examples
        >>> print(map_groups(lambda group: x[group].sum(), 3))
        [1. 5. 9.]
    """
    check_flag("unroll", unroll)
    try:
        groups = 0 if isinstance(count, bool) else operator.index(count)
    except TypeError:  # a float, a text, a traced array
        groups = 0
    if groups < 1:
        raise OptimizerError(f"count={count!r} must be an int >= 1")
    if groups > 1 and not unroll:
        return jax.lax.map(f, jnp.arange(groups))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[f(group) for group in range(groups)])


def per_group(
    inner: optax.GradientTransformation,
    axis_name: str | tuple[str, ...] | None = None,
    *,
    unroll: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Apply `inner` to the gradient of each group of examples and take the mean.

    With gⱼ the gradient of group j of k and T the transformation `inner`,

    .. math::
        g' = \frac{1}{k} \sum_j T(g_j),

    so that a gradient-norm penalty perturbs each group by its own gradient. With groups of m
    examples this is m-sharpness. `inner` is called with the same state for each group; the state
    that is kept is the first group's. So it may count steps but must not remember gradients:
    `looksam` and momentum stay outside, as in `looksam(per_group(penalty), weight)`.

    Its `update` takes:

    - updates: the groups' gradients, a pytree like params with a leading axis of k on each leaf
      (`map_groups` makes one).
    - `grad_fn(params, group)`: the gradient of one group, an int or a traced int32 scalar; with
      `inner`'s `has_aux`, that and aux.
    - `penalized`: the groups' penalized gradients, stacked like updates, in place of `grad_fn`.
    - `penalize=False`: `inner` is called with it, and so gives the mean of the plain gradients.

    Args:
        inner: What is applied to each group: `gradient_norm_penalty(...)`, or a chain that begins
          with it.
        axis_name: Mesh axis (or axes) of `jax.shard_map` over which the mean goes on; each device
          then holds k groups of its own. None: no other devices. Under shard_map's default
          `check_vma=True` the gradient of parameters that all devices share is summed over the
          devices on the way: take the gradients at
          `jax.lax.pcast(params, axis_name, to='varying')`. `update` casts its own params.
        unroll: See `map_groups`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the state of `inner`. Its updates are like
        params, without the axis of groups.

    Raises:
        OptimizerError: unroll is no bool. In `init`: `inner` has state for each parameter. In
          `update`: updates have no leading axis of groups, not the same one, or not params' shapes
          behind it; they have been summed over the devices already; there is no such axis; a
          penalized step has neither `penalized` nor `grad_fn` and `params`; `penalize` is no Python
          bool.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from optimizer import gradient_norm_penalty, map_groups, per_group
        >>> x = jnp.array([[0.0, 2.0], [5.0, 7.0]])  # 2 groups of 2 examples
        >>> grad_fn = lambda p, group: jax.grad(lambda p: jnp.mean((p - x[group]) ** 2) / 2)(p)
        >>> opt = optax.chain(per_group(gradient_norm_penalty(r=0.1, alpha=1.0)), optax.sgd(1.0))
        >>> params = jnp.array(3.0)
        >>> state = opt.init(params)
        >>> grads = map_groups(lambda group: grad_fn(params, group), 2)
        >>> print(grads)
        [ 2. -3.]
        >>> updates, state = opt.update(grads, state, params, grad_fn=grad_fn)
        >>> print(jnp.round(updates, 6))  # the mean's own perturbation would make it 0.6
        0.5

    References:
        Foret et al., `Sharpness-Aware Minimization <https://arxiv.org/abs/2010.01412>`_, 2020
        (m-sharpness).
    """
    inner = optax.with_extra_args_support(inner)
    check_flag("unroll", unroll)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())

    def init_fn(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(state)):
            raise OptimizerError(
                "per_group takes no transformation that keeps arrays from step to step, as looksam "
                "and momentum do: put it outside, looksam(per_group(penalty), weight)"
            )
        return state

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params, Any], Any] | None = None,
        penalized: optax.Updates | None = None,
        penalize: bool = True,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        check_penalize(penalize)
        if not penalize:
            penalized = None
        elif penalized is not None:
            penalized = check_penalized(penalized, updates)
        else:
            check_penalized_step(params, grad_fn, "grad_fn(params, group)")
        count = _group_count(updates, params)
        for axis in axes:
            params = _vary(updates, params, axis)

        def one(group: Any) -> tuple[optax.Updates, optax.OptState]:
            own, more = (jax.tree.map(lambda x: x[group], tree) for tree in (updates, penalized))
            arguments = {} if more is None else {"penalized": more}
            if grad_fn is not None:
                arguments["grad_fn"] = lambda p: grad_fn(p, group)
            return inner.update(own, state, params, penalize=penalize, **arguments, **extra_args)

        results, states = map_groups(one, count, unroll=unroll)

        def mean(x: jax.Array) -> jax.Array:
            average = jnp.mean(widen(x), axis=0)
            return (jax.lax.pmean(average, axes) if axes else average).astype(x.dtype)

        return jax.tree.map(mean, results), jax.tree.map(lambda x: x[0], states)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _group_count(updates: Any, params: Any) -> int:
    """Return the length of the leading axis that all leaves of updates share."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(updates)]
    if not shapes:
        raise OptimizerError("per_group needs updates with at least one array")
    if () in shapes:
        raise OptimizerError(
            "per_group needs updates with a leading axis of groups, not a leaf of shape ()"
        )
    counts = sorted({shape[0] for shape in shapes})
    if len(counts) > 1 or counts[0] < 1:
        raise OptimizerError(
            "per_group needs updates with one leading axis of groups, as map_groups makes them, "
            f"not leading axes of {', '.join(map(str, counts))}"
        )

    def check(g: Any, p: Any) -> None:
        if jnp.shape(g)[1:] != jnp.shape(p):
            raise OptimizerError(
                f"per_group needs updates of shape (groups, *{jnp.shape(p)}), not {jnp.shape(g)}"
            )

    if params is not None:
        map_present(check, updates, params)
    return counts[0]


def _vary(updates: Any, params: Any, axis: str) -> Any:
    """Return params as each device's own, whose gradients are not summed over the devices."""

    def varies(x: Any) -> bool:
        return axis in jax.typeof(x).manual_axis_type.varying

    check_axis_name("per_group", axis)
    # The axis's own index varies only where shard_map keeps track of what does.
    if not varies(jax.lax.axis_index(axis)):
        return params
    if not all(varies(g) for g in jax.tree.leaves(updates)):
        raise OptimizerError(
            f"updates are the same on all of {axis!r}: shard_map has summed them over the devices; "
            f"take the gradients at jax.lax.pcast(params, {axis!r}, to='varying')"
        )
    return jax.tree.map(lambda p: p if varies(p) else jax.lax.pcast(p, axis, to="varying"), params)
