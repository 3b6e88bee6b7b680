"""The recorder: its sums, where it may lie in a state, its memory and dtypes."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer import (
    GradientEvolution,
    GradientEvolutionState,
    OptimizerError,
    end_epoch,
    gradient_norm_penalty,
    record_gradient_evolution,
)
from tests.marks import quick_first
from tests.trees import assert_trees_equal

ARCHIVE = Path(__file__).parents[1] / "reference" / "evolution.npz"
with np.load(ARCHIVE, allow_pickle=False) as archive:
    GOLDEN = dict(archive)
META = json.loads(str(GOLDEN["meta"]))
LAYERS = sorted(META["layers"])

finish = jax.jit(end_epoch)


@pytest.fixture
def params() -> dict[str, jax.Array]:
    return {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}


def like(tree: Any, seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), tree)


def standardized(layers: list[np.ndarray]) -> np.ndarray:
    """Sum ‖·‖₁/size over the layers, for each epoch."""
    return np.sum([np.abs(x).reshape(len(x), -1).mean(1) for x in layers], axis=0)


@pytest.mark.parametrize("bits", quick_first(["f64", "f32"]))
def test_recorded_sums_give_the_statistics_of_the_article(bits: str) -> None:
    with jax.enable_x64(bits == "f64"):
        dtype = np.float64 if bits == "f64" else np.float32
        steps = [GOLDEN[f"in/individual/{layer}"].astype(dtype) for layer in LAYERS]
        opt = record_gradient_evolution()
        state = opt.init([jnp.zeros(x.shape[2:], dtype) for x in steps])
        epochs = []
        for epoch in range(steps[0].shape[0]):
            for step in range(steps[0].shape[1]):
                _, state = opt.update([jnp.asarray(x[epoch, step]) for x in steps], state)
            evolution, state = finish(state)
            assert evolution.steps == steps[0].shape[1]
            epochs.append(jax.tree.map(np.asarray, evolution))
    gradients, accumulated, absolute = (
        [np.stack(leaves) for leaves in zip(*[getattr(e, field) for e in epochs], strict=True)]
        for field in ("epoch", "running", "absolute")
    )
    tolerance = 1e-6 if bits == "f32" else 1e-12

    def meets(key: str, actual: Any, largest: Any = None) -> None:
        expected = GOLDEN[f"{bits}/{key}"]
        assert np.shape(actual) == expected.shape, key
        scale = np.max(np.abs(expected if largest is None else largest))
        np.testing.assert_allclose(actual, expected, 0, tolerance * scale, err_msg=key)

    for i, layer in enumerate(LAYERS):
        assert gradients[i].dtype == accumulated[i].dtype == absolute[i].dtype == dtype
        meets(f"gradients/{layer}", gradients[i])
        meets(f"accumulated_gradients/{layer}", accumulated[i])
        # A difference of two numbers as large as Σ|G|.
        dissolving = absolute[i] - np.abs(accumulated[i])
        meets(f"dissolving_gradients/{layer}", dissolving, absolute[i])
    norm, norm_of_sum = standardized(gradients), standardized(accumulated)
    meets("l1_norm_standardized", norm)
    meets("l1_norm_acc_standardized", norm_of_sum)
    meets("acc_l1_norm_standardized", np.cumsum(norm))
    meets("l1_dissolving_norm_standardized", np.cumsum(norm) - norm_of_sum, np.cumsum(norm))
    largest = np.array([np.max(np.abs(x)) or 1.0 for x in accumulated])
    meets("accgrad_layer_scaling", largest)
    for key, layers in (("grad", gradients), ("accgrad", accumulated)):
        highest = np.stack([np.abs(x).reshape(len(x), -1).max(1) for x in layers])
        meets(f"{key}_layer_highest_elements", highest / largest[:, None])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.integers(0, 4), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_sums_of_epochs_of_any_length(steps: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    opt = record_gradient_evolution()
    state, running, absolute = INITIAL, np.zeros(3), np.zeros(3)
    for count in steps:
        gradients = generator.integers(-8, 8, (count, 3)).astype(np.float32)
        for gradient in gradients:
            _, state = update(gradient, state)
        evolution, state = finish(state)
        total = gradients.sum(0)
        running, absolute = running + total, absolute + np.abs(total)
        np.testing.assert_array_equal(evolution.epoch, total)
        np.testing.assert_array_equal(evolution.running, running)
        np.testing.assert_array_equal(evolution.absolute, absolute)
        assert evolution.steps == count
        assert jax.tree.structure(state) == jax.tree.structure(opt.init(jnp.zeros(3)))
        np.testing.assert_array_equal(state.epoch, 0)
        assert state.steps == 0


INITIAL = record_gradient_evolution().init(jnp.zeros(3))
update = jax.jit(record_gradient_evolution().update)


def test_updates_pass_unchanged(params: Any) -> None:
    opt = record_gradient_evolution()
    gradients = like(params, 0)
    updates, _ = opt.update(gradients, opt.init(params), params)
    assert updates is gradients


def test_a_step_touches_the_sum_of_the_epoch_only(params: Any) -> None:
    opt = record_gradient_evolution()
    state = opt.init(params)
    _, new = opt.update(like(params, 0), state)
    assert new.running is state.running and new.absolute is state.absolute
    # One addition per element and one for the steps: nothing else is computed.
    jaxpr = jax.make_jaxpr(lambda g, s: opt.update(g, s)[1].epoch)(like(params, 0), state)
    assert [str(equation.primitive) for equation in jaxpr.eqns].count("add") <= 3
    assert {e.primitive.name for e in jaxpr.eqns if e.outvars[0].aval.shape} == {"add"}


def test_memory_is_three_times_that_of_the_parameters(params: Any) -> None:
    opt = record_gradient_evolution()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    state = opt.init(params)
    for _ in range(2):
        for seed in range(3):
            _, state = opt.update(like(params, seed), state)
            assert sum(x.nbytes for x in jax.tree.leaves(state)) == 3 * size + 4
        _, state = end_epoch(state)


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
def test_what_was_read_outlives_a_donated_state(params: Any, compiled: bool) -> None:
    opt = record_gradient_evolution()
    step = jax.jit(opt.update, donate_argnums=1)
    state = opt.init(params)
    read = finish if compiled else end_epoch
    seen = []
    for epoch in range(3):
        gradients = like(params, epoch)
        _, state = step(gradients, state)
        evolution, state = read(state)
        seen.append((evolution, gradients))
    step(like(params, 0), state)
    running = absolute = 0.0
    for evolution, gradients in seen:
        g = np.asarray(gradients["w"])
        running, absolute = running + g, absolute + np.abs(g)
        np.testing.assert_array_equal(evolution.epoch["w"], g)
        np.testing.assert_allclose(evolution.running["w"], running, 1e-6, 1e-6)
        np.testing.assert_allclose(evolution.absolute["w"], absolute, 1e-6, 1e-6)
        assert isinstance(evolution, GradientEvolution) and evolution.steps == 1


def test_donating_the_state_to_the_end_of_the_epoch(params: Any) -> None:
    opt = record_gradient_evolution()
    _, state = opt.update(like(params, 0), opt.init(params))
    evolution, state = jax.jit(end_epoch, donate_argnums=0)(state)
    assert_trees_equal(evolution.epoch, like(params, 0))
    evolution, _ = jax.jit(end_epoch, donate_argnums=0)(state)
    assert_trees_equal(evolution.running, like(params, 0))


def labels(tree: Any) -> Any:
    return {"w": "recorded", "b": "plain"}


def only_w(tree: Any) -> Any:
    return {"w": True, "b": False}


recorded = optax.chain(record_gradient_evolution(), optax.sgd(0.1))
CHAINS: dict[str, tuple[Any, set[str]]] = {
    "alone": (record_gradient_evolution(), {"w", "b"}),
    "chain": (optax.chain(optax.identity(), recorded), {"w", "b"}),
    "named_chain": (optax.named_chain(("r", record_gradient_evolution())), {"w", "b"}),
    "partition": (
        optax.partition({"recorded": recorded, "plain": optax.sgd(0.1)}, labels),
        {"w"},
    ),
    "masked": (optax.masked(record_gradient_evolution(), only_w), {"w"}),
    "MultiSteps": (optax.MultiSteps(recorded, 1), {"w", "b"}),
    "apply_if_finite": (optax.apply_if_finite(recorded, 2), {"w", "b"}),
    "inject_hyperparams": (
        optax.inject_hyperparams(
            lambda rate: optax.chain(record_gradient_evolution(), optax.sgd(rate))
        )(rate=0.1),
        {"w", "b"},
    ),
    "schedule_free": (optax.contrib.schedule_free(recorded, 0.1), {"w", "b"}),
}


@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chain", quick_first(tuple(CHAINS), 3))
def test_the_recorder_is_found_anywhere_in_a_state(params: Any, chain: str, compiled: bool) -> None:
    opt, names = CHAINS[chain]
    state = opt.init(params)
    gradients = [like(params, seed) for seed in range(3)]
    for g in gradients[:2]:
        _, state = opt.update(g, state, params)
    evolution, new = (finish if compiled else end_epoch)(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert evolution.steps == 2
    for name in ("w", "b"):
        if name in names:
            np.testing.assert_array_equal(
                evolution.epoch[name], gradients[0][name] + gradients[1][name]
            )
        else:
            assert evolution.epoch[name] == optax.MaskedNode()
    # What lies around the recorder stays as it was.
    is_recorder = {"is_leaf": lambda x: isinstance(x, GradientEvolutionState)}
    around = [jax.tree.leaves(s, **is_recorder) for s in (state, new)]
    for old_node, new_node in zip(*around, strict=True):
        if not isinstance(old_node, GradientEvolutionState):
            np.testing.assert_array_equal(old_node, new_node)
    _, new = opt.update(gradients[2], new, params)
    evolution, _ = end_epoch(new)
    assert_trees_equal(evolution.epoch["w"], gradients[2]["w"])
    np.testing.assert_allclose(evolution.running["w"], sum(g["w"] for g in gradients), rtol=1e-5)


def test_multi_steps_records_the_accumulated_gradients(params: Any) -> None:
    opt = optax.MultiSteps(record_gradient_evolution(), 2)
    state = opt.init(params)
    for seed in range(4):
        _, state = opt.update(like(params, seed), state, params)
    evolution, _ = end_epoch(state)
    mean = sum(like(params, seed)["w"] for seed in range(4)) / 2
    assert evolution.steps == 2
    np.testing.assert_allclose(evolution.epoch["w"], mean, rtol=1e-5)


@pytest.mark.parametrize(
    "opt, count",
    [
        (optax.adam(0.1), 0),
        (optax.chain(record_gradient_evolution(), record_gradient_evolution()), 2),
        (optax.partition({"recorded": recorded, "plain": recorded}, labels), 2),
    ],
    ids=["none", "two", "two_groups"],
)
def test_none_or_several_recorders_are_an_error(params: Any, opt: Any, count: int) -> None:
    with pytest.raises(OptimizerError, match=f"needs one record_gradient_evolution.*not {count}"):
        end_epoch(opt.init(params))


def test_place_in_the_chain_says_what_is_recorded(params: Any) -> None:
    first = optax.chain(record_gradient_evolution(), gradient_norm_penalty(0.1, 1.0))
    last = optax.chain(gradient_norm_penalty(0.1, 1.0), record_gradient_evolution())
    grad_fn = jax.grad(lambda p: sum(jnp.sum(x**4) for x in jax.tree.leaves(p)))
    seen = []
    for opt in (first, last):
        updates, state = opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn)
        seen.append(end_epoch(state)[0].epoch)
    assert_trees_equal(seen[0], grad_fn(params))
    assert_trees_equal(seen[1], updates)
    assert not np.allclose(seen[0]["w"], seen[1]["w"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_sums_are_in_float32_or_wider(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params = jnp.zeros(2, dtype)
        opt = record_gradient_evolution()
        state, step = opt.init(params), jax.jit(opt.update)
        # In bfloat16 a sum of ones stops at 256.
        for _ in range(300):
            updates, state = step(jnp.array([1.0, -1.0], dtype), state)
        assert updates.dtype == dtype
        wide = "float64" if dtype == "float64" else "float32"
        evolution, state = end_epoch(state)
        for tree in (evolution, state):
            assert tree.epoch.dtype == tree.running.dtype == tree.absolute.dtype == wide
            assert tree.steps.dtype == jnp.int32
        np.testing.assert_array_equal(evolution.epoch, [300.0, -300.0])
        np.testing.assert_array_equal(evolution.absolute, [300.0, 300.0])


def test_none_leaves_stay_and_missing_gradients_add_nothing() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": None}
    opt = record_gradient_evolution()
    gradients = {"a": jnp.ones(2), "b": None, "c": None}
    updates, state = opt.update(gradients, opt.init(params), params)
    evolution, _ = end_epoch(state)
    assert updates["b"] is None and evolution.epoch["c"] is None
    np.testing.assert_array_equal(evolution.epoch["a"], 1)
    np.testing.assert_array_equal(evolution.epoch["b"], 0)


def test_complex_parameters() -> None:
    opt = record_gradient_evolution()
    _, state = opt.update(jnp.array([3.0 + 4.0j]), opt.init(jnp.zeros(1, jnp.complex64)))
    evolution, _ = end_epoch(state)
    assert evolution.epoch.dtype == jnp.complex64
    np.testing.assert_allclose(evolution.absolute, [5.0])


@pytest.mark.slow
def test_a_recorder_for_each_seed(params: Any) -> None:
    opt = record_gradient_evolution()
    gradients = jax.tree.map(lambda *x: jnp.stack(x), like(params, 0), like(params, 1))
    state = jax.vmap(opt.init)(gradients)
    _, state = jax.vmap(opt.update)(gradients, state)
    evolution, state = jax.vmap(end_epoch)(state)
    assert_trees_equal(evolution.epoch, gradients)
    assert evolution.steps.shape == (2,)
