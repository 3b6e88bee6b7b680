"""The loop: order of events, resuming to the bit, and the ways in which a run ends."""

import contextlib
import json
import resource
import shutil
import signal
import struct
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from config.schema import ConfigError
from ds_pipeline import build_dataset
from gnp.main import train
from gnp.main.recording import Recording
from gnp.training.checkpoint import Checkpoints, read_checkpoint
from gnp.training.distributed import Interrupt
from gnp.training.files import FileFormatError
from gnp.training.log import Log
from gnp.training.metrics import NonFiniteError
from gnp.training.trackers import TensorBoard
from tests.marks import quick_first
from tests.trees import assert_trees_equal

SECONDS = ("epoch_seconds", "data_seconds", "examples_per_second")


def rows_of(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in SECONDS} for row in rows]


def poisoned(train_step):
    """Put a NaN among the inputs of the eighth step."""

    def step_with_nan(state, batch, key, step):
        if step == 7:
            batch = {**batch, "input": batch["input"].at[0, 0].set(np.nan)}
        return train_step(state, batch, key, step)

    return step_with_nan


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory):
    """Return the directory of an uninterrupted run, and what came of it."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, small_run(directory)


def test_a_row_an_epoch_with_everything_in_it(whole):
    lines = (whole[0] / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 5), (2, 10), (3, 15)]
    assert set(rows[0]) == {
        "epoch", "step", "train_loss", "train_error_rate", "test_loss", "test_error_rate",
        "learning_rate", "alpha", "r", "gradient_norm", "param_norm", *SECONDS,
    }  # fmt: skip
    assert whole[1].steps == [5, 10, 15]


def test_how_many_wrong_labels_a_run_has_learned(whole, small_run, tmp_path):
    """Counted by hand: the flowers whose label differs from that of the run without noise."""
    run = small_run(tmp_path, total_epochs="1", dataset__label_noise="0.3")
    noisy, right = run.experiment.dataset.train, whole[1].experiment.dataset.train.labels()
    wrong = np.flatnonzero(noisy.labels() != right)
    batch = noisy.batch(wrong)
    outputs, _ = run.experiment.model.apply(run.state.params, {}, batch["input"], False, None)
    learned = int((np.asarray(outputs).argmax(-1) == batch["label"]).sum())
    assert len(wrong) == 36 and 0 < learned < 36
    (row,) = rows_of(tmp_path)
    assert row["mislabeled_error_rate"] == pytest.approx(1 - learned / 36)


def test_train_loss_is_the_mean_over_the_epochs_steps(small_run, tmp_path):
    losses, steps = [], []

    def listening(train_step):
        def listen(state, batch, key, step):
            state, metrics = train_step(state, batch, key, step)
            losses.append(float(metrics["loss"]))
            steps.append(step)
            return state, metrics

        return listen

    small_run(tmp_path, wrap=listening)
    assert steps == list(range(15))
    expected = np.mean(np.reshape(losses, (3, 5)), axis=1)
    np.testing.assert_allclose([row["train_loss"] for row in rows_of(tmp_path)], expected)


@pytest.mark.parametrize("stop", quick_first([4, 7, 0, 3, 11], 2))  # an epoch's end, its middle
def test_interrupted_and_resumed_equals_uninterrupted(whole, small_run, tmp_path, capsys, stop):
    found = small_run(tmp_path, stop=stop)
    assert found.steps[-1] == stop + 1  # the step that runs is finished
    assert found.code == 0
    said = f"stopped by SIGTERM after step {stop + 1} of 15, saved; the same command goes on"
    assert said in capsys.readouterr().err
    assert_trees_equal(small_run(tmp_path).state, whole[1].state)
    assert f"going on in {tmp_path} after step {stop + 1}\n" in capsys.readouterr().err
    assert rows_of(tmp_path) == rows_of(whole[0])


def test_a_new_run_goes_on_from_a_checkpoint_of_another(whole, small_run, tmp_path, capsys):
    """To the bit, over a stop of its own, with one checkpoint at a time."""
    path = whole[0] / "checkpoints" / "5"
    keys = {"start_from": str(path), "keep_checkpoints": "1"}
    assert small_run(tmp_path, stop=11, **keys).steps == [12]
    assert f"going on from {path} after step 5\n" in capsys.readouterr().err
    found = small_run(tmp_path, **keys)
    assert_trees_equal(found.state, whole[1].state)
    assert f"going on in {tmp_path} after step 12\n" in capsys.readouterr().err
    assert rows_of(tmp_path) == rows_of(whole[0])[1:]


def test_a_checkpoint_that_has_all_steps_is_no_start(whole, small_run, tmp_path):
    with pytest.raises(ConfigError, match=r"is of step 15, and the run has 15: raise total_epochs"):
        small_run(tmp_path / "run", start_from=str(whole[0]))


@pytest.mark.slow
def test_what_a_method_and_a_rule_remember_goes_on(small_run, tmp_path):
    """VaSSO's mean of the gradients, and the moments of AE-SAM, across an epoch and within one."""
    keys = {"gnp__method": "vasso", "gnp__alpha": "0", "gnp__every": "1"}
    keys |= {"gnp__unusual_norm": "1,-1"}
    whole = small_run(tmp_path / "whole", **keys)
    for stop in (4, 11):
        small_run(tmp_path / "parts", stop=stop, **keys)
    assert_trees_equal(small_run(tmp_path / "parts", **keys).state, whole.state)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    metadata = [tmp_path / name / "checkpoints/15/progress/metadata" for name in ("parts", "whole")]
    rules = [json.loads(path.read_text())["step_rule"] for path in metadata]
    assert rules[0] == rules[1] and [step for step, _ in rules[0]["unread"]] == [13, 14]
    shares = [row["train_penalized"] for row in rows_of(tmp_path / "whole")]
    assert all(round(5 * share, 6).is_integer() for share in shares) and 0 < sum(shares) < 3


