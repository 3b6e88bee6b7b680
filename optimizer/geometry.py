r"""The geometry of G(1, n), the lines through the origin of an n-dimensional space.

A kernel holds points in its columns: a column is what one output unit reads. A point is a column of
length 1, `y`; a tangent at y is a column orthogonal to y, `h`. Along the geodesic that leaves y in
the direction of h, the point turns by the angle |h|, in radians.

Everything works column by column, on arrays of any real dtype. bfloat16 and float16 are widened to
float32, and so are the results. A column runs over all axes but the last, as in Flax's (..., in,
out), unless `columns` says otherwise.

The authors' code adds 1e-8 to a length that it divides by, and so does this, for lengths as they
occur in training: of 1e-3 and more, in `unit` of 1 and more. Shorter columns are exact, zeros give
zeros, and all of it can be differentiated, at zero too.

Reference:
    Cho and Lee, `Riemannian approach to batch normalization
    <https://arxiv.org/abs/1709.09603>`_, 2017.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._tree import widen

EPSILON = 1e-8  # added to a length before it divides
SHORT = 1e-3  # angles for which the first terms of a series are exact, in float64 too


class Columns(NamedTuple):
    """Where the columns of an array run."""

    axis: tuple[int, ...] | None = None  # its axes; None: all but the last
    axis_name: str | tuple[str, ...] | None = None  # of shard_map, if devices share each column


WHOLE = Columns()


def dot(x: jax.Array, y: jax.Array, columns: Columns = WHOLE) -> jax.Array:
    """Return the inner product of each column of x with that of y, shape (1, ..., 1, out)."""
    product = widen(x) * widen(y)
    total = jnp.sum(product, axis=_axes(product, columns), keepdims=True)
    return total if columns.axis_name is None else jax.lax.psum(total, columns.axis_name)


def norm(y: jax.Array, columns: Columns = WHOLE) -> jax.Array:
    """Return the length |y| of each column.

    Args:
        y: Shape (..., out).
        columns: Where the columns run.

    Returns:
        Shape (1, ..., 1, out): the shape of y, with 1 for the axes of a column.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> print(geometry.norm(jnp.array([[3.0, 0.0], [4.0, 2.0]])))
        [[5. 2.]]
    """
    y = widen(y)
    # Two sums, as no single scale keeps the squares of both huge and tiny columns in range.
    large, small = (_squares(y, s, columns) for s in (1 / _range(y), _range(y)))
    is_large = large > 1 / _range(y) ** 2
    return jnp.where(is_large, _range(y) * _root(large), _root(small) / _range(y))


def unit(y: jax.Array, columns: Columns = WHOLE) -> jax.Array:
    """Scale each column to length 1: y / (|y| + 1e-8·min(|y|, 1)). Zeros stay zeros.

    Args:
        y: Shape (..., out).
        columns: Where the columns run.

    Returns:
        Points, the shape of y.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> print(geometry.unit(jnp.array([[3.0, 0.0], [4.0, 2.0]])))
        [[0.6 0. ]
         [0.8 1. ]]
    """
    y = widen(y)
    length = norm(y, columns)
    padded = length + EPSILON * jnp.minimum(length, 1.0)
    return y * (1.0 / jnp.where(length == 0, 1.0, padded))


def project(y: jax.Array, g: jax.Array, columns: Columns = WHOLE) -> jax.Array:
    """Return the part of g that is tangent at y: g - (yᵀg)·y.

    Args:
        y: Points, shape (..., out).
        g: Any columns, such as a Euclidean gradient at y; the shape of y.
        columns: Where the columns run.

    Returns:
        Tangents at y, the shape of y.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> print(geometry.project(jnp.array([[1.0], [0.0]]), jnp.array([[5.0], [2.0]])))
        [[0.]
         [2.]]
    """
    y, g = widen(y), widen(g)
    return g - dot(y, g, columns) * y


def clip(h: jax.Array, max_norm: Any, columns: Columns = WHOLE) -> jax.Array:
    """Scale each column that is longer than `max_norm` to that length.

    Args:
        h: Shape (..., out).
        max_norm: The length, > 0; a scalar.
        columns: Where the columns run.

    Returns:
        The shape of h.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> print(geometry.clip(jnp.array([[3.0, 0.0], [4.0, 2.0]]), 2.5))
        [[1.5 0. ]
         [2.  2. ]]
    """
    h = widen(h)
    max_norm = jnp.asarray(max_norm, h.dtype)
    # By the largest element, as neither a square nor a quotient may leave the range.
    largest = _largest(h, columns)
    length = _root(_squares(h, 1.0 / largest, columns))
    is_long = length > max_norm / largest
    return h * jnp.where(is_long, 1.0 / largest, 1.0) * jnp.where(is_long, max_norm / length, 1.0)


def exp(y: jax.Array, h: jax.Array, columns: Columns = WHOLE) -> jax.Array:
    """Follow the geodesic from y along h to the point y·cos|h| + h/|h|·sin|h|.

    Args:
        y: Points, shape (..., out).
        h: Tangents at y, the shape of y; |h| is the angle in radians.
        columns: Where the columns run.

    Returns:
        Points, the shape of y. h = 0 gives y.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> y, h = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [jnp.pi / 6]])
        >>> print(geometry.exp(y, h).round(4))  # turned by 30 degrees
        [[0.866]
         [0.5  ]]
    """
    y, h = widen(y), widen(h)
    turn = _turn(h, columns)
    return y * turn.cosine + h * turn.slope


def transport(y: jax.Array, h1: jax.Array, h2: jax.Array, columns: Columns = WHOLE) -> jax.Array:
    """Transport h1 in parallel along the geodesic from y along h2.

    With u = h2 / |h2| the result is h1 - (uᵀh1)·(y·sin|h2| + u·(1 - cos|h2|)). Lengths and inner
    products of tangents stay as they are.

    Args:
        y: Points, shape (..., out).
        h1: Tangents at y that are moved, the shape of y.
        h2: Tangents at y to move along, the shape of y.
        columns: Where the columns run.

    Returns:
        Tangents at exp(y, h2), the shape of y.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> y, h = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])
        >>> print(geometry.transport(y, h, jnp.pi / 6 * h).round(4))  # turned by 30 degrees
        [[-0.5  ]
         [ 0.866]]
    """
    y, h1, h2 = widen(y), widen(h1), widen(h2)
    turn = _turn(h2, columns)
    along = dot(h2, h1, columns)
    return h1 - y * (along * turn.slope) - h2 * (along * turn.bend)


def transport_self(y: jax.Array, h: jax.Array, columns: Columns = WHOLE) -> jax.Array:
    """Transport h in parallel along itself: h·cos|h| - y·|h|·sin|h|.

    The same as `transport(y, h, h)`, with less work.

    Args:
        y: Points, shape (..., out).
        h: Tangents at y, the shape of y.
        columns: Where the columns run.

    Returns:
        Tangents at exp(y, h), the shape of y.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> y, h = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [jnp.pi / 3]])
        >>> print(geometry.transport_self(y, h).round(4))  # turned by 60 degrees
        [[-0.9069]
         [ 0.5236]]
    """
    y, h = widen(y), widen(h)
    turn = _turn(h, columns)
    return h * turn.kept - y * turn.fall


def orthogonality(y: jax.Array, columns: Columns = WHOLE, stack: tuple[int, ...] = ()) -> jax.Array:
    """Return ½‖VᵀV - I‖², 0 for orthonormal columns, with V the kernel as an (n, out) matrix.

    Args:
        y: Shape (..., out).
        columns: Where the columns run.
        stack: Axes of y that count kernels, each with a V of its own; the result is their sum.

    Returns:
        A scalar, >= 0; 0 where the columns have length 1 and are orthogonal to each other.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> print(geometry.orthogonality(jnp.array([[1.0, 1.0], [0.0, 0.0]])))
        1.0
    """
    y = widen(y)
    first = (*stack, *(axis for axis in _axes(y, columns) if axis not in stack))
    sizes = [y.shape[axis] for axis in first]
    count, n = math.prod(sizes[: len(stack)]), math.prod(sizes[len(stack) :])
    v = jnp.moveaxis(y, first, range(len(first))).reshape(count, n, -1)
    products = jnp.matmul(v.mT, v, precision=jax.lax.Precision.HIGHEST)
    if columns.axis_name is not None:
        products = jax.lax.psum(products, columns.axis_name)
    return 0.5 * jnp.sum(jnp.square(products - jnp.eye(v.shape[-1], dtype=v.dtype)[None]))


class _Turn(NamedTuple):
    """Factors of a turn by the angle |h|, a number a column."""

    cosine: jax.Array  # cos|h|
    kept: jax.Array  # cos|h|, times |h| / (|h| + 1e-8) as published
    slope: jax.Array  # sin|h| / |h|
    bend: jax.Array  # (1 - cos|h|) / |h|²
    fall: jax.Array  # |h|·sin|h|


def _turn(h: jax.Array, columns: Columns) -> _Turn:
    """Return the numbers of a turn along h, with 1e-8 added to |h| where it divides."""
    squares = _squares(h, 1 / _range(h), columns)
    is_short = squares < (SHORT / _range(h)) ** 2
    length = _range(h) * jnp.sqrt(jnp.where(is_short, _range(h) ** -2, squares))
    padded = length + EPSILON
    cosine, sine = jnp.cos(length), jnp.sin(length)
    # Series in |h|², so that all derivatives at h = 0 are those of the geodesic.
    q = _range(h) ** 2 * jnp.where(is_short, squares, 0.0)
    near, slope, bend = 1 - q / 2 + q * q / 24, 1 - q / 6 + q * q / 120, 0.5 - q / 24

    # Quotients all of them: XLA on the CPU computes a quotient once a column, but a bare cosine
    # again for each element, which made exp eight times slower.
    def quotient(series: Any, numerator: Any, divisor: Any) -> jax.Array:
        return jnp.where(is_short, series, numerator) / jnp.where(is_short, 1.0, divisor)

    return _Turn(
        cosine=quotient(near, cosine * padded, padded),
        kept=quotient(near, cosine * length, padded),
        slope=quotient(slope, sine, padded),
        bend=quotient(bend, (1 - cosine) / padded, padded),
        fall=quotient(q * slope, sine, 1.0 / length),
    )


def _axes(y: jax.Array, columns: Columns) -> tuple[int, ...]:
    return tuple(range(y.ndim - 1)) if columns.axis is None else columns.axis


def _range(y: jax.Array) -> float:
    """Return a power of 2 whose fourth power is in range, as XLA may multiply it out."""
    return 2.0 ** (31 if jnp.finfo(y.dtype).bits == 32 else 200)


def _largest(y: jax.Array, columns: Columns) -> jax.Array:
    """Return the largest |element| of each column, a constant whose inverse is a normal number."""
    largest = jnp.max(jnp.abs(y), axis=_axes(y, columns), keepdims=True)
    largest = jax.lax.stop_gradient(largest)
    if columns.axis_name is not None:
        largest = jax.lax.pmax(largest, columns.axis_name)
    tiny = float(jnp.finfo(y.dtype).tiny)
    return jnp.clip(largest, tiny, 1.0 / tiny)


def _squares(y: jax.Array, scale: Any, columns: Columns) -> jax.Array:
    """Return (|y|·scale)² of each column."""
    return dot(y * scale, y * scale, columns)


def _root(square: jax.Array) -> jax.Array:
    """Return the square root, with the derivative 0 at 0."""
    return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))
