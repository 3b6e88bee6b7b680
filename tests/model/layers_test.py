"""The layers against their counterparts in flax.linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from model.layers import BatchNorm, Conv, check_dropout_rate, conv, max_pool
from model.registry import ModelError

# [b, h, w, c], window, strides; the ones with one channel have a formulation of their own.
CONVOLUTIONS = [
    ((2, 5, 4, 3), (3, 3), 1),
    ((2, 6, 5, 1), (3, 3), 1),
    ((2, 6, 5, 1), (3, 3), 2),
    ((2, 7, 6, 2), (3, 3), 2),
    ((2, 6, 6, 2), (1, 1), 2),
    ((2, 5, 5, 1), (2, 4), 1),
]


def assert_close(ours, theirs, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs
    )


@pytest.mark.parametrize(("shape", "window", "strides"), CONVOLUTIONS)
def test_conv_equals_flax(key, shape, window, strides):
    x = jax.random.normal(key, shape)
    ours = Conv(6, window, strides, use_bias=True)
    theirs = nn.Conv(6, window, strides, use_bias=True)
    variables = ours.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    assert jax.tree.structure(variables) == jax.tree.structure(theirs.init(key, x))

    def value_and_gradients(module):
        def loss(variables, x):
            y = module.apply(variables, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables, x)

    assert_close(value_and_gradients(ours), value_and_gradients(theirs))


@pytest.mark.parametrize(("shape", "window", "strides"), CONVOLUTIONS[:3])
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
    assert_close(
        product(lambda x, kernel: conv(x, kernel, strides)),
        product(lambda x, kernel: plain.apply({"params": {"kernel": kernel}}, x)),
        tolerance=1e-4,
    )


@pytest.mark.parametrize(
    ("function", "shapes"),
    [(conv, [(2, 3, 3, 1), (3, 3, 1, 2)]), (max_pool, [(1, 4, 2, 1)])],
    ids=["conv", "max_pool"],
)
def test_differentiates_in_every_order(function, shapes):
    draw = np.random.default_rng(0)
    arguments = [jnp.asarray(draw.permutation(np.prod(s)).reshape(s) / 9, "f4") for s in shapes]
    check_grads(
        jax.jit(function), arguments, order=2, modes=("fwd", "rev"), eps=1e-2, atol=0.05, rtol=0.05
    )


def test_conv_maps_over_groups(key):
    x = jax.random.normal(key, (2, 3, 4, 4, 1))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 2))
    gradient = jax.grad(lambda kernel, x: jnp.sum(jnp.sin(conv(x, kernel))))
    mapped = jax.vmap(gradient, in_axes=(None, 0))(kernel, x)
    assert_close(mapped, jnp.stack([gradient(kernel, group) for group in x]))


def test_conv_is_the_plain_one_on_accelerators(monkeypatch, key):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = jnp.ones((8, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
    primitives = {equation.primitive.name for equation in jax.make_jaxpr(conv)(x, kernel).eqns}
    assert primitives == {"conv_general_dilated"}


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (6, 5)])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax(key, shape, train):
    x = 2 * jax.random.normal(key, shape) + 1
    ours, theirs = BatchNorm(0.9, 1e-3), nn.BatchNorm(not train, momentum=0.9, epsilon=1e-3)
    variables = jax.tree.map(lambda leaf: leaf + 0.2, theirs.init(key, x))
    assert jax.tree.structure(variables) == jax.tree.structure(ours.init(key, x, train=train))

    def value_and_gradients(apply):
        def loss(params, x):
            y, state = apply({**variables, "params": params}, x)
            return jnp.sum(jnp.sin(y)), (y, state)

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(gradient)(variables["params"], x)

    mutable = ["batch_stats"]
    assert_close(
        value_and_gradients(lambda v, x: ours.apply(v, x, train=train, mutable=mutable)),
        value_and_gradients(lambda v, x: theirs.apply(v, x, mutable=mutable)),
    )


def test_batch_norm_starts_from_the_initial_statistics(key):
    x = jax.random.normal(key, (6, 3))
    stats = BatchNorm().init(key, x, train=True)["batch_stats"]
    assert_close(stats, {"mean": jnp.zeros(3), "var": jnp.ones(3)}, tolerance=0)


def test_max_pool_equals_flax_and_drops_odd_edges(key):
    x = jax.random.normal(key, (2, 7, 5, 3))

    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x)

    assert_close(max_pool(x), nn.max_pool(x, (2, 2), (2, 2)), tolerance=0)
    assert_close(gradient(max_pool), gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2))))


def test_max_pool_shares_the_gradient_of_ties():
    x = jnp.array([[1.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(x)
    # The right column's two share a half, as the columns' maxima tie.
    assert_close(gradient.reshape(2, 2), jnp.array([[0.5, 0.25], [0.0, 0.25]]))
    whole = jax.grad(lambda x: jnp.sum(max_pool(x)))(jnp.ones((1, 2, 2, 1)))
    assert_close(whole.reshape(2, 2), jnp.full((2, 2), 0.25))


def test_max_pool_refuses_an_image_that_is_too_small():
    with pytest.raises(ModelError, match="1 x 4 pixels cannot be halved"):
        max_pool(jnp.ones((2, 1, 4, 3)))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_dropout_rate_out_of_range(rate):
    with pytest.raises(ModelError, match="at least 0 and below 1"):
        check_dropout_rate(rate)
