"""Any Optax optimizer with weights of a fixed length: sphere, oblique manifold, hyperball."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import geometry
from ._checks import OptimizerError, ScalarOrSchedule, check_choice, check_scalar
from ._tree import number_at
from .axes import Axes, AxesOrFunction, axes_of
from .grassmann import additive_update, check_points, map_columns

# What Optax names a moving average of gradients: tangents, which turn with the point.
_MOMENTS = ("mu", "trace")


class ConstraintState(NamedTuple):
    """State of `constrain`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32: the schedule's step
    radius: Any  # like params, with 1 for the axes of what has a fixed length
    inner: Any


def constrain(
    inner: optax.GradientTransformation,
    to: str,
    learning_rate: ScalarOrSchedule | None = None,
    axes: AxesOrFunction = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the length of weights where it is, and let `inner` turn them.

    `'oblique'` fixes the length of each column, `'sphere'` and `'hyperball'` that of each kernel
    (of each layer of a stack). With W a column or kernel, R its length in `init` and y = W / R,
    `'sphere'` and `'oblique'` follow the geodesic along the tangent part of the update of `inner`,
    which gets the tangent part h of the gradient, and carry its moments (fields `mu` and `trace` of
    its state) along in parallel:

    .. math::
        h = g - (y^\top g)\, y, \qquad u = \mathrm{inner}(h), \qquad
        W \leftarrow R \exp_y\left(\frac{u - (y^\top u)\, y}{R}\right)

    `'hyperball'` takes only the direction from `inner`:

    .. math::
        W \leftarrow R\, \mathrm{unit}\left(W + \eta R\, \mathrm{unit}(\mathrm{inner}(g))\right)

    Every parameter must be a kernel: choose them by `optax.partition`, let nothing come after, and
    do not decay them. Kernels of zeros stay zeros. `sgdg` and `adamg` are no settings of this: as
    published they hold the learning rate in the momentum and one second moment a column, and add
    1e-8 elsewhere. `constrain(optax.sgd(lr, momentum), 'oblique')` is SGD-G but for that.

    Args:
        inner: An Optax optimizer, such as `optax.adam(1e-3)`.
        to: `'sphere'`, `'oblique'` or `'hyperball'`.
        learning_rate: η of `'hyperball'`, no unit; >= 0. A float, an array or a schedule of the
          step. The others have their learning rate in `inner`.
        axes: The axes of each leaf, as in `sgdg`.
        axis_name: As in `sgdg`; with one, call `init` inside of `jax.shard_map` too.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the state `ConstraintState`; further
        arguments of `update` go to `inner`. `update` needs params.

    Raises:
        OptimizerError: an argument is out of range, `learning_rate` is missing or has no use. In
          `init`: a leaf is no kernel. In `update`: params are missing.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from optimizer import constrain
        >>> opt = constrain(optax.sgd(1.0), "hyperball", learning_rate=0.75)
        >>> params = jnp.array([[0.0], [2.0]])
        >>> updates, _ = opt.update(jnp.array([[-9.0], [0.0]]), opt.init(params), params)
        >>> print(optax.apply_updates(params, updates))
        [[1.2]
         [1.6]]

    References:
        Wen et al., `Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball
        Optimization <https://arxiv.org/abs/2606.16899>`_, 2026.
        Absil, Mahony and Sepulchre, *Optimization Algorithms on Matrix Manifolds*, 2008.
    """
    check_choice("to", to, ("sphere", "oblique", "hyperball"))
    is_hyperball = to == "hyperball"
    if (learning_rate is None) == is_hyperball:
        raise OptimizerError(
            f"to={to!r} with learning_rate={learning_rate!r}: 'hyperball' needs one, the others "
            "have it in inner, as optax.adam(learning_rate)"
        )
    if learning_rate is not None:
        check_scalar("learning_rate", learning_rate, schedule=True)
    inner = optax.with_extra_args_support(inner)

    def fixed(params: optax.Params) -> Any:
        """Return the axes, with those over which a length is fixed as inputs."""

        def leaf(its: Axes | None) -> Axes | None:
            if its is None or to == "oblique":
                return its
            return Axes(its.stack, tuple(sorted(its.input + its.output)), ())

        tree = axes_of(params, axes)
        return jax.tree.map(leaf, tree, is_leaf=lambda x: x is None or isinstance(x, Axes))

    def over(params: Any, step: Any, updates: Any, *trees: Any) -> Any:
        tree = fixed(params)
        return map_columns("constrain", step, tree, axis_name, params, updates, *trees)[0]

    def init_fn(params: optax.Params) -> ConstraintState:
        check_points("constrain", params, fixed(params))
        radius = over(params, lambda on, p, _: (geometry.norm(p, on),), params)
        return ConstraintState(jnp.zeros([], jnp.int32), radius, inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: ConstraintState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ConstraintState]:
        rate = number_at("learning_rate", learning_rate, state.count) if is_hyperball else 0.0

        def tangent(on: geometry.Columns, p: Any, g: Any) -> tuple[Any, ...]:
            return (geometry.project(geometry.unit(p, on), g, on).astype(jnp.result_type(g)),)

        def turn(on: geometry.Columns, p: Any, u: Any, r: Any) -> tuple[Any, ...]:
            y = geometry.unit(p, on)
            if is_hyperball:
                y = geometry.unit(y + jnp.asarray(rate, r.dtype) * geometry.unit(u, on), on)
            else:
                y = geometry.exp(y, angle(on, y, u, r), on)
            return additive_update(p, r * y), r

        def carry(on: geometry.Columns, p: Any, m: Any, u: Any, r: Any) -> tuple[Any, ...]:
            y = geometry.unit(p, on)
            moved = geometry.transport(y, geometry.project(y, m, on), angle(on, y, u, r), on)
            return moved.astype(m.dtype), u, r

        def angle(on: geometry.Columns, y: jax.Array, u: Any, r: Any) -> jax.Array:
            return geometry.project(y, u, on) / jnp.where(r == 0, 1.0, r)

        h = updates if is_hyperball else over(params, tangent, updates)
        u, new = inner.update(h, state.inner, params, **extra_args)
        if not is_hyperball:
            new = _map_moments(lambda m: over(params, carry, m, u, state.radius), new)
        result = over(params, turn, u, state.radius)
        return result, ConstraintState(optax.safe_increment(state.count), state.radius, new)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _map_moments(f: Any, state: Any) -> Any:
    """Map f over the moments, each a tree like params, in the state of an Optax optimizer."""

    def moments(node: Any) -> set[str]:
        return {*_MOMENTS} & {*getattr(node, "_fields", ())}

    def leaf(node: Any) -> Any:
        changed = {field: f(getattr(node, field)) for field in moments(node)}
        return node._replace(**changed) if changed else node

    return jax.tree.map(leaf, state, is_leaf=lambda node: bool(moments(node)))
