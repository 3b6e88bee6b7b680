"""The loop: order of events, resuming to the bit, and the ways in which a run ends."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gnp.training.loop import Member, NonFiniteError, Plan, Progress, Steps, evaluate, train

from gnp.training.checkpoint import Checkpoints
from gnp.training.distributed import Interrupt
from gnp.training.metrics import Log
from gnp.training.objective import build_objective
from gnp.training.state import TrainState
from gnp.training.step import build_evaluation_step, build_train_step
from optimizer import gradient_norm_penalty

PLAN = Plan(
    batch_size=4, steps_per_epoch=5, total_epochs=3, evaluate_every=1, save_every=1, log_every=2
)
OBJECTIVE = build_objective("softmax_cross_entropy")
OPTIMIZER = optax.chain(gradient_norm_penalty(0.1, 0.5), optax.adam(0.1))


def apply(params, model_state, inputs, train, key):
    return inputs @ params["w"], model_state


def make_step(penalize, skip=False):
    return jax.jit(
        build_train_step(apply, OBJECTIVE, OPTIMIZER, penalize=penalize, skip_nonfinite=skip),
        donate_argnums=0,
    )


PLAIN, PENALIZED, SKIPPING = make_step(False), make_step(True), make_step(False, skip=True)
EVALUATION = jax.jit(build_evaluation_step(apply, OBJECTIVE))


def batch_of(step):
    rng = np.random.default_rng(step)
    return {
        "input": rng.normal(size=(4, 3)).astype(np.float32),
        "label": rng.integers(0, 2, 4).astype(np.int32),
    }


def run(directory, *, interrupt=None, poison=None, steps=None, skip=False, plan=PLAN, asked=None):
    """Trains in `directory`, or goes on there; `interrupt(step)` says when a signal comes."""
    checkpoints = Checkpoints(directory)
    signal = asked or Interrupt()
    initial = {"w": jnp.zeros((3, 2))}
    restored = checkpoints.restore(TrainState(initial, {}, OPTIMIZER.init(initial)))
    state = restored.state if restored else TrainState(initial, {}, OPTIMIZER.init(initial))
    progress = Progress(restored.progress if restored else None)

    def batches():
        for step in range(progress.step, plan.total_steps):
            if interrupt is not None and step == interrupt:
                signal.signal = "SIGTERM"
            batch = batch_of(step)
            if step == poison:
                batch["input"][:] = np.nan
            yield batch

    def measure(state):
        batches = [{**batch_of(99), "mask": np.ones(4, np.float32)}]
        values, count = evaluate(EVALUATION, state, batches)
        assert count == 4
        return {f"test_{name}": value for name, value in values.items()}

    log = Log(directory, from_step=progress.step)
    try:
        state = train(
            state,
            [Member(progress, measure, log, checkpoints)],
            plan=plan,
            steps=steps or Steps(PLAIN, PENALIZED, lambda step: step % 2 == 1),
            key=jax.random.key(0),
            batches=batches(),
            scalars=lambda step: {"learning_rate": 0.1, "alpha": 0.5, "r": 0.1},
            interrupt=signal,
            skip_nonfinite=skip,
        )
    finally:
        log.close()
        checkpoints.close()
    return jax.device_get(state), progress


def rows_of(directory, times=False):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    drop = () if times else ("epoch_seconds", "data_seconds", "examples_per_second")
    return [{name: value for name, value in row.items() if name not in drop} for row in rows]


def test_a_row_an_epoch_with_everything_in_it(tmp_path):
    run(tmp_path)
    rows = rows_of(tmp_path, times=True)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [5, 10, 15]
    assert set(rows[0]) == {
        "epoch", "step", "train_loss", "train_error_rate", "test_loss", "test_error_rate",
        "learning_rate", "alpha", "r", "gradient_norm", "epoch_seconds", "data_seconds",
        "examples_per_second",
    }  # fmt: skip


def test_train_loss_is_the_mean_over_the_epochs_steps(tmp_path):
    losses = []

    def plain(state, batch, key, number):
        state, metrics = PLAIN(state, batch, key, number)
        losses.append(float(metrics["loss"]))
        return state, metrics

    run(tmp_path, steps=Steps(plain, plain, lambda step: False))
    expected = np.mean(np.reshape(losses, (3, 5)), axis=1)
    np.testing.assert_allclose([row["train_loss"] for row in rows_of(tmp_path)], expected)


def test_the_rule_chooses_the_step(tmp_path):
    chosen = []

    def recorder(name, step):
        def wrapped(state, batch, key, number):
            chosen.append((name, int(number)))
            return step(state, batch, key, number)

        return wrapped

    steps = Steps(recorder("plain", PLAIN), recorder("gnp", PENALIZED), lambda step: step % 3 == 0)
    run(tmp_path, steps=steps)
    assert chosen == [("plain" if step % 3 else "gnp", step) for step in range(15)]


@pytest.mark.parametrize("stop", [0, 3, 4, 7, 11])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop):
    whole, _ = run(tmp_path / "whole")
    _, progress = run(tmp_path / "parts", interrupt=stop)
    assert progress.step == stop + 1  # the step that runs is finished
    parts, progress = run(tmp_path / "parts")
    assert progress.step == 15
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


class Asked(Interrupt):
    """A signal that the processes agree to heed at one call of reached()."""

    def __init__(self, call):
        super().__init__()
        self.left = call

    def reached(self, step):
        self.left -= 1
        if self.left == 0:
            self.signal = "SIGTERM"
        return super().reached(step)


@pytest.mark.parametrize("call", range(2, 9))
def test_what_has_been_done_is_saved_at_whichever_call_a_signal_is_heeded(tmp_path, call):
    _, progress = run(tmp_path, asked=Asked(call), plan=PLAN._replace(save_every=3))
    assert 0 < progress.step < 15
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [progress.step]
    checkpoints.close()


def test_rows_after_the_checkpoint_are_written_again(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "parts", interrupt=7)
    path = tmp_path / "parts" / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"epoch": 9, "step": 99}) + "\n")
    run(tmp_path / "parts")
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_nonfinite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 8 \(epoch 2\): loss nan"):
        run(tmp_path, poison=7)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [5]
    checkpoints.close()
    assert len(rows_of(tmp_path)) == 1


def test_nonfinite_steps_can_be_skipped_and_are_counted(tmp_path):
    steps = Steps(SKIPPING, SKIPPING, lambda step: False)
    state, _ = run(tmp_path, poison=7, skip=True, steps=steps)
    assert np.isfinite(state.params["w"]).all()
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32]
    assert len(counts) == 2  # the penalty's and Adam's: schedules follow the step number
    assert all(count == 15 for count in counts)
    rows = rows_of(tmp_path)
    assert [row.get("skipped_steps") for row in rows] == [None, 1, None]
    assert all(np.isfinite(row["train_loss"]) for row in rows)


def test_evaluation_and_saving_intervals(tmp_path):
    run(tmp_path, plan=PLAN._replace(evaluate_every=2, save_every=2))
    assert ["test_loss" in row for row in rows_of(tmp_path)] == [False, True, True]
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [10, 15]
    checkpoints.close()


def test_a_finished_run_does_nothing(tmp_path):
    first, _ = run(tmp_path)
    second, progress = run(tmp_path)
    assert progress.step == 15
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_a_checkpoint_is_given_stays_as_it_was():
    progress = Progress()
    progress.means.add({"loss": 1.0})
    given = progress.to_json()
    progress.means.add({"loss": 2.0})
    assert given["sums"] == {"loss": 1.0}
    progress.start_epoch()
    given = progress.to_json()
    progress.means.add({"loss": 3.0})
    assert given["sums"] == {}
    assert given["count"] == 0
