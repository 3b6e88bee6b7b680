"""Eigenvalues, trace and spectral density of a symmetric matrix of which only H v is known.

The loop over the products is on the host. As a loop inside a compiled function, which is how
matfree has it, a convolution is several times slower on the CPU, the examples could not be
streamed, and it could not stop when the eigenvalues have converged.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matfree import stochtrace

Vector = npt.NDArray[np.float64]
Basis = npt.NDArray[np.float32]
Product = Callable[[Vector], Vector]

_TINY = 1e-6  # of the largest eigenvalue: float32's rounding


class Decomposition(NamedTuple):
    """H Q = Q T + residual, T tridiagonal.

    Attributes:
        basis: [k, p], orthonormal rows, float32 to halve the memory.
        diagonal: [k].
        off_diagonal: [k - 1].
        residual: length of what is left over.
    """

    basis: Basis
    diagonal: Vector
    off_diagonal: Vector
    residual: float


class Ritz(NamedTuple):
    """Eigenvalues of T, ascending, and how far they can be from one of H.

    Attributes:
        values: [k].
        vectors: [k, k], a column each, in the basis.
        residuals: [k], |H u - theta u| and float32's rounding; an eigenvalue of H is not farther
            away than that.
    """

    values: Vector
    vectors: Vector
    residuals: Vector


def lanczos(
    product: Product,
    start: Vector,
    steps: int,
    against: Basis | None = None,
    enough: Callable[[Ritz], bool] | None = None,
    restart: Callable[[], Vector] | None = None,
) -> Decomposition:
    """Run Lanczos' algorithm with full reorthogonalization (twice is enough).

    Args:
        product: v -> H v.
        start: [p], not 0; need not have length 1.
        steps: at most so many products, and at most p.
        against: [j, p], orthonormal rows that span an invariant space to stay out of.
        enough: asked after each step, unless an invariant space was completed before: what is
            outside of it is then unknown. None: takes all steps.
        restart: draws a vector to go on with where an invariant space is complete (eigenvalues of
            several dimensions show only so); None: ends there.

    Example:
        >>> matrix = np.diag([1.0, 2.0, 5.0])
        >>> found = lanczos(lambda v: matrix @ v, np.ones(3), steps=3)
        >>> ritz_values(found).values.round(5).tolist()
        [1.0, 2.0, 5.0]

    References:
        Lanczos (1950), An iteration method for the solution of the eigenvalue problem;
        Parlett (1980), The Symmetric Eigenvalue Problem.
    """
    if against is None:
        against = np.zeros((0, start.size), np.float32)
    steps = min(steps, start.size - len(against))
    basis = np.empty((steps, start.size), np.float32)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    residual = 0.0
    vector, _ = _unit(_outside(start, against))
    for step in range(1, steps + 1):
        if diagonal:
            off_diagonal.append(residual)
        basis[step - 1] = vector
        image = product(vector)
        diagonal.append(float(vector @ image))
        # Explicitly against all: rounding would let converged eigenvectors come back.
        vector, residual = _unit(_outside(image, against, basis[:step]))
        complete = residual <= _TINY * max(np.abs([*diagonal, *off_diagonal]))
        residual = 0.0 if complete else residual
        found = Decomposition(basis[:step], np.array(diagonal), np.array(off_diagonal), residual)
        if complete:
            if restart is None:
                break
            enough = None
            vector, _ = _unit(_outside(restart(), against, basis[:step]))
        elif enough is not None and enough(ritz_values(found)):
            break
    return found


def ritz_values(found: Decomposition) -> Ritz:
    """Return what a decomposition knows of the eigenvalues."""
    off = found.off_diagonal
    values, vectors = np.linalg.eigh(np.diag(found.diagonal) + np.diag(off, 1) + np.diag(off, -1))
    rounding = _TINY * np.abs(values).max()
    return Ritz(values, vectors, np.abs(found.residual * vectors[-1]) + rounding)


def is_exact(ritz: Ritz, tolerance: float) -> npt.NDArray[np.bool_]:
    """Tell which residuals are below tolerance * max(|theta|, largest |theta| / 100)."""
    size = np.abs(ritz.values)
    return ritz.residuals <= tolerance * np.maximum(size, size.max() / 100)


class Extremes(NamedTuple):
    """The ends of the spectrum.

    Attributes:
        largest: [n], descending.
        residuals: [n], theirs.
        smallest: the most negative.
        smallest_residual: its.
        exact: every one converged.
        steps: products taken.
        decomposition: for `trace` and `spectrum`.
    """

    largest: Vector
    residuals: Vector
    smallest: float
    smallest_residual: float
    exact: bool
    steps: int
    decomposition: Decomposition


def extremes(
    product: Product, size: int, count: int, steps: int, seed: int, tolerance: float = 1e-3
) -> Extremes:
    """Find the largest eigenvalues and the smallest one.

    Args:
        product: v -> H v.
        size: p.
        count: how many of the largest; fewer come back where p or steps is less.
        steps: products at most; it stops before where all have converged.
        seed: of the start.
        tolerance: largest residual, relative to the eigenvalue. The error of an eigenvalue that
            stands apart is of the order of its square.

    Example:
        >>> ends = extremes(lambda v: np.arange(30.0) * v, 30, count=2, steps=30, seed=0)
        >>> ends.largest.round(4).tolist(), abs(round(ends.smallest, 4))
        ([29.0, 28.0], 0.0)
    """
    random = np.random.default_rng((seed, 0x4C61))
    count = min(count, size)

    def ends(ritz: Ritz) -> npt.NDArray[np.bool_]:
        exact = is_exact(ritz, tolerance)
        return np.append(exact[-count:], exact[0])

    found = lanczos(
        product,
        random.standard_normal(size),
        steps,
        enough=lambda ritz: len(ritz.values) > count and bool(ends(ritz).all()),
        restart=lambda: random.standard_normal(size),
    )
    ritz = ritz_values(found)
    count = min(count, len(ritz.values))
    return Extremes(
        largest=ritz.values[::-1][:count],
        residuals=ritz.residuals[::-1][:count],
        smallest=float(ritz.values[0]),
        smallest_residual=float(ritz.residuals[0]),
        exact=bool(ends(ritz).all()),
        steps=len(found.basis),
        decomposition=found,
    )


def trace(
    product: Product, found: Decomposition, samples: int, seed: int
) -> tuple[float, float, Vector]:
    """Return the trace, its standard error, and the samples that it is the mean of.

    tr H = tr T + E[w' H w], w = (1 - Q Q') v with random signs v: exact in the space that Lanczos
    knows, Hutchinson's estimate in the rest, which holds the small eigenvalues only (Hutch++).

    Args:
        product: v -> H v.
        found: of H.
        samples: products to take, at least 2.
        seed: of the signs.

    Example:
        >>> product = lambda v: np.repeat([9.0, 4.0, 1.0, 0.0], 5) * v
        >>> ends = extremes(product, 20, count=2, steps=20, seed=0)
        >>> mean, error, _ = trace(product, ends.decomposition, samples=9, seed=0)
        >>> abs(mean - 70) < 3 * error + 0.001
        True

    References:
        Hutchinson (1989), A stochastic estimator of the trace of the influence matrix;
        Meyer, Musco, Musco, Woodruff (2021), Hutch++, arXiv 2010.09649.
    """
    size = found.basis.shape[1]
    rest = stochtrace.monte_carlo_trace()
    known = float(found.diagonal.sum())
    values = [known] * samples
    if size > len(found.basis):
        values = []
        for vector in _signs(size, samples, seed):
            outside = _outside(vector, found.basis)
            values.append(known + float(rest(product, outside)))
    each = np.array(values)
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(samples)), each


class Spectrum(NamedTuple):
    """The spectral density, as points with weights.

    Attributes:
        values: [n], eigenvalues.
        weights: [probes, n], their shares of all p eigenvalues as each probe has them; every row
            sums to 1.
    """

    values: Vector
    weights: Vector


def spectrum(
    product: Product,
    found: Decomposition,
    probes: int,
    steps: int,
    seed: int,
    tolerance: float = 1e-3,
) -> Spectrum:
    """Estimate the spectral density (1/p) sum_i delta(x - lambda_i) by stochastic quadrature.

    What has converged in `found` counts 1/p each; random probes outside of it give the rest.

    Args:
        product: v -> H v.
        found: of H.
        probes: random vectors.
        steps: products a probe.
        seed: of the vectors.
        tolerance: as in `extremes`.

    Example:
        >>> product = lambda v: np.arange(4.0) * v
        >>> ends = extremes(product, 4, count=2, steps=4, seed=0)
        >>> found = spectrum(product, ends.decomposition, probes=1, steps=4, seed=0)
        >>> np.abs(found.values.round(3)).tolist(), found.weights.round(3).tolist()
        ([0.0, 1.0, 2.0, 3.0], [[0.25, 0.25, 0.25, 0.25]])

    References:
        Golub, Meurant (2010), Matrices, Moments and Quadrature with Applications;
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
    """
    size = found.basis.shape[1]
    ritz = ritz_values(found)
    exact = np.flatnonzero(is_exact(ritz, tolerance))
    converged = ritz.vectors[:, exact].T.astype(np.float32) @ found.basis
    values, rows = [ritz.values[exact]], [np.full((probes, len(exact)), 1 / size)]
    left = size - len(exact)
    for probe, vector in enumerate(_signs(size, probes, seed + 1) if left else []):
        part = ritz_values(lanczos(product, vector, steps, against=converged))
        weights = np.zeros((probes, len(part.values)))
        weights[probe] = left / size * part.vectors[0] ** 2
        values.append(part.values)
        rows.append(weights)
    return Spectrum(np.concatenate(values), np.concatenate(rows, axis=1))


def smooth(found: Spectrum, width: float, points: Vector) -> tuple[Vector, Vector]:
    """Return the density, a Gaussian an eigenvalue, and its standard error over the probes.

    Args:
        found: of H.
        width: the Gaussians' standard deviation, in units of the eigenvalues.
        points: [g], where.

    Example:
        >>> point = Spectrum(np.zeros(1), np.ones((1, 1)))
        >>> smooth(point, 1.0, np.zeros(1))[0].round(4).tolist()
        [0.3989]
    """
    each = np.zeros((len(found.weights), len(points)))
    for value, weights in zip(found.values, found.weights.T, strict=True):
        bell = np.exp(-0.5 * ((points - value) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        each += weights[:, None] * bell
    probes = len(each)
    error = (
        each.std(axis=0, ddof=1) / np.sqrt(probes) if probes > 1 else np.full(len(points), np.nan)
    )
    return each.mean(axis=0), error


def eigenvector(found: Decomposition, index: int) -> Vector:
    """Return the Ritz vector [p] of the index-th value, ascending; length 1."""
    return _unit(ritz_values(found).vectors[:, index] @ found.basis)[0]


def _signs(size: int, count: int, seed: int) -> list[Vector]:
    """Draw random signs, one vector at a time: [size] each."""
    sample = stochtrace.sampler_signs(jnp.zeros(size), num=1)
    keys = jax.random.split(jax.random.key(seed), count)
    return [np.asarray(sample(key)[0], np.float64) for key in keys]


def _outside(vector: Vector, *bases: Basis) -> Vector:
    """Return what is orthogonal to the bases' rows. Twice: the first time leaves rounding."""
    for _ in range(2):
        for basis in bases:
            vector = vector - (basis @ vector.astype(np.float32)) @ basis
    return vector


def _unit(vector: Vector) -> tuple[Vector, float]:
    length = float(np.linalg.norm(vector))
    return (vector / length if length > 0 else vector), length
