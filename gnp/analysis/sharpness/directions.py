"""Directions to look along, and the steepest place nearby."""

from typing import Any, NamedTuple

import jax
import numpy as np

from gnp.analysis.sharpness.surface import Surface, Vector

ASCENT_STEPS = 10


class SamSharpness(NamedTuple):
    """max over |d| <= r of L(theta + d) - L(theta).

    Attributes:
        first_order: at d = r g / |g|, SAM's own answer.
        maximum: the largest that was found.
        steps: of gradient ascent.
    """

    first_order: float
    maximum: float
    steps: int


def sam_sharpness(
    surface: Surface,
    loss: float,
    gradient: Vector,
    sharpest: Vector,
    radius: float,
    steps: int = ASCENT_STEPS,
) -> SamSharpness:
    """Find how much the loss can rise within a ball.

    The maximum starts from the best of r g / |g| and +-r u, u the eigenvector of the largest
    eigenvalue, and goes on by d <- projection onto the ball of (d + r g(theta + d) / |g|). It is a
    lower bound of the true one.

    Args:
        surface: around theta.
        loss: L(theta).
        gradient: g [p].
        sharpest: u [p], length 1.
        radius: r > 0.
        steps: of ascent.

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), arXiv 2010.01412.
    """
    offset = radius * _unit(gradient)
    first = surface.loss(offset) - loss
    found = [(first, offset)]
    for start in (radius * sharpest, -radius * sharpest):
        found.append((surface.loss(start) - loss, start))
    best, offset = max(found, key=lambda pair: pair[0])
    for _ in range(steps):
        offset = offset + radius * _unit(surface.gradient(offset))
        length = float(np.linalg.norm(offset))
        offset = offset * min(1.0, radius / length) if length > 0 else offset
        best = max(best, surface.loss(offset) - loss)
    return SamSharpness(first, best, steps)


def filter_normalized(params: Any, seed: int, number: int) -> Vector:
    """Draw a random direction in which each filter is as long as the parameters' own.

    d_j <- d_j |theta_j| / |d_j| for each output unit j of a weight; biases and scales stay.

    Args:
        params: pytree; the last axis of an array of rank > 1 counts output units.
        seed: of the direction.
        number: 0, 1, ...: another one.

    Returns:
        [p], in the order of the leaves.

    Example:
        >>> direction = filter_normalized({"kernel": np.full((8, 2), 3.0)}, seed=0, number=0)
        >>> bool(np.isclose(np.linalg.norm(direction), np.sqrt(16 * 9)))
        True

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv 1712.09913.
    """
    random = np.random.default_rng((seed, number, 0x4669))
    parts = []
    for leaf in map(np.asarray, jax.tree.leaves(params)):
        direction = random.standard_normal(leaf.shape)
        if leaf.ndim < 2:
            parts.append(np.zeros(leaf.size))
            continue
        axes = tuple(range(leaf.ndim - 1))
        own = np.sqrt(np.square(leaf.astype(np.float64)).sum(axes, keepdims=True))
        length = np.sqrt(np.square(direction).sum(axes, keepdims=True))
        parts.append((direction * own / np.maximum(length, 1e-30)).ravel())
    return np.concatenate(parts)


def curve(surface: Surface, direction: Vector, distances: Vector) -> Vector:
    """Return L(theta + t d) for each t."""
    return np.array([surface.loss(t * direction) for t in distances])


def contour(surface: Surface, first: Vector, second: Vector, distances: Vector) -> Vector:
    """Return [n, n]: L(theta + x first + y second), rows by y, columns by x."""
    return np.array([[surface.loss(x * first + y * second) for x in distances] for y in distances])


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector
