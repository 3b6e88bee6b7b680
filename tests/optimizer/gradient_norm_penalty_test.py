"""The penalty: options, limits, dtypes, pytrees and its place in a chain.

closed_forms_test.py has what is known exactly, golden_test.py the authors' numbers.
"""

import dataclasses
import functools
from collections.abc import Callable
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
    GradientNormPenaltyState,
    OptimizerError,
    gradient_norm_penalty,
    is_normalization,
    penalized_gradient,
)
from optimizer._tree import norm_and_inverse, widen
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal

assert_trees_close = functools.partial(assert_trees_close, rtol=1e-5, atol=1e-7)

METHODS = ("finite_difference", "hvp")


def quadratic(params: Any) -> jax.Array:
    """Return ½‖θ‖² over the tree, whose gradient is θ and whose Hessian is the identity."""
    return 0.5 * sum(jnp.vdot(p, p) for p in jax.tree.leaves(params))


def curved(params: Any) -> jax.Array:
    """Return a loss whose Hessian is not constant."""
    w, b = params["w"], params["b"]
    return jnp.sum(jnp.sin(w) * jnp.roll(w, 1)) + jnp.sum(jnp.exp(b)) * jnp.mean(w)


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"w": jnp.array([[0.3, -1.2], [0.7, 2.0]]), "b": jnp.array([0.5, -0.4, 0.1])}


def penalized(
    loss: Callable[[Any], jax.Array], params: Any, r: Any, alpha: Any, **options: Any
) -> Any:
    """Return the first gradient that the transformation gives."""
    opt, grad_fn = gradient_norm_penalty(r, alpha, **options), jax.grad(loss)
    return opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)[0]


def test_normalize_mixes_the_unit_gradient(params: Any) -> None:
    r, alpha = 0.3, 0.6
    size = jnp.sqrt(2 * quadratic(params))
    expected = jax.tree.map(lambda p: (1 - alpha) * p / size + alpha * p * (1 + r / size), params)
    assert_trees_close(penalized(quadratic, params, r, alpha, normalize=True), expected)


@pytest.mark.parametrize("method", METHODS)
def test_adaptive_closed_form(params: Any, method: str) -> None:
    # On the quadratic g = θ, so the perturbation is r·θ³/‖θ·|θ|‖.
    r, alpha = 0.3, 0.6
    size = jnp.sqrt(sum(jnp.sum(p**4) for p in jax.tree.leaves(params)))
    expected = jax.tree.map(lambda p: p + alpha * r * p**3 / size, params)
    result = penalized(quadratic, params, r, alpha, adaptive=True, method=method)
    assert_trees_close(result, expected)


def test_adaptive_perturbation_follows_a_rescaling(params: Any) -> None:
    # The loss of c·θ at θ/c is the same function: ASAM's perturbed gradients differ by c only.
    c = 4.0
    plain = penalized(curved, params, 0.1, 1.0, adaptive=True)
    rescaled = penalized(
        lambda p: curved(jax.tree.map(lambda x: c * x, p)),
        jax.tree.map(lambda x: x / c, params),
        0.1,
        1.0,
        adaptive=True,
    )
    assert_trees_close(rescaled, jax.tree.map(lambda g: c * g, plain))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("r, alpha", [(0.1, 0.0), (0.0, 0.8), (0, 0), (lambda t: 0.0, 0.8)])
def test_no_penalty_is_the_plain_gradient_to_the_bit(
    params: Any, r: Any, alpha: Any, method: str
) -> None:
    result = penalized(curved, params, r, alpha, method=method)
    assert_trees_equal(result, jax.grad(curved)(params))


@pytest.mark.parametrize("normalize", [False, True])
def test_a_traced_radius_of_zero_is_the_plain_gradient_to_the_bit(
    params: Any, normalize: bool
) -> None:
    result = penalized(curved, params, lambda t: 0.1 * t, 0.8, normalize=normalize)
    assert_trees_equal(result, jax.grad(curved)(params))


