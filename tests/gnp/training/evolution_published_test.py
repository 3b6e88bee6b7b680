"""The evolution recipes, step for step as the article's code computes them.

tests/published.py has the archive, whose meta names the commit. Everything is set by
config/evolution.py; only the batch is of 4, the dropout off, and the data are the archive's.
"""

import jax
import numpy as np
import pytest

from config import load_config
from ds_pipeline import build_dataset
from gnp.experiment import build_experiment
from optimizer import end_epoch
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
QUICK = ("Iris", "BostonHousing", "Mnist")


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


def assert_as_archived(name, folder, tree):
    """Compare with each array of the archive, relative to its largest value."""
    for (layer, kind), value in (
        ((path[0].key, path[1].key), value) for path, value in jax.tree.leaves_with_path(tree)
    ):
        expected = ARRAYS[f"{name}/{folder}/{layers(name)[layer]}/{kind}"]
        found = thinned(value, 160)
        worst = np.abs(found - expected).max() / np.abs(expected).max()
        assert worst <= 1e-5, (folder, layer, kind, worst)


def write_data(name, folder):
    """Write the archive's examples, and behind them one of each class; return the overrides."""
    x, y = ARRAYS[f"{name}/x"], ARRAYS[f"{name}/y"]
    if name == "FordA":
        rows = np.concatenate([y[:, None], x[..., 0]], axis=1)
        for part in ("TRAIN", "TEST"):
            np.savetxt(folder / f"FordA_{part}.tsv", rows, "%.9g", delimiter="\t")
        return [("dataset.data_dir", str(folder))]
    classes = META["models"][name]["layers"][-1]["output"][0]
    if classes > 1:
        x_all = np.concatenate([x, np.zeros((classes, *x.shape[1:]), x.dtype)])
        y_all = np.concatenate([y, np.arange(classes)])
    else:
        x_all, y_all = x, y
    np.savez(folder / "data.npz", x=x_all, y=y_all, x_test=x, y_test=y)
    return [("dataset.dataset_name", "npz"), ("dataset.data_dir", str(folder / "data.npz"))]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS
    ],
)
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
        params=by_rule(name, state.params), model_state=by_rule_of_state(name, state.model_state)
    )
    return name, experiment, state


def by_rule_of_state(name, model_state):
    return {key: by_rule(name, tree) for key, tree in model_state.items()}


def test_outputs_and_loss(network):
    name, experiment, state = network
    x, y = ARRAYS[f"{name}/x"], ARRAYS[f"{name}/y"]
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


def test_three_steps_and_the_epoch_gradient(network):
    name, experiment, state = network
    state = jax.device_put(jax.device_get(state))  # the steps donate it
    batches = experiment.train_batches(0)
    for step in range(3):
        state, _ = experiment.train_step(state, next(batches), jax.random.key(0), step)
    assert_as_archived(name, "step3", state.params)
    for statistics in state.model_state.values():
        assert_as_archived(name, "step3", statistics)
    recorded, _ = end_epoch(state.opt_state)
    assert recorded.steps == 3
    assert_as_archived(name, "epoch_gradient", recorded.epoch)
