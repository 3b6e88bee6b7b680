"""Micro-batches: what they add up to, what each of them sees, on the CPU and in a loop."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gnp.training.accumulation import Accumulation, accumulate, given_penalty, micro_batch

from gnp.training.objective import build_objective
from gnp.training.regularizer import build_regularizer
from gnp.training.state import TrainState
from gnp.training.step import build_train_step
from optimizer import gradient_norm_penalty, looksam

OBJECTIVE = build_objective("softmax_cross_entropy")
PARTS, R, ALPHA, KEY, NUMBER = 2, 0.1, 0.8, jax.random.key(7), 3
PENALTY = gradient_norm_penalty(R, ALPHA)
EXACT = gradient_norm_penalty(R, ALPHA, method="hvp")
BATCH = {"input": jax.random.normal(jax.random.key(1), (24, 4)), "label": jnp.arange(24) % 3}
PARAMS = {
    "in": jax.random.normal(jax.random.key(2), (4, 3)),
    "scale": jnp.ones(3),
    "out": jax.random.normal(jax.random.key(3), (3, 3)),
}
SEEN = {"mean": jnp.zeros(3)}


def alone(params, model_state, inputs, train, key):
    """Each example by itself."""
    return inputs @ params["in"] * params["scale"][None], model_state


def together(params, model_state, inputs, train, key):
    """Batch norm, with a running mean, and a mask for each unit."""
    x = inputs @ params["in"]
    mean = x.mean(0, keepdims=True)
    x = (x - mean) / jnp.sqrt(x.var(0, keepdims=True) + 1e-3) * params["scale"][None]
    mask = (jax.random.key_data(key)[0] >> jnp.arange(3, dtype=jnp.uint32)) % 2
    outputs = jnp.tanh(x) * (0.5 + mask)[None] @ params["out"]
    return outputs, {"mean": 0.9 * model_state["mean"] + 0.1 * mean[0]}


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """Unrolled, and in a loop as on accelerators."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


def regularize(params):
    return build_regularizer(
        l2=lambda tree: jax.tree.map(lambda x: 0.3 if x.ndim > 1 else 0.0, tree),
        labels=lambda tree: jax.tree.map(lambda _: "euclidean", tree),
    )(params)


def reuse(penalty):
    return looksam(penalty, 0.5)


@functools.cache
def take_step(apply, penalty, kind, backend="cpu", *, penalize=True, wrap=None, regularize=None):
    """One step of SGD; kind None: the batch at once, which is the same on any backend."""
    own = kind == "micro"
    inner = given_penalty(penalty) if own else penalty
    chain = optax.chain(wrap(inner) if wrap else inner, optax.sgd(1.0))
    step = build_train_step(
        apply,
        OBJECTIVE,
        chain,
        penalize=penalize,
        accumulation=Accumulation(PARTS, penalty if own else None) if kind else None,
        regularize=regularize,
    )
    state = TrainState(PARAMS, SEEN, chain.init(PARAMS))
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
    options = {"penalize": penalize, "regularize": regularize}
    whole = take_step(alone, PENALTY, None, **options)
    parts = take_step(alone, PENALTY, "batch", backend, **options)
    assert_close(parts, whole, 2e-6)
    assert float(whole[1]["weight_cost"]) > 0.1


def test_the_exact_derivative_goes_through_all_micro_batches(backend):
    micro, nearly = (take_step(alone, p, "micro", backend)[0].params for p in (EXACT, PENALTY))
    assert_close(micro, nearly, 1e-2)  # the difference is the derivative to order r
    assert_close(
        take_step(alone, EXACT, "batch", backend)[0].params,
        take_step(alone, EXACT, None)[0].params,
        2e-6,
    )


@jax.jit
def loss_and_gradient(params, model_state, part, key):
    def loss(params):
        outputs, new = together(params, model_state, part["input"], True, key)
        return OBJECTIVE.loss(outputs, part["label"]).mean(), new

    return jax.value_and_grad(loss, has_aux=True)(params)


def by_hand(kind):
    """The update, the new statistics and the loss, from the definitions."""
    key = jax.random.fold_in(KEY, NUMBER)
    states = [SEEN]

    def grad(params, i, state):
        part = jax.tree.map(lambda x: x[i::PARTS], BATCH)
        return loss_and_gradient(params, state, part, jax.random.fold_in(key, i))

    def mean(trees):
        return jax.tree.map(lambda *leaves: sum(leaves) / PARTS, *trees)

    def up(g):
        length = optax.tree.norm(g)
        return jax.tree.map(lambda p, d: p + R * d / length, PARAMS, g)

    def mix(here, there):
        return jax.tree.map(lambda a, b: (1 - ALPHA) * a + ALPHA * b, here, there)

    losses, grads = [], []
    for i in range(PARTS):
        (value, state), g = grad(PARAMS, i, states[-1])
        states.append(state)
        losses.append(value)
        grads.append(g)
    if kind == "micro":
        there = [grad(up(g), i, states[i])[1] for i, g in enumerate(grads)]
        penalised = mean([mix(a, b) for a, b in zip(grads, there, strict=True)])
    else:
        there = mean([grad(up(mean(grads)), i, states[i])[1] for i in range(PARTS)])
        penalised = mix(mean(grads), there)
    new = jax.tree.map(lambda p, g: p - g, PARAMS, penalised)
    return new, states[-1], np.mean(losses), optax.tree.norm(mean(grads))


