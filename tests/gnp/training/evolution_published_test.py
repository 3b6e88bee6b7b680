"""The evolution recipes, step for step as the article's code computes them, in float32.

tests/published.py has the archive, whose meta names the commit. Everything is set by
config/evolution.py; only the batch is of 4, the dropout off, and the data are the archive's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from config import load_config
from ds_pipeline import build_dataset
from gnp.experiment import build_experiment
from optimizer import end_epoch
from tests.marks import quick_first
from tests.published import load, thinned, weight

ARRAYS, META = load("evolution_models")
# Of each data set: the argument of the config, our name of each layer with parameters.
NETWORKS = {
    "Iris": ("iris", ("dense_1", "head")),
    "BostonHousing": ("boston", ("dense_1", "head")),
    "Mnist": ("mnist", ("conv_1", "conv_2", "head")),
    "FordA": (
        "forda",
        (*(f"{kind}_{i}" for i in (1, 2, 3) for kind in ("conv", "norm")), "head"),
    ),
    "Cifar10": (
        "cifar10",
        (
            *(f"{kind}_{b}_{i}" for b in (1, 2, 3) for i in (1, 2) for kind in ("conv", "norm")),
            *("dense_1", "head"),
        ),
    ),
    "Cifar100": (
        "cifar100",
        (
            *("conv_1_1", "conv_1_2", "conv_1_3", "conv_2_1"),
            *("dense_1", "norm_1", "dense_2", "norm_2", "head"),
        ),
    ),
}
DROPOUT = {
    "Mnist": ("dropout_rate",),
    "Cifar10": ("dropout_rate", "flat_dropout_rate"),
    "Cifar100": ("dropout_rate",),
}
QUICK = ("Iris",)


def layers(name):
    """Return our name of a layer -> its index in the article's network."""
    found = [layer["index"] for layer in META["models"][name]["layers"] if layer["parameters"]]
    return dict(zip(NETWORKS[name][1], found, strict=True))


def by_rule(name, tree):
    """Return the weights of the archive's rule in the shape of parameters or statistics."""

    def leaf(path, old):
        layer, kind = (each.key for each in path)
        return weight(f"{name}/{layers(name)[layer]}/{kind}", old.shape)

    return jax.tree.map_with_path(leaf, tree)


def deviations(name, folder, tree):
    """Return (layer, kind) -> distance from the archive's array, relative to its largest value."""
    found = {}
    for path, value in jax.tree.leaves_with_path(tree):
        layer, kind = (each.key for each in path)
        expected = ARRAYS[f"{name}/{folder}/{layers(name)[layer]}/{kind}"]
        distance = np.abs(thinned(value, 160) - expected).max()
        found[layer, kind] = distance / np.abs(expected).max()
    return found


def examples(name):
    x, y = ARRAYS[f"{name}/x"], ARRAYS[f"{name}/y"]
    if name == "FordA":
        x = x[..., 0]  # vectors; a UCR file's series would be z-normalized, as FordA's are
    return x, y


def write_data(name, folder):
    """Write the archive's examples, and behind them one of each class; return the overrides."""
    x, y = examples(name)
    classes = META["models"][name]["layers"][-1]["output"][0]
    if classes > 1:
        x_all = np.concatenate([x, np.zeros((classes, *x.shape[1:]), x.dtype)])
        y_all = np.concatenate([y, np.arange(classes)])
    else:
        x_all, y_all = x, y
    np.savez(folder / "data.npz", x=x_all, y=y_all, x_test=x, y_test=y)
    return [("dataset.dataset_name", "npz"), ("dataset.data_dir", str(folder / "data.npz"))]


