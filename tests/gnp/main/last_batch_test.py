"""Epochs that end with a smaller batch: their means, and a run that is stopped in one."""

import json

import pytest

from tests.trees import assert_trees_equal

# 120 flowers: batches of 50, 50 and 20. The parameters stay, the optimizer's state moves.
KEYS = {
    "batch_size": "50",
    "base_lr": "0.0",
    "gnp__r": "0.0",
    "gnp__alpha": "0.0",
    "gnp__every": "1",
    "dataset__keep_last_batch": "True",
}


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_smaller_last_batch(small_run, tmp_path):
    whole = small_run(tmp_path / "whole", **KEYS)
    assert whole.code == 0 and whole.experiment.steps_per_epoch == 3
    found = rows(tmp_path / "whole")
    assert [row["step"] for row in found] == [3, 6, 9]
    # Each epoch has another order, and all have all examples with one weight.
    losses = [row["train_loss"] for row in found]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    # Stopped when two steps of the second epoch are taken, so that the small one is to come.
    stopped = small_run(tmp_path / "stopped", stop=4, **KEYS)
    assert stopped.steps[-1] == 5
    resumed = small_run(tmp_path / "stopped", **KEYS)
    assert_trees_equal(resumed.state, whole.state)
    again = rows(tmp_path / "stopped")
    assert [row["train_loss"] for row in again] == losses
