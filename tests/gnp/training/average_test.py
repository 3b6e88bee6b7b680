"""The exponential moving average of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from gnp.training.checkpoint import CheckpointError, Checkpoints
from gnp.training.gradients import build_gradient, build_loss, micro_batched
from gnp.training.metrics import evaluate
from gnp.training.state import TrainState
from gnp.training.step import build_eval_step, build_train_step
from gnp.training.tasks import classification
from optimizer import record_gradient_evolution

OBJECTIVE = classification.objective("softmax_cross_entropy")
SGD = optax.with_extra_args_support(optax.sgd(0.5, 0.9))
DECAY = 0.75


def apply(params, model_state, inputs, train, key):
    return inputs @ params["w"], {"seen": model_state["seen"] + train}


def average(ema, params):
    return optax.incremental_update(params, ema, 1 - DECAY)


def batch_of(number, **more):
    rng = np.random.default_rng(number)
    return {
        "input": rng.normal(size=(8, 3)).astype(np.float32),
        "label": rng.integers(0, 2, 8).astype(np.int32),
    } | more


def first_state(with_average=True, optimizer=SGD):
    params = {"w": jnp.ones((3, 2))}
    ema = jax.tree.map(jnp.copy, params) if with_average else None
    return TrainState(params, {"seen": jnp.float32(0)}, optimizer.init(params), ema)


def make_step(optimizer=SGD, count=1, **options):
    gradient = micro_batched(build_gradient(build_loss(apply, OBJECTIVE)), count)
    step = build_train_step(lambda _: gradient, optimizer, penalize=False, **options)
    return jax.jit(step, donate_argnums=0)


def test_it_is_the_formula_and_changes_nothing_else():
    with_it, without = make_step(average=average), make_step()
    state, bare = first_state(), first_state(False)
    expected = np.ones((3, 2))
    for number in range(4):
        state, metrics = with_it(state, batch_of(number), jax.random.key(0), number)
        bare, bare_metrics = without(bare, batch_of(number), jax.random.key(0), number)
        np.testing.assert_array_equal(state.params["w"], bare.params["w"])
        assert metrics == bare_metrics
        expected = DECAY * expected + (1 - DECAY) * np.asarray(state.params["w"], np.float64)
        np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-6)
    assert bare.ema is None
    assert not np.allclose(state.ema["w"], state.params["w"], rtol=1e-2)


def test_a_dropped_step_leaves_it():
    step = make_step(average=average, skip_nonfinite=True)
    state, _ = step(first_state(), batch_of(0), jax.random.key(0), 0)
    before = jax.device_get(state.ema)
    batch = batch_of(1)
    batch["input"][:] = np.nan
    state, metrics = step(state, batch, jax.random.key(0), 1)
    assert metrics["finite"] == 0
    np.testing.assert_array_equal(state.ema["w"], before["w"])


def test_recorded_gradients_are_the_accumulated_ones():
    optimizer = optax.with_extra_args_support(optax.chain(record_gradient_evolution(), SGD))
    step = make_step(optimizer, count=4, average=average, keep_gradients=True)
    state, total = first_state(optimizer=optimizer), 0.0
    for number in range(3):
        state, metrics = step(state, batch_of(number), jax.random.key(0), number)
        total = total + metrics["gradients"]["w"]
        assert state.model_state["seen"] == 4 * (number + 1)
    np.testing.assert_allclose(state.opt_state[0].epoch["w"], total, rtol=1e-6)
    assert state.opt_state[0].steps == 3


def test_both_are_evaluated_on_the_same_examples():
    step = jax.jit(build_eval_step(apply, OBJECTIVE))
    state = first_state()._replace(ema={"w": jnp.array([[2.0, 0.0]] * 3)})
    batches = [batch_of(number, mask=np.ones(8, np.float32)) for number in range(3)]
    both, count = evaluate(step, state, batches)
    assert list(both) == ["loss", "error_rate", "ema_loss", "ema_error_rate"]
    raw, _ = evaluate(step, state._replace(ema=None), batches)
    averaged, _ = evaluate(step, state._replace(params=state.ema, ema=None), batches)
    assert count == 24
    assert both == raw | {f"ema_{name}": value for name, value in averaged.items()}
    assert averaged["loss"] != raw["loss"]


def test_checkpoints_hold_it_where_there_is_one(tmp_path):
    """Without it they are what they were before there was one."""
    state = first_state()._replace(ema={"w": jnp.full((3, 2), 5.0)})
    for name, each in (("with", state), ("without", first_state(False))):
        with Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(1, each, {})
    with ocp.StandardCheckpointer() as reader:
        old = reader.restore(tmp_path / "without" / "checkpoints" / "1" / "state")
    assert set(old) == {"params", "model_state", "opt_state"}

    def restore(name, like):
        with Checkpoints(tmp_path / name, read_only=True) as checkpoints:
            return checkpoints.restore(like).state

    np.testing.assert_array_equal(restore("with", state).ema["w"], 5.0)
    assert restore("without", first_state(False)).ema is None
    with pytest.raises(CheckpointError, match="ema/w is absent there"):
        restore("without", state)
