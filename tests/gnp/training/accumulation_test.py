"""Micro-batches: what they add up to, what each of them sees, on the CPU and in a loop."""

import functools
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.accumulation import Accumulation, accumulate, given_penalty, micro_batch
from gnp.training.objective import build_objective
from gnp.training.regularizer import build_regularizer
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_train_step
from optimizer import gradient_norm_penalty, looksam

OBJECTIVE = build_objective("softmax_cross_entropy")
PARTS, R, ALPHA, KEY, NUMBER = 4, 0.1, 0.8, jax.random.key(7), 3
PENALTY = gradient_norm_penalty(R, ALPHA)
BATCH = {"input": jax.random.normal(jax.random.key(1), (16, 4)), "label": jnp.arange(16) % 3}


class Smooth(nn.Module):
    """Each example by itself."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.tanh(nn.Dense(8)(x)))


class Careful(nn.Module):
    """Batch norm and dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.tanh(x))
        return nn.Dense(3)(x)


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """Unrolled, and in a loop as on accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


@functools.cache
def model(module):
    initialise, apply = from_linen(module, lambda x: x, (4,))
    return apply, *initialise(jax.random.key(0))


def regularize(params):
    return build_regularizer(
        l2=lambda tree: jax.tree.map(lambda x: 0.3 if x.ndim > 1 else 0.0, tree),
        labels=lambda tree: jax.tree.map(lambda _: "euclidean", tree),
    )(params)


def take_step(module, penalty, kind, *, penalize=True, parts=PARTS, wrap=lambda t: t, **options):
    """One step of SGD; kind None: the batch at once."""
    apply, params, model_state = model(module)
    own = kind == "micro"
    chain = optax.chain(wrap(given_penalty() if own else penalty), optax.sgd(1.0))
    accumulation = Accumulation(parts, penalty if own else None) if kind else None
    step = build_train_step(
        apply, OBJECTIVE, chain, penalize=penalize, accumulation=accumulation, **options
    )
    state = TrainState(params, model_state, chain.init(params))
    return jax.jit(step)(state, BATCH, KEY, np.uint32(NUMBER))


def assert_close(first, second, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        first,
        second,
    )


@pytest.mark.parametrize("penalize", [False, True])
def test_the_accumulated_step_is_that_of_the_large_batch(backend, penalize):
    """Weight cost and metrics included: the cost is counted once."""
    whole = take_step(Smooth(), PENALTY, None, penalize=penalize, regularize=regularize)
    parts = take_step(Smooth(), PENALTY, "batch", penalize=penalize, regularize=regularize)
    assert_close(parts, whole)
    assert float(whole[1]["weight_cost"]) > 0.1


def test_the_exact_derivative_goes_through_all_micro_batches(backend):
    penalty = gradient_norm_penalty(R, ALPHA, method="hvp")
    micro, nearly = (take_step(Smooth(), p, "micro")[0].params for p in (penalty, PENALTY))
    assert_close(micro, nearly, 1e-2)  # the difference is the derivative to order r
    assert_close(
        take_step(Smooth(), penalty, "batch")[0].params,
        take_step(Smooth(), penalty, None)[0].params,
    )


def by_hand(kind):
    """The update, the new statistics and the loss, from the definitions."""
    apply, params, model_state = model(Careful())
    key = jax.random.fold_in(KEY, NUMBER)
    states = [model_state]

    def loss(params, i, state):
        part = jax.tree.map(lambda x: x[i::PARTS], BATCH)
        outputs, new = apply(params, state, part["input"], True, jax.random.fold_in(key, i))
        return OBJECTIVE.loss(outputs, part["label"]).mean(), new

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)

    def mean(trees):
        return jax.tree.map(lambda *leaves: sum(leaves) / PARTS, *trees)

    def up(g):
        length = optax.tree.norm(g)
        return jax.tree.map(lambda p, d: p + R * d / length, params, g)

    def mix(here, there):
        return jax.tree.map(lambda a, b: (1 - ALPHA) * a + ALPHA * b, here, there)

    losses, grads = [], []
    for i in range(PARTS):
        (value, state), g = grad(params, i, states[-1])
        states.append(state)
        losses.append(value)
        grads.append(g)
    if kind == "micro":
        there = [grad(up(g), i, states[i])[1] for i, g in enumerate(grads)]
        penalised = mean([mix(a, b) for a, b in zip(grads, there, strict=True)])
    else:
        there = mean([grad(up(mean(grads)), i, states[i])[1] for i in range(PARTS)])
        penalised = mix(mean(grads), there)
    new = jax.tree.map(lambda p, g: p - g, params, penalised)
    return new, states[-1], np.mean(losses), optax.tree.norm(mean(grads))


@pytest.mark.parametrize("kind", ["batch", "micro"])
def test_both_penalties_with_batch_norm_and_dropout(backend, kind):
    """Masks are the same in both passes; statistics go through the clean passes in turn."""
    params, model_state, loss, norm = by_hand(kind)
    state, metrics = take_step(Careful(), PENALTY, kind)
    assert_close(state.params, params, 2e-6)
    assert_close(state.model_state, model_state)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


def test_the_penalties_differ():
    one, other = (take_step(Smooth(), PENALTY, kind)[0].params for kind in ("batch", "micro"))
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, one, other))
    assert gap > 1e-3


@pytest.mark.parametrize("kind", ["batch", "micro"])
def test_a_plain_step_has_no_penalty(kind):
    (plain, expected), (state, metrics) = (
        take_step(Smooth(), PENALTY, each, penalize=False) for each in (None, kind)
    )
    assert_close((state.params, metrics), (plain.params, expected))


def test_the_radius_of_a_micro_batch_follows_the_step_number():
    """In the loop the penalty's own count is the step's number."""
    late = gradient_norm_penalty(lambda count: jnp.where(count == NUMBER, R, 9.0), ALPHA)
    assert_close(
        take_step(Smooth(), late, "micro")[0].params,
        take_step(Smooth(), PENALTY, "micro")[0].params,
    )


def test_looksam_keeps_what_the_micro_batches_penalty_added():
    state, _ = take_step(Smooth(), PENALTY, "micro", wrap=lambda t: looksam(t, 0.5))
    bare, _ = take_step(Smooth(), PENALTY, "micro")
    assert_close(state.params, bare.params)
    kept = state.opt_state[0].direction
    np.testing.assert_allclose(optax.tree.norm(kept), 1, rtol=1e-5)


def test_micro_batches_are_the_batch():
    parts = [micro_batch(BATCH, i, PARTS) for i in range(PARTS)]
    assert [len(part["label"]) for part in parts] == [4] * PARTS
    rows = np.concatenate([part["input"] for part in parts])
    assert {tuple(row) for row in rows.tolist()} == {tuple(x) for x in BATCH["input"].tolist()}


def test_elsewhere_than_on_the_cpu_the_program_does_not_grow(monkeypatch):
    def f(i, carry):
        return jnp.sin(carry) * i, jnp.cos(carry)

    def size(count):
        return len(str(jax.make_jaxpr(lambda c: accumulate(f, c, count))(1.0)))

    assert size(9) > size(2) + 100
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert abs(size(9) - size(2)) < 10


# Runs in a process with four devices; prints one JSON object: name -> leaves.
SCRIPT = """
import json, sys
import jax, numpy as np, optax
sys.path.insert(0, {folder!r})
import accumulation_test as test
from gnp.training.accumulation import Accumulation, given_penalty
from gnp.training.mesh import DATA_AXIS, replicate, shard_batch
from gnp.training.state import TrainState
from gnp.training.step import build_train_step

