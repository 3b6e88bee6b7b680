"""Training as config/original.py asks for it, against the loop of the penalty's authors.

Each run is built from the config and its published command line, behind which stand the data set
and the small network alone; tests/reference/published says what theirs computed.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from config import load_config, with_group_size
from ds_pipeline import build_dataset
from gnp.experiment import Experiment, build_experiment
from gnp.training.state import TrainState
from tests.model.published import in_our_names
from tests.model.published_transformers_test import by_head, joined, vit_name
from tests.model.wide_resnet_test import published_names
from tests.published import load, thinned

CONFIG = str(Path(__file__).resolve().parents[3] / "config" / "original.py")
ARRAYS, META = load("gnp_trajectory")
RUNS, NOISE = META["runs"], META["float32_noise"]
EXAMPLES = META["training_set"]["num_training_obs"]
# Elements of a leaf that the archive holds, at most.
STORED = 160
# An error of a leaf, as a share of its largest element, that is no rounding of float32.
PARTED = 1e-3
NETWORKS = {
    "wrn": {"model.model_name": "WideResNet_10_1"},
    "vit": {
        "model.model_name": "ViT_TI4",
        "model.model_params.embed_dim": "48",
        "model.model_params.depth": "2",
        "model.model_params.num_heads": "3",
        "model.model_params.mlp_ratio": "2",
        "model.model_params.dropout_rate": "0",
        "model.model_params.attention_dropout_rate": "0",
    },
}


def images(name: str) -> np.ndarray:
    return ARRAYS[f"in/{name}"] / np.float32(32)


def experiment_of(run: str, folder: Path) -> Experiment:
    """Build a run on the archive's images, as an .npz file of ours holds them."""
    valid = ARRAYS["in/test_mask"] > 0
    file = folder / "images.npz"
    np.savez(
        file,
        x=images("x_int8").reshape(-1, 16, 16, 3)[:EXAMPLES],
        y=ARRAYS["in/y"].ravel()[:EXAMPLES],
        x_test=images("test_x_int8")[valid],
        y_test=ARRAYS["in/test_y"][valid],
    )
    words = {
        "dataset.dataset_name": "npz",
        "dataset.data_dir": str(file),
        "dataset.image_level_augmentations": "none",
        "dataset.mean": "0",
        "dataset.std": "1",
    }
    flags = dict(flag.removeprefix("--config.").split("=") for flag in RUNS[run]["command_line"])
    config = load_config(CONFIG, list((words | NETWORKS[RUNS[run]["model"]] | flags).items()))
    config = with_group_size(config, {}, jax.device_count())
    return build_experiment(config, build_dataset(config))


class Names:
    """Our trees of a network's leaves and the archive's paths of them."""

    def __init__(self, network: str, params: Any):
        self.is_vit = network == "vit"
        self.ours: Any = published_names
        if self.is_vit:
            shapes = flatten_dict(jax.eval_shape(self.apart, params), sep="/")
            self.ours = {vit_name(path): path for path in shapes}.__getitem__

    def apart(self, tree: Any) -> Any:
        return by_head(tree, 3) if self.is_vit else tree

    def variables(self, flat: dict[str, np.ndarray]) -> Any:
        """Return our tree of their variables."""
        tree = in_our_names(flat, self.ours)
        return {**tree, "params": joined(tree["params"])} if self.is_vit else tree

    def leaf(self, tree: Any, path: str) -> np.ndarray:
        """Return the leaf of our tree that has their path."""
        return np.asarray(flatten_dict(self.apart(tree), sep="/")[self.ours(path)])


def first_state(run: str, experiment: Experiment, names: Names) -> TrainState:
    """Return the archive's starting point, where ours is."""
    prefix = f"init/{RUNS[run]['model']}/"
    keys = [key for key in ARRAYS.files if key.startswith(prefix)]
    tree = names.variables({key.removeprefix(prefix): ARRAYS[key] for key in keys})
    params = tree.pop("params")
    state = TrainState(params, tree, experiment.optimizer.init(params))
    return jax.tree.map(
        lambda leaf, like: jax.device_put(jnp.asarray(leaf, like.dtype), like.sharding),
        state,
        experiment.abstract_state,
    )


def is_noise(path: str) -> bool:
    """The bias of an attention's keys has a gradient of zero, and Adam moves it by its rounding."""
    return re.search(r"key\W+bias", path) is not None


def worst_leaf(found: dict[str, np.ndarray], stored: np.ndarray, layout: Any) -> tuple[float, str]:
    """Return the largest error of a leaf, as a share of its largest element, and its path."""
    worst = 0.0, ""
    for path, shape, start, length in layout:
        expected, value = stored[start : start + length], found[path]
        assert value.size == math.prod(shape), path
        error, largest = np.abs(thinned(value, STORED) - expected).max(), np.abs(expected).max()
        if error > 0 and not is_noise(path):
            worst = max(worst, (error / largest if largest > 0 else math.inf, path))
    return worst


def variables_of(run: str, state: TrainState, names: Names) -> dict[str, np.ndarray]:
    """Return all leaves of the archive's layout."""
    trees = {"params": state.params, **state.model_state}
    layout = META["layout"][RUNS[run]["model"]]
    parts = {path: path.partition("/") for path, *_ in layout}
    return {path: names.leaf(trees[kind], rest) for path, (kind, _, rest) in parts.items()}


