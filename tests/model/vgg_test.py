"""VGG networks: sizes, names, heads, precision, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.vgg import adaptive_mean_pool
from tests.trees import assert_trees_close

TINY = {"widths": (2, 2, 2, 3, 3), "dense": 4}


def shapes(name, size=32, num_classes=10, **params):
    module = get_model(name, num_classes, **params)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("VGG11", 132_863_336),
        ("VGG13", 133_047_848),
        ("VGG16", 138_357_544),
        ("VGG19", 143_667_240),
        ("VGG11BN", 132_868_840),
        ("VGG13BN", 133_053_736),
        ("VGG16BN", 138_365_992),
        ("VGG19BN", 143_678_248),
    ],
)
def test_published_size(name, parameters):
    assert count(shapes(name, 224, 1000)) == parameters


def test_size_on_cifar():
    convolutions = 14_714_688
    assert count(shapes("VGG16")) == convolutions + 512 * 10 + 10
    # A head of 49 times 512 inputs is made of any image.
    assert count(shapes("VGG16", 32, 1000, head="imagenet")) == 138_357_544
    assert count(shapes("VGG16", 224, 10, head="cifar")) == convolutions + 512 * 10 + 10
    # Weights and batch norms' biases of VGG19 as published for images of 32.
    weights = 9 * sum(c * o for c, o in [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256)])
    weights += 9 * (3 * 256 * 256 + 256 * 512 + 7 * 512 * 512) + 2 * 512 * 512
    biases = 2 * 64 + 2 * 128 + 4 * 256 + 8 * 512 + 2 * 512
    assert count(shapes("VGG19Riemannian")) == weights + biases + 512 * 10 + 10


def test_names_are_pytorchs():
    plain = shapes("VGG11", head="imagenet", **TINY)
    layers = [0, 3, 6, 8, 11, 13, 16, 18]
    heads = {f"classifier_{i}" for i in (0, 3, 6)}
    assert set(plain["params"]) == {f"features_{i}" for i in layers} | heads
    assert set(plain) == {"params"}
    normalized = shapes("VGG11BN", **TINY)
    convolutions = [0, 4, 8, 11, 15, 18, 22, 25]
    norms = {f"features_{i + 1}" for i in convolutions}
    assert set(normalized["batch_stats"]) == norms
    names = {f"features_{i}" for i in convolutions} | norms | {"classifier"}
    assert set(normalized["params"]) == names
    assert normalized["params"]["features_4"]["kernel"].shape == (3, 3, 2, 2)
    assert normalized["params"]["features_4"]["bias"].shape == (2,)


def test_riemannian_norms_have_no_scale_and_layers_no_bias():
    params = shapes("VGG13Riemannian")["params"]
    for name, layer in params.items():
        expected = (
            {"kernel", "bias"} if name == "head" else {"bias" if "norm" in name else "kernel"}
        )
        assert set(layer) == expected, name
    assert params["dense_2"]["kernel"].shape == (512, 512)


@pytest.mark.slow
def test_first_dense_layer_reads_channel_by_channel():
    module = get_model("VGG11", 2, head="imagenet", widths=(1, 1, 1, 1, 2), dense=3)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones((1, 32, 32, 1)), False))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draw.uniform(0, 1, leaf.shape).astype("f4"), shapes)
    # At 32 pixels, both channels have one pixel, which the head repeats 49 times each.
    kernel = draw.normal(size=(2, 3)).astype("f4")
    variables["params"]["classifier_0"]["kernel"] = np.repeat(kernel, 49, axis=0)
    x = draw.normal(size=(4, 32, 32, 1)).astype("f4")

    @jax.jit
    def run(variables):
        return module.apply(variables, x, False, capture_intermediates=True)[1]

    seen = run(variables)["intermediates"]
    convolved = np.maximum(seen["features_18"]["__call__"][0], 0).max((1, 2))
    bias = variables["params"]["classifier_0"]["bias"]
    assert np.ptp(convolved, axis=1).min() > 0.1
    np.testing.assert_allclose(
        seen["classifier_0"]["__call__"][0], 49 * convolved @ kernel + bias, rtol=1e-4, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("VGG11", {"head": "imagenet", "dropout_rate": 0.5}),
        ("VGG11BN", {"head": "cifar"}),
        ("VGG11Riemannian", {"dropout_rate": 0.3}),
    ],
)
def test_trains_with_remat_and_bfloat16(name, params):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.uniform(0, 1, size=(4, 32, 32, 3)), jnp.float32)

    def build(remat=False, dtype=jnp.float32):
        return get_model(name, 3, dtype, remat=remat, **TINY, **params)

    initialize = jax.eval_shape(lambda: build().init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(draw.uniform(0.1, 0.5, leaf.shape), leaf.dtype), initialize
    )
    rest = {"batch_stats"} & set(variables)

    def logits(module, params, train):
        rngs = {"dropout": jax.random.key(3)}
        if not train:
            return module.apply({**variables, "params": params}, x, train=False), {}
        return module.apply(
            {**variables, "params": params}, x, train=True, mutable=list(rest), rngs=rngs
        )

    @jax.jit
    def evaluate(params):
        return [logits(build(dtype=t), params, False)[0] for t in (jnp.float32, jnp.bfloat16)]

    def step(remat):
        def loss(params):
            outputs, state = logits(build(remat), params, True)
            return jnp.sum(jnp.square(outputs - 1)), (outputs, dict(state))

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    plain = step(remat=False)
    for path, leaf in jax.tree.leaves_with_path(plain[0]):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    assert set(plain[1][1]) == rest
    for new, old in zip(
        jax.tree.leaves(plain[1][1]), jax.tree.leaves(variables.get("batch_stats")), strict=True
    ):
        assert np.all(new != old)
    if name == "VGG11Riemannian":
        # Also the same random masks.
        again = step(remat=True)
        assert_trees_close(plain, again, 1e-4, 1e-5)
    exact, rounded = evaluate(variables["params"])
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()
    # Batch statistics or dropout make a difference.
    assert not np.allclose(exact, plain[1][0])


@pytest.mark.parametrize("name", ["VGG11", "VGG11BN", "VGG11Riemannian"])
def test_remat_marks_each_group(name):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = shapes(name, **TINY)

    def rematerialized(remat):
        module = get_model(name, 10, remat=remat, **TINY)
        jaxpr = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x)
        return sum("remat" in str(equation.primitive) for equation in jaxpr.eqns)

    assert (rematerialized(False), rematerialized(True)) == (0, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG11", "VGG11BN", "VGG11Riemannian"])
def test_remat_keeps_of_a_group_what_its_pooling_leaves(name):
    module = get_model(name, 10, remat=True, **TINY)
    variables = shapes(name, **TINY)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def residuals(params, rest, x):
        def logits(params):
            rngs, mutable = {"dropout": jax.random.key(0)}, ["batch_stats"]
            return module.apply({**rest, "params": params}, x, True, rngs=rngs, mutable=mutable)[0]

        return jax.vjp(logits, params)[1]

    params = variables.pop("params")
    kept = jax.tree.leaves(jax.eval_shape(residuals, params, variables, x))
    # The largest are the image and what enters the second group.
    assert sorted(leaf.size for leaf in kept)[-2:] == [16 * 16 * 2, 32 * 32 * 3]


def test_adaptive_mean_pool_has_pytorchs_windows():
    x = jnp.arange(10.0).reshape(1, 5, 2, 1)
    y = jax.jit(lambda x: adaptive_mean_pool(x, 3))(x)[0, :, :, 0]
    # Rows 0-1, 1-3, 3-4; columns 0, 0-1, 1.
    rows = np.array([[1.0, 2.0], [4.0, 5.0], [7.0, 8.0]])
    expected = np.stack([rows[:, 0], rows.mean(1), rows[:, 1]], axis=1)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    same = jnp.ones((1, 3, 3, 1))
    assert adaptive_mean_pool(same, 3) is same


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("VGG12", {}, "VGG12: the depth must be one of 11, 13, 16, 19"),
        ("VGG14BN", {}, "VGG14BN: the depth must be one of"),
        ("VGG14Riemannian", {}, "the depth must be one of"),
        ("VGG16", {"head": "large"}, "must be one of cifar, imagenet"),
        ("VGG16", {"dropout_rate": 1.0}, "dropout_rate"),
        ("VGG16", {"widths": (1, 2)}, "five"),
        ("VGG16", {"groups": (1, 2)}, "widths .* must be 2 numbers"),
        ("VGG16", {"groups": (1, 0), "widths": (1, 2)}, "groups .* at least 1"),
        ("VGG16", {"variant": "tf"}, "variant = 'tf': must be one of paper, gnp"),
        ("VGG16", {"variant": "gnp", "head": "cifar"}, "a head of its own: set one of them"),
    ],
)
def test_errors_say_what_is_allowed(name, params, message):
    with pytest.raises(ModelError, match=message):
        get_model(name, 10, **params)


@pytest.mark.parametrize("name", ["VGG16", "VGG16BN", "VGG13Riemannian"])
def test_small_images_are_an_error(name):
    with pytest.raises(ModelError, match=f" {name} .* at least 32 x 32 pixels, is 28 x 28"):
        shapes(name, 28)


def test_the_riemannian_batch_statistics_move_by_a_hundredth():
    module, x = get_model("VGG11Riemannian", 3, **TINY), jnp.zeros((1, 32, 32, 3))
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, "f4"), shapes("VGG11Riemannian", num_classes=3, **TINY)
    )

    @jax.jit
    def statistics(variables):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    ones = jax.tree.map(np.ones_like, variables["batch_stats"])
    for norm in statistics(variables | {"batch_stats": ones}).values():  # of zeros: no variance
        np.testing.assert_allclose(norm["var"], 0.99, rtol=1e-6)