@pytest.mark.parametrize("kind", ["batch", "micro"])
def test_both_penalties_with_batch_norm_and_masks(backend, kind):
    """Masks are the same in both passes; statistics go through the clean passes in turn."""
    params, model_state, loss, norm = by_hand(kind)
    state, metrics = take_step(together, PENALTY, kind, backend)
    assert_close(state.params, params, 2e-6)
    assert_close(state.model_state, model_state)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


def test_the_penalties_differ():
    one, other = (take_step(alone, PENALTY, kind)[0].params for kind in ("batch", "micro"))
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, one, other))
    assert gap > 1e-3


def test_a_plain_step_has_no_penalty():
    """Nor has one of LookSAM that has nothing to reuse yet."""
    plain, expected = take_step(alone, PENALTY, None, penalize=False, regularize=regularize)
    for wrap in (None, reuse):
        state, metrics = take_step(
            alone, PENALTY, "micro", penalize=False, regularize=regularize, wrap=wrap
        )
        assert_close((state.params, metrics), (plain.params, expected), 2e-6)


def test_the_radius_of_a_micro_batch_follows_the_step_number():
    """In the loop the penalty's own count is the step's number."""
    late = gradient_norm_penalty(lambda count: jnp.where(count == NUMBER, R, 9.0), ALPHA)
    assert_close(
        take_step(alone, late, "micro")[0].params,
        take_step(alone, PENALTY, "micro")[0].params,
    )


def test_looksam_keeps_what_the_micro_batches_penalty_added():
    state, _ = take_step(alone, PENALTY, "micro", wrap=reuse)
    assert_close(state.params, take_step(alone, PENALTY, "micro")[0].params)
    gradient, penalised = (
        jax.tree.map(jnp.subtract, PARAMS, take_step(alone, PENALTY, "micro", penalize=p)[0].params)
        for p in (False, True)
    )
    along = optax.tree.vdot(penalised, gradient) / optax.tree.norm(gradient, squared=True)
    added = jax.tree.map(lambda u, g: u - along * g, penalised, gradient)
    length = optax.tree.norm(added)
    assert_close(state.opt_state[0].direction, jax.tree.map(lambda x: x / length, added), 1e-4)


def test_micro_batches_are_the_batch():
    parts = [micro_batch(BATCH, i, PARTS) for i in range(PARTS)]
    assert [len(part["label"]) for part in parts] == [24 // PARTS] * PARTS
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
from gnp.training.mesh import build_mesh, replicate, shard_batch
from gnp.training.state import TrainState
from gnp.training.step import build_train_step

result = {{}}
for kind in ("batch", "micro"):
    own = kind == "micro"
    jax.default_backend = lambda: "gpu" if own else "cpu"  # in a loop, and unrolled
    penalty = given_penalty(test.PENALTY) if own else test.PENALTY
    chain = optax.chain(penalty, optax.sgd(0.5, 0.9))
    step = jax.jit(build_train_step(
        test.together, test.OBJECTIVE, chain, penalize=True,
        accumulation=Accumulation(test.PARTS, test.PENALTY if own else None),
        average=lambda ema, params: optax.incremental_update(params, ema, 0.1),
    ))
    for devices in (1, 4):
        mesh = build_mesh(devices=jax.devices()[:devices])
        state = TrainState(test.PARAMS, test.SEEN, chain.init(test.PARAMS), test.PARAMS)
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
    def deep(params, model_state, inputs, train, key):
        for _ in range(4):
            inputs = jnp.tanh(inputs @ params)
        return inputs, model_state

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    params = jnp.eye(16)
    own = kind == "micro"

    def temporary_bytes(accumulation):
        inner = given_penalty(PENALTY) if accumulation and own else PENALTY
        chain = optax.chain(inner, optax.sgd(1.0))
        step = build_train_step(deep, OBJECTIVE, chain, penalize=True, accumulation=accumulation)
        state = TrainState(params, {}, chain.init(params))
        batch = {"input": jnp.ones((4096, 16)), "label": jnp.zeros(4096, jnp.int32)}
        compiled = jax.jit(step).lower(state, batch, KEY, np.uint32(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary_bytes(None)
    assert temporary_bytes(Accumulation(16, PENALTY if own else None)) < whole / 4
