"""Training as config/riemannian.py asks for it, against the Riemannian authors' own graph.

Every run is built from the config and public keys alone: the archive's flags say which.
"""

import math
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
import optimizer
from config import load_config
from ds_pipeline import build_dataset
from gnp.experiment import Experiment, build_experiment
from gnp.training.state import TrainState, leaf_names
from model.layers import FAN_IN
from tests.marks import quick_first
from tests.published import assert_drawn_alike, load, thinned, weight

CONFIG = Path(__file__).resolve().parents[3] / "config" / "riemannian.py"
ARRAYS, META = load("riemannian")
RUNS = META["runs"]
STORED = 160  # elements of a variable, at most
# Their variables' names -> ours.
NAMES = (
    (r"group1/conv0", "stem"),
    (r"group(\d)_block(\d+)", lambda m: f"group_{int(m[1]) - 1}_block_{int(m[2]) + 1}"),
    (r"layer(\d)_in_block/batch_norm", r"norm_\1"),
    (r"layer(\d)_in_block/conv", r"conv_\1"),
    (r"projection", "shortcut"),
    (r"fc/batch_norm", "norm"),
    (r"fc/output|fc2", "head"),
    (r"GROUP(\d)_(\d+)/conv", lambda m: f"group_{int(m[1]) + 1}_conv_{int(m[2]) + 1}"),
    (r"GROUP(\d)_(\d+)/batch_norm", lambda m: f"group_{int(m[1]) + 1}_norm_{int(m[2]) + 1}"),
    (r"fc([01])/weight", lambda m: f"dense_{int(m[1]) + 1}/weight"),
    (r"fc([01])/", lambda m: f"dense_{int(m[1]) + 1}_norm/"),
)
KINDS = {"weight": "kernel", "bias": "bias", "gamma": "scale", "beta": "bias"}
STATISTICS = {"pop_mean": "mean", "pop_var": "var"}
SLOTS = {"Momentum": "trace", "SgdgOptimizer": "momentum", "Adamg": "mu", "Adamg_1": "nu"}
DECAYS = {"weight": "weight", "bias": "bias", "gamma": "scale", "beta": "offset"}


def ours(name: str) -> str:
    """Return our path of one of their variables, such as group_1_block_1/norm_1/scale."""
    for theirs, replacement in NAMES:
        name = re.sub(rf"(?:^|(?<=/))(?:{theirs})", replacement, name)
    module, _, kind = name.rpartition("/")
    return f"{module}/{(KINDS | STATISTICS)[kind]}"


def by_name(tree: Any) -> dict[str, Any]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def words(flags: dict[str, Any]) -> dict[str, str]:
    """Return the config keys of their command line."""
    keys: dict[str, Any] = {
        f"l2_by_kind.{kind}": flags[f"{theirs}Decay"] or 0 for theirs, kind in DECAYS.items()
    }
    keys |= {
        "l2_regularization": 0,
        "base_lr": flags["learnRate"],
        "lr_schedule_params.factor": flags["learnRateDecay"],
        "opt.opt_params.nesterov": flags["nesterov"],
        "model.model_params.dropout_rate": 1 - (flags["keep_prob"] or 1),
    }
    momentum, is_hybrid = flags["momentum"], flags["grassmann"]
    own = {"sgd": "momentum", "sgdg": "momentum", "adamg": "b1"}[flags["optimizer"]]
    keys[f"opt.opt_params.{own}"] = momentum
    if is_hybrid:
        keys["opt.opt_params.euclidean_momentum"] = momentum
        keys["opt.opt_params.grad_clip"] = flags["grad_clip"]
        keys["opt.learning_rate_grassmann"] = flags["learnRateG"]
        keys["opt.omega"] = flags["omega"] or 0
    return {key: str(value) for key, value in keys.items()}


def model_name(model: str, flags: dict[str, Any]) -> str:
    if model == "resnet":
        return f"WideResNet_{flags['depth']}_{flags['widen_factor']}"
    return f"VGG{model.removeprefix('vgg')}Riemannian"


def config_of(run: str, **more: str) -> Any:
    model, flags = RUNS[run]["model"], RUNS[run]["flags"]
    keys = {"model.model_name": model_name(model, flags)} | words(flags) | more
    return load_config(f"{CONFIG}:cifar10,{flags['optimizer']}", list(keys.items()))