def optimizer_leaves(run: str, state: TrainState, names: Names) -> dict[str, np.ndarray]:
    """Return the momentum, or Adam's state, by the archive's paths: [0].mu['head']['bias']."""
    found = {}
    for path, *_ in META["optimizer_layout"][run]:
        kind = path.removeprefix("[0].").partition("[")[0]
        if kind == "count":
            adam = optax.tree.get(state.opt_state, "ScaleByAdamState")
            found[path] = np.asarray(adam.count)
        else:
            tree = optax.tree.get(state.opt_state, kind)
            found[path] = names.leaf(tree, "/".join(re.findall(r"'(.*?)'", path)))
    return found


def follow(
    run: str, precision: str, folder: Path, tolerances: dict[int, float], parting: float = 0.0
) -> None:
    """Train to the last step that has a tolerance, and compare all that the archive holds.

    Only until this run has parted from the archive's in float64, by an error up to `parting`.
    """
    experiment = experiment_of(run, folder)
    names = Names(RUNS[run]["model"], experiment.abstract_state.params)
    state, key = first_state(run, experiment, names), jax.random.key(0)
    dtype = jax.tree.leaves(state.params)[0].dtype

    def recorded(name: str) -> np.ndarray:
        return ARRAYS[f"{precision}/{run}/{name}"]

    # Of schedules: in float64 those of theirs have been through float32 here and there.
    rounding = 1e-7 if precision == "f64" else 1e-6
    for step in range(max(tolerances)):
        tolerance = next(value for taken, value in tolerances.items() if taken > step)
        close = partial(np.testing.assert_allclose, rtol=tolerance, err_msg=f"step {step}")
        penalized = RUNS[run]["settings"]["gnp"]["r"] > 0 and bool(recorded("penalised")[step])
        assert experiment.step_rule(step) is penalized
        scalars = experiment.scalars(step)
        largest = recorded("lr").max()  # the cosine is close to 0 at its end
        close(scalars["learning_rate"], recorded("lr")[step], rtol=0, atol=rounding * largest)
        if penalized:
            close(scalars["r"], recorded("metric/r")[step], rtol=rounding)
            close(scalars["alpha"], recorded("metric/alpha")[step], rtol=rounding)

        batch = {"input": jnp.asarray(images("x_int8")[step], dtype), "label": ARRAYS["in/y"][step]}
        state, metrics = experiment.train_step(state, batch, key, step)
        close(metrics["loss"], recorded("loss_before")[step])
        if not penalized:  # else theirs are of the perturbed point
            clip = RUNS[run]["settings"]["gradient_clipping"]
            close(metrics["loss"], recorded("metric/train_loss")[step])
            close(metrics["error_rate"], recorded("metric/train_error_rate")[step], rtol=1e-6)
            close(min(metrics["gradient_norm"], clip), recorded("metric/gradient_norm")[step])
        close(metrics["param_norm"], recorded("metric/param_norm")[step])

        if step + 1 in tolerances:
            found = variables_of(run, state, names)
            layout = META["layout"][RUNS[run]["model"]]
            exact = ARRAYS[f"f64/{run}/step{step + 1}"]
            if step > 0 and PARTED < worst_leaf(found, exact, layout)[0] <= parting:
                return
            worst, path = worst_leaf(found, recorded(f"step{step + 1}"), layout)
            assert worst <= tolerance, path
            for (path, *_), norm in zip(layout, recorded(f"step{step + 1}_norms"), strict=True):
                if not is_noise(path):
                    close(np.linalg.norm(np.float64(found[path])), norm, err_msg=path)
        if (step + 1) % experiment.steps_per_epoch == 0:
            epoch = step // experiment.steps_per_epoch
            params, model_state = state.params, state.model_state
            sums = [
                experiment.eval_step(params, model_state, batch)
                for batch in experiment.eval_batches()
            ]
            count = sum(each["count"] for each in sums)
            for name, rtol in (("loss", tolerance), ("error_rate", 1e-6)):
                mean = sum(each[name] for each in sums) / count
                close(mean, recorded(f"test/{name}")[epoch], rtol=rtol)
    if f"{precision}/{run}/opt20" in ARRAYS:
        layout = META["optimizer_layout"][run]
        worst, path = worst_leaf(optimizer_leaves(run, state, names), recorded("opt20"), layout)
        assert worst <= tolerance, path


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_the_run_in_float64(run: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if run.endswith("_warmup"):  # their learning rate has gone through float32, so compiled
        request.getfixturevalue("optimized")
    with jax.enable_x64(True):
        follow(run, "f64", tmp_path, dict.fromkeys((1, 2, 5, 10, 20), 1e-9))


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_the_run_in_float32(run: str, tmp_path: Path) -> None:
    """As long as neither theirs nor ours parts from float64: then an input of ReLU crosses zero.

    Ours may, no further, where theirs does later on. The first step is compared in any case.
    """
    noise = {int(step): float(each["worst_leaf"]) for step, each in NOISE[run].items()}
    kept = {
        step: min(max(1e-5, 20 * value), PARTED)
        for step, value in noise.items()
        if 10 * value < PARTED
    }
    follow(run, "f32", tmp_path, kept, parting=3 * max(noise.values()))