def test_a_traced_alpha_of_zero_is_the_plain_gradient_to_the_bit(params: Any) -> None:
    result = penalized(curved, params, 0.1, lambda t: 0.8 * t)
    assert_trees_equal(result, jax.grad(curved)(params))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    alpha=st.floats(0, 2),
    r=st.floats(0.015625, 1, width=32),
    seed=st.integers(0, 1000),
    normalize=st.booleans(),
)
def test_linear_in_alpha(alpha: float, r: float, seed: int, normalize: bool) -> None:
    w = jax.random.normal(jax.random.key(seed), (7,))
    params = {"w": w[:4], "b": w[4:]}
    ends = [penalized(curved, params, r, a, normalize=normalize) for a in (0.0, 1.0)]
    expected = jax.tree.map(lambda a, b: (1 - alpha) * a + alpha * b, *ends)
    result = penalized(curved, params, r, alpha, normalize=normalize)
    assert_trees_close(result, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(exponent=st.integers(-36, 36), seed=st.integers(0, 1000), adaptive=st.booleans())
def test_perturbation_has_length_r_at_every_scale(exponent: int, seed: int, adaptive: bool) -> None:
    # The squares of 1e-36 and of 1e36 are out of the range of float32.
    gradient = jax.random.normal(jax.random.key(seed), (5,)) * 10.0**exponent
    params = jnp.ones(5)
    seen = []

    def grad_fn(p: jax.Array) -> jax.Array:
        seen.append(p - params)
        return gradient

    opt = gradient_norm_penalty(0.5, 1.0, adaptive=adaptive)
    result, _ = opt.update(gradient, opt.init(params), params, grad_fn=grad_fn)
    np.testing.assert_allclose(jnp.linalg.norm(seen[0]), 0.5, rtol=1e-5)
    np.testing.assert_array_equal(result, gradient)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adaptive", quick_first([False, True]))
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", quick_first(["float32", "bfloat16", "float16", "float64"], 2))
def test_zero_gradient_stays_zero(dtype: str, normalize: bool, adaptive: bool, method: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params = {"a": jnp.zeros((2, 3), dtype), "b": jnp.zeros(4, dtype)}
        result = penalized(
            quadratic, params, 0.1, 0.5, normalize=normalize, adaptive=adaptive, method=method
        )
        assert_trees_equal(result, jax.tree.map(widen, params))


@pytest.mark.parametrize("dtype, smallest", [("float32", 1e-45), ("bfloat16", 1e-40)])
def test_subnormal_gradient_is_not_perturbed(dtype: str, smallest: float) -> None:
    # Built on the host: XLA on the CPU may flush subnormal numbers.
    gradient = jnp.asarray(np.full(3, smallest, jnp.dtype(dtype)))
    params = jnp.ones(3, dtype)
    seen = []

    def grad_fn(p: jax.Array) -> jax.Array:
        seen.append(p)
        return gradient

    opt = gradient_norm_penalty(0.5, 0.5)
    result, _ = opt.update(gradient, opt.init(params), params, grad_fn=grad_fn)
    assert_trees_equal(seen[0], widen(params))
    assert np.all(np.isfinite(np.asarray(result, np.float32)))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden(params: Any, bad: float) -> None:
    gradient = jax.tree.map(jnp.ones_like, params) | {"b": jnp.array([bad, 1.0, 1.0])}
    opt = gradient_norm_penalty(0.1, 1.0)
    result, _ = opt.update(gradient, opt.init(params), params, grad_fn=jax.grad(quadratic))
    assert not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(result))


def test_bfloat16_is_float32_at_the_point_and_in_the_result() -> None:
    r, alpha = 3.0, 0.3
    keys = jax.random.split(jax.random.key(0), 3)
    params, here, there = (jax.random.normal(key, (500,), jnp.bfloat16) for key in keys)
    seen = []

    def grad_fn(p: jax.Array) -> jax.Array:
        seen.append(p)
        return there

    opt = gradient_norm_penalty(r, alpha)
    result, _ = opt.update(here, opt.init(params), params, grad_fn=grad_fn)
    wide_params, g1, g2 = (np.asarray(x, np.float32) for x in (params, here, there))
    moved = wide_params + r * g1 / np.linalg.norm(g1)
    assert seen[0].dtype == result.dtype == jnp.float32
    assert_trees_close(seen[0], moved, rtol=1e-6)
    assert_trees_close(result, (1 - alpha) * g1 + alpha * g2, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", quick_first(tuple(METHODS)))
def test_the_penalty_of_parameters_in_bfloat16_is_that_of_float32(method: str) -> None:
    # Rounded to bfloat16 neither θ + ε differs from θ, nor g' from g.
    curvature = jnp.linspace(0.5, 1.5, 4096)
    grad_fn = jax.grad(lambda p: 0.5 * jnp.vdot(curvature * p, p))
    params = jax.random.normal(jax.random.key(0), (4096,), jnp.bfloat16)
    gradients = [np.asarray(x, np.float32) for x in (grad_fn(params), grad_fn(widen(params)))]
    opt = gradient_norm_penalty(0.05, 0.8, method=method)

    def change(params: jax.Array, gradient: jax.Array) -> np.ndarray:
        result, _ = opt.update(gradient, opt.init(params), params, grad_fn=grad_fn)
        return np.asarray(result) - np.asarray(gradient, np.float32)

    expected = change(widen(params), grad_fn(widen(params)))
    found = change(params, widen(gradients[1]))
    cosine = np.vdot(found, expected) / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.99 and 0.99 < np.linalg.norm(found) / np.linalg.norm(expected) < 1.01
    # Of a gradient that was rounded the result keeps the penalty too, on top of the rounding.
    rounded = change(params, grad_fn(params))
    if method == "hvp":
        assert_trees_close(rounded, expected, rtol=0.02, atol=1e-6)
    assert np.linalg.norm(rounded) > 0.5 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_mixed_tree_is_float32(method: str) -> None:
    # 4096 equal elements: a sum of squares in bfloat16 would stop at 256 of them.
    params = {"a": jnp.ones(4096, jnp.bfloat16), "b": jnp.zeros((), jnp.float32)}
    result = penalized(quadratic, params, 64.0, 0.5, method=method)
    assert_trees_equal(result, {"a": jnp.full(4096, 1.5, jnp.float32), "b": params["b"]})


@pytest.mark.parametrize("method", quick_first(tuple(METHODS)))
def test_none_leaves_stay_none(method: str) -> None:
    def loss(params: Any) -> jax.Array:
        return quadratic(params["trained"]) + jnp.sum(params["frozen"] ** 2)

    params = {"trained": [jnp.array([3.0]), None, jnp.array(4.0)], "frozen": jnp.array([7.0])}

    def grad_fn(params: Any) -> Any:
        return jax.grad(loss)(params) | {"frozen": None}

    opt = gradient_norm_penalty(0.5, 1.0, method=method)
    result, _ = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
    assert result["frozen"] is None and result["trained"][1] is None
    assert_trees_close(result["trained"], [jnp.array([3.3]), None, jnp.array(4.4)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    kernel: Any
    bias: Any = None


@pytest.mark.parametrize("method", quick_first(tuple(METHODS)))
@pytest.mark.parametrize("kind", quick_first(["nnx", "masked", "list", "tuple", "dataclass"], 2))
def test_any_pytree(kind: str, method: str) -> None:
    leaves = [jnp.array([1.0, 2.0, -1.0]), jnp.array([[0.5]])]
    trees = {
        "list": [leaves[0], None, leaves[1]],
        "tuple": (leaves[0], {"a": leaves[1]}),
        "dataclass": {"first": Module(leaves[0]), "second": Module(leaves[1], None)},
        "nnx": nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param),
        "masked": {"a": leaves[0], "b": optax.MaskedNode(), "c": leaves[1]},
    }
    params, r, alpha = trees[kind], 0.3, 0.6
    expected = jax.tree.map(lambda p: p * (1 + alpha * r / optax.tree.norm(params)), params)
    result = penalized(quadratic, params, r, alpha, method=method)
    assert jax.tree.structure(result) == jax.tree.structure(params)
    assert_trees_close(result, expected)


@pytest.mark.parametrize("method", quick_first(tuple(METHODS)))
@pytest.mark.parametrize(
    "param_dtype, grad_dtype",
    [
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float16", "float32"),
        ("float32", "float16"),
        ("float16", "float16"),
    ],
)
def test_mixed_precision(param_dtype: str, grad_dtype: str, method: str) -> None:
    # The squares of 300 are beyond float16, whose largest number is 65504; and ‖g‖ = 300·64.
    params = {"w": jnp.full((64, 64), 300.0, param_dtype), "b": jnp.zeros(2, param_dtype)}
    seen = []

    def grad_fn(params: Any) -> Any:
        seen.append(params)
        return jax.tree.map(lambda p: p.astype(grad_dtype), params)

    opt = gradient_norm_penalty(64.0 * 64, 0.5, method=method)
    result, _ = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
    # r/‖g‖ = 0.2133…, so half of 64 is added to each element.
    expected = {"w": jnp.full((64, 64), 332.0), "b": jnp.zeros(2)}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((seen[1:], result)))
    assert_trees_close(result, expected, rtol=1e-6)


@pytest.fixture
def normalized() -> dict[str, Any]:
    """Return parameters of a dense layer and of a normalization layer."""
    return {
        "dense": {"kernel": jnp.array([[0.3, -1.2], [0.7, 2.0]]), "bias": jnp.array([0.1, 0.2])},
        "norm": {"scale": jnp.array([1.5, 0.5]), "bias": jnp.array([-0.3, 0.4])},
    }


def coupled(params: Any) -> jax.Array:
    """Return a loss in which every parameter's gradient depends on every other."""
    hidden = jnp.sin(params["dense"]["kernel"]).sum(0) + params["dense"]["bias"]
    return jnp.sum(jnp.exp(hidden * params["norm"]["scale"] + params["norm"]["bias"]))


def all_but_normalization(params: Any) -> Any:
    return jax.tree.map(lambda leaf: not leaf, is_normalization(params))


@pytest.mark.parametrize("where", [is_normalization, all_but_normalization])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_where_perturbs_some_parameters(
    normalized: Any, where: Any, adaptive: bool, normalize: bool
) -> None:
    r, alpha, params = 0.4, 0.7, normalized
    gradient, mask = jax.grad(coupled)(params), where(params)
    size = jax.tree.map(lambda p: jnp.abs(p) if adaptive else jnp.ones_like(p), params)
    scaled = jax.tree.map(lambda g, t, keep: g * t * keep, gradient, size, mask)
    norm = optax.tree.norm(scaled)
    assert norm < 0.95 * optax.tree.norm(jax.tree.map(jnp.multiply, gradient, size))
    moved = jax.tree.map(lambda p, s, t: p + r * s * t / norm, params, scaled, size)
    there = jax.grad(coupled)(moved)
    here = optax.tree.scale(1 / optax.tree.norm(gradient), gradient) if normalize else gradient
    expected = jax.tree.map(lambda a, b: (1 - alpha) * a + alpha * b, here, there)
    for form in (where, mask):
        result = penalized(
            coupled, params, r, alpha, where=form, adaptive=adaptive, normalize=normalize
        )
        assert_trees_close(result, expected)


def test_where_leaves_the_others_where_they_are(normalized: Any) -> None:
    seen = []

    def grad_fn(params: Any) -> Any:
        seen.append(params)
        return jax.grad(coupled)(params)

    opt = gradient_norm_penalty(0.4, 0.7, where=is_normalization)
    opt.update(grad_fn(normalized), opt.init(normalized), normalized, grad_fn=grad_fn)
    assert seen[1]["dense"]["kernel"] is normalized["dense"]["kernel"]
    step = jax.tree.map(jnp.subtract, seen[1]["norm"], normalized["norm"])
    np.testing.assert_allclose(optax.tree.norm(step), 0.4, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_where_all_is_where_none_to_the_bit(normalized: Any, method: str) -> None:
    everything = jax.tree.map(lambda p: True, normalized)
    results = [
        penalized(coupled, normalized, 0.4, 0.7, where=where, method=method)
        for where in (None, everything)
    ]
    assert_trees_equal(*results)


def test_where_with_a_gradient_of_zero_or_none_there(normalized: Any) -> None:
    gradient = jax.grad(coupled)(normalized)
    for nothing in (jax.tree.map(jnp.zeros_like, gradient["norm"]), {"scale": None, "bias": None}):
        updates = gradient | {"norm": nothing}
        opt = gradient_norm_penalty(0.4, 0.5, where=is_normalization)
        result, _ = opt.update(
            updates, opt.init(normalized), normalized, grad_fn=lambda p, u=updates: u
        )
        assert jax.tree.structure(result) == jax.tree.structure(updates)
        assert_trees_close(result, updates)


def test_where_on_nnx_state_and_compiled() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)
            self.norm = nnx.LayerNorm(2, rngs=rngs)

    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    opt = gradient_norm_penalty(0.3, 0.6, where=is_normalization)
    grad_fn = jax.grad(quadratic)
    step = jax.jit(lambda p, s: opt.update(grad_fn(p), s, p, grad_fn=grad_fn)[0])
    result = step(params, opt.init(params))
    assert jax.tree.structure(result) == jax.tree.structure(params)
    factor = 1 + 0.6 * 0.3 / np.sqrt(2)  # scale is (1, 1), offset (0, 0)
    np.testing.assert_allclose(result["norm"]["scale"][...], np.full(2, factor), rtol=1e-6)
    kernels = (tree["dense"]["kernel"][...] for tree in (result, params))
    np.testing.assert_allclose(*kernels, rtol=1e-6)


@pytest.mark.parametrize(
    "where, message",
    [
        ({"dense": True}, "where must be None, a pytree of bool like params"),
        (lambda p: jax.tree.map(lambda x: 1.0, p), "where must hold True and False"),
        (lambda p: jax.tree.map(lambda x: False, p), "True for at least one parameter"),
    ],
)
def test_a_wrong_mask_is_an_error(normalized: Any, where: Any, message: str) -> None:
    with pytest.raises(OptimizerError, match=message) as caught:
        penalized(coupled, normalized, 0.4, 0.7, where=where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_aux_is_dropped(params: Any, method: str) -> None:
    def loss(params: Any) -> Any:
        return curved(params), {"step": jnp.arange(3), "mean": params["w"].mean(), "name": None}

    with_aux = jax.grad(loss, has_aux=True)
    opt = gradient_norm_penalty(0.3, 0.6, method=method, has_aux=True)
    gradient, _ = with_aux(params)
    step = jax.jit(lambda g, s, p: opt.update(g, s, p, grad_fn=with_aux)[0])
    expected = penalized(curved, params, 0.3, 0.6, method=method)
    assert_trees_close(step(gradient, opt.init(params), params), expected)


def test_aux_that_contradicts_the_flag_is_an_error(params: Any) -> None:
    gradient = jax.grad(curved)(params)
    for has_aux, result in ((False, (gradient, 1.0)), (True, gradient), (True, (gradient, 1, 2))):
        opt = gradient_norm_penalty(0.3, 0.6, has_aux=has_aux)
        with pytest.raises(OptimizerError, match="has_aux=True") as caught:
            opt.update(gradient, opt.init(params), params, grad_fn=lambda p, x=result: x)
        assert "\n" not in str(caught.value)


def test_a_tuple_of_parameters_is_no_aux() -> None:
    params = (jnp.array([3.0]), jnp.array([4.0]))
    result = penalized(quadratic, params, 0.5, 1.0)
    assert_trees_close(result, (jnp.array([3.3]), jnp.array([4.4])))


def test_an_empty_tree_and_an_empty_leaf_pass() -> None:
    assert penalized(lambda p: jnp.zeros(()), {}, 0.1, 0.5) == {}
    result = penalized(quadratic, [jnp.zeros((0, 2)), jnp.array([2.0])], 0.5, 1.0)
    assert result[0].shape == (0, 2)
    np.testing.assert_allclose(result[1], [2.5])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("r, alpha", [(0.0, 0.8), (0.1, 0.0)])
def test_a_mixture_of_none_of_it_hides_a_perturbed_gradient_that_is_not_finite(
    r: float, alpha: float, bad: float, method: str
) -> None:
    # Arrays, as floats of 0 need no second gradient at all.
    gradient, params = jnp.array([3.0, -0.0, 4.0]), jnp.ones(3)
    for normalize in (False, True) if alpha == 0 else (False,):
        opt = gradient_norm_penalty(
            jnp.asarray(r), jnp.asarray(alpha), method=method, normalize=normalize
        )
        result, _ = opt.update(
            gradient, opt.init(params), params, grad_fn=lambda p: p * jnp.asarray(bad)
        )
        expected = gradient / 5 if normalize else gradient
        np.testing.assert_allclose(result, expected, rtol=1e-6)
        assert normalize or np.asarray(result).tobytes() == np.asarray(gradient).tobytes()


def test_known_numbers_need_no_selection() -> None:
    def primitives(r: Any, alpha: Any) -> set[str]:
        # The norm has selections of scalars.
        jaxpr = jax.make_jaxpr(lambda p: penalized(quadratic, p, r, alpha))(jnp.ones(7))
        return {
            name
            for equation in jaxpr.eqns
            if equation.outvars[0].aval.shape == (7,)
            for name in (str(equation.primitive), str(equation.params.get("name")))
        }

    assert "mul" in primitives(0.1, 0.8)
    assert not primitives(0.1, 0.8) & {"select_n", "_where"}
    assert primitives(0.1, jnp.asarray(0.8)) & {"select_n", "_where"}


def tree_with_a_scalar() -> dict[str, Any]:
    return {"layer": {"w": jnp.ones(3), "b": jnp.array(2.0)}, "frozen": None}


FIX = "structure and shapes of the one that is given; of value_and_grad's (value, grads)"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda g: g | {"layer": {"w": jnp.ones((2, 3)), "b": 1.0}},
            "layer.w of shape (2, 3), not (3,)",
        ),
        (lambda g: g | {"layer": {"w": jnp.ones(()), "b": 1.0}}, "layer.w of shape (), not (3,)"),
        (lambda g: g | {"layer": {"w": jnp.ones(3)}}, "lacks layer.b: "),
        (lambda g: g | {"layer": {"w": None, "b": 1.0}}, "lacks layer.w"),
        (lambda g: g["layer"], "lacks layer.b, and has b instead"),
        (lambda g: jnp.ones(()), "lacks layer.b"),
        (lambda g: g | {"more": jnp.ones(2)}, "another structure than the gradient, at more"),
        (lambda g: [g["layer"], None], "lacks layer.b"),
    ],
)
def test_a_result_of_grad_fn_that_is_no_gradient_is_an_error(
    change: Any, message: str, method: str
) -> None:
    params = gradient = tree_with_a_scalar()
    opt = gradient_norm_penalty(0.1, 0.5, method=method)
    with pytest.raises(OptimizerError) as caught:
        opt.update(gradient, opt.init(params), params, grad_fn=change)
    text = str(caught.value)
    assert message in text and FIX in text and "grad_fn" in text and "\n" not in text


