"""The penalty where the answer is known exactly: quadratics, cubics, SAM, no penalty.

That a zero gradient stays zero with every option is in gradient_norm_penalty_test.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from optimizer import gradient_norm_penalty
from tests.marks import quick_first

SLOW = pytest.mark.slow
METHODS = ("finite_difference", "hvp")
N = 12


def symmetric(seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(N, N))
    return a + a.T


def split(theta: Any) -> dict[str, Any]:
    return {"b": theta[:4], "w": theta[4:].reshape(2, -1)}


def join(params: Any) -> Any:
    return jnp.concatenate([params["b"], params["w"].ravel()])


def curved(params: Any) -> jax.Array:
    """Return a loss with a minimum, whose Hessian is not constant."""
    w, b = params["w"], params["b"]
    coupling = jnp.sum(jnp.sin(w) * jnp.roll(w, 1)) + jnp.sum(jnp.tanh(b)) * jnp.mean(w)
    return coupling + jnp.sum(w**2) + jnp.sum(b**2)


def point(dtype: Any = jnp.float32, seed: int = 1) -> dict[str, jax.Array]:
    return split(jnp.asarray(np.random.default_rng(seed).normal(size=N), dtype))


def penalized(
    loss: Callable[[Any], jax.Array], params: Any, r: Any, alpha: Any, **options: Any
) -> np.ndarray:
    """Return the transformation's first gradient, as one float64 vector."""
    opt, grad_fn = gradient_norm_penalty(r, alpha, **options), jax.grad(loss)
    result, _ = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
    return np.asarray(join(result), np.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", quick_first(["float32", "float64"]))
@pytest.mark.parametrize("r, alpha", quick_first([(0.05, 0.8), (0.3, 0.6), (2.0, 1.0)]))
def test_a_quadratic_is_exact(dtype: str, r: float, alpha: float, method: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        a, params = jnp.asarray(symmetric(), dtype), point(dtype)
        result = penalized(lambda p: 0.5 * join(p) @ a @ join(p), params, r, alpha, method=method)
        wide_a, theta = np.asarray(a, np.float64), np.asarray(join(params), np.float64)
        g = wide_a @ theta
        expected = g + alpha * r * wide_a @ g / np.linalg.norm(g)
        rounding = N * np.finfo(dtype).eps
        assert np.max(np.abs(result - expected)) <= rounding * np.max(np.abs(expected))


@pytest.mark.slow
def test_the_error_on_a_cubic_falls_as_r() -> None:
    penalty = 0.1
    with jax.enable_x64(True):
        a, c = jnp.asarray(symmetric()), jnp.linspace(0.5, 2.0, N)
        params = point(jnp.float64)

        def cubic(p: Any) -> jax.Array:
            theta = join(p)
            return 0.5 * theta @ a @ theta + jnp.sum(c * theta**3) / 6

        g = join(jax.grad(cubic)(params))
        d = g / jnp.linalg.norm(g)
        radii, errors = np.array([1e-1, 1e-2, 1e-3, 1e-4]), []
        for r in radii:
            difference, exact = (
                penalized(cubic, params, r, penalty / r, method=method) for method in METHODS
            )
            errors.append(np.linalg.norm(difference - exact))
            # α·(g(θ + r·d) - g - r·H·d) is α·r²/2 times the third derivative along d twice.
            known = penalty * r / 2 * np.asarray(c * d**2)
            np.testing.assert_allclose(difference - exact, known, rtol=1e-3, atol=1e-10)
    slope, _ = np.polyfit(np.log(radii), np.log(errors), 1)
    assert abs(slope - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("moved", [("b", "w"), pytest.param(("b",), marks=SLOW), ("w",)])
@pytest.mark.parametrize(
    "dtype, rtol", [pytest.param("float32", 1e-5, marks=SLOW), ("float64", 1e-12)]
)
def test_the_exact_penalty_is_the_gradient_of_the_penalized_loss(
    dtype: str, rtol: float, moved: tuple[str, ...]
) -> None:
    lambda_, r = 0.2, 0.5
    with jax.enable_x64(dtype == "float64"):
        params = point(dtype)

        def penalized_loss(p: Any) -> jax.Array:
            gradient = jax.grad(curved)(p)
            return curved(p) + lambda_ * optax.tree.norm([gradient[name] for name in moved])

        expected = np.asarray(join(jax.grad(penalized_loss)(params)))
        where = None if len(moved) == len(params) else {name: name in moved for name in params}
        result = penalized(curved, params, r, lambda_ / r, method="hvp", where=where)
        np.testing.assert_allclose(result, expected, rtol, rtol * np.max(np.abs(expected)))


def train(
    opt: Any, params: Any, gradient: Callable[[Any], Any], steps: int = 20, **options: Any
) -> Any:
    """Return the parameters after some steps; options are of `update`."""

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = opt.update(gradient(params), state, params, **options)
        return optax.apply_updates(params, updates), state

    state = opt.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("base", [optax.sgd(0.05, momentum=0.9), optax.adam(0.05)])
def test_alpha_one_is_sam(base: Any) -> None:
    r, grad_fn, params = 0.2, jax.grad(curved), point()
    ours = optax.chain(gradient_norm_penalty(r, 1.0), base)
    sam = optax.contrib.sam(
        base, optax.chain(optax.contrib.normalize(), optax.sgd(r)), opaque_mode=True
    )
    mine = train(ours, params, grad_fn, grad_fn=grad_fn)
    theirs = train(sam, params, grad_fn, grad_fn=lambda p, _: grad_fn(p))
    plain = train(base, params, grad_fn)
    scale = np.max(np.abs(join(theirs)))
    assert np.max(np.abs(join(mine) - join(theirs))) <= 1e-6 * scale
    assert np.max(np.abs(join(mine) - join(plain))) > 1e-2 * scale


@pytest.mark.parametrize("dtype", quick_first(["float32", "bfloat16", "float64"], 2))
@pytest.mark.parametrize(
    "alpha, options", [(0.0, {}), (0.8, {"penalize": False})], ids=["alpha", "penalize"]
)
def test_no_penalty_is_the_base_optimizer_to_the_bit(
    dtype: str, alpha: float, options: dict[str, Any]
) -> None:
    with jax.enable_x64(dtype == "float64"):
        base, grad_fn, params = optax.adamw(0.01), jax.grad(curved), point(dtype)
        ours = optax.chain(gradient_norm_penalty(0.1, alpha), base)
        mine = train(ours, params, grad_fn, grad_fn=grad_fn, **options)
        plain = train(base, params, grad_fn)
        for name in params:
            assert mine[name].dtype == dtype
            assert np.asarray(mine[name]).tobytes() == np.asarray(plain[name]).tobytes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", quick_first(["float32", "bfloat16", "float64"], 2))
def test_a_zero_gradient_is_a_zero_update(dtype: str, method: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(jnp.ones_like, point(dtype))
        grad_fn = jax.grad(lambda p: jnp.sum((join(p) - 1) ** 2))
        opt = optax.chain(gradient_norm_penalty(0.1, 0.8, method=method), optax.sgd(0.1))
        after = train(opt, params, grad_fn, 3, grad_fn=grad_fn)
        for name in params:
            np.testing.assert_array_equal(after[name], params[name])
