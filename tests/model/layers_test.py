"""The layers against their counterparts in flax.linen."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from model import cpu
from model.layers import (
    BatchNorm,
    Conv,
    check_rates,
    conv,
    max_pool,
    mean_of_pixels,
)
from model.registry import ModelError
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal

assert_trees_close = functools.partial(assert_trees_close, rtol=1e-5, atol=1e-5)

# [b, h, w, c], window, strides; the ones with one channel have a formulation of their own.
CONVOLUTIONS = [
    ((2, 5, 4, 3), (3, 3), 1),
    ((2, 6, 5, 1), (3, 3), 1),
    ((2, 6, 5, 1), (3, 3), 2),
    ((2, 7, 6, 2), (3, 3), 2),
    ((2, 6, 6, 2), (1, 1), 2),
    ((2, 5, 5, 1), (2, 4), 1),
]


def variables_of(module, *arguments, **keywords):
    """Draw variables of a module's shapes: its initialization would be compiled for nothing."""
    shapes = jax.eval_shape(partial(module.init, **keywords), jax.random.key(0), *arguments)
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.uniform(0.2, 1.2, leaf.shape).astype("f4"), shapes)


def assert_same_structure(module, variables, *arguments, **keywords):
    own = variables_of(module, *arguments, **keywords)
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, variables)


@pytest.mark.parametrize(("shape", "window", "strides"), quick_first(CONVOLUTIONS, 2))
def test_conv_equals_flax(key, shape, window, strides):
    x = jax.random.normal(key, shape)
    ours = Conv(6, window, strides, use_bias=True)
    theirs = nn.Conv(6, window, strides, use_bias=True)
    variables = variables_of(theirs, x)
    assert_same_structure(ours, variables, x)

    def value_and_gradients(module):
        def loss(variables, x):
            y = module.apply(variables, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables, x)

    assert_trees_close(value_and_gradients(ours), value_and_gradients(theirs))


@pytest.mark.parametrize(
    ("shape", "strides", "padding", "groups"),
    [
        ((2, 6, 5, 3), 2, 1, 1),
        ((2, 6, 5, 3), 1, 0, 3),
        ((2, 6, 5, 4), 2, "SAME", 2),
        ((2, 6, 5, 1), 1, 2, 1),
        ((2, 6, 5, 1), 1, "VALID", 1),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_padding_groups_and_dtype_equal_those_of_flax(key, shape, strides, padding, groups, dtype):
    x = jax.random.normal(key, shape)
    ours = Conv(6, (3, 2), strides, True, padding=padding, groups=groups, dtype=dtype)
    theirs = nn.Conv(6, (3, 2), strides, padding=padding, feature_group_count=groups, dtype=dtype)
    shapes = jax.eval_shape(theirs.init, key, x)
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), "f4"), shapes)
    own = jax.eval_shape(ours.init, key, x)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), own) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    y, expected = (jax.jit(module.apply)(variables, x) for module in (ours, theirs))
    assert (y.shape, y.dtype) == (expected.shape, dtype)
    assert_trees_close(y.astype("f4"), expected.astype("f4"))


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
def test_conv_in_float64_is_the_plain_one(strides, padding):
    draw = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = (
            jnp.asarray(draw.normal(size=(2, 6, 5, 3))),
            jnp.asarray(draw.normal(size=(3, 2, 3, 4))),
        )
        y, expected = (each(x, kernel, strides, padding) for each in (cpu.conv, cpu.plain_conv))
        np.testing.assert_allclose(y, expected, 1e-13, 1e-13)