def measuring(losses):
    """Return a stand-in for `evaluate` that gives these losses of the validation part in turn."""
    left = iter(losses)

    def evaluate(eval_step, state, batches):
        return {"loss": next(left), "error_rate": 0.5}, 1

    return evaluate


def test_training_ends_at_the_end_of_the_patience_and_the_best_is_kept(
    small_run, tmp_path, monkeypatch, capsys
):
    """However often it is interrupted; the newest and the best checkpoint stay."""
    keys = {
        "use_test_set": "False", "total_epochs": "9", "keep_checkpoints": "1",
        "early_stopping__metric": "validation_loss", "early_stopping__patience": "2",
        "save_ckpt_every_n_epochs": "4",
    }  # fmt: skip
    losses = [3.0, 2.0, 2.5, 2.0, 1.0]
    monkeypatch.setattr(train, "evaluate", measuring(losses))
    per_epoch = small_run(tmp_path, stop=0, **keys).experiment.steps_per_epoch
    small_run(tmp_path, stop=2 * per_epoch + 1, **keys)
    found = small_run(tmp_path, **keys)
    assert found.steps == [2 * per_epoch, 4 * per_epoch]
    assert "validation_loss was not below its best for 2 evaluations" in capsys.readouterr().err
    assert [row["epoch"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]
    again = small_run(tmp_path, **keys)  # at its end already
    assert again.steps == found.steps and len(rows_of(tmp_path)) == 4
    assert read_checkpoint(tmp_path, again.experiment.abstract_state, "best").step == 2 * per_epoch


def test_a_validation_part_is_held_out_beside_the_test_set(whole):
    config = whole[1].config.copy_and_resolve_references()
    config.early_stopping.metric = "validation_loss"
    found, usual = build_dataset(config), whole[1].experiment.dataset
    assert len(found.train) + len(found.validation) == len(usual.train) > len(found.train)
    assert len(found.evaluation) == len(usual.evaluation)
    inputs = [
        source.batch(np.arange(len(source)))["input"] for source in (found.train, found.validation)
    ]
    together = np.concatenate(inputs)
    everything = usual.train.batch(np.arange(len(usual.train)))["input"]
    assert sorted(map(tuple, together)) == sorted(map(tuple, everything))


def test_a_number_that_no_epoch_has_makes_none_the_best(small_run, tmp_path):
    with pytest.raises(ConfigError, match=r"'test_accuracy' is no number .* train_loss, train_err"):
        small_run(tmp_path / "run", early_stopping__metric="test_accuracy")
    assert not (tmp_path / "run" / "config.json").exists()


class Asked(Interrupt):
    """A signal that the processes agree to heed at one call of reached()."""

    def __init__(self, call):
        super().__init__()
        self.left = call

    def reached(self, step):
        self.left -= 1
        if self.left == 0:
            self.signal = signal.SIGINT
        return super().reached(step)


@pytest.mark.parametrize("call", quick_first([2, 5, 9, 3, 4, 6, 7, 8], 3))
def test_what_has_been_done_is_saved_at_whichever_call_a_signal_is_heeded(
    small_run, tmp_path, monkeypatch, call
):
    """Between two epochs, too: the steps since the last checkpoint are not lost."""
    monkeypatch.setattr(
        train.distributed, "catch_signals", lambda: contextlib.nullcontext(Asked(call))
    )
    found = small_run(tmp_path, save_ckpt_every_n_epochs="3")
    done = call - 1 if call <= 6 else call - 2  # before the first epoch, after each step, ...
    assert (found.code, found.steps) == (130, [done])


def changed(step, change):
    """Have something happen in a step, counted from 0."""

    def wrap(train_step):
        def changed_step(state, batch, key, number):
            state, metrics = train_step(state, batch, key, number)
            return change(state, metrics) if number == step else (state, metrics)

        return changed_step

    return wrap


def test_an_evaluation_that_is_not_finite_is_told(small_run, tmp_path, capsys):
    def lose(state, metrics):
        return state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params)), metrics

    with pytest.raises(NonFiniteError):
        small_run(tmp_path, wrap=changed(4, lose))
    assert "warning: epoch 1: test loss not finite" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_steps_were_all_skipped_has_not_succeeded(small_run, tmp_path):
    def never(train_step):
        def step_that_is_skipped(state, batch, key, step):
            state, metrics = train_step(state, batch, key, step)
            return state, {**metrics, "finite": metrics["finite"] * 0}

        return step_that_is_skipped

    with pytest.raises(NonFiniteError, match="every step was skipped"):
        small_run(tmp_path, wrap=never, on_nonfinite="skip")
    assert len(rows_of(tmp_path)) == 3
    with pytest.raises(NonFiniteError, match="every step was skipped"):  # nor has it afterwards
        small_run(tmp_path, on_nonfinite="skip")


