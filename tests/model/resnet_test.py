"""Residual networks: sizes, PyTorch's values, stems, errors, and the pooling of their stem."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from tests.marks import quick_first
from tests.trees import assert_trees_close

REFERENCE = Path(__file__).parents[1] / "reference" / "models"
DEPTHS = {"resnet_basic": 18, "resnet_bottleneck": 50}
# A ResNet18 and a ResNet50 of this are the smallest with every kind of block.
TINY = {"stages": (1, 1), "widths": (2, 4), "stem_features": 2, "stem": "imagenet"}


def shapes(name, size, num_classes, **params):
    module = get_model(name, num_classes, **params)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [
        (18, 11_689_512),
        (34, 21_797_672),
        pytest.param(50, 25_557_032, marks=pytest.mark.slow),
        pytest.param(101, 44_549_160, marks=pytest.mark.slow),
        pytest.param(152, 60_192_808, marks=pytest.mark.slow),
        pytest.param(200, 64_673_832, marks=pytest.mark.slow),
    ],
)
def test_published_size(depth, parameters):
    assert count(shapes(f"ResNet{depth}", 224, 1000)) == parameters


def test_size_on_cifar():
    assert count(shapes("ResNet18", 32, 10)) == 11_173_962
    assert count(shapes("ResNet50", 32, 10)) == 23_520_842


def test_other_numbers_of_cifar_are_those_of_a_narrow_stem():
    assert count(shapes("ResNet50", 32, 10, stem_features=16)) == 23_504_090
    variables = shapes("ResNet18", 32, 10, stem_features=16)
    biases = sum(
        leaf.shape[-1] for leaf in jax.tree.leaves(variables["params"]) if len(leaf.shape) == 4
    )
    # Every convolution but the stem's, with a bias.
    assert count(variables) + biases - 16 == 11_150_874


@pytest.mark.slow
def test_stem_follows_the_width_of_the_image():
    def window(size, **params):
        variables = shapes("ResNet18", size, 10, **TINY | {"stem": None} | params)
        return variables["params"]["conv1"]["kernel"].shape[:2]

    assert window(64) == (3, 3)
    assert window(65) == (7, 7)
    assert window(32, stem="imagenet") == (7, 7)
    assert window(224, stem="cifar") == (3, 3)


def converted(archive):
    """Variables of the module from PyTorch's, by name."""
    variables = {"params": {}, "batch_stats": {}}
    leaves = {
        ("weight", 1): ("params", "scale"),
        ("weight", 2): ("params", "kernel"),
        ("weight", 4): ("params", "kernel"),
        ("bias", 1): ("params", "bias"),
        ("running_mean", 1): ("batch_stats", "mean"),
        ("running_var", 1): ("batch_stats", "var"),
    }
    for key in archive:
        if not key.startswith("param/"):
            continue
        *path, leaf = key.removeprefix("param/").split(".")
        modules = []
        for part in path:
            # An index belongs to the list before it.
            modules[-1:] = [f"{modules[-1]}_{part}"] if part.isdigit() else [*modules[-1:], part]
        value = archive[key]
        collection, name = leaves[leaf, value.ndim]
        tree = variables[collection]
        for module in modules:
            tree = tree.setdefault(module, {})
        tree[name] = jnp.asarray(value.transpose({1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[value.ndim]))
    return variables


@pytest.mark.slow
@pytest.mark.parametrize("name", quick_first(tuple(DEPTHS)))
def test_logits_equal_pytorch(name):
    with np.load(REFERENCE / f"{name}.npz") as file:
        archive = dict(file)
    sizes = json.loads(str(archive["meta"]))["hyperparameters"]
    variables = converted(archive)
    x = jnp.asarray(archive["input"].transpose(0, 2, 3, 1))

    def logits(dtype):
        module = get_model(
            f"ResNet{DEPTHS[name]}",
            sizes["num_classes"],
            dtype,
            stem="imagenet",
            stages=sizes["stages"],
            widths=sizes["widths"],
        )
        initialize = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
        assert jax.tree.map(jnp.shape, initialize) == jax.tree.map(jnp.shape, variables)

        @jax.jit
        def both(variables):
            trained, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            return {
                "logits_eval": module.apply(variables, x, train=False),
                "logits_train": trained,
            }

        return both(variables)

    exact, rounded = logits(jnp.float32), logits(jnp.bfloat16)
    for mode in ("logits_eval", "logits_train"):
        largest = np.abs(archive[mode]).max()
        np.testing.assert_allclose(exact[mode], archive[mode], rtol=1e-4, atol=1e-5 * largest)
        assert rounded[mode].dtype == jnp.float32
        # Four images of 64 pixels leave 16 values a channel to the last batch norms, whose
        # statistics amplify: rounding the kernels and the images alone already costs 2.2 %.
        allowed = 0.02 if mode == "logits_eval" else 0.05
        assert 0 < np.abs(rounded[mode] - exact[mode]).max() < allowed * largest


@pytest.fixture(scope="module")
def step():
    """Gradients, logits and statistics of a tiny network."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(3, 16, 16, 3)), jnp.float32)

    def run(depth, **params):
        module = get_model(f"ResNet{depth}", 3, **params)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
        fill = np.random.default_rng(1)
        variables = jax.tree.map(
            lambda leaf: jnp.asarray(fill.uniform(0.2, 0.8, leaf.shape), leaf.dtype), shapes
        )

        def loss(params):
            logits, state = module.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.square(logits - 1)), (logits, state["batch_stats"])

        gradients, (logits, stats) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        moved = jax.tree.map(jnp.subtract, stats, variables["batch_stats"])
        return gradients, logits, moved

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "stem"), [(18, "imagenet"), (50, "cifar")])
def test_every_parameter_and_statistic_moves(step, depth, stem):
    gradients, _, moved = step(depth, **TINY | {"stem": stem})
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert leaf.dtype == jnp.float32
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    for path, leaf in jax.tree.leaves_with_path(moved):
        assert np.all(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_remat_changes_no_value(step):
    plain, again = step(18, **TINY), step(18, remat=True, **TINY)
    # Not to the last bit: the compiler may fuse the two otherwise.
    assert_trees_close(plain, again, 1e-4, 1e-5)


def test_remat_marks_each_block():
    x = jnp.zeros((1, 16, 16, 3))

    def rematerialized(remat):
        module = get_model("ResNet18", 3, remat=remat, **TINY)
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
        jaxpr = jax.make_jaxpr(lambda v: module.apply(v, x, train=False))(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
        )
        return sum("remat" in str(equation.primitive) for equation in jaxpr.eqns)

    assert (rematerialized(False), rematerialized(True)) == (0, 2)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ResNet20", {}, "the depth must be one of 18, 34, 50, 101, 152, 200"),
        ("ResNet18", {"stem": "large"}, "must be one of cifar, imagenet"),
        ("ResNet18", {"stages": (1, 1)}, "must be of the same length"),
        ("ResNet18", {"stages": (1, 1, 1, 0)}, "at least 1"),
        ("ResNet18", {"stages": 3}, "model_params.stages = 3"),
    ],
)
def test_errors_say_what_is_allowed(name, params, message):
    with pytest.raises(ModelError, match=message):
        get_model(name, 10, **params)
