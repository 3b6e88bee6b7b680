"""The forecasters against NumPy in float64, their sizes, symmetry, precision, and errors."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimizer
from model import ModelError, get_model
from model.forecasting import RevIN
from tests.trees import assert_trees_close

BATCH, LOOKBACK, CHANNELS, HORIZON = 4, 6, 3, 5
# Name, parameters of the model.
MODELS = {
    "LinearForecaster": {},
    "SAMformer": {"key_size": 2, "value_size": 4},
    "TSMixer": {"depth": 1, "ff_dim": 4, "dropout_rate": 0.5},
}


def windows(channels=CHANNELS, batch=BATCH):
    """Series of very different levels and scales, as RevIN is made for."""
    draw = np.random.default_rng(0)
    shape = (batch, 1, channels)
    level, scale = draw.normal(0, 10, shape), draw.uniform(0.5, 2, shape)
    return (level + scale * draw.normal(size=(batch, LOOKBACK, channels))).astype(np.float32)


def model(name, dtype=jnp.float32, horizon=HORIZON, **params):
    return get_model(name, horizon, dtype, **MODELS[name] | params)


def shapes(module, shape=(LOOKBACK, CHANNELS)):
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False), x)


def drawn(module):
    """Variables as a trained network might have them, drawn without compiling."""
    draw = np.random.default_rng(1)

    def value(path, leaf):
        if path[-1].key in ("scale", "var"):
            return draw.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return draw.normal(0, 0.4, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(value, shapes(module)[1])


@cache
def passes(name, **params):
    """(variables, x, seed) -> outputs of evaluation, of training, batch statistics, gradients."""
    module = model(name, **params)

    def run(variables, x, seed):
        def loss(params):
            y, state = module.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(seed)},
            )
            return jnp.square(y - 1).sum(), (y, dict(state))

        gradients, (y, state) = jax.grad(loss, has_aux=True)(variables["params"])
        return module.apply(variables, x, train=False), y, state, gradients

    return jax.jit(run)


# The formulas, in float64. A window is [b, time, channels] here, and p are parameters.


def doubles(variables):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)


def normalized(x, p):
    z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return p["scale"] * z + p["bias"]


def taken_back(y, x, p):
    z = (y - p["bias"]) / p["scale"]
    return z * np.sqrt(x.var(1, keepdims=True) + 1e-5) + x.mean(1, keepdims=True)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def over_time(x, p):
    return np.swapaxes(dense(np.swapaxes(x, 1, 2), p), 1, 2)


def attended(x, p, key_size):
    """Return the attention's weights and what it adds, all of tokens [b, channels, time]."""
    qkv = dense(np.swapaxes(x, 1, 2), p["qkv"])
    query, key, value = np.split(qkv, [key_size, 2 * key_size], axis=-1)
    scores = np.einsum("bid,bjd->bij", query, key) / np.sqrt(key_size)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    y = np.einsum("bij,bjd->bid", weights, value)
    return weights, np.swapaxes(dense(y, p["out"]) if "out" in p else y, 1, 2)


def mixed(x, p, running, train):
    """Return a block of TSMixer without dropout, and its running statistics behind the batch."""
    new = {}

    def norm(x, name):
        old = {key: of_positions(running[name][key]) for key in ("mean", "var")}
        batch = {"mean": x.mean(0), "var": x.var(0)}
        new[name] = {key: np.ravel((0.99 * old[key] + 0.01 * batch[key]).T) for key in old}
        use = batch if train else old
        z = (x - use["mean"]) / np.sqrt(use["var"] + 1e-3)
        return z * of_positions(p[name]["scale"]) + of_positions(p[name]["bias"])

    x = x + np.maximum(over_time(norm(x, "time_norm"), p["time"]), 0)
    hidden = np.maximum(dense(norm(x, "channel_norm"), p["fc1"]), 0)
    return x + dense(hidden, p["fc2"]), new