@pytest.mark.parametrize("has_aux", [False, True])
def test_value_and_grad_is_an_error_that_says_what_to_return(params: Any, has_aux: bool) -> None:
    opt = gradient_norm_penalty(0.1, 0.5, has_aux=has_aux)
    for pair in (params, (params["w"], params["b"])):
        with pytest.raises(OptimizerError, match="value_and_grad's \\(value, grads\\)") as caught:
            opt.update(pair, opt.init(pair), pair, grad_fn=jax.value_and_grad(quadratic))
        assert "\n" not in str(caught.value)


def test_a_full_gradient_where_updates_has_none_is_allowed(params: Any) -> None:
    opt, updates = gradient_norm_penalty(0.1, 1.0), params | {"b": None}
    result, _ = opt.update(updates, opt.init(params), params, grad_fn=jax.grad(quadratic))
    assert result["b"] is None
    factor = 1 + 0.1 / float(jnp.linalg.norm(params["w"]))
    np.testing.assert_allclose(result["w"], params["w"] * factor, rtol=1e-6)


def test_complex_parameters_are_an_error() -> None:
    params = {"a": jnp.ones(2), "b": {"c": jnp.ones(2, jnp.complex64)}}
    with pytest.raises(OptimizerError, match="needs real parameters, b.c is complex64"):
        gradient_norm_penalty(0.1, 0.5).init(params)