def test_groups_that_do_not_divide_the_channels(key):
    with pytest.raises(ModelError, match="3 and 4 channels do not divide into 2 groups"):
        Conv(4, groups=2).init(key, jnp.ones((1, 4, 4, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "window", "strides"), [*CONVOLUTIONS[:2], *quick_first(CONVOLUTIONS[2:3], 0)]
)
def test_conv_hessian_vector_product_equals_that_of_flax(key, shape, window, strides):
    x = jax.random.normal(key, shape)
    kernel = jax.random.normal(jax.random.key(1), (*window, shape[-1], 3))
    along = (jnp.ones_like(x), jnp.cos(kernel))

    def product(function):
        def loss(x, kernel):
            return jnp.sum(jnp.square(function(x, kernel)))

        gradient = jax.grad(loss, argnums=(0, 1))
        return jax.jit(lambda: jax.jvp(gradient, (x, kernel), along))()

    plain = nn.Conv(3, window, strides, use_bias=False)
    assert_trees_close(
        product(lambda x, kernel: conv(x, kernel, strides)),
        product(lambda x, kernel: plain.apply({"params": {"kernel": kernel}}, x)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (max_pool, [(1, 4, 2, 1)]),
        pytest.param(conv, [(2, 3, 3, 1), (3, 3, 1, 2)], marks=pytest.mark.slow),
        pytest.param(
            partial(conv, strides=2), [(2, 3, 3, 2), (3, 3, 2, 2)], marks=pytest.mark.slow
        ),
    ],
    ids=["max_pool", "conv of one channel", "conv"],
)
def test_differentiates_in_every_order(function, shapes):
    draw = np.random.default_rng(0)
    arguments = [jnp.asarray(draw.permutation(np.prod(s)).reshape(s) / 9, "f4") for s in shapes]
    check_grads(
        jax.jit(function), arguments, order=2, modes=("fwd", "rev"), eps=1e-2, atol=0.05, rtol=0.05
    )


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (6, 5)])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax(shape, train):
    x = np.random.default_rng(1).normal(1, 2, shape).astype("f4")
    ours, theirs = BatchNorm(0.9, 1e-3), nn.BatchNorm(not train, momentum=0.9, epsilon=1e-3)
    variables = variables_of(theirs, x)
    assert_same_structure(ours, variables, x, train=train)

    def value_and_gradients(apply):
        def loss(params, x):
            y, state = apply({**variables, "params": params}, x)
            return jnp.sum(jnp.sin(y)), (y, state)

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(gradient)(variables["params"], x)

    mutable = ["batch_stats"]
    assert_trees_close(
        value_and_gradients(lambda v, x: ours.apply(v, x, train=train, mutable=mutable)),
        value_and_gradients(lambda v, x: theirs.apply(v, x, mutable=mutable)),
    )


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_in_bfloat16_counts_in_float32(key, train):
    x = (jax.random.normal(key, (6, 4, 3, 5)) + 8).astype(jnp.bfloat16)
    ours = BatchNorm(0.9, 1e-3, use_scale=False, dtype=jnp.bfloat16)
    theirs = nn.BatchNorm(
        not train, momentum=0.9, epsilon=1e-3, use_scale=False, dtype=jnp.bfloat16
    )
    variables = variables_of(theirs, x)
    shapes = jax.eval_shape(lambda: ours.init(key, x, train=train))
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    apply = jax.jit(partial(ours.apply, train=train, mutable=["batch_stats"]))
    y, state = apply(variables, x)
    expected, their_state = jax.jit(partial(theirs.apply, mutable=["batch_stats"]))(variables, x)
    assert y.dtype == jnp.bfloat16
    assert_trees_close(y.astype("f4"), expected.astype("f4"))
    assert_trees_close(state, their_state)


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (6, 5)])
@pytest.mark.parametrize("use_scale", quick_first([True, False]))
def test_batch_norm_of_groups_is_that_of_each(shape, use_scale):
    x = np.random.default_rng(1).normal(0, 2, shape) + np.arange(6.0).reshape(
        6, *[1] * (len(shape) - 1)
    )
    x = x.astype("f4")
    grouped, plain = (BatchNorm(use_scale=use_scale, group=group) for group in (2, None))
    variables = variables_of(plain, x, train=False)

    def of_each(variables, x):
        parts = [plain.apply(variables, x[i : i + 2], True, mutable=["batch_stats"])
                 for i in (0, 2, 4)]  # fmt: skip
        values, states = zip(*parts, strict=True)
        return jnp.concatenate(values), jax.tree.map(lambda *s: sum(s) / 3, *states)

    def value_and_gradients(apply):
        def loss(params, x):
            y, state = apply({**variables, "params": params}, x)
            return jnp.sum(jnp.sin(y)), (y, state)

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(gradient)(variables["params"], x)

    assert_trees_close(
        value_and_gradients(lambda v, x: grouped.apply(v, x, True, mutable=["batch_stats"])),
        value_and_gradients(of_each),
    )
    # Evaluation knows no groups, and takes any number of examples.
    evaluated = [jax.jit(norm.apply, static_argnums=2)(variables, x[:5], False)
                 for norm in (grouped, plain)]  # fmt: skip
    assert_trees_equal(*evaluated)


