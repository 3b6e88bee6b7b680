"""PyramidNet's widths and shortcut, and ShakeDrop."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.pyramidnet import Bottleneck, shake_drop


def shapes(name, **params):
    module = get_model(name, 10, **params)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)["params"]


def drawn(block, x):
    """Draw variables of a block without compiling its initializers."""
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.uniform(0.2, 1.2, leaf.shape).astype("f4"), shapes)


@pytest.mark.slow
def test_widths_grow_by_the_same_step():
    params = shapes("PyramidNet_29_40")
    blocks = [f"group_{group}_block_{block}" for group in (1, 2, 3) for block in (1, 2, 3)]
    # 16 + 40 k / 9: 20.4, 24.9, 29.3, 33.8, 38.2, 42.7, 47.1, 51.6, 56.
    widths = [params[name]["conv_2"]["kernel"].shape[-1] for name in blocks]
    assert widths == [20, 25, 29, 34, 38, 43, 47, 52, 56]
    assert params["group_2_block_1"]["conv_1"]["kernel"].shape == (1, 1, 4 * 29, 34)
    assert params["group_3_block_3"]["conv_3"]["kernel"].shape == (1, 1, 56, 224)
    assert "stem_norm" not in params
    assert "stem_norm" in shapes("PyramidNet_29_40", stem_norm=True)


@pytest.mark.parametrize(
    ("name", "last"), [("PyramidNet_29_9", 1), ("PyramidNet_29_9_ShakeDrop", 0.5)]
)
def test_survival_falls_linearly(name, last):
    survivals = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Bottleneck) and context.method_name == "__call__":
            survivals.append(context.module.survival)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(name)
    np.testing.assert_allclose(survivals, [1 - (1 - last) * k / 9 for k in range(1, 10)])


@pytest.mark.parametrize("strides", [1, 2])
def test_shortcut_is_an_average_and_zeros(strides):
    block = Bottleneck(2, strides, 1.0, (-1.0, 1.0))
    x = np.random.default_rng(1).normal(size=(2, 6, 4, 3)).astype("f4")
    variables = drawn(block, x)
    # Without the branch, what is left is the shortcut.
    variables["params"]["norm_4"] = {"scale": np.zeros(8, "f4"), "bias": np.zeros(8, "f4")}
    variables["batch_stats"]["norm_4"]["mean"] *= 0
    y = jax.jit(lambda variables: block.apply(variables, x, train=False))(variables)
    averages = np.asarray(x).reshape(2, 6 // strides, strides, 4 // strides, strides, 3)
    np.testing.assert_allclose(y[..., :3], averages.mean((2, 4)), atol=1e-6)
    np.testing.assert_array_equal(y[..., 3:], 0)


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (0.5, 1.0)])
def test_shake_drop_keeps_or_shakes_each_example(key, alphas):
    x = jnp.full((20000, 2, 1, 3), 2.0)
    y = shake_drop(x, 0.7, alphas, key)
    factor = np.asarray(y / 2)
    np.testing.assert_array_equal(factor, np.broadcast_to(factor[:, :1, :, :1], factor.shape))
    factor = factor[:, 0, 0, 0]
    kept = factor == 1
    assert kept.mean() == pytest.approx(0.7, abs=0.01)
    shaken = factor[~kept]
    assert alphas[0] <= shaken.min() < alphas[0] + 0.01
    assert alphas[1] - 0.01 < shaken.max() <= alphas[1]
    assert shaken.std() == pytest.approx((alphas[1] - alphas[0]) / 12**0.5, rel=0.03)
    # Evaluation is the expectation.
    np.testing.assert_allclose(shake_drop(x, 0.7, alphas, None)[0], y.mean(0), rtol=0.03)
    assert shake_drop(x.astype(jnp.bfloat16), 0.7, alphas, key).dtype == jnp.bfloat16


def test_backward_has_the_factor_of_forward(key):
    x = jnp.full((8, 1, 1, 1), 2.0)
    y, pull_back = jax.vjp(lambda x: shake_drop(x, 0.5, (-1.0, 1.0), key), x)
    np.testing.assert_allclose(pull_back(jnp.ones_like(y))[0], y / 2)


def test_backward_noise_is_another_factor_of_those_that_are_not_kept(key):
    x = jnp.full((1000, 1, 1, 1), 2.0)
    betas = (2.0, 3.0)
    y, pull_back = jax.vjp(lambda x: shake_drop(x, 0.5, (-1.0, 1.0), key, betas), x)
    np.testing.assert_allclose(y, shake_drop(x, 0.5, (-1.0, 1.0), key), rtol=1e-6)
    slope = pull_back(jnp.ones_like(y))[0]
    np.testing.assert_array_equal(slope == 1, y == 2)
    shaken = slope[slope != 1]
    assert 2 <= shaken.min() < 2.02 and 2.98 < shaken.max() <= 3


def test_factors_depend_on_the_key_alone():
    block = Bottleneck(2, 1, 0.5, (-1.0, 1.0))
    x = np.random.default_rng(1).normal(size=(16, 3, 3, 8)).astype("f4")
    variables = drawn(block, x)

    @jax.jit
    def factors(params, seed):
        y, state = block.apply(
            {**variables, "params": params},
            x,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
            rngs={"dropout": jax.random.key(seed)},
        )
        branch = state["intermediates"]["norm_4"]["__call__"][0]
        return jnp.sum((y - x) * branch, (1, 2, 3)) / jnp.sum(branch**2, (1, 2, 3))

    at_theta = factors(variables["params"], 1)
    assert len(np.unique(at_theta.round(4))) > 4
    # The perturbed pass has other parameters and the same key.
    elsewhere = jax.tree.map(lambda leaf: 0.8 * leaf + 0.1, variables["params"])
    np.testing.assert_allclose(at_theta, factors(elsewhere, 1), atol=1e-4)
    assert not np.allclose(at_theta, factors(variables["params"], 2), atol=1e-2)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "PyramidNet_163_48",
            {},
            "PyramidNet_163_48: the depth must be 9n + 2, at least 11; nearest: 164",
        ),
        ("PyramidNet_5_48_ShakeDrop", {}, "nearest: 11"),
        ("PyramidNet_11_5", {"survival": 0.0}, "model_params.survival = 0.0: must be above 0"),
        ("PyramidNet_11_5", {"survival": 1.5}, "at most 1"),
        ("PyramidNet_11_5", {"alphas": [1.0]}, "must be a lower and an upper bound"),
        ("PyramidNet_11_5", {"alphas": [1.0, 0.0]}, "must be a lower and an upper bound"),
        ("PyramidNet_11_5", {"betas": [1.0, 0.0]}, "model_params.betas = (1.0, 0.0): must be"),
        ("PyramidNet_11_5", {"variant": "tf"}, "variant = 'tf': must be one of paper, gnp"),
    ],
)
def test_sizes_that_there_are_not(name, params, message):
    with pytest.raises(ModelError) as error:
        get_model(name, 10, **params)
    assert message in str(error.value)