def test_what_cannot_be_written_in_the_middle_of_a_run_is_named(whole, small_run, tmp_path):
    def block(state, metrics):
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl" / "something").mkdir(parents=True)
        return state, metrics

    with pytest.raises(OSError) as raised:
        small_run(tmp_path, wrap=changed(7, block))
    assert raised.value.filename == str(tmp_path / "metrics.jsonl")
    shutil.rmtree(tmp_path / "metrics.jsonl")
    shutil.copy(whole[0] / "metrics.jsonl", tmp_path)
    assert_trees_equal(small_run(tmp_path).state, whole[1].state)


def test_rows_that_are_lost_are_missed(small_run, tmp_path):
    small_run(tmp_path, stop=11)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(FileFormatError, match="rows of the 2 epochs that are done"):
        small_run(tmp_path)


def test_a_full_disk_under_tensorboard_ends_at_once_and_is_named(tmp_path):
    board = TensorBoard(tmp_path, step=0)
    with contextlib.suppress(OSError), contextlib.closing(board):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(OSError) as raised:
                for step in range(10_000):
                    board.points(step, {"train/loss": 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path / "tensorboard")


def test_a_run_that_goes_on_hides_the_points_of_the_steps_after_it(tmp_path):
    """TensorBoard drops what older files have from the mark's step on."""
    TensorBoard(tmp_path, step=7).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # a record: its length, 4 bytes of checksum, itself, 4 bytes of checksum
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert [event.step for event in events if event.HasField("session_log")] == [8]


def test_a_trace_begins_where_a_run_goes_on(whole, tmp_path):
    run, said = whole[1], []
    recording = Recording(run.config, run.experiment, tmp_path, profile=(3, 9))
    recording.start(7, SimpleNamespace(say=said.append))
    folder = tmp_path / "profile"
    assert said == [f"a trace of steps 8 to 9: {folder}, for xprof or TensorBoard"]


def test_a_signal_before_the_first_step_has_nothing_to_save(
    small_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        train.distributed, "catch_signals", lambda: contextlib.nullcontext(Asked(1))
    )
    with pytest.raises(Exception, match="no checkpoint in"):
        small_run(tmp_path)
    assert "after step 0 of 15, nothing to save" in capsys.readouterr().err


def test_rows_after_the_checkpoint_are_written_again(whole, small_run, tmp_path):
    small_run(tmp_path, stop=7)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"epoch": 9, "step": 99}) + "\n")
    small_run(tmp_path)
    assert rows_of(tmp_path) == rows_of(whole[0])


