"""What every registered family has in common, and the published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import get_model

# Name, input [h, w, c], parameters with 10 classes.
SIZES = [
    ("WideResNet_16_4", (32, 32, 3), 2_748_890),
    ("WideResNet_22_8", (32, 32, 3), 17_158_106),
    ("WideResNet_28_10", (32, 32, 3), 36_479_194),
    ("WideResNet_40_10", (32, 32, 3), 55_841_754),
    ("MnistTutorialCNN", (28, 28, 1), 257_738),
    ("DigitsCNN", (8, 8, 1), 53_098),
]
# Name, parameters of the model, the smallest useful input.
SMALL = [
    ("WideResNet_10_1", {"dropout_rate": 0.5}, (4, 4, 3)),
    ("MnistTutorialCNN", {}, (8, 8, 1)),
    ("DigitsCNN", {"features": (4, 4), "dense": 8, "dropout_rate": 0.5}, (4, 4, 1)),
]


def filled(module, shape):
    """Input and variables of a module, random but drawn without compiling its initialisers."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(4, *shape)), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)

    def fill(leaf):
        # Positive, because some are variances.
        return jnp.asarray(draw.uniform(0.2, 0.8, leaf.shape), leaf.dtype)

    return x, jax.tree.map(fill, variables)


@pytest.mark.parametrize(("name", "shape", "parameters"), SIZES)
def test_published_size_and_logits(name, shape, parameters):
    module = get_model(name, num_classes=10)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)

    def initialise(x):
        return module.init_with_output(jax.random.key(0), x, train=False)

    logits, variables = jax.eval_shape(initialise, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    assert set(variables) == {"params", "batch_stats"}


@pytest.mark.parametrize(("name", "params", "shape"), SMALL)
def test_training_and_evaluation(name, params, shape):
    module = get_model(name, 3, **params)
    x, variables = filled(module, shape)

    @jax.jit
    def train(params, seed):
        def loss(params):
            logits, state = module.apply(
                {**variables, "params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(seed)},
            )
            return jnp.sum(jnp.square(logits - 1)), (logits, dict(state))

        gradients, (logits, state) = jax.grad(loss, has_aux=True)(params)
        return logits, state, gradients

    @jax.jit
    def evaluate(stats):
        return module.apply({**variables, "batch_stats": stats}, x, train=False)

    logits, state, gradients = train(variables["params"], 0)
    assert (logits.shape, logits.dtype) == ((4, 3), jnp.float32)
    # The same key drops the same units; another key, others.
    np.testing.assert_array_equal(logits, train(variables["params"], 0)[0])
    assert not np.allclose(logits, train(variables["params"], 1)[0])
    # Every parameter has a gradient, every running statistic moved.
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    old, new = variables["batch_stats"], state["batch_stats"]
    for path, leaf in jax.tree.leaves_with_path(jax.tree.map(jnp.subtract, new, old)):
        assert np.all(leaf != 0), jax.tree_util.keystr(path)
    # Evaluation draws nothing and uses the running statistics.
    np.testing.assert_array_equal(evaluate(new), evaluate(new))
    assert not np.allclose(evaluate(new), evaluate(old))


def test_dropout_rate_zero_draws_nothing():
    module = get_model("WideResNet_10_1", 3)
    x = jax.ShapeDtypeStruct((4, 4, 4, 3), jnp.float32)

    def initialise_and_train(x):
        variables = module.init(jax.random.key(0), x, train=False)
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    assert jax.eval_shape(initialise_and_train, x).shape == (4, 3)