result = {{}}
for devices in (1, 4):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (DATA_AXIS,))
    for kind in ("batch", "micro"):
        apply, params, model_state = test.model(test.Careful())
        own = kind == "micro"
        jax.default_backend = lambda: "gpu" if own else "cpu"  # in a loop, and unrolled
        chain = optax.chain(given_penalty() if own else test.PENALTY, optax.sgd(0.5, 0.9))
        step = jax.jit(build_train_step(
            apply, test.OBJECTIVE, chain, penalize=True,
            accumulation=Accumulation(2, test.PENALTY if own else None),
            average=lambda ema, params: optax.incremental_update(params, ema, 0.1),
        ))
        state = TrainState(params, model_state, chain.init(params), params)
        state = replicate(state, mesh)
        for number in range(3):
            batch = shard_batch(jax.tree.map(lambda x: np.roll(x, number, 0), test.BATCH), mesh)
            state, metrics = step(state, batch, test.KEY, np.uint32(number))
        leaves = jax.tree.leaves((state, metrics))
        result[f"{{kind}} {{devices}}"] = [np.asarray(leaf).tolist() for leaf in leaves]
print(json.dumps(result))
"""


def test_the_number_of_devices_changes_nothing(gnp_environment, request):
    """Nor what is in a micro-batch, its masks and its statistics; the average included."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT.format(folder=str(request.path.parent))],
        capture_output=True, check=False, env=gnp_environment | flags, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind in ("batch", "micro"):
        for a, b in zip(found[f"{kind} 4"], found[f"{kind} 1"], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["batch", "micro"])
def test_in_a_loop_memory_is_that_of_a_micro_batch(monkeypatch, kind):
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for _ in range(4):
                x = nn.tanh(nn.Dense(64)(x))
            return nn.Dense(3)(x)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    apply, params, _ = model(Wide())
    own = kind == "micro"

    def temporary_bytes(accumulation):
        chain = optax.chain(given_penalty() if accumulation and own else PENALTY, optax.sgd(1.0))
        step = build_train_step(apply, OBJECTIVE, chain, penalize=True, accumulation=accumulation)
        state = TrainState(params, {}, chain.init(params))
        batch = {"input": jnp.ones((4096, 4)), "label": jnp.zeros(4096, jnp.int32)}
        compiled = jax.jit(step).lower(state, batch, KEY, np.uint32(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary_bytes(None)
    assert temporary_bytes(Accumulation(16, PENALTY if own else None)) < whole / 4