def of_positions(values):
    """Return [time, channels] of what lies in the order of channels, then time."""
    return values.reshape(CHANNELS, LOOKBACK).T


def test_revin_and_back():
    x, y = windows(), np.random.default_rng(2).normal(size=(BATCH, HORIZON, CHANNELS))
    p = {"scale": np.array([0.5, 1.5, 2.0]), "bias": np.array([-1.0, 0.0, 2.0])}

    @jax.jit
    def both(x, y):
        there = RevIN().apply({"params": p}, x)
        weight = jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
        slope = jax.grad(lambda x: (weight * RevIN().apply({"params": p}, x)).sum())(x)
        again = RevIN().apply({"params": p}, there, x, method="inverse")
        return there, RevIN().apply({"params": p}, y, x, method="inverse"), again, slope / weight

    there, back, again, slope = (
        np.swapaxes(each, 1, 2) for each in both(x.swapaxes(1, 2), y.swapaxes(1, 2))
    )
    x = x.astype(np.float64)
    np.testing.assert_allclose(there, normalized(x, p), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(back, taken_back(y, x, p), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(again, x, rtol=1e-5, atol=1e-5)
    # No gradient goes through the statistics: y is affine in x.
    expected = p["scale"] / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(slope[1:], np.broadcast_to(expected, slope.shape)[1:], rtol=1e-5)


def test_linear_forecaster_against_its_formula():
    x, variables = windows(), drawn(model("LinearForecaster"))
    evaluated, trained, state, _ = passes("LinearForecaster")(variables, x, 0)
    x, p = x.astype(np.float64), doubles(variables)["params"]
    y = taken_back(over_time(normalized(x, p["revin"]), p["head"]), x, p["revin"])
    np.testing.assert_allclose(evaluated, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(evaluated, trained)
    assert state == {}


@pytest.mark.parametrize(
    "params", [{}, {"value_size": None}, {"use_revin": False}], ids=["paper", "torch", "no_revin"]
)
def test_samformer_against_its_formula(params):
    module = model("SAMformer", **params)
    variables = drawn(module)
    # Without RevIN, of the size that standardized series have.
    x = windows() * (1 if module.use_revin else 0.1)
    evaluated, weights = jax.jit(
        lambda x: (
            module.apply(variables, x, train=False),
            module.apply(variables, x, method="attention"),
        )
    )(x)
    assert (evaluated.shape, evaluated.dtype) == ((BATCH, HORIZON, CHANNELS), jnp.float32)
    x, p = x.astype(np.float64), doubles(variables)["params"]
    z = normalized(x, p["revin"]) if module.use_revin else x
    expected, y = attended(z, p["attn"], key_size=2)
    y = over_time(z + y, p["head"])
    y = taken_back(y, x, p["revin"]) if module.use_revin else y
    np.testing.assert_allclose(evaluated, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), np.ones((BATCH, CHANNELS)), rtol=1e-5)


def test_tsmixer_against_its_formula():
    params = {"depth": 2, "dropout_rate": 0.0}
    x, variables = windows(), drawn(model("TSMixer", **params))
    evaluated, trained, state, _ = passes("TSMixer", **params)(variables, x, 0)
    exact = doubles(variables)
    x, p, running = x.astype(np.float64), exact["params"], exact["batch_stats"]
    for train, found in ((False, evaluated), (True, trained)):
        y, new = normalized(x, p["revin"]), {}
        for name in ("blocks_0", "blocks_1"):
            y, new[name] = mixed(y, p[name], running[name], train)
        y = taken_back(over_time(y, p["head"]), x, p["revin"])
        np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-4)
    for path, leaf in jax.tree.leaves_with_path(new):
        ours = state["batch_stats"]
        for key in path:
            ours = ours[key.key]
        np.testing.assert_allclose(ours, leaf, rtol=1e-5, atol=1e-6)


def test_tsmixer_drops_the_outputs_of_each_product_in_training_alone():
    module, found = model("TSMixer", depth=2), []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.append((args[0].shape, context.module.rate, context.module.deterministic))
        return call(*args, **kwargs)

    for train in (True, False):
        with nn.intercept_methods(record):
            jax.eval_shape(lambda: module.init(jax.random.key(0), windows(), train=train))  # noqa: B023
    wide = (BATCH, LOOKBACK)
    places = [(BATCH, CHANNELS, LOOKBACK), (*wide, 4), (*wide, CHANNELS)] * 2
    assert found == [(shape, 0.5, not train) for train in (True, False) for shape in places]


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("name", ["SAMformer", "LinearForecaster"])
def test_forecasts_follow_the_order_of_the_channels(name, channels):
    """f(P x) = P f(x) for every permutation P, of RevIN's scale and bias too."""
    module, draw = model(name), np.random.default_rng(3)
    x = windows(channels)
    variables = jax.tree.map(
        lambda leaf: draw.uniform(0.2, 0.8, leaf.shape).astype(np.float32),
        shapes(module, (LOOKBACK, channels))[1],
    )
    revin = variables["params"]["revin"]
    forecast = jax.jit(
        lambda revin, x: module.apply(
            {"params": variables["params"] | {"revin": revin}}, x, train=False
        )
    )
    y = forecast(revin, x)
    for order in [draw.permutation(channels) for _ in range(6)] + [np.roll(range(channels), 1)]:
        moved = {key: leaf[order] for key, leaf in revin.items()}
        np.testing.assert_allclose(
            forecast(moved, x[..., order]), y[..., order], rtol=1e-4, atol=1e-4
        )
    assert np.abs(forecast(revin, x[..., order]) - y[..., order]).max() > 0.01


@pytest.mark.parametrize("horizon", [96, 720])
@pytest.mark.parametrize(
    ("name", "params", "mixing"),
    [
        ("LinearForecaster", {}, 0),
        ("SAMformer", {}, 513 * 3 * 16 + 17 * 512),
        ("SAMformer", {"value_size": None}, 513 * (16 + 16 + 512)),
        # Two norms of each position, time steps, channels to 64 and back.
        ("TSMixer", {}, 2 * (2 * 2 * 512 * 7 + 513 * 512 + 8 * 64 + 65 * 7)),
    ],
)
def test_sizes_for_etth1(name, params, mixing, horizon):
    y, variables = shapes(get_model(name, horizon, **params), (512, 7))
    assert (y.shape, y.dtype) == ((2, horizon, 7), jnp.float32)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == 2 * 7 + mixing + 513 * horizon


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_training_and_precision(name):
    x, variables, run = windows(), drawn(model(name)), passes(name)
    evaluated, trained, state, gradients = run(variables, x, 0)
    other = run(variables, x, 1)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    # Evaluation draws nothing; the same key drops the same units; another key, others.
    np.testing.assert_array_equal(evaluated, other[0])
    np.testing.assert_array_equal(trained, run(variables, x, 0)[1])
    is_random = name == "TSMixer"
    assert np.array_equal(trained, other[1]) != is_random
    assert (set(state) == {"batch_stats"}) == is_random


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SAMformer", "TSMixer"])
def test_remat_changes_nothing_but_memory(name):
    if name == "SAMformer":
        test_samformer_against_its_formula({"remat": True})
    x, variables = windows(), drawn(model(name))
    plain, remat = passes(name), passes(name, remat=True)
    assert_trees_close(remat(variables, x, 0), plain(variables, x, 0), 1e-4, 1e-4)
    assert "remat2[" not in str(jax.make_jaxpr(plain)(variables, x, 0))
    assert "remat2[" in str(jax.make_jaxpr(remat)(variables, x, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SAMformer", "TSMixer"])
def test_bfloat16_is_near_float32(name):
    # Where RevIN were rounded, levels of 10 and more would show it.
    x, variables = windows(), drawn(model(name))
    exact = passes(name)(variables, x, 0)[0]
    module = model(name, jnp.bfloat16)
    rounded = jax.jit(lambda x: module.apply(variables, x, train=False))(x)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "limits"),
    [
        ({}, [(6 / (512 + 16)) ** 0.5] * 3),
        ({"value_size": None}, [(6 / (512 + 16)) ** 0.5] * 2 + [(6 / 1024) ** 0.5]),
    ],
)
def test_queries_keys_and_values_start_each_for_itself(params, limits):
    module = get_model("SAMformer", 1, **params)
    initialize = jax.jit(lambda: module.init(jax.random.key(0), jnp.ones((1, 512, 2)), train=False))
    layer = initialize()["params"]["attn"]["qkv"]
    assert not np.any(layer["bias"])
    kernels = np.split(layer["kernel"], [16, 32], axis=1)
    for kernel, limit in zip(kernels, limits, strict=True):
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.03)
    assert not np.any(kernels[0] == kernels[1])


