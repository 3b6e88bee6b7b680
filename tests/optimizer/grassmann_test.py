"""SGD-G and Adam-G, and the group of parameters that they move."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer import (
    OptimizerError,
    adamg,
    geometry,
    grassmann_labels,
    is_normalization,
    orthogonality_penalty,
    sgdg,
    unit_norm,
)
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal

Optimizer = Callable[..., optax.GradientTransformation]
OPTIMIZERS: list[Optimizer] = [sgdg, adamg]
SHAPE = (3, 3, 2, 5)


@pytest.fixture
def kernel(key: jax.Array) -> jax.Array:
    return geometry.unit(jax.random.normal(key, SHAPE))


@pytest.fixture
def gradient(key: jax.Array) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, 1), SHAPE)


def moved(opt: optax.GradientTransformation, params: Any, *gradients: Any) -> tuple[Any, Any]:
    """Return the parameters and the state after a step with each gradient."""
    state = opt.init(params)
    for g in gradients:
        updates, state = opt.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# What a step is.


@pytest.mark.slow
def test_sgdg_without_momentum_is_the_geodesic_step(kernel: Any, gradient: Any) -> None:
    new, state = moved(sgdg(0.3, momentum=0.0), kernel, gradient)
    h = -0.3 * geometry.project(kernel, gradient)
    assert_trees_close(new, geometry.exp(kernel, h))
    assert_trees_close(state.momentum, geometry.transport_self(kernel, h))
    turned = np.arccos(np.sum(np.asarray(new * kernel), axis=(0, 1, 2)))
    np.testing.assert_allclose(np.cos(turned), np.cos(geometry.norm(h).ravel()), atol=1e-5)


def test_sgdg_carries_the_momentum_along(kernel: Any, gradient: Any) -> None:
    """Without gradient the second step goes on along the same geodesic, μ times as far."""
    new, _ = moved(sgdg(0.3, momentum=0.5), kernel, gradient, 0 * gradient)
    h = -0.3 * geometry.project(kernel, gradient)
    assert_trees_close(new, geometry.exp(kernel, 1.5 * h))


def test_adamg_has_one_second_moment_a_column(kernel: Any, gradient: Any) -> None:
    _, state = moved(adamg(0.1, b2=0.9), kernel, gradient)
    h = geometry.project(kernel, gradient)
    assert state.nu.shape == (1, 1, 1, 5) and state.mu.shape == SHAPE
    assert_trees_close(state.nu, 0.1 * jnp.sum(h * h, axis=(0, 1, 2), keepdims=True))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_adamg_turns_by_the_learning_rate_first(kernel: Any, gradient: Any, scale: float) -> None:
    new, _ = moved(adamg(0.1, eps=0.0), kernel, scale * gradient)
    assert_trees_close(jnp.sum(new * kernel, axis=(0, 1, 2)), jnp.full(5, jnp.cos(0.1)), atol=2e-5)


def test_adamg_without_memory_turns_by_the_learning_rate(kernel: Any, gradient: Any) -> None:
    """With b1 = b2 = 0 only the direction of each gradient counts."""
    middle, _ = moved(adamg(0.1, b1=0.0, b2=0.0), kernel, gradient)
    end, _ = moved(adamg(0.1, b1=0.0, b2=0.0), kernel, gradient, 7 * gradient)
    h = geometry.project(middle, gradient)
    assert_trees_close(end, geometry.exp(middle, -0.1 * geometry.unit(h)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_clip_is_per_column_after_the_projection(optimizer: Optimizer, kernel: Any) -> None:
    """Project first: only the column with a long tangent is clipped, not the one long along y."""
    tangent = geometry.unit(geometry.project(kernel, jnp.roll(kernel, 1, axis=0)))
    size = jnp.array([0.01, 0.05, 0.5, 3.0, 0.09]).reshape(1, 1, 1, 5)
    clipped = jnp.minimum(size, 0.1)
    new, state = moved(optimizer(0.2, grad_clip=0.1), kernel, 50 * kernel + size * tangent)
    _, plain = moved(optimizer(0.2), kernel, clipped * tangent)
    assert_trees_close(state, plain, rtol=1e-3, atol=1e-5)
    if optimizer is sgdg:
        assert_trees_close(new, geometry.exp(kernel, -0.2 * clipped * tangent), atol=1e-5)
    else:
        squares = 0.01 * clipped**2
        np.testing.assert_allclose(state.nu, squares, rtol=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_length_of_the_parameters_does_not_matter(
    optimizer: Optimizer, kernel: Any, gradient: Any
) -> None:
    lengths = jnp.array([0.1, 1.0, 3.0, 10.0, 0.5]).reshape(1, 1, 1, 5)
    assert_trees_close(
        moved(optimizer(0.1), lengths * kernel, gradient)[0],
        moved(optimizer(0.1), kernel, gradient)[0],
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_gradient_of_zeros_moves_nothing(optimizer: Optimizer, dtype: Any) -> None:
    # Columns of length 1 to the bit.
    params = jnp.array([[0.5, 1.0, 0.0], [0.5, 0.0, 0.0], [0.5, 0.0, -1.0], [0.5, 0.0, 0.0]], dtype)
    state = optimizer(0.1).init(params)
    updates, state = optimizer(0.1).update(0 * params, state, params)
    assert_trees_equal(updates, 0 * params)
    moments = state.momentum if optimizer is sgdg else (state.mu, state.nu)
    assert_trees_equal(moments, jax.tree.map(jnp.zeros_like, moments))


def test_adamg_without_epsilon_is_safe_at_zero(kernel: Any) -> None:
    new, _ = moved(adamg(0.1, eps=0.0), kernel, 0 * kernel)
    assert_trees_close(new, kernel)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_columns_of_zeros_are_safe(optimizer: Optimizer, gradient: Any) -> None:
    zeros = jnp.zeros(SHAPE)
    assert_trees_equal(moved(optimizer(0.1), zeros, zeros)[0], zeros)
    new, _ = moved(optimizer(0.1), zeros, gradient, gradient)
    assert np.all(np.isfinite(new))


@pytest.mark.parametrize("optimizer", quick_first(tuple(OPTIMIZERS)))
def test_steps_stay_on_the_sphere(optimizer: Optimizer, kernel: Any) -> None:
    """Add the update 10,000 times."""
    opt = optimizer(0.1, grad_clip=0.5)

    def step(i: jax.Array, carry: Any) -> Any:
        params, state, worst = carry
        g = jax.random.normal(jax.random.fold_in(jax.random.key(2), i), SHAPE)
        updates, state = opt.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, jnp.maximum(worst, jnp.max(jnp.abs(geometry.norm(params) - 1)))

    start = (kernel, opt.init(kernel), jnp.zeros([]))
    params, state, worst = jax.jit(lambda s: jax.lax.fori_loop(0, 10_000, step, s))(start)
    assert worst <= 1e-6 and state.count == 10_000


# Convergence.


def rayleigh(matrix: jax.Array, y: jax.Array) -> jax.Array:
    """Sum minus the Rayleigh quotients of the columns, which do not depend on their lengths."""
    product = jnp.einsum("ij,jk->ik", matrix, y)
    return -jnp.sum(jnp.sum(y * product, 0) / jnp.sum(y * y, 0))


EIGENVALUES = np.array([3.0, 1.5, 1.0, 0.5, 0.2, 0.1])
TUNED = {"sgdg": partial(sgdg, 0.05), "sgdg plain": partial(sgdg, 0.1, momentum=0.0)}
TUNED["adamg"] = lambda: adamg(optax.exponential_decay(0.1, 100, 0.3))


@partial(jax.jit, static_argnums=0)
def descend(name: str, matrix: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    opt = TUNED[name]()

    def step(carry: Any, _: Any) -> Any:
        y, state = carry
        loss, g = jax.value_and_grad(partial(rayleigh, matrix))(y)
        updates, state = opt.update(g, state, y)
        return (optax.apply_updates(y, updates), state), loss

    (y, _), losses = jax.lax.scan(step, (y, opt.init(y)), length=600)
    return y, losses


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_converges_to_the_leading_eigenvector(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = np.linalg.qr(random.normal(size=(6, 6)))[0]
    matrix = jnp.asarray((vectors * EIGENVALUES) @ vectors.T, jnp.float32)
    start = random.normal(size=(6, 3))
    # Not from the saddle, where the leading eigenvector has no share.
    start += vectors[:, :1] * np.sign(vectors[:, 0] @ start)
    y, losses = descend(name, matrix, jnp.asarray(start, jnp.float32))
    np.testing.assert_allclose(np.abs(vectors[:, 0] @ np.asarray(y)), 1, atol=1e-4)
    np.testing.assert_allclose(losses[-1], -9, atol=1e-3)
    assert losses[-1] < losses[0]
    if name == "sgdg plain":
        assert np.all(np.diff(losses) <= 1e-5)


# With the rest of Optax.


def params_and_gradients(key: jax.Array) -> tuple[Any, Any]:
    params = {
        "conv": {"kernel": jax.random.normal(key, SHAPE), "bias": jnp.zeros(5)},
        "head": {"kernel": jax.random.normal(key, (5, 2))},
    }
    keys = iter(jax.random.split(key, 3))
    gradients = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)
    labels = grassmann_labels(params)
    return unit_norm(params, labels), gradients


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("as_function", [False, True])
def test_in_partition(optimizer: Optimizer, as_function: bool, key: jax.Array) -> None:
    params, gradients = params_and_gradients(key)
    labels = grassmann_labels if as_function else grassmann_labels(params)
    opt = optax.partition({"grassmann": optimizer(0.1), "euclidean": optax.sgd(0.5)}, labels)
    state = opt.init(params)
    for _ in range(2):
        updates, state = jax.jit(opt.update)(gradients, state, params)
    alone, other = optimizer(0.1), optax.sgd(0.5)
    kernel, g = params["conv"]["kernel"], gradients["conv"]["kernel"]
    _, once = alone.update(g, alone.init(kernel), kernel)
    assert_trees_close(updates["conv"]["kernel"], alone.update(g, once, kernel)[0])
    expected = other.update(gradients, other.init(params))[0]
    assert_trees_close(updates["conv"]["bias"], expected["conv"]["bias"])
    assert_trees_close(updates["head"], expected["head"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_masked_and_chain(optimizer: Optimizer, key: jax.Array) -> None:
    params, gradients = params_and_gradients(key)
    mask = jax.tree.map(lambda label: label == "grassmann", grassmann_labels(params))
    opt = optax.chain(optax.clip_by_global_norm(1e9), optax.masked(optimizer(0.1), mask))
    updates, _ = opt.update(gradients, opt.init(params), params)
    kernel, g = params["conv"]["kernel"], gradients["conv"]["kernel"]
    alone = optimizer(0.1)
    assert_trees_close(updates["conv"]["kernel"], alone.update(g, alone.init(kernel), kernel)[0])
    assert_trees_equal(updates["head"], gradients["head"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_schedule_equals_injected_and_written_out(
    optimizer: Optimizer, kernel: Any, gradient: Any
) -> None:
    schedule = optax.linear_schedule(0.1, 0.3, 2)
    gradients = [gradient, -0.5 * gradient, gradient[::-1]]
    expected, state = moved(optimizer(schedule), kernel, *gradients)
    assert state.count == 3
    injected = optax.inject_hyperparams(optimizer)(learning_rate=schedule)
    actual, state = moved(injected, kernel, *gradients)
    assert_trees_close(actual, expected)
    assert state.hyperparams["learning_rate"] == schedule(2)

    params, state = kernel, optimizer(0.1).init(kernel)
    for step, g in enumerate(gradients):
        updates, state = optimizer(jnp.asarray(schedule(step))).update(g, state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(params, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_injected_clip_and_decay(optimizer: Optimizer, kernel: Any, gradient: Any) -> None:
    options = {"grad_clip": 0.1} | ({"momentum": 0.5} if optimizer is sgdg else {"b1": 0.5})
    injected = optax.inject_hyperparams(optimizer)(learning_rate=0.1, **options)
    actual, state = moved(injected, kernel, gradient, -gradient)
    assert {"learning_rate", *options} <= state.hyperparams.keys()
    assert_trees_close(actual, moved(optimizer(0.1, **options), kernel, gradient, -gradient)[0])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_multi_steps(optimizer: Optimizer, kernel: Any, gradient: Any) -> None:
    opt = optax.MultiSteps(optimizer(0.1), 2)
    actual, _ = moved(opt, kernel, gradient, 3 * gradient)
    assert_trees_close(actual, moved(optimizer(0.1), kernel, 2 * gradient)[0])


@pytest.mark.parametrize("optimizer", quick_first(tuple(OPTIMIZERS)))
def test_under_vmap_and_jit_without_recompilation(optimizer: Optimizer, key: jax.Array) -> None:
    opt = optimizer(optax.constant_schedule(0.1), grad_clip=1.0)
    params, gradients = ({"w": x} for x in jax.random.normal(key, (2, 3, *SHAPE)))
    state = jax.vmap(opt.init)(params)
    traces = 0

    def update(g: Any, state: Any, params: Any) -> Any:
        nonlocal traces
        traces += 1
        return opt.update(g, state, params)

    step = jax.jit(jax.vmap(update))
    for _ in range(2):
        updates, state = step(gradients, state, params)
    p, g = params["w"][1], gradients["w"][1]
    _, once = opt.update(g, opt.init(p), p)
    assert_trees_close(updates["w"][1], opt.update(g, once, p)[0])
    assert traces == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_tree_with_holes(optimizer: Optimizer, kernel: Any, gradient: Any) -> None:
    params = [kernel, None, {"a": kernel[0, 0]}, optax.MaskedNode()]
    gradients = [gradient, None, {"a": None}, optax.MaskedNode()]
    opt = optimizer(0.1)
    state = opt.init(params)
    updates, new = opt.update(gradients, state, params)
    assert updates[1] is None and updates[2]["a"] is None
    assert_trees_equal(updates[0], opt.update(gradient, opt.init(kernel), kernel)[0])
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("grads_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes(
    optimizer: Optimizer, dtype: Any, grads_dtype: Any, kernel: Any, gradient: Any
) -> None:
    opt, params, g = optimizer(0.1), kernel.astype(dtype), gradient.astype(grads_dtype)
    state = opt.init(params)
    updates, new = opt.update(g, state, params)
    assert updates.dtype == dtype
    dtypes = jax.tree.map(lambda x: x.dtype, (state, new))
    assert dtypes[0] == dtypes[1] and dtypes[0][1] == jnp.float32
    exact, _ = moved(opt, params.astype(jnp.float32), g.astype(jnp.float32))
    rounding = float(jnp.finfo(dtype).eps)
    actual = optax.apply_updates(params, updates).astype(jnp.float32)
    assert_trees_close(actual, exact, rtol=rounding, atol=rounding / 4)
    np.testing.assert_allclose(geometry.norm(actual), 1, atol=rounding + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", quick_first(tuple(OPTIMIZERS)))
def test_float32_stays_float32_beside_float64(optimizer: Optimizer) -> None:
    with jax.enable_x64(True):
        params = {"a": jnp.ones((3, 2), jnp.float32), "c": jnp.ones((3, 2), jnp.float64)}
        opt = optimizer(lambda count: jnp.asarray(0.1, jnp.float64), grad_clip=1.0)
        updates, state = opt.update(params, opt.init(params), params)
        assert {k: u.dtype for k, u in updates.items()} == {k: p.dtype for k, p in params.items()}
        moment = state[1]
        assert moment["a"].dtype == jnp.float32 and moment["c"].dtype == jnp.float64


# Errors.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_missing_params(optimizer: Optimizer, kernel: Any, gradient: Any) -> None:
    opt = optimizer(0.1)
    with pytest.raises(OptimizerError, match="needs params"):
        opt.update(gradient, opt.init(kernel))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (1, 1, 1, 5)])
def test_leaves_that_are_no_kernels(optimizer: Optimizer, shape: tuple[int, ...]) -> None:
    with pytest.raises(OptimizerError, match=r"layer\.bias has shape .*grassmann_labels"):
        optimizer(0.1).init({"layer": {"bias": jnp.ones(shape)}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgdg(-0.1), "learning_rate=-0.1"),
        (lambda: sgdg(0.1, momentum=1.0), "momentum=1.0"),
        (lambda: sgdg(0.1, grad_clip=0.0), "grad_clip=0.0 must be > 0"),
        (lambda: adamg(float("nan")), "learning_rate=nan"),
        (lambda: adamg(0.1, b1=1), "b1=1"),
        (lambda: adamg(0.1, b2=-0.5), "b2=-0.5"),
        (lambda: adamg(0.1, eps=-1e-8), "eps=-1e-08"),
        (lambda: adamg(0.1, grad_clip=-1.0), "grad_clip=-1.0"),
        (lambda: orthogonality_penalty({}, {}, omega=-1.0), "omega=-1.0"),
        # Only the learning rate may be a schedule.
        (lambda: sgdg(0.1, momentum=optax.constant_schedule(0.9)), "momentum="),
        (lambda: sgdg(0.1, grad_clip=optax.constant_schedule(0.9)), "grad_clip="),
        (lambda: adamg(0.1, b1=optax.constant_schedule(0.9)), "b1="),
        (lambda: adamg(0.1, b2=optax.constant_schedule(0.9)), "b2="),
        (lambda: adamg(0.1, eps=optax.constant_schedule(0.9)), "eps="),
        (lambda: adamg(0.1, grad_clip=optax.constant_schedule(0.9)), "grad_clip="),
        (lambda: orthogonality_penalty({}, {}, optax.constant_schedule(0.1)), "omega="),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        make()


# The group.


class Network(nn.Module):
    """A network with every kind of layer that has a kernel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(16, (1, 1), name="shortcut")(x))
        x = nn.Conv(16, (3, 3), feature_group_count=16, name="depthwise")(x)
        x = nn.ConvTranspose(4, (2, 2))(x)
        x = x.reshape(x.shape[0], -1, 4)
        x = nn.Conv(4, (3,), name="conv_in_one_dimension")(x)
        x = nn.MultiHeadDotProductAttention(2)(x)
        x = x + nn.Embed(9, 4)(jnp.zeros(x.shape[:2], jnp.int32))
        return nn.Dense(3)(x)