@pytest.fixture(scope="module")
def network(request, tmp_path_factory):
    """Return a network's name, its experiment, and the state of the archive's weights."""
    name = request.param
    overrides = [("use_test_set", "True"), ("batch_size", "4")]
    for layer in DROPOUT.get(name, ()):
        overrides.append((f"model.model_params.{layer}", "0.0"))
    overrides += write_data(name, tmp_path_factory.mktemp(name))
    config = load_config(f"config/evolution.py:{NETWORKS[name][0]}", overrides)
    experiment = build_experiment(config, build_dataset(config))
    state, _ = experiment.initialize()
    state = state._replace(
        params=by_rule(name, state.params),
        model_state={key: by_rule(name, tree) for key, tree in state.model_state.items()},
    )
    return name, experiment, state


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS],
    indirect=True,
)
def test_outputs_and_loss(network):
    name, experiment, state = network
    x, y = examples(name)
    published = META["models"][name]

    def outputs(x, train):
        apply = jax.jit(experiment.model.apply, static_argnums=3)
        logits, _ = apply(state.params, state.model_state, x, train, jax.random.key(0))
        is_softmax = published["layers"][-1]["activation"] == "softmax"
        return logits, jax.nn.softmax(logits) if is_softmax else logits

    logits, found = outputs(x, False)
    expected = ARRAYS[f"{name}/outputs_eval"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    loss = experiment.objective.loss(logits, y).mean()
    np.testing.assert_allclose(loss, ARRAYS[f"{name}/loss_eval"], rtol=1e-5)
    if f"{name}/outputs_train" in ARRAYS:
        expected = ARRAYS[f"{name}/outputs_train"]
        found = outputs(x[:4], True)[1]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == published["trainable"]
    everything = jax.tree.leaves((state.params, state.model_state))
    assert sum(leaf.size for leaf in everything) == published["parameters"]


def three_steps(network, seed):
    """Return the deviations of weights, statistics and epoch gradient, and the gradient itself.

    Args:
        network: of the fixture.
        seed: of a move of all weights by about one rounding; None: they stay.
    """
    name, experiment, state = network
    if seed is not None:
        draw = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda w: (w * (1 + 1e-7 * draw.standard_normal(w.shape))).astype(w.dtype), state.params
        )
        state = state._replace(params=params)
    state = jax.tree.map(jnp.array, state)  # a copy, as the steps donate it
    batches = experiment.train_batches(0)
    for step in range(3):
        state, _ = experiment.train_step(state, next(batches), jax.random.key(0), step)
    recorded, _ = end_epoch(state.opt_state)
    assert recorded.steps == 3
    after = deviations(name, "step3", state.params)
    for tree in state.model_state.values():
        after |= deviations(name, "step3", tree)
    return after, deviations(name, "epoch_gradient", recorded.epoch), recorded.epoch


@pytest.mark.parametrize("network", quick_first(["Iris", "BostonHousing", "Mnist"]), indirect=True)
def test_three_steps_and_the_epoch_gradient(network):
    after, gradient, _ = three_steps(network, seed=None)
    assert max(after.values()) <= 1e-5 and max(gradient.values()) <= 1e-5, (after, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["FordA"], indirect=True)
def test_three_steps_where_some_gradients_are_zero(network):
    """A batch norm takes away what a bias in front of it adds: Adam then scales up its rounding."""
    after, gradient, epoch = three_steps(network, seed=None)
    for layer in ("conv_1", "conv_2", "conv_3"):
        assert after.pop((layer, "bias")) <= 1e-3
        del gradient[layer, "bias"]
        largest = np.abs(epoch[layer]["kernel"]).max()
        assert np.abs(epoch[layer]["bias"]).max() <= 1e-4 * largest
    assert max(after.values()) <= 1e-5 and max(gradient.values()) <= 2e-5, (after, gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "weights", "gradients"),
    [("Cifar10", 1e-3, 1e-3), ("Cifar100", 5e-3, 5e-2)],
    indirect=["network"],
)
def test_three_steps_within_rounding(network, weights, gradients):
    """Where one rounding of the weights decides on which side of a kink a unit is.

    Three steps later our own float32 runs differ by up to 0.3 (CIFAR-10) and 0.9 (CIFAR-100) of an
    array's largest gradient: the published one is among them.
    """
    tried = []
    for seed in range(12):
        after, gradient, _ = three_steps(network, seed)
        tried.append((max(after.values()), max(gradient.values())))
        if tried[-1][0] <= weights and tried[-1][1] <= gradients:
            return
    pytest.fail(f"weights, gradients: {tried}")