@cache
def variables(run: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of their variables, without optimizer slots."""
    layout = {name: tuple(shape) for name, shape, _, _ in META["layout"][run]}
    return {n: s for n, s in layout.items() if n.rpartition("/")[2] in KINDS | STATISTICS}


def classes(run: str) -> int:
    return next(s[0] for n, s in variables(run).items() if n in ("fc/output/bias", "fc2/bias"))


def experiment_of(run: str, folder: Path, **more: str) -> Experiment:
    """Build the run on the archive's images, as an .npz file of ours holds them."""
    x, y = ARRAYS["in/x_int8"], ARRAYS["in/y"]
    images = np.float32(x.reshape(-1, *x.shape[2:])) / 16
    # And a gray one of each class, as the file's labels say which there are.
    labels = np.arange(classes(run))
    file = folder / "images.npz"
    gray = np.zeros((len(labels), *images.shape[1:]), np.float32)
    np.savez(file, x=np.concatenate([images, gray]), y=np.concatenate([y.ravel(), labels]))
    keys = {
        "dataset.dataset_name": "npz",
        "dataset.data_dir": str(file),
        "dataset.image_level_augmentations": "none",
        "dataset.mean": "0",
        "dataset.std": "1",
        "dataset.num_classes": str(len(labels)),
        "batch_size": str(y.shape[1]),
    }
    config = config_of(run, **keys, **more)
    return build_experiment(config, build_dataset(config))


def initial_weights(run: str) -> dict[str, np.ndarray]:
    """Return their variables by the archive's rule; Grassmann columns have length 1."""
    result = {}
    for name, shape in variables(run).items():
        module, _, kind = name.rpartition("/")
        rule = f"{RUNS[run]['model']}/{name}/{(KINDS | STATISTICS)[kind]}"
        value = weight(rule, shape, statistics=False)
        if name in META["groups"][run]["grassmann"]:
            wide = np.float64(value)
            axes = tuple(range(wide.ndim - 1))
            value = np.float32(wide / np.sqrt(np.sum(wide**2, axes, keepdims=True)))
        result[ours(name)] = value
    return result


def first_state(run: str, experiment: Experiment) -> TrainState:
    weights = initial_weights(run)

    def filled(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        values = [weights.pop(name) for name in leaf_names(tree)]
        return structure.unflatten(
            [
                jax.device_put(value.astype(leaf.dtype), leaf.sharding)
                for value, leaf in zip(values, leaves, strict=True)
            ]
        )

    params = filled(experiment.abstract_state.params)
    model_state = {"batch_stats": filled(experiment.abstract_state.model_state["batch_stats"])}
    assert not weights
    shardings = jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_state.opt_state)
    opt_state = jax.jit(experiment.optimizer.init, out_shardings=shardings)(params)
    return TrainState(params, model_state, opt_state)


def read(run: str, state: TrainState, step: int) -> dict[str, np.ndarray]:
    """Return what the archive holds of a state, by their names."""
    leaves = by_name(state.params) | by_name(state.model_state["batch_stats"])
    slots = by_name(state.opt_state)
    flags = RUNS[run]["flags"]
    powers = {"beta1_power": flags["momentum"], "beta2_power": 0.99}

    def value(name: str) -> Any:
        if name in powers:
            return powers[name] ** (step + 1)
        variable, _, kind = name.rpartition("/")
        if kind not in SLOTS:
            return leaves[ours(name)]
        end = f"/{SLOTS[kind]}/{ours(variable)}"
        (found,) = (leaf for path, leaf in slots.items() if path.endswith(end))
        return found

    return {name: np.asarray(value(name)) for name, *_ in META["layout"][run]}


def assert_close(values: dict[str, Any], stored: Any, layout: Any, tolerance: float) -> None:
    """Each variable as stored, within the tolerance times its largest value.

    In float32 the archive's noise is that of the variables; gradients, and what adds them up, have
    some more.
    """
    assert values.keys() == {name for name, *_ in layout}
    for name, shape, start, length in layout:
        expected, value = stored[start : start + length], values[name]
        assert value.size == math.prod(shape), name
        error, largest = np.abs(thinned(value, STORED) - expected).max(), np.abs(expected).max()
        is_rough = stored.dtype == np.float32 and name.rpartition("/")[2] in SLOTS
        assert error <= tolerance * (3 if is_rough else 1) * largest, (name, error / largest)


def follow(
    run: str, folder: Path, prefix: str, tolerances: dict[int, float]
) -> tuple[Experiment, TrainState]:
    """Train as long as there is a tolerance, and compare all that the archive holds."""
    keep = {} if prefix else {"record.gradients": "True", "record.steps": "True"}
    experiment = experiment_of(run, folder, **keep)
    state, key = first_state(run, experiment), jax.random.key(0)
    images, labels = jnp.float32(ARRAYS["in/x_int8"]) / 16, ARRAYS["in/y"]
    for step in range(max(tolerances)):
        batch = {"input": images[step], "label": labels[step]}
        state, metrics = experiment.train_step(state, batch, key, step)
        if step == 0 and keep:  # the archive has it in float32
            gradients, layout = by_name(metrics["gradients"]), META["gradient_layout"][run]
            found = {name: np.asarray(gradients[ours(name)]) for name, *_ in layout}
            assert_close(found, ARRAYS[f"{run}/grad1"], layout, 3 * tolerances[1])
        logged = {
            "cross_entropy": metrics["loss"],
            "orthogonality": metrics.get("orthogonality", 0.0),
            "weightcost": metrics.get("weight_cost", 0.0),
        }
        logged["loss"] = sum(logged.values())
        # They are of the variables before this step.
        rtol = next(value for taken, value in tolerances.items() if taken >= step)
        for name, value in logged.items():
            expected = ARRAYS[f"{prefix}{run}/{name}"][step]
            np.testing.assert_allclose(value, expected, rtol=rtol, err_msg=f"{name}, {step}")
        if step + 1 in tolerances:
            stored = ARRAYS[f"{prefix}{run}/step{step + 1}"]
            layout = META["layout"][run]
            assert_close(read(run, state, step + 1), stored, layout, tolerances[step + 1])
    return experiment, state


def assert_evaluation(run: str, experiment: Experiment, state: TrainState) -> None:
    """The archive has it after the last step in float32; where that is chaos there is nothing."""
    noise = float(META["float32_noise"][run][str(last_step(run))])
    labels = jnp.asarray(ARRAYS["in/y"][0])
    batch = {"input": jnp.float32(ARRAYS["in/x_int8"][0]) / 16, "label": labels}
    mask = jnp.ones(len(labels), jnp.float32)
    sums = experiment.eval_step(state.params, state.model_state, {**batch, "mask": mask})
    entropy, right = ARRAYS[f"{run}/eval_after"]
    if noise < 0.1:
        np.testing.assert_allclose(sums["loss"] / len(labels), entropy, rtol=max(1e-4, noise))
    if noise < 1e-3:
        assert len(labels) - sums["error_rate"] == right


def last_step(run: str) -> int:
    return len(ARRAYS[f"{run}/loss"])


def steps(run: str) -> list[int]:
    return sorted(int(step) for step in META["float32_noise"][run])


QUICK_COUNTS = ("WRN-16-4 cifar10", "vgg13 cifar10")


@pytest.mark.slow
@pytest.mark.parametrize("run", sorted(RUNS))
def test_the_run_in_float64(run: str, tmp_path: Path) -> None:
    # VGG with SGD at this rate is chaos: after five steps rounding has grown to that of float32's
    # noise, over 2^29, which float64 is finer by.
    noise = {step: float(META["float32_noise"][run][str(step)]) for step in steps(run)}
    tolerances = {step: max(1e-9, 8 * each / 2**29) for step, each in noise.items()}
    with jax.enable_x64(True):
        assert_evaluation(run, *follow(run, tmp_path, "f64/", tolerances))


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_the_run_in_float32(run: str, tmp_path: Path) -> None:
    """Two steps: soon a ReLU's input rounds to the other side of zero, in theirs or in ours."""

    def parted(step: int) -> float:
        known = (META[name].get(run, {}) for name in ("float32_noise", "sensitivity"))
        return max(float(each.get(str(step), 0)) for each in known)

    # As exact as two runs can be of which each has this noise.
    tolerances = {step: max(1e-5, 2 * parted(step)) for step in (1, 2)}
    kept = {step: value for step, value in tolerances.items() if value < 1e-3}
    follow(run, tmp_path, "", kept)


def parameters(config: Any, classes: int) -> Any:
    """Return the shapes of a network's parameters."""
    module = model.build_model(config, classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    key = jax.random.key(0)
    return jax.eval_shape(lambda x: module.init(key, x, train=False), image)["params"]


@pytest.mark.parametrize("run", quick_first(sorted(RUNS, reverse=True), 2))
def test_groups_and_decays(run: str) -> None:
    config, groups, flags = config_of(run), META["groups"][run], RUNS[run]["flags"]
    params = parameters(config, classes(run))
    labels = by_name(optimizer.build_labels(config)(params))
    grassmann = {ours(name) for name in groups["grassmann"]}
    assert {name for name, label in labels.items() if label == "grassmann"} == grassmann
    decays = {
        ours(name): flags[f"{kind}Decay"] or 0
        for kind, names in groups["euclidean_decayed"].items()
        for name in names
    }
    expected = decays | dict.fromkeys(grassmann, 0)
    assert by_name(optimizer.l2_coefficients(config, params)) == expected


@pytest.mark.parametrize("run", quick_first(["resnet_sgdg", "resnet_sgd", "resnet_adamg"]))
def test_the_config_is_the_published_command(run: str) -> None:
    """These runs have its flags, but for the network."""
    published = load_config(f"{CONFIG}:cifar10,{RUNS[run]['flags']['optimizer']}")
    theirs = config_of(run)
    params = parameters(theirs, classes(run))
    for read in (
        lambda config: by_name(optimizer.l2_coefficients(config, params)),
        lambda config: optimizer.build_schedules(config, 390).learning_rate(0),
        lambda config: (config.opt.omega, config.opt.learning_rate_grassmann),
        lambda config: config.opt.opt_params.get("grad_clip"),
        lambda config: config.lr_schedule_params.factor,
    ):
        assert read(published) == read(theirs)
    assert published.model.model_params.dropout_rate == 0.3


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK_COUNTS else pytest.param(name, marks=pytest.mark.slow)
        for name in META["parameter_counts"]
    ],
)
def test_parameter_counts(name: str) -> None:
    network, data = name.split()
    if network.startswith("WRN"):
        _, depth, width = network.split("-")
        words = {"model.model_name": f"WideResNet_{depth}_{width}"}
    else:
        words = {"model.model_name": f"VGG{network.removeprefix('vgg')}Riemannian"}
    config = load_config(f"{CONFIG}:{data},sgdg", list(words.items()))
    params = parameters(config, config.dataset.num_classes)
    leaves = jax.tree.leaves(params)
    labels = jax.tree.leaves(optimizer.build_labels(config)(params))
    group = [leaf for leaf, label in zip(leaves, labels, strict=True) if label == "grassmann"]
    assert META["parameter_counts"][name] == {
        "parameters": sum(leaf.size for leaf in leaves),
        "grassmann": sum(leaf.size for leaf in group),
        "grassmann_variables": len(group),
        "trainable_variables": len(leaves),
    }


