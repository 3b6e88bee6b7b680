"""LookSAM: against NumPy, its limits, dtypes and its place in a chain."""

import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer import (
    LookSAMState,
    OptimizerError,
    gradient_norm_penalty,
    looksam,
    penalized_gradient,
)
from optimizer._tree import widen
from tests.marks import quick_first
from tests.trees import assert_trees_equal

WEIGHT = 0.7


def curved(params: Any) -> jax.Array:
    """Return a loss whose Hessian is not constant."""
    w, b = params["w"], params["b"]
    return jnp.sum(jnp.sin(w) * jnp.roll(w, 1)) + jnp.sum(jnp.exp(b)) * jnp.mean(w)


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"w": jnp.array([[0.3, -1.2], [0.7, 2.0]]), "b": jnp.array([0.5, -0.4, 0.1])}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def reused_by_hand(u: Any, first: Any, later: Any, weight: float = WEIGHT) -> np.ndarray:
    """Compute in NumPy's float64: u and first are of the penalized step, later of the plain one."""
    u, first, later = flat(u), flat(first), flat(later)
    across = u - (u @ first) / (first @ first) * first
    return later + weight * np.linalg.norm(later) / np.linalg.norm(across) * across


def fixed(gradient: Any) -> Any:
    """Return a grad_fn that is the same everywhere."""
    return lambda params: gradient


def test_equals_numpy_over_steps(params: Any) -> None:
    grad_fn, penalty = jax.grad(curved), gradient_norm_penalty(0.3, 0.8)
    opt = optax.chain(looksam(penalty, WEIGHT), optax.sgd(0.05))
    state = opt.init(params)
    traces = []

    def step(params: Any, state: Any, penalize: bool) -> Any:
        traces.append(penalize)
        grads = grad_fn(params)
        updates, state = opt.update(grads, state, params, grad_fn=grad_fn, penalize=penalize)
        return optax.apply_updates(params, updates), state, updates

    step = jax.jit(step, static_argnums=2)
    last: Any = None
    for count in range(9):
        penalize, gradient = count % 4 == 1, grad_fn(params)
        if penalize:
            u, _ = penalty.update(gradient, penalty.init(params), params, grad_fn=grad_fn)
            last, expected = (u, gradient), flat(u)
        else:
            expected = reused_by_hand(*last, gradient) if last else flat(gradient)
        params, state, updates = step(params, state, penalize)
        np.testing.assert_allclose(flat(updates), -0.05 * expected, rtol=2e-4, atol=1e-6)
    assert state[0].count == 9 and state[0].penalty.count == 9
    assert sorted(traces) == [False, True]


def test_a_penalized_step_is_the_penalty_itself(params: Any) -> None:
    grad_fn, penalty = jax.grad(curved), gradient_norm_penalty(0.3, 0.8, normalize=True)
    opt = looksam(penalty, WEIGHT)
    u, state = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
    expected, _ = penalty.update(grad_fn(params), penalty.init(params), params, grad_fn=grad_fn)
    assert_trees_equal(u, expected)
    direction, g = flat(state.direction), flat(grad_fn(params))
    np.testing.assert_allclose(np.linalg.norm(direction), 1.0, rtol=1e-6)
    assert abs(direction @ g) < 1e-5 * np.linalg.norm(g)


