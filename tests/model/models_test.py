"""Properties that every registered family shares, and the published sizes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model, layers
from tests.marks import quick_first
from tests.trees import assert_trees_close

# Name, input [h, w, c], parameters with 10 classes.
SIZES = [
    ("WideResNet_16_4", (32, 32, 3), 2_748_890),
    ("MnistTutorialCNN", (28, 28, 1), 257_738),
    ("DigitsCNN", (8, 8, 1), 53_098),
    ("DeepOBS2c2d", (28, 28, 1), 3_274_634),
    ("WideResNet_22_8", (32, 32, 3), 17_158_106),
    ("WideResNet_28_10", (32, 32, 3), 36_479_194),
    ("WideResNet_40_10", (32, 32, 3), 55_841_754),
    ("WideResNet_2_96_ShakeShake", (32, 32, 3), 26_192_922),
    ("PyramidNet_164_48", (32, 32, 3), 1_715_410),
    ("PyramidNet_164_270", (32, 32, 3), 27_215_989),
    ("PyramidNet_200_240", (32, 32, 3), 26_752_670),
    ("PyramidNet_272_200", (32, 32, 3), 26_210_810),
    # And a batch norm of 16 channels behind the first convolution.
    ("PyramidNet_164_48_ShakeDrop", (32, 32, 3), 1_715_442),
    ("CifarResNet20", (32, 32, 3), 269_722),
    ("CifarResNet32", (32, 32, 3), 464_154),
    ("CifarResNet44", (32, 32, 3), 658_586),
    ("CifarResNet56", (32, 32, 3), 853_018),
    ("CifarResNet110", (32, 32, 3), 1_727_962),
]
# Every family with batch norm: name, parameters of the model, input [h, w, c] or [length, c].
WITH_BATCH_NORM = [
    ("WideResNet_10_1", {}, (4, 4, 3)),
    ("WideResNet_2_4_ShakeShake", {"depth": 8}, (4, 4, 3)),
    ("PyramidNet_11_5_ShakeDrop", {}, (4, 4, 3)),
    ("ResNet18", {"stages": (1, 1), "widths": (2, 4)}, (8, 8, 3)),
    ("ResNet50", {"stages": (1, 1), "widths": (2, 4)}, (8, 8, 3)),
    ("CifarResNet8", {}, (4, 4, 3)),
    ("VGG11BN", {}, (32, 32, 3)),
    ("VGG11Riemannian", {}, (32, 32, 3)),
    ("MnistTutorialCNN", {}, (8, 8, 1)),
    ("DigitsCNN", {}, (4, 4, 1)),
    ("EvolutionFordACNN", {}, (9, 1)),
    ("TSMixer", {}, (9, 2)),
]
# Name -> parameters of the model, a small input.
SMALL = {
    "DigitsCNN": ({"features": (4, 4), "dense": 8, "dropout_rate": 0.5}, (4, 4, 1)),
    "MnistTutorialCNN": ({}, (8, 8, 1)),
    "WideResNet_10_1": ({"dropout_rate": 0.5}, (4, 4, 3)),
    "WideResNet_2_4_ShakeShake": ({"depth": 8}, (6, 6, 3)),
    "PyramidNet_11_5_ShakeDrop": ({}, (6, 6, 3)),
}


def drawn(name):
    """Input and variables of a small model as a run might have them, drawn without compiling."""
    params, shape = SMALL[name]
    module = get_model(name, 3, **params)
    draw = np.random.default_rng(0)
    # Images that differ: over a few of noise alone, batch norm has little but rounding to go by.
    patches = draw.normal(size=(16, 2, 2, shape[-1]))
    x = np.kron(patches, np.ones((1, shape[0] // 2, shape[1] // 2, 1)))
    x = (x + 0.2 * draw.normal(size=x.shape)).astype(np.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def value(path, leaf):
        if path[-1].key in ("scale", "var"):
            return draw.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        size = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if len(leaf.shape) > 1 else 0.1
        return (size * draw.normal(size=leaf.shape)).astype(np.float32)

    return x, jax.tree_util.tree_map_with_path(value, variables)


def forward(name, dtype=jnp.float32, remat=False):
    """(variables, x, seed) -> logits of evaluation, logits and statistics of training."""
    module = get_model(name, 3, dtype, remat=remat, **SMALL[name][0])

    def run(variables, x, seed):
        logits, state = module.apply(
            variables,
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )
        return module.apply(variables, x, train=False), logits, dict(state)

    return run


@cache
def passes(name, remat=False):
    """Return the values of `forward` and the gradients of a loss of its logits; compiled."""
    run = forward(name, remat=remat)

    def run_and_differentiate(variables, x, seed):
        def loss(params):
            outputs = run({**variables, "params": params}, x, seed)
            return jnp.sum(jnp.square(outputs[1] - 1)), outputs

        gradients, outputs = jax.grad(loss, has_aux=True)(variables["params"])
        return *outputs, gradients

    return jax.jit(run_and_differentiate)


@pytest.mark.parametrize(("name", "shape", "parameters"), quick_first(SIZES))
def test_published_size_and_logits(name, shape, parameters):
    module = get_model(name, num_classes=10)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def initialize(x):
        return module.init_with_output(jax.random.key(0), x, train=False)

    logits, variables = jax.eval_shape(initialize, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    norms = name != "DeepOBS2c2d"
    assert set(variables) == ({"params", "batch_stats"} if norms else {"params"})


@pytest.mark.parametrize("name", quick_first(tuple(SMALL)))
def test_training_and_evaluation(name):
    x, variables = drawn(name)
    run = passes(name)
    evaluated, logits, state, gradients = run(variables, x, 0)
    assert (logits.shape, logits.dtype) == ((16, 3), jnp.float32)
    # The same key drops the same units; another key, others.
    again, other = run(variables, x, 0), run(variables, x, 1)
    np.testing.assert_array_equal(logits, again[1])
    assert not np.allclose(logits, other[1])
    # Every parameter has a gradient, every running statistic moved.
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    old, new = variables["batch_stats"], state["batch_stats"]
    for path, leaf in jax.tree.leaves_with_path(jax.tree.map(jnp.subtract, new, old)):
        assert np.all(leaf != 0), jax.tree_util.keystr(path)
    # Evaluation draws nothing and uses the running statistics.
    np.testing.assert_array_equal(evaluated, other[0])
    assert not np.allclose(evaluated, run({**variables, **state}, x, 0)[0])


@pytest.mark.parametrize("name", quick_first(tuple(SMALL)))
def test_bfloat16_is_near_float32(name):
    x, variables = drawn(name)
    *logits, state = jax.jit(forward(name, jnp.bfloat16))(variables, x, 0)
    *exact, _, _ = passes(name)(variables, x, 0)
    for leaf in jax.tree.leaves((logits, state)):
        assert leaf.dtype == jnp.float32
    # The tutorial's CNN has its batch norms behind ReLUs: of a dense unit that is above 0 for few
    # examples they make large values, and of its rounding too.
    limits = (0.02, 0.1 if name == "MnistTutorialCNN" else 0.02)
    for ours, theirs, limit in zip(logits, exact, limits, strict=True):
        assert 0 < np.abs(ours - theirs).max() < limit * np.abs(theirs).max()


@pytest.mark.usefixtures("optimized")
@pytest.mark.slow
@pytest.mark.parametrize("name", quick_first(tuple(SMALL)))
def test_remat_changes_nothing_but_memory(name):
    x, variables = drawn(name)
    # Not those of the other tests, which are compiled without optimizations.
    plain, remat = passes.__wrapped__(name), passes.__wrapped__(name, remat=True)
    assert_trees_close(remat(variables, x, 0), plain(variables, x, 0), 1e-4, 1e-4)
    assert "remat2[" not in str(jax.make_jaxpr(plain)(variables, x, 0))
    assert "remat2[" in str(jax.make_jaxpr(remat)(variables, x, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params"),
    quick_first(
        [
            ("WideResNet_10_1", {}),
            ("VGG11", {"widths": (2, 2, 2, 3, 3)}),
            ("ViT_S8", {"embed_dim": 12, "num_heads": 2, "depth": 2}),
        ]
    ),
)
def test_remat_keeps_less_for_the_backward_pass(name, params):
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def kept(remat):
        module = get_model(name, 3, remat=remat, **params)
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)

        def residuals(variables, x):
            def logits(params):
                return module.apply(
                    {**variables, "params": params},
                    x,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(0)},
                )[0]

            return jax.vjp(logits, variables["params"])[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, variables, x))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    assert kept(remat=True) < kept(remat=False)


@pytest.mark.parametrize(("name", "params", "shape"), quick_first(WITH_BATCH_NORM, 3))
def test_every_batch_norm_has_the_groups(monkeypatch, name, params, shape):
    module = get_model(name, 3, batch_norm_group=2, **params)
    calls = []
    in_groups = layers._in_groups
    monkeypatch.setattr(layers, "_in_groups", lambda *args: calls.append(args) or in_groups(*args))

    def initialize_and_train(x):
        variables = module.init(jax.random.key(0), x, train=False)
        rngs = {"dropout": jax.random.key(1)}
        return variables, module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

    x = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    variables, (logits, _) = jax.eval_shape(initialize_and_train, x)
    assert logits.shape == ((4, 3, 2) if name == "TSMixer" else (4, 3))
    assert len(calls) == len(jax.tree.leaves(variables["batch_stats"])) / 2
    assert {group for _, group in calls} == {2}
    with pytest.raises(ModelError, match="batch_norm_group = 0: must be at least 1"):
        get_model(name, 3, batch_norm_group=0, **params)
    with pytest.raises(ModelError, match=r"batch_norm_group = 1.5 .*must be int \| None, is float"):
        get_model(name, 3, batch_norm_group=1.5, **params)


def test_batch_norm_groups_where_there_is_no_batch_norm():
    with pytest.raises(ModelError, match="VGG11 has no batch norm; VGG11BN has"):
        get_model("VGG11", 3, batch_norm_group=2)
    with pytest.raises(ModelError, match=r"unknown model_params.batch_norm_group for ViT_S4\."):
        get_model("ViT_S4", 3, batch_norm_group=2)


@pytest.mark.parametrize("name", [name for name, _, _ in SIZES] + ["ViT_S4", "VGG11", "ResNet18"])
@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((), "a number, not an image"),
        ((4,), "a vector, not an image"),
        ((5, 3), "a series, not an image"),
        ((2, 8, 8, 3), "an array of 4 axes, not an image"),
        ((0, 8, 3), "it is empty"),
        ((8, 8, 0), "it is empty"),
    ],
)
def test_image_models_say_in_one_line_what_they_cannot_take(name, shape, reason):
    assert error_for(name, shape) == (
        f"model.model_name = {name} cannot take inputs of shape {shape}: {reason}; "
        "docs/models.md says what each model is for"
    )


@pytest.mark.parametrize(
    ("name", "least"),
    [("DigitsCNN", 4), ("DeepOBS2c2d", 4), ("MnistTutorialCNN", 8)],
)
def test_images_that_are_too_small_are_an_error(name, least):
    message = f"must be at least {least} x {least} pixels, is {least} x {least - 1};"
    assert message in error_for(name, (least, least - 1, 3))
    x = jax.ShapeDtypeStruct((1, least, least, 3), jnp.float32)
    module = get_model(name, 3)
    logits = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, False)[0], x)
    assert logits.shape == (1, 3)


def error_for(name, shape):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    with pytest.raises(ModelError) as raised:
        jax.eval_shape(lambda x: get_model(name, 3).init(jax.random.key(0), x, train=False), x)
    return str(raised.value)


def test_perceptrons_take_whatever_is_not_empty():
    module = get_model("MLP", 3)
    for shape in ((), (4,), (5, 3), (8, 8, 1)):
        x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        logits = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, True)[0], x)
        assert logits.shape == (2, 3)
    assert "MLP cannot take inputs of shape (5, 0): it is empty;" in error_for("MLP", (5, 0))


def test_dropout_rate_zero_draws_nothing():
    module = get_model("WideResNet_10_1", 3)
    x = jax.ShapeDtypeStruct((4, 4, 4, 3), jnp.float32)

    def initialize_and_train(x):
        variables = module.init(jax.random.key(0), x, train=False)
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    assert jax.eval_shape(initialize_and_train, x).shape == (4, 3)


def test_initial_weights_of_deepobs():
    """A normal of deviation 0.05, cut off at two of them, has the deviation 0.044."""
    module = get_model("DeepOBS2c2d", 10, features=(8, 16), dense=32)
    init = jax.jit(lambda x: module.init(jax.random.key(0), x, False)["params"])
    params = init(jnp.ones((1, 12, 12, 1)))
    assert params["Conv_1"]["kernel"].shape == (5, 5, 8, 16)
    for layer in params.values():
        np.testing.assert_allclose(layer["bias"], 0.05, rtol=1e-6)
        assert 0.09 < np.abs(layer["kernel"]).max() <= 0.1
        assert 0.036 < np.std(layer["kernel"]) < 0.052
