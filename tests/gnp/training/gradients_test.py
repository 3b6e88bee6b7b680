"""Functions from gradient to gradient: against definitions, on the CPU and elsewhere, on devices.

A step has a kind: "whole", the batch at once; "batch", in micro-batches, with the penalty in the
chain; "micro" and "groups", with a penalty in each micro-batch or each group of examples; "share",
with the perturbation from one of every `size` examples.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.gradients import (
    build_gradient,
    build_loss,
    grouped,
    mean_in_turn,
    micro_batched,
    of_share,
    penalized,
    summed,
)
from gnp.training.mesh import build_mesh, replicate, shard_batch
from gnp.training.regularizer import build_regularizer
from gnp.training.state import TrainState
from gnp.training.step import build_train_step
from gnp.training.tasks import classification
from model import cpu
from optimizer import gradient_norm_penalty, looksam, penalized_gradient
from tests.marks import quick_first
from tests.trees import assert_trees_close

OBJECTIVE = classification.objective("softmax_cross_entropy")
SIZE, R, ALPHA, KEY, STEP = 32, 0.1, 0.8, jax.random.key(7), 3
STEPS, RATE, MOMENTUM = 5, 0.5, 0.9
PARAMS = {
    "in": jax.random.normal(jax.random.key(2), (4, 3)),
    "scale": jnp.ones(3),
    "out": jax.random.normal(jax.random.key(3), (3, 3)),
}
SEEN = {"mean": jnp.zeros(3), "count": jnp.int32(0)}


def batch_of(step):
    rng = np.random.default_rng(step)
    return {
        "input": rng.normal(size=(SIZE, 4)).astype(np.float32),
        "label": rng.integers(0, 3, SIZE).astype(np.int32),
    }


BATCH = batch_of(STEP)


def alone(params, model_state, inputs, train, key):
    """Apply a linear model, each example by itself."""
    return inputs @ params["in"] * params["scale"][None], model_state


def together(params, model_state, inputs, train, key):
    """Apply batch norm, with a running mean and a counter, and a mask for each unit."""
    x = inputs @ params["in"]
    mean = x.mean(0, keepdims=True)
    x = (x - mean) / jnp.sqrt(x.var(0, keepdims=True) + 1e-3) * params["scale"][None]
    mask = (jax.random.key_data(key)[0] >> jnp.arange(3, dtype=jnp.uint32)) % 2
    outputs = jnp.tanh(x) * (0.5 + mask)[None] @ params["out"]
    running = 0.9 * model_state["mean"] + 0.1 * mean[0]
    return outputs, {"mean": running, "count": model_state["count"] + 1}


def regularize(params):
    return build_regularizer(
        l2=lambda tree: jax.tree.map(lambda x: 0.3 if x.ndim > 1 else 0.0, tree),
        labels=lambda tree: jax.tree.map(lambda _: "euclidean", tree),
    )(params)


def reuse(penalty):
    return looksam(penalty, 0.5)


def build_step(
    apply, kind, size, *, penalize=True, r=R, method="finite_difference", regularize=None, **options
):
    """Return the step of a kind and its chain, with `size` micro-batches or examples a group."""
    wrap, base = options.pop("wrap", lambda x: x), options.pop("base", optax.sgd(1.0))
    chain = optax.chain(wrap(gradient_norm_penalty(r, ALPHA, method=method)), base)
    gradient = build_gradient(build_loss(apply, OBJECTIVE, regularize))

    def gradient_of(step):
        def penalize_each(*given):
            radius = r(step) if callable(r) else r
            return penalized_gradient(*given, radius, ALPHA, method=method)

        each = gradient
        if penalize and kind in ("micro", "groups"):
            each = penalized(gradient, penalize_each)
        if kind == "groups":
            return grouped(each, size)
        if kind == "share":
            return of_share(each, 1, size) if penalize else each
        return each if kind == "whole" else micro_batched(each, size)

    if kind == "share":
        options["perturbed_of"] = lambda step, params: gradient
    return jax.jit(build_train_step(gradient_of, chain, penalize=penalize, **options)), chain


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def backend(request, monkeypatch):
    """Compute unrolled, and in a loop as on accelerators."""
    monkeypatch.setattr(cpu, "is_target", lambda: request.param == "cpu")
    return request.param


@functools.cache
def take_step(apply, kind, backend="cpu", **options):
    """Take a step of SGD with two micro-batches; of a whole batch it is the same anywhere."""
    step, chain = build_step(apply, kind, 2, **options)
    state = TrainState(PARAMS, SEEN, chain.init(PARAMS))
    return step(state, BATCH, KEY, np.uint32(STEP))


@pytest.mark.parametrize("penalize", quick_first([True, False]))
def test_the_accumulated_step_is_that_of_the_large_batch(backend, penalize):
    """Weight cost and metrics included: the cost is counted once."""
    options = {"penalize": penalize, "regularize": regularize}
    whole = take_step(alone, "whole", **options)
    assert_trees_close(take_step(alone, "batch", backend, **options), whole, 2e-6)
    assert float(whole[1]["weight_cost"]) > 0.1


@pytest.mark.slow
def test_the_exact_derivative_goes_through_all_micro_batches(backend):
    exact, nearly = (
        take_step(alone, "micro", backend, method=method)[0].params
        for method in ("hvp", "finite_difference")
    )
    assert_trees_close(exact, nearly, 1e-2, 1e-2)  # the difference is the derivative to order r
    in_turn, at_once = (
        take_step(alone, kind, backend, method="hvp")[0].params for kind in ("batch", "whole")
    )
    assert_trees_close(in_turn, at_once, 2e-6)


@jax.jit
def loss_and_gradient(params, model_state, batch, key):
    def loss(params):
        outputs, new = together(params, model_state, batch["input"], True, key)
        return OBJECTIVE.loss(outputs, batch["label"]).mean(), new

    return jax.value_and_grad(loss, has_aux=True)(params)


def by_hand(kind):
    """Return the new parameters and statistics, loss and norm, from the definitions."""
    key = jax.random.fold_in(KEY, STEP)
    states, losses, grads = [SEEN], [], []

    def grad(params, i, state):
        micro_batch = jax.tree.map(lambda x: x[i::2], BATCH)
        return loss_and_gradient(params, state, micro_batch, jax.random.fold_in(key, i))

    def mean(trees):
        return jax.tree.map(lambda *leaves: sum(leaves) / 2, *trees)

    def up(g):
        length = optax.tree.norm(g)
        return jax.tree.map(lambda p, d: p + R * d / length, PARAMS, g)

    def mix(here, there):
        return jax.tree.map(lambda a, b: (1 - ALPHA) * a + ALPHA * b, here, there)

    for i in range(2):
        (value, state), g = grad(PARAMS, i, states[-1])
        states.append(state)
        losses.append(value)
        grads.append(g)
    if kind == "micro":
        there = [grad(up(g), i, states[i])[1] for i, g in enumerate(grads)]
        expected = mean([mix(a, b) for a, b in zip(grads, there, strict=True)])
    else:
        there = mean([grad(up(mean(grads)), i, states[i])[1] for i in range(2)])
        expected = mix(mean(grads), there)
    new = jax.tree.map(jnp.subtract, PARAMS, expected)
    return new, states[-1], np.mean(losses), optax.tree.norm(mean(grads))


@pytest.mark.parametrize("kind", quick_first(["batch", "micro"]))
def test_both_penalties_with_batch_norm_and_masks(backend, kind):
    """Masks are the same in both passes; statistics go through the clean passes in turn."""
    params, model_state, loss, norm = by_hand(kind)
    state, metrics = take_step(together, kind, backend)
    assert_trees_close(state.params, params, 2e-6)
    assert_trees_close(state.model_state, model_state)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


def test_the_penalties_differ():
    one, other = (take_step(alone, kind)[0].params for kind in ("batch", "micro"))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, one, other)) > 1e-3


def test_a_plain_step_has_no_penalty():
    """Nor has one of LookSAM that has nothing to reuse yet."""
    options = {"penalize": False, "regularize": regularize}
    plain, expected = take_step(alone, "whole", **options)
    for wrap in ({}, {"wrap": reuse}):
        state, metrics = take_step(alone, "micro", **options, **wrap)
        assert_trees_close((state.params, metrics), (plain.params, expected), 2e-6)


def test_the_radius_of_a_micro_batch_follows_the_step_number():
    late = take_step(alone, "micro", r=lambda step: jnp.where(step == STEP, R, 9.0))
    assert_trees_close(late[0].params, take_step(alone, "micro")[0].params)


@pytest.mark.slow
def test_looksam_keeps_what_the_micro_batches_penalty_added():
    state, _ = take_step(alone, "micro", wrap=reuse)
    assert_trees_close(state.params, take_step(alone, "micro")[0].params)
    plain, full = (
        jax.tree.map(jnp.subtract, PARAMS, take_step(alone, "micro", penalize=p)[0].params)
        for p in (False, True)
    )
    along = optax.tree.vdot(full, plain) / optax.tree.norm(plain, squared=True)
    added = jax.tree.map(lambda u, g: u - along * g, full, plain)
    length = optax.tree.norm(added)
    direction = jax.tree.map(lambda x: x / length, added)
    assert_trees_close(state.opt_state[0].direction, direction, 1e-4)


def test_elsewhere_than_on_the_cpu_the_program_does_not_grow(monkeypatch):
    def f(i, carry):
        return jnp.sin(carry) * i, jnp.cos(carry)

    def size(count):
        return len(str(jax.make_jaxpr(lambda c: mean_in_turn(f, count, c))(1.0)))

    assert size(9) > size(2) + 100
    monkeypatch.setattr(cpu, "is_target", lambda: False)
    assert abs(size(9) - size(2)) < 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch", "micro"])
def test_in_a_loop_memory_is_that_of_a_micro_batch(monkeypatch, kind):
    def deep(params, model_state, inputs, train, key):
        for _ in range(4):
            inputs = jnp.tanh(inputs @ params)
        return inputs, model_state

    def temporary_bytes(kind):
        step, chain = build_step(deep, kind, 16)
        state = TrainState(jnp.eye(16), {}, chain.init(jnp.eye(16)))
        batch = {"input": jnp.ones((4096, 16)), "label": jnp.zeros(4096, jnp.int32)}
        compiled = step.lower(state, batch, KEY, np.uint32(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    monkeypatch.setattr(cpu, "is_target", lambda: False)
    assert temporary_bytes(kind) < temporary_bytes("whole") / 4


# On devices: whole batches, groups of examples, micro-batches.

LINEAR = {"in": np.ones((4, 3), np.float32), "scale": np.ones(3, np.float32)}
RUNS = {
    f"{name} {kind} {size}": (apply, params, kind, size)
    for name, apply, params in (("linear", alone, LINEAR), ("deep", together, PARAMS))
    for kind, size in (
        ("whole", SIZE), ("groups", 4), ("groups", 8), ("share", 4), ("batch", 2), ("micro", 2)
    )
    if name == "deep" or kind in ("whole", "groups", "share")
}  # fmt: skip


def train_on(devices, network):
    """Return run -> leaves of the state (with an average) and metrics; step 2 is a plain one."""
    mesh, result = build_mesh(devices=jax.devices()[:devices]), {}
    for name, (apply, params, kind, size) in RUNS.items():
        if not name.startswith(network):
            continue
        cpu.is_target = lambda kind=kind: kind != "micro"  # unrolled, and in a loop
        options = {
            "base": optax.sgd(RATE, MOMENTUM),
            "average": lambda ema, params: optax.incremental_update(params, ema, 0.1),
        }
        (plain, chain), (full, _) = (
            build_step(apply, kind, size, penalize=penalize, **options)
            for penalize in (False, True)
        )
        state = replicate(TrainState(params, SEEN, chain.init(params), params), mesh)
        for step in range(STEPS):
            batch = shard_batch(batch_of(step), mesh)
            with jax.set_mesh(mesh):
                take = plain if step == 2 else full
                state, metrics = take(state, batch, KEY, np.uint32(step))
        result[name] = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves((state, metrics))]
    return result


@pytest.fixture(scope="module")
def trained(gnp_environment):
    """Return a function of a network: what `train_on` gives on one device and on four."""
    flags = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}

    @functools.cache
    def on_one_and_four(network):
        program = (
            f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import "
            f"gradients_test as t; print(json.dumps([t.train_on(n, {network!r}) for n in (1, 4)]))"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True, check=False, env=gnp_environment | flags, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(zip((1, 4), json.loads(done.stdout), strict=True))

    return on_one_and_four


@pytest.mark.parametrize("name", quick_first(tuple(RUNS), 0))
def test_the_number_of_devices_changes_nothing(trained, name):
    """Nor what is in a micro-batch or group, its masks and statistics; the average included."""
    found = trained(name.split()[0])
    for one, four in zip(found[1][name], found[4][name], strict=True):
        np.testing.assert_allclose(four, one, rtol=2e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", quick_first(["linear", "deep"]))
def test_groups_differ_from_one_perturbation(trained, name):
    kinds = [
        np.array(trained(name)[1][f"{name} {kind}"][0])
        for kind in ("whole 32", "groups 4", "groups 8")
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(kinds[one] - kinds[other]).max() > 1e-3


def gradient_in_numpy(weights, scale, inputs, labels):
    """Return the gradient of the mean cross-entropy of `alone`."""
    logits = inputs @ weights * scale
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    error = (shares - np.eye(3)[labels]) / len(labels)
    return inputs.T @ error * scale, (inputs @ weights * error).sum(0)


def penalized_in_numpy(weights, scale, inputs, labels, share=1):
    w, s = gradient_in_numpy(weights, scale, inputs[::share], labels[::share])
    norm = np.sqrt((w**2).sum() + (s**2).sum())
    there = gradient_in_numpy(weights + R * w / norm, scale + R * s / norm, inputs, labels)
    return (1 - ALPHA) * w + ALPHA * there[0], (1 - ALPHA) * s + ALPHA * there[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"), [("whole", SIZE), ("groups", 4), ("groups", 8), ("share", 4)]
)
def test_equals_numpy(trained, kind, size):
    """A share of the batch: one example of every four."""
    group, share = (SIZE, size) if kind == "share" else (size, 1)
    penalized_of = functools.partial(penalized_in_numpy, share=share)
    theta, momentum = [np.ones((4, 3)), np.ones(3)], [0.0, 0.0]
    for step in range(STEPS):
        inputs, labels = batch_of(step).values()
        of_group = gradient_in_numpy if step == 2 else penalized_of
        groups = [
            of_group(*theta, inputs[i : i + group].astype(np.float64), labels[i : i + group])
            for i in range(0, SIZE, group)
        ]
        mean = [np.mean([group[k] for group in groups], axis=0) for k in (0, 1)]
        momentum = [MOMENTUM * v + g for v, g in zip(momentum, mean, strict=True)]
        theta = [p - RATE * v for p, v in zip(theta, momentum, strict=True)]
    for devices in (1, 4):
        for found, expected in zip(
            trained("linear")[devices][f"linear {kind} {size}"][:2], theta, strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_losses_that_are_added_up_and_not_averaged():
    gradient = build_gradient(build_loss(alone, OBJECTIVE, regularize))
    mean, metrics, _ = gradient(PARAMS, SEEN, BATCH, KEY)
    found, same_metrics, _ = summed(gradient)(PARAMS, SEEN, BATCH, KEY)
    assert_trees_close(found, jax.tree.map(lambda g: SIZE * g, mean), 1e-6, 1e-6)
    assert_trees_close(same_metrics, metrics, 0, 0)
