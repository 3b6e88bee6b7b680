"""dataset.split=shuffled, shuffle and keep_last_batch, as the evolution experiments have them.

The indices are those of keras.utils.split_dataset; see tests/published.py.
"""

import dataclasses

import numpy as np
import pytest
import sklearn.datasets

from ds_pipeline import build_dataset, count_steps, train_batches
from ds_pipeline.source import shuffled_split
from tests.ds_pipeline.build_test import config_of
from tests.published import load

ARRAYS, META = load("evolution_models")


@pytest.mark.parametrize("name", [name for name in META["splits"] if name != "Iris"])
def test_the_training_part_is_split_as_published(name):
    split = META["splits"][name]
    kept, held_out = shuffled_split(np.zeros(split["training_rows"]), 0.1, seed=13)
    assert (len(kept), len(held_out)) == (split["train"], split["validation"])
    assert kept[:8].tolist() == split["train_first"]
    assert held_out[:8].tolist() == split["validation_first"]
    if f"split/{name}/validation" in ARRAYS:
        assert held_out.tolist() == ARRAYS[f"split/{name}/validation"].tolist()


def test_iris_is_split_twice_and_trained_on_in_that_order():
    keys = {"dataset_name": "iris", "test_fraction": 0.1, "split": "shuffled", "shuffle": False}
    config = config_of(use_test_set=False, seeds=13, keep_last_batch=True, **keys)
    dataset = build_dataset(config)
    rows = ARRAYS["split/Iris/train_of_150"]
    bunch = sklearn.datasets.load_iris()
    assert (len(dataset.train), len(dataset.evaluation)) == (122, 13)
    for epoch in range(2):  # both have the order of the split
        steps = range(epoch * 9, epoch * 9 + 9)
        assert count_steps(dataset, 15) == len(steps)
        batches = list(train_batches(dataset, 15, 13, steps[0], steps[-1] + 1))
        assert [len(batch["label"]) for batch in batches] == [15] * 8 + [2]
        inputs = np.concatenate([batch["input"] for batch in batches])
        np.testing.assert_array_equal(inputs, bunch.data[rows].astype(np.float32))
        labels = np.concatenate([batch["label"] for batch in batches])
        assert labels.tolist() == bunch.target[rows].tolist()
    test = build_dataset(config_of(seeds=13, **keys)).evaluation
    given = ARRAYS["split/Iris/test"]
    assert test.labels().tolist() == bunch.target[given].tolist()


def test_a_subset_in_a_fixed_order_is_not_sorted_by_class():
    labels = {
        count: build_dataset(config_of(shuffle=False, subset=count)).train.labels()
        for count in (None, 100)
    }
    rest = iter(labels[None].tolist())
    assert all(label in rest for label in labels[100].tolist())  # in the order of the whole
    assert np.any(np.diff(labels[100]) < 0)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("level", ["none", "mixup"])
def test_a_smaller_last_batch_is_mixed_within_itself(processes, level):
    """And processes have consecutive shares of it."""
    config = config_of(subset=40, keep_last_batch=True, batch_level_augmentations=level, workers=0)
    dataset = build_dataset(config)

    def batches(dataset, processes):
        shares = [
            train_batches(dataset, 12, 0, 3, 9, index, processes) for index in range(processes)
        ]
        for parts in zip(*shares, strict=True):
            yield np.concatenate([np.asarray(part["input"], np.float32) for part in parts])

    found = list(batches(dataset, processes))
    assert [len(batch) for batch in found] == [4, 12, 12, 12, 4, 12]
    plain = list(batches(dataclasses.replace(dataset, mix=None), 1))
    for mixed, batch in zip(found, plain, strict=True):
        span = mixed - batch[::-1], batch - batch[::-1]
        weight = np.vdot(*span) / np.vdot(span[1], span[1])
        np.testing.assert_allclose(span[0], weight * span[1], atol=1e-4)
        assert (weight == 1) == (level == "none")
