"""Arithmetic on numbers and whole pytrees that several transformations share."""

import functools
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp

from ._checks import check_scalar


def mixing_types(f: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of Optax mix types of numbers, also where JAX's promotion is strict."""

    @functools.wraps(f)
    def mixing(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return f(*args, **kwargs)

    return mixing


def map_present(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map f over the leaves as `jax.tree.map` does, but keep None where the first tree has None."""

    def leaf(x: Any, *others: Any) -> Any:
        return None if x is None else f(x, *others)

    return jax.tree.map(leaf, tree, *rest, is_leaf=lambda x: x is None)


def extend_prefix(prefix: Any, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Return a tree with the values of its prefix (`jax.tree.broadcast`, which jax 0.4 lacks)."""

    def below(value: Any, subtree: Any) -> Any:
        return jax.tree.map(lambda _: value, subtree)

    return jax.tree.map(below, prefix, tree, is_leaf=is_leaf)


def wide_dtype(x: Any) -> Any:
    """Return the dtype in which to compute with `x`: float32, or its own where that is wider."""
    dtype = jnp.result_type(x)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if is_wide else jnp.dtype(jnp.float32)


def widen(x: Any) -> jax.Array:
    """Convert to float32, unless the dtype is wider."""
    return jnp.asarray(x, wide_dtype(x))


def number_at(name: str, value: Any, count: Any) -> Any:
    """Return a number, that of step `count` where it is a schedule; raise if it is none.

    It is a float where it is known while tracing, else a scalar array in float32 or wider.
    """
    if callable(value):
        value = value(count)
        is_known = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
        # Of what is traced the shape alone is checked.
        check_scalar(name, value.item() if is_known and value.shape == () else value)
    if isinstance(value, Real):
        return float(value)
    return widen(value) if isinstance(value, jax.Array) else float(value.item())


def is_differentiable(x: Any) -> bool:
    """Return whether a leaf holds floating-point numbers, not whole ones, keys or flags."""
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.inexact)


def only_differentiable(tree: Any) -> Any:
    """Return the tree with None in place of the leaves that have no gradient."""
    return map_present(lambda x: x if is_differentiable(x) else None, tree)


def wide(tree: Any) -> Any:
    """Return the tree in float32 or wider, with None for leaves that have no gradient."""
    return map_present(widen, only_differentiable(tree))


def fill(tree: Any, rest: Any) -> Any:
    """Return the tree with the leaves of `rest` where it has None."""
    return jax.tree.map(
        lambda x, other: other if x is None else x, tree, rest, is_leaf=lambda x: x is None
    )


def norm_and_inverse(tree: Any, axis_name: Any = None) -> tuple[jax.Array, jax.Array]:
    """Return ‖tree‖ and 1/‖tree‖, both 0 where no element is a normal number.

    1/‖tree‖ is 0 too where it would be no normal number: for a norm above 8.5e37 in float32.
    `widen` the leaves first. With `axis_name` the norm is that of the whole tree, whose leaves are
    split over that axis of `jax.shard_map`.
    """
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.zeros([]), jnp.zeros([])
    # Dividing by the largest element first keeps the squares of tiny and of huge ones in range.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]))
    if axis_name is not None:
        # The largest of all is a constant here: it only scales, and pmax has no derivative.
        largest = jax.lax.pmax(jax.lax.stop_gradient(largest), axis_name)
    tiny = float(jnp.finfo(largest.dtype).tiny)
    is_zero = largest < tiny
    scale = jnp.minimum(largest, 1.0 / tiny)  # whose inverse is normal
    inverse = jnp.where(is_zero, 0.0, 1.0 / jnp.where(is_zero, 1.0, scale))
    scaled = map_present(lambda x: x * inverse, tree)
    total = inner(scaled, scaled, axis_name)
    # The root has no derivative at 0: there it is that of a constant.
    norm = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, total)))
    return scale * norm, inverse / jnp.maximum(norm, 1.0)  # norm is 0 or at least 1


def inner(a: Any, b: Any, axis_name: Any = None) -> jax.Array:
    """Return the inner product over the whole tree.

    With `axis_name` the leaves are split over that axis of `jax.shard_map`; a leaf that is known to
    be the same on all its devices is counted once.
    """
    products = jax.tree.leaves(map_present(lambda x, y: jnp.sum(x * y), a, b))
    if axis_name is None:
        return jnp.asarray(sum(products, 0.0))
    # One sum over the devices for all leaves that are split alike.
    groups: dict[tuple[str, ...], jax.Array] = {}
    for product in products:
        axes = split_over(product, axis_name)
        groups[axes] = groups.get(axes, 0.0) + product
    sums = [jax.lax.psum(part, axes) if axes else part for axes, part in groups.items()]
    return jnp.asarray(sum(sums, 0.0))


def split_over(x: jax.Array, axis_name: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the axes among these over which an array differs, see `is_split`."""
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name or ()
    return tuple(axis for axis in axes if is_split(x, axis))


def is_split(x: jax.Array, axis: str) -> bool:
    """Return whether an array differs over an axis of shard_map, as far as that keeps track."""
    tracks = axis in jax.typeof(jax.lax.axis_index(axis)).manual_axis_type.varying
    return not tracks or axis in jax.typeof(x).manual_axis_type.varying


def unit(tree: Any, axis_name: Any = None, eps: float = 0.0) -> Any:
    """Divide the tree by its norm, to which eps is added; zeros stay zeros."""
    # One factor for all: XLA goes through the chain of scalars in every loop that reads it, and a
    # division or a selection per element there made the step of a small network half as long again.
    norm, factor = norm_and_inverse(tree, axis_name)
    if eps:
        factor = 1.0 / (norm + eps)
    return map_present(lambda x: (x * factor).astype(x.dtype), tree)
