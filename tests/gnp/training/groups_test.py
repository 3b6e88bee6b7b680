"""m-sharpness in the training step: any number of devices, and an independent computation."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

STEPS, BATCH, R, ALPHA, RATE, MOMENTUM = 5, 32, 0.2, 0.8, 0.5, 0.9

# Runs in a process with four devices; prints one JSON object: name -> parameters after STEPS.
SCRIPT = f"""
import json
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gnp.training.accumulation import given_penalty
from gnp.training.mesh import AXES, build_mesh, replicate, shard_batch
from gnp.training.objective import build_objective
from gnp.training.state import TrainState, from_linen
from gnp.training.step import Groups, build_train_step
from optimizer import gradient_norm_penalty, per_group

class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3, kernel_init=nn.initializers.ones)(x)

class Deep(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5, use_bias=False)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)

def batch_of(step):
    rng = np.random.default_rng(step)
    return {{"input": rng.normal(size=({BATCH}, 4)).astype(np.float32),
             "label": rng.integers(0, 3, {BATCH}).astype(np.int32)}}

def train(module, devices, m):
    mesh = build_mesh(devices=jax.devices()[:devices])
    penalty = gradient_norm_penalty({R}, {ALPHA})
    groups = Groups(m, per_group(penalty, AXES)) if m else None
    optimizer = optax.chain(given_penalty(penalty) if m else penalty,
                            optax.sgd({RATE}, {MOMENTUM}))
    initialise, apply = from_linen(module, lambda x: x, (4,))
    params, model_state = initialise(jax.random.key(0))
    state = replicate(TrainState(params, model_state, optimizer.init(params)), mesh)
    objective = build_objective("softmax_cross_entropy")
    steps = [jax.jit(build_train_step(apply, objective, optimizer, penalize=p, groups=groups,
                                      mesh=mesh),
                     donate_argnums=0) for p in (False, True)]
    for number in range({STEPS}):
        batch = shard_batch(batch_of(number), mesh)
        state, metrics = steps[number != 2](state, batch, jax.random.key(3), np.uint32(number))
    leaves = jax.tree.leaves((state.params, state.model_state))
    values = [float(metrics[name]) for name in ("loss", "error_rate", "gradient_norm", "finite")]
    return [np.asarray(leaf).tolist() for leaf in leaves] + [values]

result = {{}}
for name, module in (("linear", Linear()), ("deep", Deep())):
    for devices in (1, 4):
        for m in (None, 4, 8):
            result[f"{{name}} devices={{devices}} m={{m}}"] = train(module, devices, m)
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def trained(gnp_environment) -> dict[str, list[Any]]:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        capture_output=True,
        check=False,
        env=gnp_environment | flags,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, list[Any]] = json.loads(done.stdout)
    return result


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("m", [None, 4, 8])
@pytest.mark.parametrize("name", ["linear", "deep"])
def test_the_number_of_devices_changes_nothing(trained, name, m):
    """Parameters, batch statistics and metrics; "deep" has dropout and batch norm."""
    one = trained[f"{name} devices=1 m={m}"]
    assert_close(trained[f"{name} devices=4 m={m}"], one, 1e-6)


@pytest.mark.parametrize("name", ["linear", "deep"])
def test_groups_differ_from_one_perturbation(trained, name):
    kinds = [trained[f"{name} devices=1 m={m}"] for m in (None, 4, 8)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(np.array(kinds[one][-2]) - np.array(kinds[other][-2])).max() > 1e-3


def gradient(weights, bias, images, labels):
    """Of the mean cross-entropy of a linear model."""
    logits = images @ weights + bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    error = (shares - np.eye(3)[labels]) / len(labels)
    return images.T @ error, error.sum(0)


def penalised(weights, bias, images, labels):
    w, b = gradient(weights, bias, images, labels)
    norm = np.sqrt((w**2).sum() + (b**2).sum())
    there = gradient(weights + R * w / norm, bias + R * b / norm, images, labels)
    return (1 - ALPHA) * w + ALPHA * there[0], (1 - ALPHA) * b + ALPHA * there[1]


@pytest.mark.parametrize("m", [None, 4, 8])
def test_equals_numpy(trained, m):
    theta = [np.zeros(3), np.ones((4, 3))]
    momentum = [np.zeros(3), np.zeros((4, 3))]
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        images = rng.normal(size=(BATCH, 4)).astype(np.float32).astype(np.float64)
        labels = rng.integers(0, 3, BATCH)
        size = m or BATCH
        of_group = gradient if step == 2 else penalised
        parts = [
            of_group(theta[1], theta[0], images[i : i + size], labels[i : i + size])
            for i in range(0, BATCH, size)
        ]
        mean = [np.mean([part[k] for part in parts], axis=0) for k in (1, 0)]
        momentum = [MOMENTUM * v + g for v, g in zip(momentum, mean, strict=True)]
        theta = [p - RATE * v for p, v in zip(theta, momentum, strict=True)]
    for devices in (1, 4):
        assert_close(trained[f"linear devices={devices} m={m}"][:2], theta, 2e-6)
