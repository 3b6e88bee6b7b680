"""Which epoch is the best, and when there is nothing to wait for."""

import itertools
import json
import shutil

import pytest

from config import as_json, default
from gnp.training.early_stopping import best_row, best_step, has_ended
from gnp.training.run_directory import PARTS_OF_A_CHECKPOINT, RunDirectoryError

NAME = "validation_loss"


def rows(*values):
    """Make the rows of an epoch each; None: it was not evaluated, or its value was not finite."""
    return [
        {"epoch": i, "step": 10 * i} | ({} if value is None else {NAME: value})
        for i, value in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("values", "epoch"), [((3, 2, 1), 3), ((3, 1, 1), 2), ((None, 5, None), 2), ((None,), None)]
)
def test_the_best_is_the_first_of_the_smallest(values, epoch):
    row = best_row(rows(*values), NAME)
    assert epoch == (None if row is None else row["epoch"])
    assert best_row(rows(*values), None) is None


@pytest.mark.parametrize(
    ("values", "patience", "ended"),
    [
        ((), 1, False),
        ((1,), 1, False),
        ((1, 2), 1, True),
        ((1, 2), 2, False),
        ((1, 2, 2), 2, True),
        ((2, 1, 1), 1, True),  # no better is as little as worse
        ((1, None, 2, None), 2, False),  # epochs that were not evaluated do not count
        ((3, 4, 2, 5), 2, False),
        ((1, 2, 3), None, False),
    ],
)
def test_training_ends_after_so_many_values_that_are_no_better(values, patience, ended):
    assert has_ended(rows(*values), NAME, patience) is ended
    assert not has_ended(rows(*values), None, patience)


def test_the_best_step_of_a_directory(tmp_path):
    config = as_json(default.get_config())
    (tmp_path / "config.json").write_text(json.dumps(config | {"early_stopping.metric": NAME}))
    for values in ((), (4, 2, 3)):
        lines = [json.dumps(row) + "\n" for row in rows(*values)]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        if not values:
            with pytest.raises(RunDirectoryError, match=f"no epoch of .* has a {NAME}; give"):
                best_step(tmp_path)
    for step, part in itertools.product((10, 20, 30), PARTS_OF_A_CHECKPOINT):
        (tmp_path / "checkpoints" / str(step) / part).mkdir(parents=True)
    assert best_step(tmp_path) == 20
    shutil.rmtree(tmp_path / "checkpoints" / "20")  # still being written
    assert best_step(tmp_path) == 30
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunDirectoryError, match=r"trained without early_stopping\.metric"):
        best_step(tmp_path)
