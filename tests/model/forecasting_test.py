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
from model.forecasting import ChannelAttention, RevIN
from tests.trees import assert_trees_close

BATCH, LOOKBACK, CHANNELS, HORIZON = 4, 6, 3, 5
# Every option that changes the formula: name, parameters of the model.
MODELS = {
    "LinearForecaster": {},
    "SAMformer": {"key_size": 2, "value_size": 4},
    "TSMixer": {"depth": 2, "ff_dim": 4, "dropout_rate": 0.5},
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
    return compiled(model(name, **params))


def compiled(module):
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


def mixed(x, p, statistics):
    """Return a block of TSMixer without dropout, and new running statistics; None: the batch's."""
    new = {}

    def norm(x, name):
        # Parameters and statistics lie in the order of channels, then time.
        running = {key: of_positions(value) for key, value in statistics[name].items()}
        mean, var = x.mean(0), x.var(0)
        batch = {"mean": mean, "var": var}
        new[name] = {
            key: np.ravel((0.99 * running[key] + 0.01 * batch[key]).T) for key in ("mean", "var")
        }
        use = batch if statistics["train"] else running
        z = (x - use["mean"]) / np.sqrt(use["var"] + 1e-3)
        return z * of_positions(p[name]["scale"]) + of_positions(p[name]["bias"])

    x = x + np.maximum(over_time(norm(x, "time_norm"), p["time"]), 0)
    hidden = np.maximum(dense(norm(x, "channel_norm"), p["fc1"]), 0)
    return x + dense(hidden, p["fc2"]), new


def of_positions(values):
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
