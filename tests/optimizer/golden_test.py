"""The penalty against numbers that the authors' own training step has computed.

`meta` in tests/reference/gnp.npz explains the keys, and every array of it is compared. Elements are
compared relative to the largest one of their array: the small ones differ by more from machine to
machine. The authors log the loss of their last pass, which a penalized step takes at the perturbed
point, of the first replica; so here it is what the last call of grad_fn has seen. Their batch
statistics are those of the clean pass, as ours.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizer import (
    build_optimizer,
    build_schedules,
    build_step_rule,
    decay_mask,
    gradient_norm_penalty,
    map_groups,
    per_group,
)
from tests.marks import quick_first

ARCHIVE = Path(__file__).parents[1] / "reference" / "gnp.npz"
with np.load(ARCHIVE, allow_pickle=False) as archive:
    GOLDEN = dict(archive)
META = json.loads(str(GOLDEN["meta"]))
TOLERANCE = {"f32": 1e-5, "f64": 1e-13}

Params = dict[str, jax.Array]
Statistics = dict[str, jax.Array]


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    with jax.enable_x64(name == "f64"):
        yield


def bias(b: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(b, like.shape)


def mlp(params: Params, x: jax.Array) -> tuple[jax.Array, Statistics]:
    hidden = x @ params["Dense_0.kernel"]
    hidden = jnp.tanh(hidden + bias(params["Dense_0.bias"], hidden))
    logits = hidden @ params["Dense_1.kernel"]
    return logits + bias(params["Dense_1.bias"], logits), {}


def conv(params: Params, x: jax.Array) -> tuple[jax.Array, Statistics]:
    y = jax.lax.conv_general_dilated(
        x, params["Conv_0.kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = jnp.mean(y, axis=(0, 1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(y - mean), axis=(0, 1, 2), keepdims=True)
    name = "ActivationOp_0.BatchNorm_0"
    statistics = {f"{name}.mean": mean.ravel(), f"{name}.var": variance.ravel()}
    y = (y - mean) * jax.lax.rsqrt(variance + 1e-5)
    y = y * bias(params[f"{name}.scale"], y)
    y = jax.nn.relu(y + bias(params[f"{name}.bias"], y))
    logits = jnp.mean(y, axis=(1, 2)) @ params["Dense_0.kernel"]
    return logits + bias(params["Dense_0.bias"], logits), statistics


MODELS = {"mlp": mlp, "conv": conv}


@partial(jax.jit, static_argnums=0)
def gradient(model: str, params: Params, x: jax.Array, y: jax.Array, decay: Any) -> Any:
    """Return the mean gradient over replicas, and their losses [replicas] and batch statistics.

    x and y have a leading axis of replicas, decay is per leaf.
    """

    def loss(params: Params) -> tuple[jax.Array, Any]:
        logits, statistics = jax.vmap(partial(MODELS[model], params))(x)
        entropies = optax.softmax_cross_entropy(logits, y).mean(axis=1)
        squares = jax.tree.map(lambda d, p: d * jnp.sum(jnp.square(p)), decay, params)
        return entropies.mean() + 0.5 * sum(jax.tree.leaves(squares)), (entropies, statistics)

    return jax.grad(loss, has_aux=True)(params)


def start(model: str, dtype: Any, kind: str = "params") -> Params:
    prefix = f"in/{model}/{kind}/"
    names = [key.removeprefix(prefix) for key in GOLDEN if key.startswith(prefix)]
    return {name: jnp.asarray(GOLDEN[prefix + name], dtype) for name in names}


class Batch:
    """A batch of the archive; remembers the loss of the last pass."""

    def __init__(self, model: str, case: dict[str, Any], number: int, dtype: Any):
        smoothing, self.replicas = case.get("label_smoothing", 0.0), case.get("ndev", 1)
        x, y = (jnp.asarray(GOLDEN[f"in/{model}/{k}"][number], dtype) for k in "xy")
        y = (1 - smoothing) * y + smoothing / y.shape[-1]
        mask = decay_mask(start(model, dtype), case.get("no_weight_decay_on_bn", False))
        self.decay = jax.tree.map(lambda m: jnp.asarray(case["l2"] * m, dtype), mask)
        self.x, self.y = (z.reshape(self.replicas, -1, *z.shape[1:]) for z in (x, y))
        self.model = model

    def gradient_with_aux(self, params: Params, replica: int | None = None) -> Any:
        """Return (gradient, batch statistics [replicas, ...]), of all replicas or of one."""
        chosen = slice(None) if replica is None else slice(replica, replica + 1)
        grads, (losses, statistics) = gradient(
            self.model, params, self.x[chosen], self.y[chosen], self.decay
        )
        if not replica:
            self.last_loss = losses[0]
        return grads, statistics

    def gradient(self, params: Params) -> Params:
        return self.gradient_with_aux(params)[0]


def running(before: Statistics, batch: Statistics, replica: int = 0) -> Statistics:
    return jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new[replica], before, batch)


def recorded_names(prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for key in GOLDEN if key.startswith(prefix)}


def assert_equals_recorded(prefix: str, actual: Mapping[str, jax.Array], tolerance: float) -> None:
    """Compare with all that the archive has under this prefix, no more and no less."""
    assert set(actual) == recorded_names(prefix)
    for name, value in actual.items():
        expected = GOLDEN[prefix + name]
        assert value.shape == expected.shape, name
        difference = np.max(np.abs(np.asarray(value) - expected))
        assert difference <= tolerance * np.max(np.abs(expected)), (prefix + name, difference)


def test_every_array_is_compared() -> None:
    prefixes = [f"{bits}/grad/{name}/" for bits in TOLERANCE for name in META["grad_cases"]]
    prefixes += [f"{bits}/traj/{name}/" for bits in TOLERANCE for name in META["trajectories"]]
    compared = sum(len(recorded_names(prefix)) for prefix in prefixes)
    inputs = [key for key in GOLDEN if key.startswith("in/")]
    assert compared + len(inputs) + len(["meta"]) == len(GOLDEN)


# One of each kind of case in float64 is quick.
QUICK = re.compile("mlp/label.*")


@pytest.mark.parametrize("bits", quick_first(["f64", "f32"]))
@pytest.mark.parametrize(
    "name",
    [
        name if QUICK.fullmatch(name) else pytest.param(name, marks=pytest.mark.slow)
        for name in META["grad_cases"]
    ],
)
def test_gradient_equals_the_authors(name: str, bits: str) -> None:
    case = META["grad_cases"][name]
    model = name.split("/")[0]
    with precision(bits):
        dtype = jnp.float64 if bits == "f64" else jnp.float32
        params, batch = start(model, dtype), Batch(model, case, 0, dtype)
        penalty = gradient_norm_penalty(
            case["r"],
            # An array, so that alpha = 0 takes the perturbed pass too, whose loss is recorded.
            jnp.asarray(case.get("alpha", 0.0), dtype),
            normalize=case.get("norm_perturbations", True),
            has_aux=True,
        )
        grad_fn = batch.gradient_with_aux
        if case.get("sync_perturbations", True):
            grads, statistics = grad_fn(params)
        else:
            penalty = per_group(penalty)
            grads, statistics = map_groups(lambda group: grad_fn(params, group), batch.replicas)
            statistics = jax.tree.map(lambda x: x[:, 0], statistics)
        opt = optax.chain(penalty, optax.clip_by_global_norm(case.get("gradient_clipping", 1e9)))
        result, _ = opt.update(grads, opt.init(params), params, grad_fn=grad_fn)
        before = start(model, dtype, "batch_stats")
        for replica in range(batch.replicas):
            number = replica if batch.replicas > 1 else ""
            after = running(before, statistics, replica)
            result |= {f"new_batch_stats{number}/{key}": value for key, value in after.items()}
        gradient_norm = optax.tree.norm({key: result[key] for key in params})
        result |= {"train_loss": batch.last_loss, "gradient_norm": gradient_norm}
        assert all(value.dtype == dtype for value in result.values())
        assert_equals_recorded(f"{bits}/grad/{name}/", result, TOLERANCE[bits])


def snapshot(
    params: Params, statistics: Statistics, batch: Batch, clipped: Params, **schedules: Any
) -> dict[str, jax.Array]:
    """Return the values that the authors record after a step."""
    return {
        **{f"params/{key}": value for key, value in params.items()},
        **{f"batch_stats/{key}": value for key, value in statistics.items()},
        **{key: jnp.asarray(value) for key, value in schedules.items()},
        "train_loss": batch.last_loss,
        "gradient_norm": optax.tree.norm(clipped),
        "param_norm": optax.tree.norm(params),
    }


def stack(path: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {key: jnp.stack([step[key] for step in path]) for key in path[0]}


@pytest.mark.parametrize("name", quick_first([*META["trajectories"]][2:], 0))
def test_trajectory_of_a_config_equals_the_authors(
    name: str, make_config: Callable[..., Any]
) -> None:
    case = META["trajectories"][name]
    model = name.split("/")[0]
    config = make_config(
        **{key: case[key] for key in ("base_lr", "total_epochs", "warmup_epochs")},
        **{"gradient_clipping": case["gradient_clipping"], "gr_warmup_strategy": case["strategy"]},
        **{"gnp.r": case["r"], "gnp.alpha": case["alpha"]},
        **{"gnp.norm_perturbations": case["norm_perturbations"]},
        **{"opt.opt_type": case["opt"], "opt.opt_params": case["opt_params"]},
    )
    opt = build_optimizer(config, case["steps_per_epoch"])
    is_penalized = build_step_rule(config, case["steps_per_epoch"])
    schedules = build_schedules(config, case["steps_per_epoch"])
    # The chain's first two, on their own, for the norm that the authors log between them.
    front = optax.chain(
        gradient_norm_penalty(schedules.r, schedules.alpha, normalize=case["norm_perturbations"]),
        optax.clip_by_global_norm(case["gradient_clipping"]),
    )
    params, running_statistics = (start(model, jnp.float32, k) for k in ("params", "batch_stats"))
    state, front_state = opt.init(params), front.init(params)
    path = []
    for step in range(case["nsteps"]):
        batch = Batch(model, case, step, jnp.float32)
        grads, statistics = batch.gradient_with_aux(params)
        penalize = is_penalized(step)
        updates, state = opt.update(grads, state, params, grad_fn=batch.gradient, penalize=penalize)
        # We take a step with alpha = 0 as a plain one; the authors go to the perturbed point.
        penalize = penalize or case["strategy"] == "lambda"
        clipped, front_state = front.update(
            grads, front_state, params, grad_fn=batch.gradient, penalize=penalize
        )
        params = optax.apply_updates(params, updates)
        running_statistics = running(running_statistics, statistics)
        read = {"lr_used": schedules.learning_rate, "r": schedules.r, "alpha": schedules.alpha}
        values = {key: schedule(step) for key, schedule in read.items()}
        path.append(snapshot(params, running_statistics, batch, clipped, **values))
    assert_equals_recorded(f"f32/traj/{name}/", stack(path), TOLERANCE["f32"])


@pytest.mark.parametrize("name", quick_first([*META["trajectories"]], 0))
def test_trajectory_in_float64_equals_the_authors(name: str) -> None:
    case = META["trajectories"][name]
    model = name.split("/")[0]
    prefix = f"f64/traj/{name}/"
    with precision("f64"):
        # The authors' schedules are float32-accurate even here, so theirs are fed.
        recorded = {k: jnp.asarray(GOLDEN[prefix + k]) for k in ("lr_used", "r", "alpha")}
        base = {
            "Momentum": partial(optax.sgd, momentum=0.9, nesterov=True),
            "Adam": partial(optax.adamw, weight_decay=0.3),
        }[case["opt"]](lambda step: recorded["lr_used"][step])
        front = optax.chain(
            gradient_norm_penalty(
                lambda step: recorded["r"][step],
                lambda step: recorded["alpha"][step],
                normalize=case["norm_perturbations"],
                has_aux=True,
            ),
            optax.clip_by_global_norm(case["gradient_clipping"]),
        )
        params, running_statistics = (
            start(model, jnp.float64, kind) for kind in ("params", "batch_stats")
        )
        front_state, base_state = front.init(params), base.init(params)
        path = []
        for step in range(case["nsteps"]):
            batch = Batch(model, case, step, jnp.float64)
            grads, statistics = batch.gradient_with_aux(params)
            clipped, front_state = front.update(
                grads, front_state, params, grad_fn=batch.gradient_with_aux
            )
            updates, base_state = base.update(clipped, base_state, params)
            params = optax.apply_updates(params, updates)
            running_statistics = running(running_statistics, statistics)
            values = {key: value[step] for key, value in recorded.items()}
            path.append(snapshot(params, running_statistics, batch, clipped, **values))
        assert_equals_recorded(prefix, stack(path), TOLERANCE["f64"])