@pytest.mark.parametrize("method", METHODS)
def test_whole_numbers_keys_and_flags_pass_untouched(method: str) -> None:
    params = {
        "a": jnp.array([3.0, 4.0]),
        "count": jnp.array(2**24 + 1),  # which float32 does not have
        "flag": jnp.array(True),
        "key": jax.random.key(3),
    }
    seen = []

    def grad_fn(params: Any) -> Any:
        seen.append(params)
        return params  # of ½‖a‖²; what stands for the others is not looked at

    opt = gradient_norm_penalty(0.5, 1.0, method=method)
    result, _ = opt.update(params, opt.init(params), params, grad_fn=grad_fn)
    assert_trees_close(result.pop("a"), jnp.array([3.3, 4.4]))
    for tree in (result, seen[0]):
        assert tree["key"] == params["key"] and tree["flag"] is params["flag"]
        assert tree["count"] == 2**24 + 1 and tree["count"].dtype == jnp.int32
    # jax.grad's gradients of whole numbers, which have no values, pass as well.
    some = {"a": params["a"], "count": params["count"]}
    grad_fn = jax.grad(lambda p: 0.5 * jnp.vdot(p["a"], p["a"]), allow_int=True)
    result, _ = opt.update(grad_fn(some), opt.init(some), some, grad_fn=grad_fn)
    assert_trees_close(result["a"], jnp.array([3.3, 4.4]))
    assert result["count"].dtype == jax.dtypes.float0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"adaptive": True}], ids=str)
