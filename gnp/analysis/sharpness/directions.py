"""Directions to look along, and the steepest place nearby."""

from typing import Any

import jax
import numpy as np

from gnp.analysis.sharpness.spectrum import unit
from gnp.analysis.sharpness.surface import Surface, Vector

ASCENT_STEPS = 10


def sam_sharpness(
    surface: Surface, loss: float, gradient: Vector, sharpest: Vector, radius: float
) -> tuple[float, float]:
    """Find how much the loss can rise within a ball, max over |d| <= r of L(theta + d) - L(theta).

    It starts from the best of r g / |g| and +-r u, u the eigenvector of the largest eigenvalue,
    and goes on by d <- projection onto the ball of (d + r g(theta + d) / |g|).

    Args:
        surface: around theta.
        loss: L(theta).
        gradient: g [p].
        sharpest: u [p], length 1.
        radius: r > 0.

    Returns:
        The largest rise that was found, a lower bound of the true one; the rise at r g / |g|,
        SAM's own answer.

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), arXiv 2010.01412.
    """
    starts = [radius * unit(gradient), radius * sharpest, -radius * sharpest]
    rises = [surface.loss(start) - loss for start in starts]
    offset = starts[rises.index(max(rises))]
    found = list(rises)
    for _ in range(ASCENT_STEPS):
        offset = offset + radius * unit(surface.gradient(offset))
        offset = offset * min(1.0, radius / max(float(np.linalg.norm(offset)), 1e-300))
        found.append(surface.loss(offset) - loss)
    return max(found), rises[0]


def filter_normalized(params: Any, seed: int, number: int) -> Vector:
    """Draw a random direction in which each filter is as long as the parameters' own.

    d_j <- d_j |theta_j| / |d_j| for each output unit j of a weight; biases and scales stay.

    Args:
        params: pytree; the last axis of an array of rank > 1 counts output units.
        seed: of the direction.
        number: 0, 1, ...: another one.

    Returns:
        [p], in the order of the leaves.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv 1712.09913.
    """
    random = np.random.default_rng((seed, number, 0x4669))
    directions = []
    for leaf in map(np.asarray, jax.tree.leaves(params)):
        direction = random.standard_normal(leaf.shape)
        axes = tuple(range(leaf.ndim - 1))
        own = np.sqrt(np.square(leaf.astype(np.float64)).sum(axes, keepdims=True))
        length = np.sqrt(np.square(direction).sum(axes, keepdims=True))
        scaled = direction * own / np.maximum(length, 1e-30) if leaf.ndim > 1 else 0 * direction
        directions.append(scaled.ravel())
    return np.concatenate(directions)


def curve(surface: Surface, direction: Vector, distances: Vector) -> Vector:
    """Return L(theta + t d) for each t."""
    return np.array([surface.loss(t * direction) for t in distances])


def contour(surface: Surface, first: Vector, second: Vector, distances: Vector) -> Vector:
    """Return [n, n]: L(theta + x first + y second), rows by y, columns by x."""
    return np.array([[surface.loss(x * first + y * second) for x in distances] for y in distances])
