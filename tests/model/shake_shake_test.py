"""Shake-Shake: the weights, the shortcut, the structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.shake_shake import Shortcut, mix
from tests.marks import quick_first

NAME = "WideResNet_2_4_ShakeShake"


def drawn(name, dtype=np.float32, **params):
    """A model for images of 6 x 6 pixels, and variables without compiling its initializers."""
    module = get_model(name, 3, dtype, **params)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(5, 6, 6, 3)).astype(dtype)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    return (
        module,
        x,
        jax.tree.map(lambda s: draw.uniform(-0.5, 1.0, s.shape).astype(dtype), shapes["params"]),
        jax.tree.map(
            lambda s: draw.uniform(0.5, 1.0, s.shape).astype(dtype), shapes["batch_stats"]
        ),
    )


def test_one_weight_for_each_example(key):
    first, second = jnp.full((20000, 2, 1, 3), 5.0), jnp.full((20000, 2, 1, 3), 4.0)
    weight = np.asarray(mix(first, second, key) - 4)
    np.testing.assert_allclose(weight, np.broadcast_to(weight[:, :1, :, :1], weight.shape))
    assert 0 <= weight.min() < 0.01 and 0.99 < weight.max() <= 1
    assert weight.std() == pytest.approx(12**-0.5, rel=0.02)
    # Evaluation is the expectation.
    evaluated = mix(first, second, None)
    np.testing.assert_allclose(evaluated, 4.5)
    np.testing.assert_allclose(mix(first, second, key).mean(0), evaluated[0], rtol=0.002)
    assert mix(first.astype(jnp.bfloat16), second.astype(jnp.bfloat16), key).dtype == jnp.bfloat16


def test_backward_has_the_weight_of_forward(key):
    first, second = jnp.full((4, 1, 1, 1), 5.0), jnp.full((4, 1, 1, 1), 4.0)
    y, pull_back = jax.vjp(lambda *branches: mix(*branches, key), first, second)
    np.testing.assert_allclose(pull_back(jnp.ones_like(y)), [y - 4, 5 - y], rtol=1e-5)


def test_backward_noise_is_another_weight(key):
    first, second = jnp.full((1000, 1, 1, 1), 5.0), jnp.full((1000, 1, 1, 1), 4.0)
    y, pull_back = jax.vjp(lambda *branches: mix(*branches, key, True), first, second)
    np.testing.assert_allclose(y, mix(first, second, key), rtol=1e-6)
    weight, rest = pull_back(jnp.ones_like(y))
    np.testing.assert_allclose(weight + rest, 1, rtol=1e-6)
    assert weight.std() == pytest.approx(12**-0.5, rel=0.1)
    assert abs(np.corrcoef(np.ravel(weight), np.ravel(y))[0, 1]) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("train", quick_first([True, False]))
def test_weights_depend_on_the_key_and_the_block_alone(train):
    module, x, params, stats = drawn(NAME, depth=8)

    @jax.jit
    def weights(params, seed):
        _, state = module.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=train,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
            rngs={"dropout": jax.random.key(seed)} if train else {},
        )

        def of_block(name):
            block = state["intermediates"][name]
            first, second, shortcut = (
                block[part]["__call__"][0] for part in ("branch_1", "branch_2", "shortcut")
            )
            mixed = block["__call__"][0] - shortcut
            # The least squares of mixed - second = w (first - second).
            along = first - second
            return jnp.sum((mixed - second) * along, (1, 2, 3)) / jnp.sum(along**2, (1, 2, 3))

        return jnp.stack([of_block(f"group_{group}_block_1") for group in (1, 2, 3)])

    at_theta = weights(params, 1)
    if not train:
        np.testing.assert_allclose(at_theta, 0.5, atol=1e-4)
        return
    # The perturbed pass has other parameters and the same key.
    elsewhere = weights(jax.tree.map(lambda leaf: 0.8 * leaf + 0.1, params), 1)
    np.testing.assert_allclose(at_theta, elsewhere, atol=1e-4)
    assert np.abs(at_theta - weights(params, 2)).min() > 1e-3
    # Each block draws its own.
    assert np.abs(at_theta[0] - at_theta[1]).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params"), [(NAME, {"depth": 8}), ("PyramidNet_11_5_ShakeDrop", {})]
)
def test_gradient_is_the_one_of_the_loss(name, params):
    with jax.enable_x64(True):
        module, x, theta, stats = drawn(name, np.float64, **params)
        draw = np.random.default_rng(1)
        direction = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape), theta)

        @jax.jit
        def loss_and_slope(distance):
            def loss(theta):
                logits, _ = module.apply(
                    {"params": theta, "batch_stats": stats},
                    x,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(1)},
                )
                return jnp.mean(jnp.sin(logits))

            there = jax.tree.map(lambda leaf, d: leaf + distance * d, theta, direction)
            value, gradient = jax.value_and_grad(loss)(there)
            return value, dot(gradient, direction)

        step = 1e-6
        difference = (loss_and_slope(step)[0] - loss_and_slope(-step)[0]) / (2 * step)
        assert difference.dtype == np.float64
        np.testing.assert_allclose(loss_and_slope(0.0)[1], difference, rtol=1e-5)


def dot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


@pytest.mark.parametrize(("strides", "side"), [(1, 6), (2, 6), (2, 5)])
def test_shortcut_reads_two_grids(strides, side):
    module = Shortcut(4, strides)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, side, side, 3)).astype("f4")
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    params = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype("f4"), shapes["params"])
    params["norm"] = {"scale": np.ones(4, "f4"), "bias": np.zeros(4, "f4")}
    stats = {"norm": {"mean": np.zeros(4, "f4"), "var": np.ones(4, "f4")}}
    apply = jax.jit(lambda variables: module.apply(variables, x, train=False))
    y = apply({"params": params, "batch_stats": stats})
    moved = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    expected = np.concatenate(
        [
            image[:, ::strides, ::strides] @ params[name]["kernel"][0, 0]
            for name, image in (("conv_1", np.asarray(x)), ("conv_2", moved))
        ],
        axis=-1,
    )
    np.testing.assert_allclose(y, expected / np.sqrt(1 + 1e-5), atol=1e-5)


def test_structure_of_2_96():
    module = get_model("WideResNet_2_96_ShakeShake", 10)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)["params"]
    kernels = [leaf.shape for leaf in jax.tree.leaves(params) if len(leaf.shape) == 4]
    assert sum(shape[:2] == (3, 3) for shape in kernels) == 1 + 12 * 2 * 2
    assert sum(shape[:2] == (1, 1) for shape in kernels) == 3 * 2
    assert params["group_1_block_1"]["branch_1"]["conv_1"]["kernel"].shape == (3, 3, 16, 96)
    assert params["group_3_block_4"]["branch_2"]["conv_2"]["kernel"].shape == (3, 3, 384, 384)
    assert "shortcut" not in params["group_2_block_2"]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("WideResNet_2_95_ShakeShake", {}, "the width must be even"),
        (NAME, {"depth": 27}, "model_params.depth = 27 must be 6n + 2, at least 8"),
        (NAME, {"depth": 2}, "at least 8"),
        (NAME, {"variant": "tf"}, "model_params.variant = 'tf': must be one of paper, gnp"),
    ],
)
def test_sizes_that_there_are_not(name, params, message):
    with pytest.raises(ModelError) as error:
        get_model(name, 10, **params)
    assert message in str(error.value)