@pytest.mark.parametrize("number", [float, jnp.float32, jnp.float64, lambda x: lambda t: x + 0 * t])
def test_float32_stays_float32_where_float64_is_allowed(
    params: Any, number: Any, options: Any, method: str
) -> None:
    with jax.enable_x64(True):
        opt = gradient_norm_penalty(number(0.1), number(0.8), method=method, **options)
        state = opt.init(params)
        # A straight line, whose gradient makes no float64 of its own.
        jaxpr = jax.make_jaxpr(lambda g, p: opt.update(g, state, p, grad_fn=lambda q: q)[0])(
            params, params
        )
        wide = [v for e in jaxpr.eqns for v in e.outvars if v.aval.dtype == "float64"]
        assert not [v for v in wide if v.aval.ndim]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_strict_promotion_of_dtypes(method: str) -> None:
    with jax.numpy_dtype_promotion("strict"):
        params = {"a": jnp.full(4, 0.5, jnp.bfloat16), "b": jnp.zeros((), jnp.float32)}
        for number in (0.5, jnp.asarray(0.5, jnp.bfloat16), lambda t: jnp.asarray(0.5)):
            result = penalized(
                lambda p: 0.5 * jnp.vdot(p["a"], p["a"]), params, number, number, method=method
            )
            np.testing.assert_array_equal(np.asarray(result["a"], np.float32), np.full(4, 0.625))


