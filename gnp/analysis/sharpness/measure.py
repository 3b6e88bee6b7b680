"""Everything that is measured of one checkpoint."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gnp.analysis.sharpness.directions import (
    ASCENT_STEPS,
    contour,
    curve,
    filter_normalized,
    sam_sharpness,
)
from gnp.analysis.sharpness.spectrum import Extremes, extremes, smooth, spectrum, trace, unit
from gnp.analysis.sharpness.surface import SharpnessError, Surface, Vector

Stage = Callable[[str], Any]


class Settings(NamedTuple):
    """The extent of a measurement.

    Attributes:
        eigenvalues: of the largest.
        radius: r of SAM's ball.
        seed: of every random vector.
        eigenvalue_steps: Lanczos steps at most.
        trace_samples: Hessian-vector products for the trace.
        density_probes, density_steps: of the spectral density.
        curve_points: of each curve; odd.
        contour_points: of the contour, each way; odd.
    """

    eigenvalues: int = 5
    radius: float = 0.05
    seed: int = 0
    eigenvalue_steps: int = 80
    trace_samples: int = 20
    density_probes: int = 2
    density_steps: int = 30
    curve_points: int = 31
    contour_points: int = 15


def measure_flatness(
    surface: Surface, settings: Settings, stage: Stage = lambda name: None
) -> tuple[dict[str, Any], Extremes, Vector]:
    """Return loss, gradient norm, ends of the spectrum, trace and SAM sharpness.

    Args:
        surface: around a checkpoint.
        settings: how much.
        stage: told what comes next.

    Returns:
        JSON values by name; the ends of the spectrum; the gradient [p].

    Raises:
        SharpnessError: the loss, its gradient or a product is not finite.
    """
    stage("gradient")
    loss, data_loss = surface.loss(), surface.data_loss()
    gradient = surface.gradient()
    _check_finite("the loss", loss)
    _check_finite("the gradient", gradient)

    def product(vector: Vector) -> Vector:
        image = surface.hessian(vector)
        _check_finite("a Hessian-vector product", image)
        return image

    stage("eigenvalues")
    count, steps, seed = settings.eigenvalues, settings.eigenvalue_steps, settings.seed
    ends = extremes(product, surface.flat.size, count, steps, seed)
    stage("trace")
    mean, error = trace(product, ends.ritz, settings.trace_samples, seed)
    stage("SAM sharpness")
    sharpest = ends.ritz.vector(-1)
    rise, first_order = sam_sharpness(surface, loss, gradient, sharpest, settings.radius)
    values = {
        "examples": surface.examples,
        "parameters": surface.flat.size,
        "loss": loss,
        "data_loss": data_loss,
        "gradient_norm": float(np.linalg.norm(gradient)),
        "hessian_eigenvalues": ends.largest.tolist(),
        "hessian_eigenvalue_residuals": ends.residuals.tolist(),
        "hessian_smallest_eigenvalue": ends.smallest,
        "hessian_smallest_eigenvalue_residual": ends.smallest_residual,
        "hessian_eigenvalues_converged": ends.converged,
        "hessian_products": len(ends.ritz.values),
        "hessian_trace": mean,
        "hessian_trace_error": error,
        "hessian_trace_samples": settings.trace_samples,
        "sam_radius": settings.radius,
        "sam_sharpness": _finite(rise),
        "sam_sharpness_first_order": _finite(first_order),
        "sam_ascent_steps": ASCENT_STEPS,
    }
    return values, ends, gradient


def measure_sharpness(
    surface: Surface, settings: Settings, stage: Stage = lambda name: None
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return all: numbers by name, and arrays of the spectral density and the curves.

    Args:
        surface: around a checkpoint.
        settings: how much.
        stage: told what comes next.

    Returns:
        JSON values; arrays: "density_points" [g], "density" [g], "density_error" [g],
        "density_values" [n], "density_weights" [probes, n], "gradient_distances" [c],
        "gradient_losses" [c], "random_distances" [c], "random_losses" [2, c],
        "contour_distances" [n], "contour_losses" [n, n].
    """
    values, ends, gradient = measure_flatness(surface, settings, stage)
    stage("spectral density")
    probes, steps, seed = settings.density_probes, settings.density_steps, settings.seed
    found, weights = spectrum(surface.hessian, ends.ritz, probes, steps, seed)
    low, high = np.min(found), np.max(found)
    width = 0.01 * (high - low) or 1e-3 * max(abs(high), 1e-6)
    points = np.linspace(low - 6 * width, high + 6 * width, 1001)
    density, error = smooth(found, weights, width, points)
    stage("loss curves")
    distances = np.linspace(-10 * settings.radius, 10 * settings.radius, settings.curve_points)
    params = jax.device_get(surface.products.unravel(jnp.asarray(surface.flat, jnp.float32)))
    first, second = (filter_normalized(params, seed, number) for number in (0, 1))
    shares = np.linspace(-1, 1, settings.curve_points)
    arrays = {
        "density_points": points,
        "density": density,
        "density_error": error,
        "density_values": found,
        "density_weights": weights,
        "gradient_distances": distances,
        "gradient_losses": curve(surface, unit(gradient), distances),
        "random_distances": shares,
        "random_losses": np.array([curve(surface, each, shares) for each in (first, second)]),
    }
    stage("loss contour")
    grid = np.linspace(-1, 1, settings.contour_points)
    arrays["contour_distances"] = grid
    arrays["contour_losses"] = contour(surface, first, second, grid)
    return {**values, "density_width": width, "seed": seed}, arrays


def _check_finite(what: str, value: Any) -> None:
    if not np.isfinite(value).all():
        raise SharpnessError(
            f"{what} is NaN or infinite: nothing can be measured here; choose another checkpoint "
            "with --checkpoint"
        )


def _finite(value: float) -> float | None:
    """Return None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