@pytest.mark.parametrize(("group", "size"), [(None, 6 * 4), (2, 2 * 4)])
def test_an_unbiased_running_variance(group, size):
    """And nothing else."""
    x = np.random.default_rng(1).normal(1, 2, (6, 4, 3)).astype("f4")
    biased, unbiased = (BatchNorm(0.0, group=group, unbiased=kind) for kind in (False, True))
    variables = variables_of(biased, x, train=False)
    y, state = biased.apply(variables, x, True, mutable=["batch_stats"])
    found_y, found = unbiased.apply(variables, x, True, mutable=["batch_stats"])
    state["batch_stats"]["var"] *= size / (size - 1)
    assert_trees_close((found_y, found), (y, state))


def test_batch_norm_of_groups_that_do_not_divide_the_batch():
    x = np.ones((6, 3), "f4")
    variables = variables_of(BatchNorm(group=4), x, train=False)
    with pytest.raises(ModelError) as raised:
        BatchNorm(group=4).apply(variables, x, True, mutable=["batch_stats"])
    assert str(raised.value) == (
        "model_params.batch_norm_group = 4 does not divide a batch of 6 examples into whole groups"
    )
    with pytest.raises(ModelError, match="batch_norm_group = 0: must be at least 1"):
        BatchNorm(group=0).apply(variables, x, True, mutable=["batch_stats"])


@pytest.mark.slow
def test_batch_norm_starts_from_the_initial_statistics(key):
    x = jax.random.normal(key, (6, 3))
    stats = BatchNorm().init(key, x, train=True)["batch_stats"]
    assert_trees_equal(stats, {"mean": jnp.zeros(3), "var": jnp.ones(3)})


def test_max_pool_equals_flax_and_drops_odd_edges(key):
    x = jax.random.normal(key, (2, 7, 5, 3))

    def value_and_gradient(pool):
        def loss(x):
            return jnp.sum(jnp.sin(pool(x))), pool(x)

        (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
        return y, gradient

    y, gradient = value_and_gradient(max_pool)
    expected, their_gradient = value_and_gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    assert_trees_equal(y, expected)
    assert_trees_close(gradient, their_gradient)


def test_max_pool_refuses_an_image_that_is_too_small():
    with pytest.raises(ModelError, match="1 x 4 pixels cannot be halved"):
        max_pool(jnp.ones((2, 1, 4, 3)))


def test_mean_of_pixels_adds_up_in_float32():
    # In bfloat16 a sum of 1024 pixels would stop growing at 256.
    x = jnp.ones((1, 32, 32, 2), jnp.bfloat16)
    np.testing.assert_array_equal(mean_of_pixels(x), jnp.ones((1, 2)))
    assert mean_of_pixels(x).dtype == jnp.float32


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_dropout_rate_out_of_range(rate):
    with pytest.raises(ModelError, match="at least 0 and below 1"):
        check_rates(dropout_rate=rate)