def test_numbers_in_bfloat16_are_widened_first() -> None:
    # 1 - 0.0078125·0.5 is no bfloat16.
    alpha = jnp.asarray(2.0**-9, jnp.bfloat16)
    opt = gradient_norm_penalty(jnp.asarray(0.5, jnp.bfloat16), alpha)
    gradient, params = jnp.ones(4), jnp.ones(4)
    result, _ = opt.update(gradient, opt.init(params), params, grad_fn=jnp.zeros_like)
    np.testing.assert_array_equal(result, np.full(4, 1 - 2.0**-9, np.float32))


def test_the_range_of_a_perturbed_norm() -> None:
    seen = []

    def grad_fn(p: jax.Array) -> jax.Array:
        seen.append(p)
        return p

    for size in (8e37, 9e37, 3e38):
        gradient, params = jnp.array([size, 0.0], jnp.float32), jnp.zeros(2)
        opt = gradient_norm_penalty(0.5, 0.5)
        opt.update(gradient, opt.init(params), params, grad_fn=grad_fn)
        norm, _ = norm_and_inverse(gradient)
        np.testing.assert_allclose(norm, size, rtol=1e-6)
    np.testing.assert_allclose(seen, [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.slow
def test_hvp_finds_the_clean_pass_again(key: jax.Array) -> None:
    shapes = [(16, 32), (32, 32), (32, 4)]
    params = [jax.random.normal(key, shape) / 4 for shape in shapes]
    x = jax.random.normal(key, (64, 16))

    def loss(params: Any) -> jax.Array:
        h = x
        for w in params:
            h = jnp.tanh(h @ w)
        return jnp.sum(h)

    def flops(opt: Any) -> float:
        def step(params: Any) -> Any:
            gradient = jax.grad(loss)(params)
            return opt.update(gradient, opt.init(params), params, grad_fn=jax.grad(loss))[0]

        return jax.jit(step).lower(params).compile().cost_analysis()["flops"]

    plain = flops(gradient_norm_penalty(0.0, 0.0))
    # 2.8 here, and 3.5 where the pass at θ + 0·d cannot be told from another one.
    assert flops(gradient_norm_penalty(0.1, 0.8, method="hvp")) < 3 * plain


def test_hvp_leaves_integers_alone() -> None:
    params = {"w": jnp.array([3.0, 4.0]), "steps": jnp.array([1, 2])}

    def grad_fn(params: Any) -> Any:
        return {"w": params["w"] * params["steps"][0], "steps": None}

    opt = gradient_norm_penalty(0.5, 1.0, method="hvp")
    result, _ = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
    assert result["steps"] is None
    np.testing.assert_allclose(result["w"], [3.3, 4.4], rtol=1e-6)


def test_schedules_are_read_at_the_count(params: Any) -> None:
    opt = gradient_norm_penalty(lambda t: 0.1 * (t + 1), lambda t: 0.2 * t)
    grad_fn = jax.grad(quadratic)
    state = opt.init(params)
    size = float(jnp.sqrt(2 * quadratic(params)))
    for step in range(3):
        result, state = opt.update(grad_fn(params), state, params, grad_fn=grad_fn)
        factor = 1 + 0.2 * step * 0.1 * (step + 1) / size
        assert_trees_close(result, jax.tree.map(lambda p, f=factor: p * f, params))
    assert isinstance(state, GradientNormPenaltyState) and state.count == 3
    assert state.count.dtype == jnp.int32


def test_penalize_false_passes_the_gradient_on_and_counts(params: Any) -> None:
    opt = gradient_norm_penalty(0.1, 0.5)
    gradient = jax.grad(curved)(params)
    result, state = opt.update(gradient, opt.init(params), penalize=False)
    assert result is gradient and state.count == 1


def test_chain_passes_grad_fn_on_and_compiles_once(params: Any) -> None:
    traces = []
    opt = optax.chain(
        optax.identity(),
        gradient_norm_penalty(optax.linear_schedule(0.0, 0.1, 3), 0.5),
        optax.clip_by_global_norm(1.0),
        optax.adamw(1e-2),
    )
    grad_fn = jax.grad(curved)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(None)
        updates, state = opt.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    eager_params, eager_state = params, opt.init(params)
    state = opt.init(params)
    for _ in range(3):
        params, state = step(params, state)
        updates, eager_state = opt.update(
            grad_fn(eager_params), eager_state, eager_params, grad_fn=grad_fn
        )
        eager_params = optax.apply_updates(eager_params, updates)
    assert len(traces) == 1
    assert_trees_close(params, eager_params, rtol=1e-4)


def test_multi_steps_passes_grad_fn_on(params: Any) -> None:
    inner = optax.chain(gradient_norm_penalty(0.3, 0.6), optax.sgd(1.0))
    opt = optax.MultiSteps(inner, every_k_schedule=2)
    grad_fn = jax.grad(quadratic)
    state = opt.init(params)
    updates, state = opt.update(grad_fn(params), state, params, grad_fn=grad_fn)
    assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, params))
    updates, state = opt.update(grad_fn(params), state, params, grad_fn=grad_fn)
    expected = penalized(quadratic, params, 0.3, 0.6)
    assert_trees_close(updates, jax.tree.map(jnp.negative, expected))


