"""The networks of the Keras examples and the multilayer perceptron."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from tests.marks import quick_first
from tests.trees import assert_trees_close

# Name, classes, input, parameters as the examples count them (without batch statistics).
SIZES = [
    ("HorsesOrHumansCNN", 1, (300, 300, 3), 1_704_097),
    ("EvolutionMnistCNN", 10, (28, 28, 1), 34_826),
    ("EvolutionCifarCNN", 10, (32, 32, 3), 1_250_858),
    ("EvolutionCifarCNN", 100, (32, 32, 3), 1_297_028),
    ("EvolutionCifar10CNN", 10, (32, 32, 3), 2_396_330),
    ("EvolutionCifar100CNN", 100, (32, 32, 3), 8_578_820),
    ("EvolutionFordACNN", 2, (500, 1), 25_474),
    ("EvolutionIrisMLP", 3, (4,), 193),
    ("EvolutionBostonMLP", 1, (13,), 5_121),
    ("MLP", 10, (28, 28, 1), 118_282),
]
# Name, parameters of the model, the smallest useful input.
SMALL = [
    ("MLP", {"widths": (4, 4), "dropout_rate": 0.5}, (2, 3)),
    ("EvolutionMnistCNN", {"features": (2,)}, (4, 4, 1)),
    ("HorsesOrHumansCNN", {"features": (2, 2, 2), "dense": 3}, (22, 22, 3)),
    ("EvolutionCifarCNN", {"features": (2,), "dense": 3}, (6, 6, 3)),
    ("EvolutionCifar10CNN", {"features": ((2,), (2,)), "dense": (3,)}, (4, 4, 3)),
    ("EvolutionCifar100CNN", {"features": ((2,), (2,)), "dense": (3, 3)}, (4, 4, 3)),
    ("EvolutionFordACNN", {"features": (2, 2)}, (5, 1)),
]


def shapes_of(module, shape):
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False), x)


@pytest.mark.parametrize(("name", "num_classes", "shape", "parameters"), SIZES)
def test_size_and_logits(name, num_classes, shape, parameters):
    logits, variables = shapes_of(get_model(name, num_classes), shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert (logits.shape, logits.dtype) == ((2, num_classes), jnp.float32)
    assert set(variables) <= {"params", "batch_stats"}


@pytest.mark.parametrize(("name", "params", "shape"), quick_first(SMALL, 0))
def test_training_evaluation_remat_and_bfloat16(name, params, shape):
    draw = np.random.default_rng(0)
    # Inputs that differ: over four alike, batch norm has little but rounding to go by.
    sizes = np.geomspace(1, 5, 4).reshape(4, *(1 for _ in shape))
    x = jnp.asarray(sizes * draw.uniform(0, 1, size=(4, *shape)), jnp.float32)
    module = get_model(name, 3, **params)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(draw.uniform(0.2, 0.8, leaf.shape), leaf.dtype),
        shapes_of(module, shape)[1],
    )
    rest = {"batch_stats"} & set(variables)

    @jax.jit
    def evaluate(variables):
        other = get_model(name, 3, jnp.bfloat16, **params)
        return [m.apply(variables, x, train=False) for m in (module, other)]

    def step(remat):
        trained = get_model(name, 3, remat=remat, **params)

        @jax.jit
        def run(seed):
            def loss(params):
                logits, state = trained.apply(
                    {**variables, "params": params},
                    x,
                    train=True,
                    mutable=list(rest),
                    rngs={"dropout": jax.random.key(seed)},
                )
                return jnp.sum(jnp.square(logits - 1)), (logits, dict(state))

            return jax.grad(loss, has_aux=True)(variables["params"])

        return run

    run = step(remat=False)
    gradients, (logits, state) = plain = run(0)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    assert set(state) == rest
    if rest:
        moved = jax.tree.map(jnp.subtract, state["batch_stats"], variables["batch_stats"])
        assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(moved))
    else:
        # The same key drops the same units; another key, others.
        np.testing.assert_array_equal(logits, run(0)[1][0])
        assert not np.allclose(logits, run(1)[1][0])
    # Also the same random masks.
    again = step(remat=True)(0)
    assert_trees_close(plain, again, 1e-4, 1e-5)
    exact, rounded = evaluate(variables)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()
    assert not np.allclose(exact, logits)


def test_horses_or_humans_drops_where_the_example_does():
    module = get_model("HorsesOrHumansCNN", 1)
    x = jax.ShapeDtypeStruct((1, 94, 94, 3), jnp.float32)

    def seen(x):
        variables, key = {"params": jax.random.key(0), "dropout": jax.random.key(0)}, {}
        key = {"capture_intermediates": lambda module, _: "dropout" in (module.name or "")}
        return module.init_with_output(variables, x, train=False, **key)[1]["intermediates"]

    places = {name: call["__call__"][0].shape[1:] for name, call in jax.eval_shape(seen, x).items()}
    # Behind the second and the third convolution, in front of their pooling; and flat.
    assert places == {"dropout_2": (44, 44, 32), "dropout_3": (20, 20, 64), "dropout": (64,)}


def test_series_without_channels_has_one():
    module = get_model("EvolutionFordACNN", 2)
    assert shapes_of(module, (7,)) == shapes_of(module, (7, 1))
    with pytest.raises(ModelError, match="an image, not a series"):
        shapes_of(module, (7, 1, 1))


def test_series_is_averaged_over_time(key):
    module = get_model("EvolutionFordACNN", 2, features=(4, 4), window=1)
    x = jax.random.normal(key, (1, 6, 1))

    @jax.jit
    def logits(x):
        return module.apply(module.init(key, x, train=False), x, train=False)

    # With convolutions of width 1 the order of time is lost, and every step counts.
    np.testing.assert_allclose(logits(x), logits(x[:, ::-1]), rtol=1e-4, atol=1e-6)
    assert not np.allclose(logits(x), logits(x.at[0, 3].add(9)), atol=1e-3)


def test_perceptron_without_hidden_layers_is_linear():
    _, variables = shapes_of(get_model("MLP", 3, widths=()), (4,))
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "head": {"kernel": (4, 3), "bias": (3,)}
    }


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("MLP", {"widths": (3, 0)}, "widths"),
        ("MLP", {"dropout_rate": 1.0}, "dropout_rate"),
        ("EvolutionIrisMLP", {"depth": 3}, "unknown model_params.depth"),
        ("EvolutionMnistCNN", {"features": ()}, "features"),
        ("EvolutionCifarCNN", {"block_dropout_rate": -1}, "block_dropout_rate"),
        ("EvolutionFordACNN", {"window": 0}, "window"),
        ("HorsesOrHumansCNN", {"dense": 0}, "dense"),
    ],
)
def test_errors_name_the_parameter(name, params, message):
    with pytest.raises(ModelError, match=message):
        get_model(name, 3, **params)


@pytest.mark.parametrize(
    ("name", "least"),
    [("HorsesOrHumansCNN", 94), ("EvolutionMnistCNN", 10), ("EvolutionCifarCNN", 10)],
)
def test_images_that_are_too_small_are_an_error(name, least):
    module = get_model(name, 1)
    assert shapes_of(module, (least, least, 3))[0].shape == (2, 1)
    message = rf"{name} .* at least {least} x {least} pixels, is {least - 1} x {least}"
    with pytest.raises(ModelError, match=message):
        shapes_of(module, (least - 1, least, 3))


@pytest.mark.parametrize(("name", "params", "shape"), SMALL)
def test_remat_is_of_each_layer(name, params, shape):
    x, variables = jnp.ones((2, *shape)), shapes_of(get_model(name, 3, **params), shape)[1]

    def rematerialized(remat):
        module = get_model(name, 3, remat=remat, **params)
        jaxpr = jax.make_jaxpr(lambda v: module.apply(v, x, train=False))(variables)
        return sum("remat" in str(equation.primitive) for equation in jaxpr.eqns)

    layers = params.get("features", params.get("widths"))
    assert (rematerialized(False), rematerialized(True)) == (0, len(layers))