@pytest.mark.parametrize("dtype", quick_first(["float32", "bfloat16", "float16", "float64"], 2))
def test_plain_to_the_bit_until_the_first_penalized_step(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        gradient = {"a": jnp.array([0.0, -0.0, 1.5, -3e-3], dtype), "b": jnp.ones((), dtype)}
        opt = looksam(gradient_norm_penalty(0.1, 0.5), WEIGHT)
        state = opt.init(gradient)
        for _ in range(2):
            result, state = opt.update(gradient, state, gradient, penalize=False)
            expected = widen(gradient["a"])
            assert result["a"].dtype == expected.dtype
            assert np.asarray(result["a"]).tobytes() == np.asarray(expected).tobytes()
        assert state.count == 2


@pytest.mark.parametrize("dtype", quick_first(["float32", "bfloat16", "float16", "float64"], 2))
def test_zero_gradients_stay_zero(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        zero = {"a": jnp.zeros((2, 3), dtype), "b": jnp.zeros(4, dtype)}
        ones = jax.tree.map(jnp.ones_like, zero)
        opt = looksam(gradient_norm_penalty(0.1, 0.5), WEIGHT)
        _, state = opt.update(zero, opt.init(zero), zero, grad_fn=fixed(zero))
        assert not np.any(flat(state.direction))
        result, state = opt.update(ones, state, zero, penalize=False)
        np.testing.assert_array_equal(flat(result), flat(ones))
        # And with a direction in the state.
        there = ones | {"b": -ones["b"]}
        _, state = opt.update(ones, state, zero, grad_fn=fixed(there))
        assert np.any(flat(state.direction))
        result, _ = opt.update(zero, state, zero, penalize=False)
        assert not np.any(flat(result)) and result["a"].dtype == widen(zero["a"]).dtype


@pytest.mark.parametrize("dtype", quick_first(["float32", "bfloat16", "float64"]))
@pytest.mark.parametrize("r", [0.0, 0.3, lambda t: 0.0 * t])
def test_rounding_is_not_taken_for_a_direction(dtype: str, r: Any) -> None:
    # The gradient of ½‖θ‖² is θ: u is parallel to g, and what is left is rounding.
    with jax.enable_x64(dtype == "float64"):
        params = {"w": jax.random.normal(jax.random.key(0), (1000,), dtype)}
        opt = looksam(gradient_norm_penalty(r, 0.8), WEIGHT)
        _, state = opt.update(params, opt.init(params), params, grad_fn=lambda p: p)
        assert not np.any(flat(state.direction))


def test_bfloat16_is_computed_and_given_in_float32() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    params, first, there, later = (jax.random.normal(k, (5000,), jnp.bfloat16) for k in keys)
    opt = looksam(gradient_norm_penalty(0.1, 1.0), WEIGHT)
    u, state = opt.update(first, opt.init(params), params, grad_fn=fixed(there))
    assert state.direction.dtype == jnp.float32
    result, _ = opt.update(later, state, params, penalize=False)
    expected = reused_by_hand(u, first, later)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(flat(result), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["g", "u"])
def test_a_penalized_step_that_is_not_finite_leaves_the_direction(where: str, bad: float) -> None:
    good, poisoned = jnp.array([1.0, 0.0, 2.0]), jnp.array([1.0, bad, 2.0])
    there = jnp.array([1.0, 1.0, 2.0])
    opt = looksam(gradient_norm_penalty(0.1, 1.0), WEIGHT)
    _, state = opt.update(good, opt.init(good), good, grad_fn=fixed(there))
    first, other = (poisoned, there) if where == "g" else (good, poisoned)
    u, after = opt.update(first, state, good, grad_fn=fixed(other))
    assert where == "g" or not np.all(np.isfinite(u))
    assert np.any(flat(state.direction)) and after.count == 2
    np.testing.assert_array_equal(after.direction, state.direction)
    # And before the first one it leaves the steps plain.
    _, after = opt.update(first, opt.init(good), good, grad_fn=fixed(other))
    result, _ = opt.update(good, after, good, penalize=False)
    np.testing.assert_array_equal(result, good)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_plain_step_that_is_not_finite_passes_unchanged(bad: float) -> None:
    gradient = jnp.array([1.0, -0.0, bad])
    opt = looksam(gradient_norm_penalty(0.1, 1.0), WEIGHT)
    state = opt.init(gradient)
    result, _ = opt.update(gradient, state, gradient, penalize=False)
    assert np.asarray(result).tobytes() == np.asarray(gradient).tobytes()
    _, state = opt.update(jnp.ones(3), state, gradient, grad_fn=fixed(jnp.arange(3.0)))
    assert np.any(flat(state.direction))
    result, _ = opt.update(gradient, state, gradient, penalize=False)
    np.testing.assert_array_equal(result, gradient)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("share", [0.6, 2.0])
def test_a_direction_counts_from_eps_on(dtype: str, share: float) -> None:
    eps = float(jnp.finfo(dtype).eps)
    g, there = jnp.array([1.0, 0.0], dtype), jnp.array([1.0, share * eps], dtype)
    opt = looksam(gradient_norm_penalty(0.1, 1.0), WEIGHT)
    _, state = opt.update(g, opt.init(g), g, grad_fn=fixed(there))
    np.testing.assert_array_equal(state.direction, [0.0, 1.0 if share > 1 else 0.0])


def test_float32_stays_float32_where_float64_is_allowed(params: Any) -> None:
    with jax.enable_x64(True):
        opt = looksam(gradient_norm_penalty(0.3, 1.0), jnp.float64(WEIGHT))
        state = opt.init(params)
        for penalize in (True, False):
            jaxpr = jax.make_jaxpr(
                lambda g, p=penalize: opt.update(g, state, g, grad_fn=lambda q: q, penalize=p)
            )(params)
            wide = [v for e in jaxpr.eqns for v in e.outvars if v.aval.dtype == "float64"]
            assert not [v for v in wide if v.aval.ndim]


@pytest.mark.slow
def test_strict_promotion_of_dtypes() -> None:
    with jax.numpy_dtype_promotion("strict"):
        g, there = jnp.array([1.0, 0.0], jnp.bfloat16), jnp.array([1.0, 1.0], jnp.bfloat16)
        opt = looksam(gradient_norm_penalty(0.1, 1.0), jnp.asarray(0.5, jnp.bfloat16))
        _, state = opt.update(g, opt.init(g), g, grad_fn=fixed(there))
        result, _ = opt.update(g, state, g, penalize=False)
        np.testing.assert_array_equal(np.asarray(result, np.float32), [1.0, 0.5])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(exponent=st.integers(-33, 36), seed=st.integers(0, 1000), weight=st.floats(0, 2))
def test_the_reused_part_has_its_length_at_every_scale(
    exponent: int, seed: int, weight: float
) -> None:
    # The squares of 1e-33 and of 1e36 are out of the range of float32.
    base = np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    first, there, later = (jnp.asarray(x * np.float32(10.0**exponent)) for x in base)
    _, state = step_at_scale(first, None, there, weight, penalize=True)
    result, _ = step_at_scale(later, state, there, weight, penalize=False)
    scaled = flat(result) / 10.0**exponent
    expected = reused_by_hand(base[1], base[0], base[2], weight)
    np.testing.assert_allclose(scaled, expected, rtol=1e-3, atol=1e-3)


def _step(gradient: Any, state: Any, there: Any, weight: Any, *, penalize: bool) -> Any:
    opt = looksam(gradient_norm_penalty(0.1, 1.0), lambda count: weight)
    state = opt.init(gradient) if state is None else state
    return opt.update(gradient, state, gradient, grad_fn=fixed(there), penalize=penalize)


step_at_scale = jax.jit(_step, static_argnames="penalize")


def test_weight_can_be_a_schedule(params: Any) -> None:
    grad_fn, penalty = jax.grad(curved), gradient_norm_penalty(0.3, 0.8)
    opt = looksam(penalty, lambda count: 0.25 * count)
    gradient = grad_fn(params)
    u, state = opt.update(gradient, opt.init(params), params, grad_fn=grad_fn)
    for count in (1, 2):
        result, state = opt.update(gradient, state, params, penalize=False)
        expected = reused_by_hand(u, gradient, gradient, 0.25 * count)
        np.testing.assert_allclose(flat(result), expected, rtol=1e-4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    kernel: Any
    bias: Any = None


@pytest.mark.parametrize("kind", ["list", "tuple", "dataclass", "nnx", "masked"])
def test_any_pytree(kind: str) -> None:
    leaves = [jnp.array([1.0, 2.0, -1.0]), jnp.array([[0.5]])]
    trees = {
        "list": [leaves[0], None, leaves[1]],
        "tuple": (leaves[0], {"a": leaves[1]}),
        "dataclass": {"first": Module(leaves[0]), "second": Module(leaves[1], None)},
        "nnx": nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param),
        "masked": {"a": leaves[0], "b": optax.MaskedNode(), "c": leaves[1]},
    }
    params = trees[kind]
    grad_fn = jax.grad(lambda p: sum(jnp.sum(jnp.exp(x)) for x in jax.tree.leaves(p)))
    penalty = gradient_norm_penalty(0.3, 1.0)
    opt = looksam(penalty, WEIGHT)
    u, state = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
    result, state = opt.update(grad_fn(params), state, params, penalize=False)
    assert jax.tree.structure(result) == jax.tree.structure(params)
    assert jax.tree.structure(state.direction) == jax.tree.structure(params)
    gradient = grad_fn(params)
    np.testing.assert_allclose(flat(result), reused_by_hand(u, gradient, gradient), rtol=1e-4)


def test_a_gradient_of_none_stays_none_and_leaves_the_state_as_it_was() -> None:
    params = {"trained": jnp.array([1.0, 2.0]), "frozen": jnp.ones(2)}
    gradient = {"trained": jnp.array([1.0, 0.0]), "frozen": None}
    there = {"trained": jnp.array([1.0, 1.0]), "frozen": None}
    opt = looksam(gradient_norm_penalty(0.3, 1.0), WEIGHT)
    before = opt.init(params)
    u, state = opt.update(gradient, before, params, grad_fn=fixed(there))
    assert u["frozen"] is None
    assert jax.tree.structure(state) == jax.tree.structure(before)
    np.testing.assert_allclose(state.direction["trained"], [0.0, 1.0], atol=1e-6)
    result, _ = opt.update(gradient, state, params, penalize=False)
    assert result["frozen"] is None
    np.testing.assert_allclose(result["trained"], [1.0, WEIGHT], rtol=1e-6)


def test_state_survives_pickle(params: Any) -> None:
    grad_fn = jax.grad(curved)
    opt = looksam(gradient_norm_penalty(0.3, 0.8), WEIGHT)
    _, state = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
    copy = pickle.loads(pickle.dumps(state))
    assert isinstance(copy, LookSAMState)
    results = [opt.update(grad_fn(params), s, params, penalize=False)[0] for s in (state, copy)]
    np.testing.assert_array_equal(flat(results[0]), flat(results[1]))


def test_wrong_arguments(params: Any) -> None:
    penalty = gradient_norm_penalty(0.1, 0.5)
    with pytest.raises(OptimizerError, match="weight=-1 must be a finite number >= 0"):
        looksam(penalty, -1)
    with pytest.raises(OptimizerError, match="penalty must take grad_fn and penalize"):
        looksam(optax.identity, 0.5)  # type: ignore[arg-type]
    with pytest.raises(OptimizerError, match="weight must be one number"):
        looksam(penalty, jnp.ones(2))
    with pytest.raises(OptimizerError, match="looksam needs real parameters"):
        looksam(penalty, 0.5).init(jnp.ones(2, jnp.complex64))
    for momentum in (optax.sgd(0.1, momentum=0.9), optax.chain(penalty, optax.trace(0.9))):
        opt = looksam(optax.with_extra_args_support(momentum), 0.5)
        with pytest.raises(OptimizerError, match="put it behind"):
            opt.init(params)
    opt = looksam(penalty, 0.5)
    with pytest.raises(OptimizerError, match="needs grad_fn"):
        opt.update(params, opt.init(params), params)
    with pytest.raises(OptimizerError, match="Python bool"):
        opt.update(params, opt.init(params), params, penalize=jnp.array(True))


def test_a_penalty_that_penalizes_nothing_is_an_error(params: Any) -> None:
    grad_fn = jax.grad(curved)
    opt = looksam(optax.with_extra_args_support(optax.sgd(0.1)), 0.5)
    state = opt.init(params)
    for options in ({"grad_fn": grad_fn}, {}):
        with pytest.raises(OptimizerError, match="calls no grad_fn") as caught:
            opt.update(params, state, params, **options)
        assert "\n" not in str(caught.value)
    # Our own with r = 0 penalizes nothing either, and says so by its state.
    for penalty in (gradient_norm_penalty(0.0, 0.5), optax.chain(gradient_norm_penalty(0.1, 0.0))):
        opt = looksam(penalty, 0.5)
        result, _ = opt.update(params, opt.init(params), params, grad_fn=grad_fn)
        np.testing.assert_array_equal(flat(result), flat(params))


@pytest.mark.parametrize("wrap", [lambda penalty: penalty, optax.chain], ids=["alone", "chain"])
def test_a_penalized_gradient_that_is_given_is_used(params: Any, wrap: Any) -> None:
    grad_fn = jax.grad(curved)
    opt = looksam(wrap(gradient_norm_penalty(0.3, 0.8)), WEIGHT)
    gradient, state = grad_fn(params), opt.init(params)
    u = penalized_gradient(grad_fn, params, gradient, 0.3, 0.8)
    expected, expected_state = opt.update(gradient, state, params, grad_fn=grad_fn)
    result, new = opt.update(gradient, state, params, penalized=u)
    assert_trees_equal((result, new), (expected, expected_state))
    # A plain step does not look at it.
    plain = [
        opt.update(gradient, new, params, penalize=False, **more)[0]
        for more in ({}, {"penalized": u})
    ]
    assert_trees_equal(*plain)
    np.testing.assert_allclose(flat(plain[0]), reused_by_hand(u, gradient, gradient), rtol=1e-4)
    # One that does not look at it penalizes nothing.
    other = looksam(optax.with_extra_args_support(optax.sgd(0.1)), WEIGHT)
    with pytest.raises(OptimizerError, match="calls no grad_fn"):
        other.update(gradient, other.init(params), params, penalized=u)


def test_a_penalty_of_ones_own_is_accepted() -> None:
    def update(
        updates: Any, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any
    ) -> Any:
        return (grad_fn(params) if extra["penalize"] else updates), state

    own = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    g, there = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])
    _, state = looksam(own, 0.5).update(g, looksam(own, 0.5).init(g), g, grad_fn=fixed(there))
    np.testing.assert_array_equal(state.direction, [0.0, 1.0])
