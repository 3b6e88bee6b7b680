"""Numbers of a run on the host."""

import pytest

from gnp.training.files import FileFormatError
from gnp.training.metrics import Progress


def test_what_a_checkpoint_is_given_stays_as_it_was():
    progress = Progress()
    progress.add({"loss": 1.0}, finite=True)
    given = progress.to_json()
    progress.add({"loss": 2.0}, finite=True)
    assert given["sums"] == {"loss": 1.0}
    progress.start_epoch()
    given = progress.to_json()
    progress.add({"loss": 3.0}, finite=True)
    assert (given["sums"], given["count"]) == ({}, 0)


def test_a_step_that_was_not_finite_is_in_no_mean_and_in_the_row():
    progress = Progress({"step": 9, "sums": {}, "count": 0, "seconds": 1.0, "skipped": 1})
    assert progress.add({"loss": 1.0, "gradient_norm": 2.0}, finite=True)
    assert not progress.add({"loss": float("nan"), "gradient_norm": 5.0}, finite=False)
    row = progress.row(2, 50, {"test_loss": float("nan")}, {"learning_rate": 0.1})
    assert row == {
        "epoch": 2, "step": 9, "train_loss": 1.0, "learning_rate": 0.1, "gradient_norm": 2.0,
        "skipped_steps": 2, "epoch_seconds": 1.0, "data_seconds": 0.0, "examples_per_second": 50.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"step": None}, {"step": -1}, {"step": 1.5}, {"step": True}, {"count": "1"},
        {"seconds": float("nan")}, {"seconds": -1.0}, {"data_seconds": []}, {"sums": []},
        {"sums": {"loss": "1"}}, {"sums": {"loss": 1.0}}, {"skipped": {}},
    ],
)  # fmt: skip
def test_progress_that_no_run_wrote_is_refused(change):
    saved = Progress().to_json() | change
    for each in (saved, {key: value for key, value in saved.items() if key not in change}, {}):
        if each.keys() >= {"sums", "step", "count", "seconds", "skipped"} and each != saved:
            continue  # a key that older runs do not write
        with pytest.raises(FileFormatError, match="progress/metadata is not what a run writes"):
            Progress(each)


def test_a_checkpoint_of_before_has_learned_where_it_took_steps():
    old = {"step": 5, "sums": {}, "count": 0, "seconds": 0.0, "skipped": 0}
    assert Progress(old).has_learned and not Progress(old | {"step": 0}).has_learned
