"""The family: each method against a NumPy transcription of its paper's formula, and its limits.

family_golden_test.py has the authors' implementations; battery_test.py the wrappers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from optimizer import (
    Axes,
    ByLabel,
    OptimizerError,
    adamg,
    asam,
    centralize,
    combined_gradient,
    constrain,
    cr_sam,
    decouple,
    euclidean,
    filter_noise,
    friendly_sam,
    functional_gradients,
    gam,
    gradient_norm_penalty,
    gsam,
    is_normalization,
    looksam,
    mix,
    momentum_sam,
    parameter_kinds,
    penalized_gradient,
    perturbed_params,
    proportional_radius,
    random_weight_perturbation,
    relative,
    running_average,
    sam,
    sam_on,
    sgdg,
    sharpness_aware,
    stable_sam,
    unnormalized,
    unnormalized_sam,
    vasso,
    wsam,
)
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal

assert_trees_close = functools.partial(assert_trees_close, rtol=1e-5, atol=1e-7)

R = 0.3


def loss(params: Any) -> jax.Array:
    """Return a loss whose Hessian is not constant."""
    w, b, scale = params["kernel"], params["bias"], params["scale"]
    return jnp.sum(jnp.sin(w) * jnp.roll(w, 1)) + jnp.sum(jnp.exp(b * scale)) * jnp.mean(w)


grad_fn = jax.jit(jax.grad(loss))
PARAMS = {
    "kernel": jnp.array([[0.3, -1.2], [0.7, 2.0]]),
    "bias": jnp.array([0.5, -0.4, 0.1]),
    "scale": jnp.array([1.0, 0.8, 1.2]),
}
THETA, unravel = ravel_pytree(PARAMS)


def at(theta: Any) -> np.ndarray:
    """Return the gradient at a vector of parameters."""
    return flat(grad_fn(unravel(jnp.asarray(theta, jnp.float32))))


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


theta, g = np.asarray(THETA, np.float64), flat(grad_fn(PARAMS))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def across(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the part of x that is orthogonal to y."""
    return x - (x @ unit(y)) * unit(y)


def first(method: Any, params: Any = None, grads: Any = None) -> np.ndarray:
    """Return the first gradient that a method gives."""
    params = PARAMS if params is None else params
    grads = grad_fn(params) if grads is None else grads
    return flat(method.update(grads, method.init(params), params, grad_fn=grad_fn)[0])


up = at(theta + R * unit(g))
down = at(theta - R * unit(g))
SCALED = np.abs(theta)


def gam_by_hand(rho: float, norm_rho: float, betas: Any, gamma: float) -> np.ndarray:
    g1 = at(theta + norm_rho * unit(g))
    steeper = theta + rho * unit(g1 - g)
    g2 = at(steeper)
    g3 = at(steeper + norm_rho * unit(g2))
    m, d = g + betas[1] * g2, betas[0] * g1 + betas[2] * g3
    return d - gamma * across(m, d)


def only_bias(params: Any) -> Any:
    return {name: name == "bias" for name in params}


def on(selected: np.ndarray) -> np.ndarray:
    """Return g⁺ with a perturbation of the selected elements."""
    return at(theta + R * unit(np.where(selected, g, 0.0)))


IS_BIAS, IS_SCALE = (flat({k: jnp.full_like(v, k == name) for k, v in PARAMS.items()}) > 0
                     for name in ("bias", "scale"))  # fmt: skip