@pytest.mark.parametrize("name", list(MODELS))
def test_the_optimizers_know_every_parameter(name):
    params = shapes(model(name))[1]["params"]
    assert optimizer.unknown_axes(params) == []

    def kind(path, leaf):
        layer, name = path[-2].key, path[-1].key
        if layer == "revin" or layer.endswith("_norm"):
            return {"scale": "scale", "bias": "offset"}[name]
        return {"kernel": "weight", "bias": "bias"}[name]

    assert optimizer.parameter_kinds(params) == jax.tree.map_with_path(kind, params)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_a_penalized_step_is_finite_and_changes_everything(name):
    x, module = windows(), model(name)
    variables = drawn(module)
    method = optax.chain(optimizer.gradient_norm_penalty(0.05, 0.8), optax.adam(1e-3))

    @jax.jit
    def step(variables, x):
        params = variables["params"]

        def gradient(params):
            def loss(params):
                y, _ = module.apply(
                    {**variables, "params": params},
                    x,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(0)},
                )
                return jnp.square(y - 1).mean()

            return jax.grad(loss)(params)

        updates, _ = method.update(gradient(params), method.init(params), params, grad_fn=gradient)
        return optax.apply_updates(params, updates)

    after = step(variables, x)
    for path, leaf in jax.tree.leaves_with_path(
        jax.tree.map(jnp.subtract, after, variables["params"])
    ):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf != 0), path


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((), "a number, not a series"),
        ((4,), "a vector, not a series"),
        ((8, 8, 1), "an image, not a series"),
        ((0, 3), "it is empty"),
        ((8, 0), "it is empty"),
    ],
)
def test_what_is_no_window_is_said_in_one_line(name, shape, reason):
    with pytest.raises(ModelError) as raised:
        shapes(model(name), shape)
    assert str(raised.value) == (
        f"model.model_name = {name} cannot take inputs of shape {shape}: {reason}; "
        "docs/models.md says what each model is for"
    )


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("SAMformer", {"key_size": 0}, "key_size = 0: must be at least 1"),
        ("SAMformer", {"value_size": 0}, "value_size = 0: must be at least 1"),
        ("SAMformer", {"value_size": "all"}, r"value_size = 'all' .*must be int \| None, is str"),
        ("SAMformer", {"dropout_rate": 0.1}, "unknown model_params.dropout_rate"),
        ("TSMixer", {"depth": 0}, "depth = 0: must be at least 1"),
        ("TSMixer", {"ff_dim": 0}, "ff_dim = 0: must be at least 1"),
        ("TSMixer", {"dropout_rate": 1.0}, "dropout_rate = 1.0: must be at least 0 and below 1"),
        ("LinearForecaster", {"use_revin": 1}, "use_revin = 1 .*must be bool, is int"),
    ],
)
def test_errors_name_the_parameter(name, params, message):
    with pytest.raises(ModelError, match=message):
        get_model(name, 3, **params)