def initializers(run: str) -> dict[str, dict[str, Any]]:
    known, prefix = META["initialisers"], f"{run}/"
    return {key.removeprefix(prefix): known[key] for key in known if key.startswith(prefix)}


@pytest.mark.parametrize("name", ["GROUP1_0/conv/weight", "fc0/weight"])
def test_a_kernel_is_drawn_by_its_inputs(name: str) -> None:
    expected = initializers("vgg11_sgd")[name]
    assert_drawn_alike(name, np.asarray(FAN_IN(jax.random.key(0), expected["shape"])), expected)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["vgg11_sgd", "resnet_sgdg"])
def test_initializers(run: str) -> None:
    theirs, words = initializers(run), {}
    if RUNS[run]["model"] == "resnet":
        width = theirs["group2_block0/layer1_in_block/conv/weight"]["shape"][-1] // 16
        words = {"model.model_name": f"WideResNet_{RUNS[run]['flags']['depth']}_{width}"}
    config = config_of(run, **words)
    module = model.build_model(config, classes(run))
    variables = jax.jit(partial(module.init, train=False))(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    params = optimizer.unit_norm(variables["params"], optimizer.build_labels(config))
    leaves = by_name(params) | by_name(variables["batch_stats"])
    for name, expected in theirs.items():
        value = np.asarray(leaves[ours(name)])
        assert_drawn_alike(name, value, expected)
        lengths = np.linalg.norm(value.reshape(-1, value.shape[-1]), axis=0)
        is_unit = value.ndim > 1 and np.abs(lengths - 1).max() < 1e-5
        assert is_unit == expected["grassmann"], name


@pytest.mark.parametrize("data", META["schedule"])
def test_at_a_boundary_the_old_rate_holds(data: str) -> None:
    config = load_config(f"{CONFIG}:{data},sgdg")
    examples = {"cifar10": 50_000, "svhn": 604_388}[data]
    epoch = examples // config.batch_size
    schedules = optimizer.build_schedules(config, epoch)
    # Their boundaries: of so many epochs, whose last batches are full.
    boundaries = [
        round(step * config.batch_size / examples) * epoch
        for step in META["schedule"][data]["decay_step"]
    ]
    for schedule in (schedules.learning_rate, schedules.learning_rate_grassmann):
        assert schedule is not None
        for passed, boundary in enumerate(boundaries):
            rates = np.array([schedule(step) for step in (0, boundary, boundary + 1)])
            factors = config.lr_schedule_params.factor ** np.array([0, passed, passed + 1])
            np.testing.assert_allclose(rates / rates[0], factors, rtol=1e-6)
