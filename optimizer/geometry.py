r"""The geometry of G(1, n), the lines through the origin of an n-dimensional space.

A kernel of shape (..., out) holds `out` points: a column is what one output unit reads, all axes
but the last flattened to n numbers. A point is a column of length 1, `y`; a tangent at y is a
column orthogonal to y, `h`. Along the geodesic that leaves y in the direction of h, the point
turns by the angle |h|, in radians.

Everything works column by column, on arrays of shape (..., out) and of any real dtype. bfloat16 and
float16 are widened to float32, and so are the results. Where a length is divided by, 1e-8 is added
to it, so columns of zeros give zeros, not NaN.

Reference:
    Cho and Lee, `Riemannian approach to batch normalization
    <https://arxiv.org/abs/1709.09603>`_, 2017.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ._tree import widen

EPSILON = 1e-8  # added to a length before it divides


def norm(y: jax.Array) -> jax.Array:
    """Return the length |y| of each column.

    Args:
        y: Shape (..., out).

    Returns:
        Shape (1, ..., 1, out).

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> print(geometry.norm(jnp.array([[3.0, 0.0], [4.0, 2.0]])))
        [[5. 2.]]
    """
    return jnp.sqrt(_dot(y, y))


def unit(y: jax.Array) -> jax.Array:
    """Scale each column to length 1: y / (|y| + 1e-8). Zeros stay zeros.

    Args:
        y: Shape (..., out).

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
    return y * (1.0 / (norm(y) + EPSILON))


def project(y: jax.Array, g: jax.Array) -> jax.Array:
    """Return the part of g that is tangent at y: g - (yᵀg)·y.

    Args:
        y: Points, shape (..., out).
        g: Any columns, such as a Euclidean gradient at y; the shape of y.

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
    return g - _dot(y, g) * y


def clip(h: jax.Array, max_norm: Any) -> jax.Array:
    """Scale each column that is longer than `max_norm` to that length.

    Args:
        h: Shape (..., out).
        max_norm: The length, > 0; a scalar.

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
    return h * (max_norm / jnp.maximum(norm(h), max_norm))


def exp(y: jax.Array, h: jax.Array) -> jax.Array:
    """Follow the geodesic from y along h to the point y·cos|h| + h/|h|·sin|h|.

    Args:
        y: Points, shape (..., out).
        h: Tangents at y, the shape of y; |h| is the angle in radians.

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
    _, cosine, slope = _turn(h)
    return y * cosine + h * slope


def transport(y: jax.Array, h1: jax.Array, h2: jax.Array) -> jax.Array:
    """Transport h1 in parallel along the geodesic from y along h2.

    With u = h2 / |h2| the result is h1 - (uᵀh1)·(y·sin|h2| + u·(1 - cos|h2|)). Lengths and inner
    products of tangents stay as they are.

    Args:
        y: Points, shape (..., out).
        h1: Tangents at y that are moved, the shape of y.
        h2: Tangents at y to move along, the shape of y.

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
    padded, cosine, slope = _turn(h2)
    along = _dot(h2, h1) / padded
    return h1 - y * (along * slope * padded) - h2 * (along * (1.0 - cosine) / padded)


def transport_self(y: jax.Array, h: jax.Array) -> jax.Array:
    """Transport h in parallel along itself: h·cos|h| - y·|h|·sin|h|.

    The same as `transport(y, h, h)`, with less work.

    Args:
        y: Points, shape (..., out).
        h: Tangents at y, the shape of y.

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
    padded, cosine, slope = _turn(h)
    length = norm(h)
    return h * (cosine * length / padded) - y * (slope * padded * length)


def orthogonality(y: jax.Array) -> jax.Array:
    """Return ½‖VᵀV - I‖², 0 for orthonormal columns, with V the kernel as an (n, out) matrix.

    Args:
        y: Shape (..., out).

    Returns:
        A scalar, >= 0; 0 where the columns have length 1 and are orthogonal to each other.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import geometry
        >>> print(geometry.orthogonality(jnp.array([[1.0, 1.0], [0.0, 0.0]])))
        1.0
    """
    columns = widen(y).reshape(-1, y.shape[-1])
    products = jnp.matmul(columns.T, columns, precision=jax.lax.Precision.HIGHEST)
    return 0.5 * jnp.sum(jnp.square(products - jnp.eye(y.shape[-1], dtype=products.dtype)))


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the inner product of each column of x with that of y, shape (1, ..., 1, out)."""
    product = widen(x) * widen(y)
    return jnp.sum(product, axis=tuple(range(product.ndim - 1)), keepdims=True)


def _turn(h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return |h| + 1e-8, cos|h| and sin|h| / (|h| + 1e-8) of each column."""
    length = norm(h)
    padded = length + EPSILON
    # Both are quotients: XLA on the CPU computes a quotient once a column, but a bare cosine again
    # for each element, which made exp eight times slower.
    return padded, jnp.cos(length) * padded / padded, jnp.sin(length) / padded
