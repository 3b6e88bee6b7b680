"""Ends, trace and density of the spectrum of a symmetric matrix of which only H v is known.

One Lanczos method serves all three. Its loop is on the host: examples can be streamed through a
product, and it stops as soon as the ends of the spectrum have converged.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Product = Callable[[Vector], Vector]

_ROUNDING = 1e-6  # float32's, as a share of the largest eigenvalue


class Ritz(NamedTuple):
    """Eigenvalues of a matrix within a Krylov space.

    Attributes:
        values: [k], ascending.
        vectors: [k, k], a column each, in the basis.
        residuals: [k], |H u - theta u| and float32's rounding.
        basis: [k, p], orthonormal rows, float32 to halve the memory.
    """

    values: Vector
    vectors: Vector
    residuals: Vector
    basis: npt.NDArray[np.float32]

    def vector(self, index: int) -> Vector:
        """Return the vector [p], of length 1, of the index-th value."""
        return unit(self.vectors[:, index] @ self.basis)


def lanczos(
    product: Product,
    start: Vector,
    steps: int,
    random: np.random.Generator,
    done: Callable[[Ritz], bool] | None = None,
) -> Ritz:
    """Run Lanczos' method with full reorthogonalization.

    Args:
        product: v -> H v.
        start: [p], not 0; need not have length 1.
        steps: at most so many products, and at most p.
        random: draws a vector to go on with where an invariant space is complete: eigenvalues of
            several dimensions show only so, and `done` is asked no more.
        done: asked after each step; None: takes all steps.

    References:
        Lanczos (1950), An iteration method for the solution of the eigenvalue problem;
        Parlett (1980), The Symmetric Eigenvalue Problem.
    """
    steps = min(steps, start.size)
    basis = np.empty((steps, start.size), np.float32)
    tridiagonal = np.zeros((steps + 1, steps + 1))
    vector = unit(start)
    for step in range(steps):
        basis[step], image = vector, product(vector)
        known = slice(0, step + 1)
        # Explicitly against all: rounding would let converged eigenvectors come back.
        rest = _outside(image, basis[known])
        length = float(np.linalg.norm(rest))
        tridiagonal[step, step] = vector @ image
        if length <= _ROUNDING * np.abs(tridiagonal).max():
            length, done = 0.0, None
            rest = _outside(random.standard_normal(start.size), basis[known])
        if done or step + 1 == steps:
            values, vectors = np.linalg.eigh(tridiagonal[known, known])
            residuals = np.abs(length * vectors[-1]) + _ROUNDING * np.abs(values).max()
            found = Ritz(values, vectors, residuals, basis[known])
            if done and done(found):
                break
        tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = length
        vector = unit(rest)
    return found


class Extremes(NamedTuple):
    """The ends of the spectrum.

    Attributes:
        largest: [n], descending.
        residuals: [n], |H u - theta u| of each; an eigenvalue of H is not farther away than that.
        smallest: the most negative.
        smallest_residual: its.
        converged: every one.
        ritz: the space that was searched.
    """

    largest: Vector
    residuals: Vector
    smallest: float
    smallest_residual: float
    converged: bool
    ritz: Ritz


def extremes(product: Product, size: int, count: int, steps: int, seed: int) -> Extremes:
    """Find the largest eigenvalues and the smallest one.

    Args:
        product: v -> H v.
        size: p.
        count: how many of the largest; fewer come back where p or steps is less.
        steps: products at most; it stops before where all have converged. Residuals take one more
            for each eigenvalue.
        seed: of the start.

    Example:
        >>> ends = extremes(lambda v: np.arange(30.0) * v, 30, count=2, steps=30, seed=0)
        >>> ends.largest.round(4).tolist(), abs(round(ends.smallest, 4))
        ([29.0, 28.0], 0.0)
    """
    random = np.random.default_rng((seed, 0x4C61))
    ends = [0, *range(-1, -1 - min(count, steps, size), -1)]

    def done(ritz: Ritz) -> bool:
        exact = _converged(ritz.values, ritz.residuals)
        return len(exact) > count and bool(exact[ends].all())

    ritz = lanczos(product, random.standard_normal(size), steps, random, done)
    values, residuals = ritz.values[ends], np.empty(len(ends))
    for i, end in enumerate(ends):
        vector = ritz.vector(end)
        residuals[i] = np.linalg.norm(product(vector) - values[i] * vector)
    converged = bool(_converged(values, residuals).all())
    return Extremes(
        values[1:], residuals[1:], float(values[0]), float(residuals[0]), converged, ritz
    )


def trace(product: Product, ritz: Ritz, samples: int, seed: int) -> tuple[float, float]:
    """Return the trace and its standard error.

    tr H = sum of Ritz values + E[w' H w], w the part of random signs v outside of the Krylov
    space: exact in it, Hutchinson's estimate in the rest, where the small eigenvalues are.

    Args:
        product: v -> H v.
        ritz: of H.
        samples: products to take, at least 2.
        seed: of the signs.

    References:
        Hutchinson (1989), A stochastic estimator of the trace of the influence matrix;
        Meyer, Musco, Musco, Woodruff (2021), Hutch++, arXiv 2010.09649.
    """
    rest = []
    for signs in _signs(ritz.basis.shape[1], samples, seed):
        vector = _outside(signs, ritz.basis)
        rest.append(vector @ product(vector))
    return float(ritz.values.sum() + np.mean(rest)), float(np.std(rest, ddof=1) / np.sqrt(samples))


def spectrum(
    product: Product, ritz: Ritz, probes: int, steps: int, seed: int
) -> tuple[Vector, Vector]:
    """Estimate the spectral density (1/p) sum_i delta(x - lambda_i) by stochastic quadrature.

    What has converged in the Krylov space counts 1/p each; random probes outside of it give the
    rest.

    Args:
        product: v -> H v.
        ritz: of H.
        probes: random vectors.
        steps: products a probe.
        seed: of the vectors.

    Returns:
        Eigenvalues [n]; their shares of all p as each probe has them [probes, n], whose rows sum
        to 1.

    References:
        Golub, Meurant (2010), Matrices, Moments and Quadrature with Applications;
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
    """
    random = np.random.default_rng((seed, 0x534C))
    size = ritz.basis.shape[1]
    exact = _converged(ritz.values, ritz.residuals)
    known = ritz.vectors[:, exact].T.astype(np.float32) @ ritz.basis
    left = size - len(known)
    values, rows = [ritz.values[exact]], [np.full((probes, len(known)), 1 / size)]
    for probe, signs in enumerate(_signs(size, probes if left else 0, seed + 1)):
        start = _outside(signs, known)
        part = lanczos(lambda v: _outside(product(v), known), start, min(steps, left), random)
        values.append(part.values)
        rows.append(np.zeros((probes, len(part.values))))
        rows[-1][probe] = left / size * part.vectors[0] ** 2
    return np.concatenate(values), np.concatenate(rows, axis=1)


def smooth(values: Vector, weights: Vector, width: float, points: Vector) -> tuple[Vector, Vector]:
    """Return the density, a Gaussian an eigenvalue, and its standard error over the probes.

    Args:
        values: [n].
        weights: [probes, n], probes at least 2.
        width: the Gaussians' standard deviation, in units of the eigenvalues.
        points: [g], where.
    """
    distances = (points - values[:, None]) / width
    each = weights @ np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi))
    return each.mean(axis=0), each.std(axis=0, ddof=1) / np.sqrt(len(each))


def _converged(values: Vector, residuals: Vector) -> npt.NDArray[np.bool_]:
    """Tell which residuals are below 1e-3 of the eigenvalue, or 1e-5 of the largest.

    The error of an eigenvalue that stands apart is of the order of its residual's square.
    """
    size = np.abs(values)
    return residuals <= 1e-3 * np.maximum(size, size.max() / 100)


def _signs(size: int, count: int, seed: int) -> Iterator[Vector]:
    """Draw random signs, one vector at a time: [size] each."""
    for key in jax.random.split(jax.random.key(seed), count):
        yield np.asarray(jax.random.rademacher(key, (size,)), np.float64)


def _outside(vector: Vector, basis: npt.NDArray[np.float32]) -> Vector:
    """Return what is orthogonal to the basis' rows. Twice: the first time leaves rounding."""
    for _ in range(2):
        vector = vector - (basis @ vector.astype(np.float32)) @ basis
    return vector


def unit(vector: Vector) -> Vector:
    """Return a vector of length 1 of the same direction; zero stays zero."""
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector
