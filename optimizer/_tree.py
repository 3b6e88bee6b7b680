"""Arithmetic on whole pytrees that several transformations share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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


def wide_dtype(x: Any) -> Any:
    """Return the dtype in which to compute with `x`: float32, or its own where that is wider."""
    dtype = jnp.result_type(x)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if is_wide else jnp.dtype(jnp.float32)


def widen(x: Any) -> jax.Array:
    """Convert to float32, unless the dtype is wider."""
    return jnp.asarray(x, wide_dtype(x))


def norm_and_inverse(tree: Any) -> tuple[jax.Array, jax.Array]:
    """Return ‖tree‖ and 1/‖tree‖, both 0 where no element is a normal number.

    1/‖tree‖ is 0 too where it would be no normal number: for a norm above 8.5e37 in float32.
    `widen` the leaves first.
    """
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.zeros([]), jnp.zeros([])
    # Dividing by the largest element first keeps the squares of tiny and of huge ones in range.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]))
    tiny = float(jnp.finfo(largest.dtype).tiny)
    is_zero = largest < tiny
    scale = jnp.minimum(largest, 1.0 / tiny)  # whose inverse is normal
    inverse = jnp.where(is_zero, 0.0, 1.0 / jnp.where(is_zero, 1.0, scale))
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x * inverse)) for x in leaves))
    return scale * norm, inverse / jnp.maximum(norm, 1.0)  # norm is 0 or at least 1


def unit(tree: Any) -> Any:
    """Divide the tree by its norm; zeros stay zeros."""
    # One factor for all: XLA goes through the chain of scalars in every loop that reads it, and a
    # division or a selection per element there made the step of a small network half as long again.
    _, factor = norm_and_inverse(tree)
    return map_present(lambda x: (x * factor).astype(x.dtype), tree)
