"""The penalty against numbers that the authors' own training step has computed.

`meta` in tests/reference/gnp.npz explains the keys. Elements are compared relative to the largest
one of their array: the small ones differ by more from machine to machine.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
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
)

ARCHIVE = Path(__file__).parents[1] / "reference" / "gnp.npz"
with np.load(ARCHIVE, allow_pickle=False) as archive:
    GOLDEN = dict(archive)
META = json.loads(str(GOLDEN["meta"]))
TOLERANCE = {"f32": 1e-5, "f64": 1e-13}

Params = dict[str, jax.Array]

# Groups of examples with a perturbation of their own are no part of the transformation.
GRADIENT_CASES = [name for name in META["grad_cases"] if "syncFalse" not in name]


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    with jax.enable_x64(name == "f64"):
        yield


def bias(b: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(b, like.shape)


def mlp(params: Params, x: jax.Array) -> jax.Array:
    hidden = x @ params["Dense_0.kernel"]
    hidden = jnp.tanh(hidden + bias(params["Dense_0.bias"], hidden))
    logits = hidden @ params["Dense_1.kernel"]
    return logits + bias(params["Dense_1.bias"], logits)


def conv(params: Params, x: jax.Array) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x, params["Conv_0.kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = jnp.mean(y, axis=(0, 1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(y - mean), axis=(0, 1, 2), keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(variance + 1e-5)
    y = y * bias(params["ActivationOp_0.BatchNorm_0.scale"], y)
    y = jax.nn.relu(y + bias(params["ActivationOp_0.BatchNorm_0.bias"], y))
    logits = jnp.mean(y, axis=(1, 2)) @ params["Dense_0.kernel"]
    return logits + bias(params["Dense_0.bias"], logits)


MODELS = {"mlp": mlp, "conv": conv}


@partial(jax.jit, static_argnums=0)
def gradient(model: str, params: Params, x: jax.Array, y: jax.Array, decay: Any) -> Params:
    """Of the mean over replicas; x and y have a leading axis of replicas, decay is per leaf."""

    def loss(params: Params) -> jax.Array:
        logits = jax.vmap(partial(MODELS[model], params))(x)
        entropy = optax.softmax_cross_entropy(logits, y).mean()
        squares = jax.tree.map(lambda d, p: d * jnp.sum(jnp.square(p)), decay, params)
        return entropy + 0.5 * sum(jax.tree.leaves(squares))

    return jax.grad(loss)(params)


def start(model: str, dtype: Any) -> Params:
    prefix = f"in/{model}/params/"
    names = [key.removeprefix(prefix) for key in GOLDEN if key.startswith(prefix)]
    return {name: jnp.asarray(GOLDEN[prefix + name], dtype) for name in names}


def gradient_function(
    model: str, case: dict[str, Any], batch: int, dtype: Any
) -> Callable[[Params], Params]:
    smoothing, replicas = case.get("label_smoothing", 0.0), case.get("ndev", 1)
    x, y = (jnp.asarray(GOLDEN[f"in/{model}/{k}"][batch], dtype) for k in "xy")
    y = (1 - smoothing) * y + smoothing / y.shape[-1]
    mask = decay_mask(start(model, dtype), case.get("no_weight_decay_on_bn", False))
    decay = jax.tree.map(lambda m: jnp.asarray(case["l2"] * m, dtype), mask)
    x, y = (z.reshape(replicas, -1, *z.shape[1:]) for z in (x, y))
    return lambda params: gradient(model, params, x, y, decay)


def assert_close(actual: jax.Array, key: str, tolerance: float) -> None:
    expected = GOLDEN[key]
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, key
    difference = np.max(np.abs(np.asarray(actual) - expected))
    assert difference <= tolerance * np.max(np.abs(expected)), (key, difference)


@pytest.mark.parametrize("bits", ["f32", "f64"])
@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradient_equals_the_authors(name: str, bits: str) -> None:
    case = META["grad_cases"][name]
    model = name.split("/")[0]
    with precision(bits):
        dtype = jnp.float64 if bits == "f64" else jnp.float32
        params, grad_fn = start(model, dtype), gradient_function(model, case, 0, dtype)
        opt = optax.chain(
            gradient_norm_penalty(
                case["r"],
                case.get("alpha", 0.0),
                normalize=case.get("norm_perturbations", True),
            ),
            optax.clip_by_global_norm(case.get("gradient_clipping", 1e9)),
        )
        result, _ = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
        for leaf, actual in result.items():
            assert_close(actual, f"{bits}/grad/{name}/{leaf}", TOLERANCE[bits])


@pytest.mark.parametrize("name", META["trajectories"])
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
    params = start(model, jnp.float32)
    state = opt.init(params)
    for step in range(case["nsteps"]):
        recorded = {k: GOLDEN[f"f32/traj/{name}/{k}"][step] for k in ("lr_used", "r", "alpha")}
        np.testing.assert_allclose(schedules.learning_rate(step), recorded["lr_used"], atol=1e-8)
        np.testing.assert_allclose(schedules.r(step), recorded["r"], rtol=1e-6)
        np.testing.assert_allclose(schedules.alpha(step), recorded["alpha"], rtol=1e-6)
        grad_fn = gradient_function(model, case, step, jnp.float32)
        updates, state = opt.update(
            grad_fn(params), state, params, grad_fn=grad_fn, penalize=is_penalized(step)
        )
        params = optax.apply_updates(params, updates)
        for leaf, actual in params.items():
            expected = f"f32/traj/{name}/params/{leaf}"
            difference = np.max(np.abs(np.asarray(actual) - GOLDEN[expected][step]))
            assert difference <= 1e-5 * np.max(np.abs(GOLDEN[expected][step])), (expected, step)


@pytest.mark.parametrize("name", META["trajectories"])
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
        }[case["opt"]]
        opt = optax.chain(
            gradient_norm_penalty(
                lambda step: recorded["r"][step],
                lambda step: recorded["alpha"][step],
                normalize=case["norm_perturbations"],
            ),
            optax.clip_by_global_norm(case["gradient_clipping"]),
            base(lambda step: recorded["lr_used"][step]),
        )
        params = start(model, jnp.float64)
        state = opt.init(params)
        path = []
        for step in range(case["nsteps"]):
            grad_fn = gradient_function(model, case, step, jnp.float64)
            updates, state = opt.update(grad_fn(params), state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
            path.append(params)
        for leaf in params:
            assert_close(
                jnp.stack([p[leaf] for p in path]), f"{prefix}params/{leaf}", TOLERANCE["f64"]
            )