FORMULAS: dict[str, tuple[Any, np.ndarray]] = {
    "sam": (sam(R), up),
    "sam of some": (sam(R, where=only_bias), on(IS_BIAS)),
    "asam": (asam(R), at(theta + R * SCALED * unit(SCALED * g))),
    "asam, eta": (
        asam(R, eta=0.2),
        at(theta + R * (SCALED + 0.2) * unit((SCALED + 0.2) * g)),
    ),
    "asam, eta, weights": (
        asam(R, eta=0.2, weights=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        at(theta + R * (t := np.where(np.arange(10) < 3, 1, np.where(np.arange(10) < 7,
           SCALED + 0.2, 1))) * unit(t * g)),
    ),  # fmt: skip
    "sam_on": (sam_on(R), on(IS_BIAS | IS_SCALE)),
    "wsam": (wsam(R, gamma=0.75), g + 3.0 * (up - g)),
    "gsam": (gsam(R, alpha=0.4), up - 0.4 * across(g, up)),
    "gsam, alpha 0 is sam": (gsam(R, alpha=0.0), up),
    "stable_sam": (stable_sam(R), unit(up) * np.linalg.norm(g)),
    "friendly_sam": (friendly_sam(R), up),
    "vasso": (vasso(R), up),
    "unnormalized_sam": (unnormalized_sam(R), at(theta + R * g)),
    "cr_sam": (cr_sam(R, 0.2, 0.05), up + 0.2 * (up + down - 2 * g) + 0.05 * (up - down)),
    "gam": (gam(R, 0.1, (0.6, 0.5, 0.4), 0.3), gam_by_hand(R, 0.1, (0.6, 0.5, 0.4), 0.3)),
    "a direction that is an Optax transformation": (
        sharpness_aware(
            R, mix(0.8), direction=optax.stateless(lambda d, p: d | {"bias": 0 * d["bias"]})
        ),
        0.2 * g + 0.8 * on(~IS_BIAS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_numpy(name: str) -> None:
    method, expected = FORMULAS[name]
    np.testing.assert_allclose(first(method), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in FORMULAS if "alpha 0" not in name])
def test_none_is_another(name: str) -> None:
    # Whose first step is SAM's by their formula.
    if name in ("sam", "friendly_sam", "vasso"):
        return
    assert not np.allclose(first(FORMULAS[name][0]), up, rtol=1e-3)


def test_a_mean_and_what_is_apart_from_it_over_steps() -> None:
    grads = [
        unravel(jnp.asarray(x, jnp.float32)) for x in np.random.default_rng(0).normal(size=(4, 10))
    ]
    m = d = None
    for method, share, decay, apart in (
        (vasso(R, theta=0.3), 0.0, 0.7, False),
        (friendly_sam(R, sigma=0.5, lmbda=0.6), 0.5, 0.6, True),
    ):
        state, m = method.init(PARAMS), None
        for step, grad in enumerate(grads):
            x = flat(grad)
            d = x if m is None else x - share * m
            m = x if m is None else decay * m + (1 - decay) * x
            penalize = step != 1  # a plain step moves the mean too
            result, state = method.update(grad, state, PARAMS, grad_fn=grad_fn, penalize=penalize)
            expected = at(theta + R * unit(d if apart else m)) if penalize else x
            np.testing.assert_allclose(flat(result), expected, rtol=2e-4, atol=2e-5)


def test_momentum_sam_looks_against_the_momentum() -> None:
    method, m = momentum_sam(R, momentum=0.5), np.zeros(10)
    state = method.init(PARAMS)
    assert_trees_equal(perturbed_params(state, PARAMS), PARAMS)
    for scale in (1.0, -3.0, 0.5):
        grads = jax.tree.map(lambda p, s=scale: s + p, PARAMS)
        updates, state = method.update(grads, state, PARAMS)
        assert updates is grads
        m = 0.5 * m + flat(grads)
        found = flat(perturbed_params((optax.EmptyState(), state), PARAMS))
        np.testing.assert_allclose(found, theta - R * unit(m), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_random_perturbations_have_the_filters_size_and_are_drawn_anew() -> None:
    params = {"w": jnp.ones((500, 2)) * jnp.array([[1.0, 3.0]]), "scale": jnp.ones(400)}
    method = random_weight_perturbation(sigma=0.01)
    state, seen = method.init(params), []
    for _ in range(2):
        moved = perturbed_params(state, params)
        seen.append(jax.tree.map(lambda a, b: np.asarray(a - b), moved, params))
        _, state = method.update(params, state, params)
    for epsilon in seen:
        size = 0.01 * np.sqrt(500)
        np.testing.assert_allclose(epsilon["w"].std(0), [size, 3 * size], rtol=0.1)
        np.testing.assert_allclose(epsilon["scale"].std(), 0.01 * 20, rtol=0.1)
    assert abs(np.corrcoef(seen[0]["scale"], seen[1]["scale"])[0, 1]) < 0.2
    again = random_weight_perturbation(sigma=0.01).init(params)
    assert_trees_equal(
        perturbed_params(again, params), perturbed_params(method.init(params), params)
    )
    other = random_weight_perturbation(sigma=0.01, seed=1).init(params)
    assert not np.allclose(perturbed_params(other, params)["scale"], 1.0 + seen[0]["scale"])


def test_a_random_perturbation_with_the_gradient_mixed_in() -> None:
    method = random_weight_perturbation(0.01, lmbda=0.3)
    noise, _ = (direction := filter_noise(0)).update(
        grad_fn(PARAMS), direction.init(PARAMS), PARAMS
    )
    expected = 0.7 * g + 0.3 * at(theta + 0.01 * flat(noise))
    np.testing.assert_allclose(first(method), expected, rtol=2e-5, atol=2e-6)


def test_decoupled_the_optimizer_sees_the_plain_gradient() -> None:
    opt = decouple(wsam(R, gamma=0.75), optax.adam(0.1), learning_rate=lambda step: 0.2)
    plain, _ = optax.adam(0.1).update(grad_fn(PARAMS), optax.adam(0.1).init(PARAMS), PARAMS)
    expected = flat(plain) - 0.2 * 3.0 * (up - g)
    np.testing.assert_allclose(first(opt), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(OptimizerError, match="learning_rate=-1"):
        decouple(wsam(R), optax.adam(0.1), -1)


@pytest.mark.slow
def test_functional_sam_keeps_the_slope_at_the_outputs() -> None:
    x, y = jnp.array([[1.0, -2.0], [0.5, 0.3], [2.0, 1.0]]), jnp.array([0.1, 0.4, -0.2])
    outputs = lambda w: jnp.tanh(x @ w)  # noqa: E731
    w = jnp.array([0.7, -0.2])
    grads, slope_fixed = functional_gradients(outputs, lambda z: jnp.mean((z - y) ** 2))(w)
    slope = 2 * (outputs(w) - y) / 3
    jacobian = jax.jacobian(outputs)
    np.testing.assert_allclose(grads, slope @ jacobian(w), rtol=1e-6)
    method = sam(R)
    result, _ = method.update(grads, method.init(w), w, grad_fn=slope_fixed)
    moved = w + R * grads / jnp.linalg.norm(grads)
    np.testing.assert_allclose(result, slope @ jacobian(moved), rtol=1e-5)


def test_the_radius_between_two_bounds() -> None:
    rho = proportional_radius(lambda step: 0.1 * step, 0.02, 0.2, 0.1, 0.3)
    np.testing.assert_allclose([rho(1), rho(2), rho(3)], [0.02, 0.11, 0.2], rtol=1e-6)
    with pytest.raises(OptimizerError, match="rate_max=0.1 must be above rate_min=0.1"):
        proportional_radius(lambda step: 0.1, 0.0, 0.1, 0.1, 0.1)


# Radii and weights of single parameters.


# A bias beside a scale is an offset.
KINDS = {"weight": 0.1, "offset": 0.2, "scale": 0.4}
RADII = {"kernel": 0.1, "bias": 0.2, "scale": 0.4}


@pytest.mark.parametrize(
    "values",
    [
        RADII,
        ByLabel(parameter_kinds, KINDS),
        ByLabel({"kernel": "a", "bias": "b", "scale": "c"}, {"a": 0.1, "b": 0.2, "c": 0.4}),
        {"kernel": lambda step: 0.1 + step, "bias": jnp.float32(0.2), "scale": np.float64(0.4)},
    ],
    ids=["tree", "kinds", "labels", "schedules"],
)
def test_a_radius_and_a_weight_for_each_parameter(values: Any) -> None:
    r = flat({name: jnp.full_like(p, RADII[name]) for name, p in PARAMS.items()})
    moved = at(theta + r * unit(g))
    np.testing.assert_allclose(first(sam(values)), moved, rtol=2e-5, atol=2e-6)
    mixed = (1 - r) * g + r * up
    found = first(gradient_norm_penalty(R, values))
    np.testing.assert_allclose(found, mixed, rtol=2e-5, atol=2e-6)
    exact = first(gradient_norm_penalty(values, 0.5, method="hvp"))
    direction = unravel(jnp.asarray(r * unit(g), jnp.float32))
    change = flat(jax.jvp(grad_fn, (PARAMS,), (direction,))[1])
    np.testing.assert_allclose(exact, g + 0.5 * change, rtol=2e-5, atol=2e-6)


def test_a_radius_of_zero_leaves_a_parameter_where_it_is() -> None:
    seen = []
    method = sam({"kernel": 0.1, "bias": 0.0, "scale": 0.0})

    def watched(params: Any) -> Any:
        seen.append(params)
        return grad_fn(params)

    method.update(grad_fn(PARAMS), method.init(PARAMS), PARAMS, grad_fn=watched)
    assert_trees_equal(seen[0]["bias"], PARAMS["bias"])
    assert not np.allclose(seen[0]["kernel"], PARAMS["kernel"])


@pytest.mark.parametrize(
    "r, message",
    [
        ({"kernel": 0.1}, "r must be a number, or a pytree of numbers like params or a prefix"),
        ({"kernel": 0.1, "bias": -1.0, "scale": 0.0}, "r=-1.0 must be a finite number >= 0"),
        (ByLabel(parameter_kinds, {"weight": 0.1}), "a label of r='offset' is not one of weight"),
        (lambda step: jnp.ones(1), "r must be one number, not an array of shape (1,)"),
        (lambda step: -0.1, "r=-0.1 must be a finite number >= 0"),
        (lambda step: jnp.float32(-0.5), "r=-0.5 must be a finite number >= 0"),
        (lambda step: jnp.nan, "r=nan must be a finite number >= 0"),
    ],
)
def test_wrong_radii_are_named(r: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        first(sam(r))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_schedule_that_is_traced_is_named_too() -> None:
    method = gradient_norm_penalty(0.1, lambda step: jnp.full(1, 0.1) * step)
    with pytest.raises(OptimizerError, match="alpha must be one number, not an array of shape"):
        jax.jit(lambda p: method.update(p, method.init(p), p, grad_fn=grad_fn)[0])(PARAMS)


@pytest.mark.parametrize(
    "make",
    [
        sam,
        lambda **more: looksam(sam(), 0.5, **more),
        momentum_sam,
        random_weight_perturbation,
        lambda **more: random_weight_perturbation(lmbda=0.5, **more),
    ],
)
def test_an_axis_that_is_not_there_is_named(make: Any) -> None:
    method = make(axis_name="data")
    with pytest.raises(OptimizerError, match="axis_name='data', .* outside of jax.shard_map"):
        method.update(PARAMS, method.init(PARAMS), PARAMS, grad_fn=grad_fn)


def test_an_axis_needs_a_jax_that_keeps_track_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "__version_info__", (0, 9, 2))
    with pytest.raises(OptimizerError, match="axis_name='data', which needs jax 0.10 or newer"):
        first(sam(axis_name="data"))


@pytest.mark.parametrize("value", [jnp.ones(1), jnp.float32(-0.5), -0.5, None])
@pytest.mark.parametrize(
    "make, name",
    [
        (lambda rate: looksam(sam(0.1), rate), "weight"),
        (lambda rate: decouple(sam(0.1), optax.sgd(0.1), rate), "learning_rate"),
        (sgdg, "learning_rate"),
        (adamg, "learning_rate"),
        (lambda rate: constrain(optax.sgd(1.0), "hyperball", rate), "learning_rate"),
    ],
    ids=["looksam", "decouple", "sgdg", "adamg", "hyperball"],
)
def test_what_other_schedules_give_is_checked_too(make: Any, name: str, value: Any) -> None:
    kernel = jnp.ones((3, 2))
    opt = make(lambda step: value)
    more = {} if opt.__class__ is optax.GradientTransformation else {"grad_fn": jnp.sin}
    if name == "weight":
        more = {"penalize": False}
    with pytest.raises(OptimizerError, match=f"{name}(=| must be one number)"):
        opt.update(kernel, opt.init(kernel), kernel, **more)


# Limits.


METHODS: dict[str, Callable[[float], Any]] = {
    "sam": sam,
    "asam": functools.partial(asam, eta=0.1),
    "gsam": gsam,
    "wsam": wsam,
    "stable_sam": stable_sam,
    "friendly_sam": friendly_sam,
    "vasso": vasso,
    "unnormalized_sam": unnormalized_sam,
    "cr_sam": cr_sam,
    "gam": gam,
    "random": functools.partial(random_weight_perturbation, lmbda=0.5),
}


@pytest.mark.parametrize("name", quick_first(tuple(METHODS)))
def test_zeros_stay_zeros_and_their_derivative_is_finite(name: str) -> None:
    # As in meta-learning and unrolled loops.
    method, zero = METHODS[name](R), jnp.zeros(3)
    quadratic = lambda p: 0.5 * p * jnp.array([1.0, 2.0, 3.0])  # noqa: E731

    def step(params: jax.Array) -> jax.Array:
        return method.update(quadratic(params), method.init(params), params, grad_fn=quadratic)[0]

    value, derivative = step(zero), jax.jacobian(step)(zero)
    assert np.all(np.isfinite(derivative)) and not np.any(value)


@pytest.mark.parametrize("name", METHODS)
def test_with_a_radius_of_zero_the_gradient_passes_to_the_bit(name: str) -> None:
    method = METHODS[name](0.0)
    result, _ = method.update(grad_fn(PARAMS), method.init(PARAMS), PARAMS, grad_fn=grad_fn)
    assert_trees_equal(result, grad_fn(PARAMS))


@pytest.mark.parametrize("name", METHODS)
def test_looksam_reuses_any_of_them(name: str) -> None:
    opt = looksam(METHODS[name](R), 0.5)
    grads = grad_fn(PARAMS)
    result, state = opt.update(grads, opt.init(PARAMS), PARAMS, grad_fn=grad_fn)
    np.testing.assert_allclose(flat(result), first(METHODS[name](R)), rtol=1e-6)
    reused, after = opt.update(grads, state, PARAMS, penalize=False)
    part = across(flat(result), g)
    expected = g + 0.5 * np.linalg.norm(g) * unit(part)
    np.testing.assert_allclose(flat(reused), expected, rtol=1e-4, atol=1e-4)
    assert after.penalty.count == 2


def test_looksam_leaves_whole_numbers_alone() -> None:
    params = {"w": jnp.array([1.0, 0.0]), "count": jnp.array(2**24 + 1)}
    opt = looksam(sam(R), 0.5)
    there = {"w": jnp.array([1.0, 1.0]), "count": params["count"]}
    _, state = opt.update(params, opt.init(params), params, grad_fn=lambda p: there)
    result, _ = opt.update(params, state, params, penalize=False)
    assert result["count"] == 2**24 + 1 and result["count"].dtype == jnp.int32
    np.testing.assert_allclose(result["w"], [1.0, 0.5], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stack", (0, 1, 2))
def test_looksam_layer_by_layer_in_a_stack(stack: int) -> None:
    layers = [{"kernel": k} for k in jax.random.normal(jax.random.key(0), (3, 4, 2))]
    inputs, outputs = (axis for axis in range(3) if axis != stack)
    whole = jnp.stack([layer["kernel"] for layer in layers], stack)

    def path(opt: Any, params: Any) -> Any:
        cubes = functools.partial(jax.tree.map, lambda p: p**3)
        _, state = opt.update(cubes(params), opt.init(params), params, grad_fn=cubes)
        return opt.update(jax.tree.map(jnp.sin, params), state, params, penalize=False)[0]

    penalty = unnormalized_sam(R)  # each layer's perturbation is its own
    expected = path(looksam(penalty, 0.5, per_layer=True), layers)
    axes = Axes((stack,), (inputs,), (outputs,))
    found = path(looksam(penalty, 0.5, per_layer=True, axes=axes), whole)
    np.testing.assert_allclose(
        found, jnp.stack([layer["kernel"] for layer in expected], stack), rtol=1e-5
    )
    assert not np.allclose(found, path(looksam(penalty, 0.5, per_layer=True), whole), rtol=1e-3)


def test_looksam_leaf_by_leaf() -> None:
    grads, there = (
        {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 2.0])},
        {
            "a": jnp.array([1.0, 3.0]),
            "b": jnp.array([5.0, 2.0]),
        },
    )
    opt = looksam(sam(R), 0.5, per_layer=True)
    _, state = opt.update(grads, opt.init(grads), grads, grad_fn=lambda p: there)
    reused, _ = opt.update(grads, state, grads, penalize=False)
    assert_trees_close(reused, {"a": jnp.array([1.0, 0.5]), "b": jnp.array([1.0, 2.0])})


@pytest.mark.slow
def test_looksam_layer_by_layer_of_a_stack() -> None:
    # The second of two axes of layers behind the kernel's inputs.
    g, there = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 2))
    params, axes = jnp.zeros((3, 2, 4, 2)), Axes(stack=(0, 2), input=(1,), output=(3,))
    opt = looksam(sam(R), 0.5, per_layer=True, axes=axes)
    _, state = opt.update(g, opt.init(params), params, grad_fn=lambda p: there)
    reused, _ = opt.update(g, state, params, penalize=False)
    for i in range(3):
        for j in range(4):
            own, up = (x[i, :, j].ravel() for x in (g, there))
            expected = own + 0.5 * np.linalg.norm(own) * unit(across(up, own))
            np.testing.assert_allclose(np.ravel(reused[i, :, j]), expected, rtol=1e-4)


def test_a_perturbed_gradient_that_overflows_is_stopped_behind_the_penalty() -> None:
    # apply_if_finite looks at its inputs: around the chain it sees the clean gradient alone.
    overflows = lambda p: jnp.where(p > 1.0, -jnp.inf, 1.0)  # noqa: E731
    params = jnp.ones(2)
    rest = optax.apply_if_finite(optax.sgd(0.1), 3)
    opt = optax.chain(sam(R), rest)
    updates, state = opt.update(jnp.ones(2), opt.init(params), params, grad_fn=overflows)
    assert_trees_equal(updates, jnp.zeros(2))
    assert state[1].total_notfinite == 1
    around = optax.apply_if_finite(optax.chain(sam(R), optax.sgd(0.1)), 3)
    updates, _ = around.update(jnp.ones(2), around.init(params), params, grad_fn=overflows)
    assert np.all(np.isinf(updates))


# Over devices.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", quick_first(["penalty", "asam", "normalize", "gsam", "stable_sam", "gam"])
)
def test_norms_are_those_of_all_devices(name: str) -> None:
    # jax.vmap's named axis has the collectives of shard_map's.
    whole = jnp.arange(1.0, 9.0)
    curvature = jnp.linspace(0.5, 2.0, 8)
    make = {
        "penalty": lambda **more: gradient_norm_penalty(R, 0.7, **more),
        "asam": lambda **more: asam(R, **more),
        "normalize": lambda **more: gradient_norm_penalty(R, 0.7, normalize=True, **more),
        "gsam": lambda **more: gsam(R, **more),
        "stable_sam": lambda **more: stable_sam(R, **more),
        "gam": lambda **more: gam(R, **more),
    }[name]

    def step(method: Any, params: jax.Array, curvature: jax.Array) -> jax.Array:
        gradient = lambda p: curvature * p**2  # noqa: E731
        return method.update(gradient(params), method.init(params), params, grad_fn=gradient)[0]

    expected = step(make(), whole, curvature)
    split = lambda x: x.reshape(4, 2)  # noqa: E731
    mapped = jax.vmap(functools.partial(step, make(axis_name="d")), axis_name="d")
    np.testing.assert_allclose(mapped(split(whole), split(curvature)).ravel(), expected, rtol=1e-5)
    alone = jax.vmap(functools.partial(step, make()))(split(whole), split(curvature))
    assert not np.allclose(alone.ravel(), expected, rtol=1e-3)


def test_noise_of_a_filter_whose_inputs_are_split() -> None:
    method = random_weight_perturbation(1.0, axis_name="d")
    parts = jnp.full((4, 500, 2), jnp.array([1.0, 3.0]))  # 500 inputs a device, of 2,000
    noise = jax.vmap(lambda p: method.init({"kernel": p}).perturbation["kernel"], axis_name="d")
    epsilon = np.asarray(noise(parts))
    norm = np.sqrt(2000) * np.array([1.0, 3.0])
    np.testing.assert_allclose(epsilon.std((0, 1)), norm, rtol=0.1)
    assert abs(np.corrcoef(epsilon[0].ravel(), epsilon[1].ravel())[0, 1]) < 0.2


# Arguments.


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: wsam(R, gamma=1.0), "gamma=1.0 must be a finite number in [0, 1)"),
        (lambda: gsam(R, alpha=-1), "alpha=-1 must be a finite number >= 0"),
        (lambda: vasso(R, theta=0.0), "theta=0.0 must be > 0"),
        (lambda: friendly_sam(R, lmbda=1.0), "lmbda=1.0 must be a finite number in [0, 1)"),
        (lambda: gam(R, norm_rho=0.0), "norm_rho=0.0 must be > 0"),
        (lambda: cr_sam(R, gamma=-1), "gamma=-1 must be a finite number >= 0"),
        (lambda: asam(R, eta=-1), "eta=-1 must be a finite number >= 0"),
        (lambda: momentum_sam(R, momentum=1.0), "momentum=1.0 must be a finite number in [0, 1)"),
        (lambda: random_weight_perturbation(0.1, lmbda=2), "lmbda=2 must be a finite number in"),
        (lambda: random_weight_perturbation(where=is_normalization), "needs lmbda"),
        (lambda: gam(R, betas=(1.0, 2.0)), "betas=(1.0, 2.0) must be three numbers"),
        (lambda: gam(R, betas=(1.0, -2.0, 1.0)), "each of betas=-2.0 must be a finite number >= 0"),
        (lambda: running_average(1.5), "decay=1.5 must be a finite number in [0, 1)"),
        (lambda: sam(-0.1), "r=-0.1 must be a finite number >= 0"),
    ],
)
def test_wrong_arguments(make: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        make()
    assert message in str(caught.value)


def test_the_parts_are_what_the_penalty_is_made_of() -> None:
    expected = penalized_gradient(grad_fn, PARAMS, grad_fn(PARAMS), R, 0.8, adaptive=True)
    found = combined_gradient(
        grad_fn, PARAMS, grad_fn(PARAMS), R, mix(0.8), metric=relative(), where=None
    )
    assert_trees_equal(found, expected)
    same = sharpness_aware(R, mix(1.0), metric=euclidean(), where=is_normalization)
    assert_trees_equal(first(same), first(sam_on(R)))
    longer = sharpness_aware(R * np.linalg.norm(g), mix(1.0))
    np.testing.assert_allclose(
        first(sharpness_aware(R, mix(1.0), metric=unnormalized())), first(longer), rtol=1e-4
    )


def test_centralization_inside_moves_the_direction_alone() -> None:
    kernel = {"kernel": jnp.array([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]])}
    cube = lambda p: jax.tree.map(lambda x: x**3, p)  # noqa: E731
    method = sharpness_aware(R, mix(1.0), direction=centralize())
    result, _ = method.update(cube(kernel), method.init(kernel), kernel, grad_fn=cube)
    d = np.asarray(kernel["kernel"]) ** 3
    d = d - d.mean(0)
    expected = (np.asarray(kernel["kernel"]) + R * unit(d.ravel()).reshape(3, 2)) ** 3
    np.testing.assert_allclose(result["kernel"], expected, rtol=1e-5)
