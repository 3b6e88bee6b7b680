"""Optimizers with weights of a fixed length, against NumPy and closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizer import Axes, OptimizerError, constrain, geometry, sgdg
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal

SHAPE = (3, 3, 2, 5)
GEODESIC = ("sphere", "oblique")
CONSTRAINTS = (*GEODESIC, "hyperball")


@pytest.fixture
def kernel(key: jax.Array) -> jax.Array:
    return 3.0 * jax.random.normal(key, SHAPE)


@pytest.fixture
def gradients(key: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, 1), (3, *SHAPE))


def make(to: str, inner: Any = None, **options: Any) -> Any:
    rate = {"learning_rate": 0.1} if to == "hyperball" else {}
    return constrain(inner or optax.adam(0.1), to, **rate, **options)


def moved(opt: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
    state = opt.init(params)
    for g in gradients:
        updates, state = opt.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def lengths(x: Any, to: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return np.sqrt(np.sum(x * x, axis=(0, 1, 2) if to == "oblique" else None))


@pytest.mark.parametrize("to", quick_first(tuple(CONSTRAINTS)))
@pytest.mark.parametrize(
    "inner", quick_first([optax.sgd(0.1, 0.9), optax.adam(0.1), optax.contrib.muon(0.1)])
)
def test_lengths_stay(to: str, inner: Any, kernel: Any, gradients: Any) -> None:
    params, _ = moved(make(to, inner), kernel, [*gradients] * 10)
    np.testing.assert_allclose(lengths(params, to), lengths(kernel, to), rtol=2e-6)
    assert np.max(np.abs(params - kernel)) > 0.1


def test_hyperball_is_the_published_rule(kernel: Any, gradients: Any) -> None:
    w, radius = np.asarray(kernel, np.float64), np.linalg.norm(kernel)
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    momentum = 0.0
    for g in np.asarray(gradients, np.float64):
        momentum = 0.9 * momentum + g
        w = radius * unit(w - 0.1 * radius * unit(momentum))
    actual, _ = moved(make("hyperball", optax.sgd(123.0, 0.9)), kernel, gradients)
    assert_trees_close(actual, w.astype(np.float32))


@pytest.mark.parametrize("to", GEODESIC)
def test_sgd_is_the_geodesic_step(to: str, kernel: Any, gradients: Any) -> None:
    axis = (0, 1, 2) if to == "oblique" else None
    w, g = np.asarray(kernel, np.float64), np.asarray(gradients[0], np.float64)
    dot = lambda a, b: np.sum(a * b, axis=axis, keepdims=True)  # noqa: E731
    radius = np.sqrt(dot(w, w))
    y = w / radius
    h = -0.1 * (g - dot(y, g) * y)
    angle = np.sqrt(dot(h, h)) / radius
    expected = w * np.cos(angle) + h * np.sin(angle) / angle
    actual, _ = moved(make(to, optax.sgd(0.1)), kernel, gradients[:1])
    assert_trees_close(actual, expected.astype(np.float32))


def test_momentum_on_unit_columns_is_sgdg(kernel: Any, gradients: Any) -> None:
    unit = geometry.unit(kernel)
    actual, state = moved(make("oblique", optax.sgd(0.1, 0.9)), unit, gradients)
    expected, ours = moved(sgdg(0.1, 0.9), unit, gradients)
    assert_trees_close(actual, expected)
    trace = state.inner[0].trace
    assert_trees_close(-0.1 * trace, ours.momentum, rtol=1e-4)


@pytest.mark.parametrize("to", GEODESIC)
def test_moments_stay_tangents(to: str, kernel: Any, gradients: Any) -> None:
    axis = (0, 1, 2) if to == "oblique" else None
    params, state = moved(make(to), kernel, gradients)
    mu = state.inner[0].mu
    inner_product = np.sum(np.asarray(mu * params, np.float64), axis=axis)
    np.testing.assert_allclose(inner_product, 0, atol=1e-5 * np.linalg.norm(params))
    assert np.linalg.norm(mu) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("to", quick_first(tuple(CONSTRAINTS)))
def test_each_layer_of_a_stack_is_on_its_own(to: str, kernel: Any, gradients: Any) -> None:
    stacked, axes = jnp.stack([kernel, 2 * kernel]), Axes((0,), (1, 2, 3), (4,))
    both = [jnp.stack([g, -g]) for g in gradients]
    actual, _ = moved(make(to, axes=axes), stacked, both)
    for i, (start, sign) in enumerate(((kernel, 1), (2 * kernel, -1))):
        assert_trees_close(actual[i], moved(make(to), start, sign * gradients)[0])


@pytest.mark.parametrize("to", quick_first(tuple(CONSTRAINTS)))
def test_a_first_output_axis(to: str, kernel: Any, gradients: Any) -> None:
    first = lambda x: jnp.moveaxis(x, -1, 0)  # noqa: E731
    axes = Axes((), (1, 2, 3), (0,))
    actual, _ = moved(make(to, axes=axes), first(kernel), map(first, gradients))
    assert_trees_close(actual, first(moved(make(to), kernel, gradients)[0]))


@pytest.mark.parametrize("to", CONSTRAINTS)
def test_zeros_integers_and_holes(to: str, kernel: Any) -> None:
    params = {"w": kernel, "zeros": 0 * kernel, "count": jnp.array(16_777_217), "none": None}
    gradients = {"w": kernel, "zeros": kernel, "count": jnp.array(3), "none": None}
    opt = make(to, optax.sgd(0.1))
    updates, state = jax.jit(opt.update)(gradients, opt.init(params), params)
    assert_trees_equal(updates["zeros"], 0 * kernel)
    # A gradient along the weights turns nothing.
    np.testing.assert_allclose(updates["w"], 0, atol=2e-6)
    assert state.radius["count"] == 16_777_217 and updates["none"] is None


@pytest.mark.parametrize("to", CONSTRAINTS)
def test_dtypes_and_schedules(to: str, kernel: Any, gradients: Any) -> None:
    schedule = optax.linear_schedule(0.1, 0.3, 2)
    rate = {"learning_rate": schedule} if to == "hyperball" else {}
    opt = constrain(optax.sgd(0.1 if rate else schedule), to, **rate)
    params = kernel.astype(jnp.bfloat16)
    new, state = moved(opt, params, gradients.astype(jnp.bfloat16))
    assert new.dtype == jnp.bfloat16 and state.radius.dtype == jnp.float32 and state.count == 3
    np.testing.assert_allclose(lengths(new, to), lengths(params, to), rtol=5e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: constrain(optax.sgd(0.1), "spher"), "did you mean 'sphere'"),
        (lambda: constrain(optax.sgd(0.1), "hyperball"), "'hyperball' needs one"),
        (lambda: constrain(optax.sgd(0.1), "sphere", 0.1), "the others have it in inner"),
        (lambda: constrain(optax.sgd(0.1), "hyperball", -1.0), "learning_rate=-1.0"),
        (lambda: make("sphere").init({"a": {"bias": jnp.ones(3)}}), r"a\.bias has shape \(3,\)"),
    ],
)
def test_errors(build: Any, message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        build()