GRASSMANN = {"Conv_0", "ConvTranspose_0", "conv_in_one_dimension"}  # others have n <= out


def linen_params() -> Any:
    shapes = jax.eval_shape(Network().init, jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    return shapes["params"]


def test_labels_of_flax_layers() -> None:
    params = linen_params()
    labels = grassmann_labels(params)
    expected = jax.tree_util.tree_map_with_path(
        lambda path, _: (
            "grassmann" if path[0].key in GRASSMANN and path[-1].key == "kernel" else "euclidean"
        ),
        params,
    )
    assert labels == expected


@pytest.mark.slow
def test_labels_of_nnx() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, 8, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    labels = jax.tree_util.tree_leaves_with_path(grassmann_labels(state))
    chosen = [jax.tree_util.keystr(path) for path, label in labels if label == "grassmann"]
    assert len(chosen) == 1 and chosen[0].startswith("['conv']['kernel']")
    unit = unit_norm(state, grassmann_labels(state))
    np.testing.assert_allclose(geometry.norm(unit["conv"]["kernel"].get_value()), 1, atol=1e-6)


def test_labels_of_unnamed_arrays_and_other_layouts() -> None:
    tall, wide = jnp.ones((3, 3, 4, 8)), jnp.ones((1, 1, 4, 8))
    assert grassmann_labels(tall) == "grassmann"
    assert grassmann_labels([tall, wide, None]) == ["grassmann", "euclidean", None]
    with pytest.warns(UserWarning, match="grassmann_labels leaves alone.*: conv.weight; declare"):
        assert grassmann_labels({"conv": {"weight": tall}}) == {"conv": {"weight": "euclidean"}}
    square = jnp.ones((1, 1, 8, 8))
    assert grassmann_labels([square]) == ["euclidean"]


def test_where_chooses_the_group() -> None:
    params = linen_params()
    dense = jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key == "Dense_0" and path[-1].key == "kernel", params
    )
    for where in (dense, lambda _: dense):
        labels = grassmann_labels(params, where)
        assert labels["Dense_0"] == {"kernel": "grassmann", "bias": "euclidean"}
        assert jax.tree.leaves(labels).count("grassmann") == 1


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            lambda p: jax.tree.map(lambda x: x.ndim == 4, p),
            r"depthwise\.kernel of shape \(3, 3, 1, 16\): .* more inputs than outputs",
        ),
        (is_normalization, r"BatchNorm_0\.bias of shape \(8,\)"),
        ({"a": True}, "where must be None, a pytree of bool"),
    ],
)
def test_where_with_wrong_leaves(where: Any, message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        grassmann_labels(linen_params(), where)


def test_unit_norm_scales_the_group_alone(key: jax.Array) -> None:
    params = {
        "conv": {"kernel": jax.random.normal(key, SHAPE, jnp.bfloat16), "bias": jnp.ones(5)},
        "head": {"kernel": jax.random.normal(key, (5, 2))},
    }
    scaled = unit_norm(params, grassmann_labels(params))
    assert_trees_equal(scaled["head"], params["head"])
    assert_trees_equal(scaled["conv"]["bias"], params["conv"]["bias"])
    kernel = scaled["conv"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    wide = params["conv"]["kernel"].astype(jnp.float32)
    expected = (wide / jnp.linalg.norm(wide.reshape(-1, 5), axis=0).reshape(1, 1, 1, 5)).astype(
        jnp.bfloat16
    )
    assert_trees_close(kernel.astype(jnp.float32), expected.astype(jnp.float32), rtol=0.01)


def test_orthogonality_penalty_sums_over_the_group(key: jax.Array) -> None:
    kernels = [jax.random.normal(jax.random.fold_in(key, i), SHAPE) for i in range(3)]
    labels = ["grassmann", "euclidean", "grassmann"]
    penalty = jax.jit(partial(orthogonality_penalty, labels=labels))
    expected = 0.0
    for kernel in (kernels[0], kernels[2]):
        v = np.asarray(kernel, np.float64).reshape(-1, 5)
        expected += 0.5 * 0.3 * np.sum((v.T @ v - np.eye(5)) ** 2)
    actual = penalty(kernels, omega=0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert actual.shape == () and actual.dtype == jnp.float32
    # The gradient is 2ω·V(VᵀV - I), and none reaches the Euclidean group.
    gradients = jax.grad(penalty)(kernels, omega=0.3)
    v = np.asarray(kernels[0], np.float64).reshape(-1, 5)
    exact = 2 * 0.3 * v @ (v.T @ v - np.eye(5))
    np.testing.assert_allclose(gradients[0].reshape(-1, 5), exact, rtol=1e-4, atol=1e-4)
    assert_trees_equal(gradients[1], 0 * kernels[1])


def test_orthogonality_penalty_of_an_empty_group_and_of_orthonormal_columns() -> None:
    eye = {"w": jnp.eye(6)[:, :4]}
    assert orthogonality_penalty(eye, {"w": "euclidean"}, 0.1) == 0
    assert orthogonality_penalty(eye, {"w": "grassmann"}, 0.1) == 0


@pytest.mark.parametrize("function", [unit_norm, partial(orthogonality_penalty, omega=0.1)])
def test_labels_of_another_structure(function: Callable[..., Any]) -> None:
    params = {"w": jnp.ones((3, 2))}
    with pytest.raises(OptimizerError, match="labels must be a pytree like params.*for w$"):
        function(params, {"v": "grassmann"})
    with pytest.raises(OptimizerError, match="labels='grassman' .*did you mean 'grassmann'"):
        function(params, {"w": "grassman"})
    with pytest.raises(OptimizerError, match="labels=True is not one of"):
        function(params, {"w": True})


@pytest.mark.parametrize("function", [unit_norm, partial(orthogonality_penalty, omega=0.1)])
def test_labels_as_a_function_and_as_a_prefix(function: Callable[..., Any]) -> None:
    params = {"conv": {"kernel": 2 * jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}}
    expected = function(params, grassmann_labels(params))
    assert_trees_equal(function(params, grassmann_labels), expected)
    kernel = {"conv": {"kernel": params["conv"]["kernel"]}}
    assert_trees_equal(function(kernel, {"conv": "grassmann"}), function(kernel, grassmann_labels))
    assert np.any(np.asarray(jax.tree.leaves(expected)[-1]) != 2)


@pytest.mark.slow
def test_columns_of_zeros_and_huge_ones_reach_length_one_in_two_steps(key: jax.Array) -> None:
    params = jnp.stack([jnp.zeros(20), 1e5 * geometry.unit(jax.random.normal(key, (20, 1)))[:, 0]])
    params = params.T
    assert_trees_equal(unit_norm(params, "grassmann")[:, 0], jnp.zeros(20))
    g = jnp.ones((20, 2)) * 0.05
    opt = sgdg(1.0, momentum=0.0)
    once, _ = moved(opt, params, g)
    lengths = geometry.norm(once).ravel()
    np.testing.assert_allclose(lengths[0], np.sin(0.05 * np.sqrt(20)), rtol=1e-5)
    assert 1e-6 < abs(lengths[1] - 1) < 0.02
    twice, _ = moved(opt, params, g, g)
    np.testing.assert_allclose(geometry.norm(twice), 1, atol=1e-6)