def test_inject_hyperparams_sets_r_and_alpha(params: Any) -> None:
    opt = optax.inject_hyperparams(gradient_norm_penalty, static_args=("method",))(
        r=0.1, alpha=0.5, normalize=False, adaptive=False, method="finite_difference"
    )
    grad_fn = jax.grad(curved)
    state = opt.init(params)
    state.hyperparams["alpha"] = jnp.asarray(0.9)
    result, _ = opt.update(grad_fn(params), state, params, grad_fn=grad_fn)
    assert_trees_close(result, penalized(curved, params, 0.1, 0.9))


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((-0.1, 0.5), {}, "r=-0.1 must be a finite number >= 0"),
        ((0.1, -1), {}, "alpha=-1 must be a finite number >= 0"),
        ((float("nan"), 0.5), {}, "r=nan must"),
        (("0.1", 0.5), {}, "r='0.1' must"),
        ((jnp.ones(2), 0.5), {}, "r must be one number, not an array of shape (2,)"),
        ((np.array(-1.0), 0.5), {}, "r=-1.0 must be a finite number >= 0"),
        ((0.1, jnp.array(True)), {}, "alpha must be one number"),
        ((0.1, 0.5), {"method": "hpv"}, "did you mean 'hvp'?"),
        ((0.1, 0.5), {"normalize": 1}, "normalize=1 must be True or False"),
        ((0.1, 0.5), {"has_aux": 1}, "has_aux=1 must be True or False"),
    ],
)
def test_wrong_arguments(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        gradient_norm_penalty(*arguments, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [np.float32, np.array, jnp.asarray])
def test_a_number_may_be_an_array(params: Any, number: Any) -> None:
    result = penalized(curved, params, number(0.25), number(0.5))
    assert_trees_close(result, penalized(curved, params, 0.25, 0.5), rtol=1e-6)


@pytest.mark.parametrize("r", [0.1, 0.0, lambda t: 0.0])
@pytest.mark.parametrize("missing", ["params", "grad_fn"])
def test_a_penalized_step_without_its_arguments_is_an_error(
    params: Any, missing: str, r: Any
) -> None:
    opt = gradient_norm_penalty(r, 0.0)
    given = {"params": params, "grad_fn": jax.grad(curved)}
    del given[missing]
    with pytest.raises(OptimizerError, match=f"needs {missing}"):
        opt.update(params, opt.init(params), **given)


def test_a_traced_penalize_is_an_error(params: Any) -> None:
    opt = gradient_norm_penalty(0.1, 0.5)
    state = opt.init(params)

    @jax.jit
    def step(penalize: jax.Array) -> Any:
        return opt.update(params, state, params, grad_fn=jax.grad(curved), penalize=penalize)

    with pytest.raises(OptimizerError, match="Python bool"):
        step(True)


SCHEDULES = {
    "numbers": (0.3, 0.6),
    "arrays": (jnp.asarray(0.3), jnp.float32(0.6)),
    "schedules": (lambda t: 0.1 * t, lambda t: 0.6),
    "no_radius": (0.0, 0.6),
}


@pytest.mark.parametrize("numbers", quick_first([*SCHEDULES][1:] + [*SCHEDULES][:1], 2))
@pytest.mark.parametrize("adaptive", quick_first([False, True]))
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("where", quick_first([is_normalization, None]))
@pytest.mark.parametrize("method", quick_first(METHODS))
def test_the_pure_function_is_the_transformation_to_the_bit(
    normalized: Any, numbers: str, adaptive: bool, normalize: bool, where: Any, method: str
) -> None:
    r, alpha = SCHEDULES[numbers]
    options = {"normalize": normalize, "adaptive": adaptive, "where": where, "method": method}
    opt, grad_fn = gradient_norm_penalty(r, alpha, **options), jax.grad(coupled)
    state = GradientNormPenaltyState(count=jnp.asarray(2, jnp.int32))

    def transformed(params: Any, state: Any) -> Any:
        return opt.update(grad_fn(params), state, params, grad_fn=grad_fn)[0]

    def pure(params: Any, state: Any) -> Any:
        at_step = [x(state.count) if callable(x) else x for x in (r, alpha)]
        return penalized_gradient(grad_fn, params, grad_fn(params), *at_step, **options)

    assert_trees_equal(jax.jit(pure)(normalized, state), jax.jit(transformed)(normalized, state))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(r=st.floats(0, 2), alpha=st.floats(0, 2), seed=st.integers(0, 1000))
def test_the_pure_function_takes_traced_numbers(r: float, alpha: float, seed: int) -> None:
    w = jax.random.normal(jax.random.key(seed), (7,))
    params, grad_fn = {"w": w[:4], "b": w[4:]}, jax.grad(curved)
    traced = jax.jit(
        lambda r, alpha: penalized_gradient(grad_fn, params, grad_fn(params), r, alpha)
    )
    expected = penalized_gradient(grad_fn, params, grad_fn(params), r, alpha)
    assert_trees_close(traced(r, alpha), expected, rtol=1e-4)


def test_the_mean_over_micro_batches_that_are_penalized_alone() -> None:
    # Of each micro-batch c: the gradient of ½c‖θ‖² is c·θ, and penalized c·θ·(1 + α·r/‖θ‖).
    params, r, alpha = jnp.array([3.0, 4.0]), 0.5, 0.8
    own = [
        penalized_gradient(lambda p, c=c: c * p, params, c * params, r, alpha) for c in (1.0, 3.0)
    ]
    np.testing.assert_allclose(sum(own) / 2, 2 * params * (1 + alpha * r / 5), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((-0.1, 0.5), {}, "r=-0.1 must be a finite number >= 0"),
        ((0.1, -1), {}, "alpha=-1 must be a finite number >= 0"),
        ((lambda t: 0.1, 0.5), {}, "r=<function"),
        ((0.1, jnp.ones(2)), {}, "alpha must be one number, not an array of shape (2,)"),
        ((0.1, 0.5), {"method": "hpv"}, "did you mean 'hvp'?"),
        ((0.1, 0.5), {"adaptive": 1}, "adaptive=1 must be True or False"),
    ],
)
def test_wrong_arguments_of_the_pure_function(
    params: Any, arguments: Any, options: Any, message: str
) -> None:
    with pytest.raises(OptimizerError) as caught:
        penalized_gradient(jax.grad(curved), params, params, *arguments, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_pure_function_takes_real_parameters_and_gradients_alone(params: Any) -> None:
    with pytest.raises(OptimizerError, match="penalized_gradient needs real parameters"):
        penalized_gradient(jnp.conj, jnp.ones(2, jnp.complex64), jnp.ones(2), 0.1, 0.5)
    with pytest.raises(OptimizerError, match="value_and_grad's \\(value, grads\\)"):
        penalized_gradient(jax.value_and_grad(quadratic), params, params, 0.1, 0.5)


@pytest.mark.parametrize("has_aux", [False, True])
def test_a_penalized_gradient_that_is_given_is_used_in_a_chain(params: Any, has_aux: bool) -> None:
    grad_fn = jax.grad(curved)
    opt = optax.chain(
        gradient_norm_penalty(lambda t: 0.1 * (t + 1), 0.6, has_aux=has_aux),
        optax.sgd(0.1, momentum=0.9),
    )
    states = [opt.init(params)] * 2
    for step in range(3):
        gradient = grad_fn(params)
        given = penalized_gradient(grad_fn, params, gradient, 0.1 * (step + 1), 0.6)

        def no_call(params: Any) -> Any:
            raise AssertionError("grad_fn is called")

        result, states[0] = opt.update(
            gradient, states[0], params, penalized=given, grad_fn=no_call
        )
        with_aux = (lambda p: (grad_fn(p), 1.0)) if has_aux else grad_fn
        expected, states[1] = opt.update(gradient, states[1], params, grad_fn=with_aux)
        assert_trees_close((result, states[0]), (expected, states[1]))
        assert states[0][0].count == step + 1


def test_a_penalized_gradient_needs_neither_params_nor_grad_fn() -> None:
    updates = {"a": jnp.ones(3, jnp.bfloat16), "b": None}
    opt = gradient_norm_penalty(0.1, 0.5)
    given = {"a": np.full(3, 2.0, np.float32), "b": jnp.ones(2)}
    result, state = opt.update(updates, opt.init(updates), penalized=given)
    assert_trees_equal(result, {"a": jnp.full(3, 2.0), "b": None})
    assert state.count == 1


def test_a_plain_step_does_not_look_at_the_penalized_gradient(params: Any) -> None:
    opt = gradient_norm_penalty(0.1, 0.5)
    result, state = opt.update(params, opt.init(params), penalized="none", penalize=False)
    assert result is params and state.count == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda g: g | {"b": g["b"][:2]}, "penalized has b of shape (2,), not (3,)"),
        (lambda g: {"w": g["w"]}, "penalized lacks b"),
        (lambda g: g | {"more": g["b"]}, "penalized has another structure than the gradient"),
    ],
)
def test_a_penalized_gradient_that_does_not_fit_is_an_error(
    params: Any, change: Any, message: str
) -> None:
    opt = gradient_norm_penalty(0.1, 0.5)
    with pytest.raises(OptimizerError) as caught:
        opt.update(params, opt.init(params), params, penalized=change(params))
    assert message in str(caught.value) and "\n" not in str(caught.value)