def test_nonfinite_ends_the_run_and_keeps_the_last_good_checkpoint(small_run, tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 8 \(epoch 2\): loss nan"):
        small_run(tmp_path, wrap=poisoned)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [5]
    assert len(rows_of(tmp_path)) == 1


def test_nonfinite_steps_can_be_skipped_and_are_counted(small_run, tmp_path):
    state = small_run(tmp_path, wrap=poisoned, on_nonfinite="skip").state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32]
    assert len(counts) >= 2  # the penalty's and Adam's: schedules follow the step number
    assert all(count == 15 for count in counts)
    rows = rows_of(tmp_path)
    assert [row.get("skipped_steps") for row in rows] == [None, 1, None]
    assert all(np.isfinite(row["train_loss"]) for row in rows)


@pytest.mark.slow
def test_evaluation_and_saving_intervals(small_run, tmp_path):
    found = small_run(tmp_path, evaluate_every_n_epochs="2", save_ckpt_every_n_epochs="2")
    assert ["test_loss" in row for row in rows_of(tmp_path)] == [False, True, True]
    assert found.steps == [10, 15]


def test_a_finished_run_does_nothing(whole, small_run):
    rows, found = rows_of(whole[0]), small_run(whole[0], stop=15)
    assert found.steps == [5, 10, 15]
    assert_trees_equal(found.state, whole[1].state)
    assert rows_of(whole[0]) == rows


def test_the_last_step_ends_a_run_as_if_no_signal_had_come(small_run, tmp_path, capsys):
    assert small_run(tmp_path, stop=14).code == 0
    assert "stopped" not in capsys.readouterr().err


def test_points_of_steps_are_metrics_and_schedules_alone(small_run, tmp_path, monkeypatch):
    names = set()
    monkeypatch.setattr(Log, "points", lambda _, step, values: names.update(values))
    small_run(tmp_path)
    steps = {"train/loss", "train/error_rate", "train/gradient_norm", "train/param_norm"}
    assert {name for name in names if not name.startswith("epoch/")} == {
        *steps, "learning_rate", "alpha", "r"
    }  # fmt: skip


@pytest.mark.slow
def test_a_step_is_logged_with_the_rate_that_it_took(small_run, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(Log, "points", lambda *a: rates.append(a[2].get("learning_rate")))
    small_run(tmp_path, lr_schedule_type="exponential", log_every_n_steps="5")
    assert [rate for rate in rates if rate] == [row["learning_rate"] for row in rows_of(tmp_path)]


@pytest.mark.slow
def test_the_steps_random_masks_are_those_of_the_seed(small_run, tmp_path):
    keys = []

    def listening(train_step):
        return lambda state, batch, key, step: (
            keys.append(key),
            train_step(state, batch, key, step),
        )[1]

    small_run(tmp_path, wrap=listening, seeds="3", total_epochs="1")
    assert keys == [jax.random.key(3)] * 5
