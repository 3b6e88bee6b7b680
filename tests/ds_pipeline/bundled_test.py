"""scikit-learn's bundled sets."""

import numpy as np
import pytest
import sklearn.datasets

from ds_pipeline.bundled import NAMES, load_bundled
from ds_pipeline.source import Source

EVERYTHING = {"digits": (8, 8, 1), "iris": (4,), "wine": (13,), "breast_cancer": (30,)}


def all_of(source: Source | None) -> tuple[np.ndarray, np.ndarray]:
    assert source is not None
    batch = source.batch(np.arange(len(source)))
    return batch["input"], batch["label"]


@pytest.mark.parametrize("name", NAMES)
def test_the_two_splits_are_all_examples(name: str) -> None:
    splits = load_bundled(name, 0.2, seed=3)
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    (train, train_labels), (test, test_labels) = all_of(splits.train), all_of(splits.evaluation)
    inputs = np.concatenate([train, test])
    labels = np.concatenate([train_labels, test_labels])
    found = np.column_stack([inputs.reshape(len(inputs), -1), labels])
    expected = np.column_stack([bunch.data, bunch.target]).astype(np.float32)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert len(test) == round(0.2 * len(inputs))
    assert splits.shape == inputs.shape[1:] and splits.dtype == inputs.dtype


def test_kinds() -> None:
    for name, shape in EVERYTHING.items():
        splits = load_bundled(name, 0.2, seed=0)
        assert splits.shape == shape and splits.train.labels().dtype == np.int32
        assert splits.dtype == (np.uint8 if name == "digits" else np.float32)
    assert load_bundled("iris", 0.2, 0).class_names == ("setosa", "versicolor", "virginica")
    diabetes = load_bundled("diabetes", 0.2, seed=0)
    assert diabetes.columns[:2] == ("age", "sex") and len(diabetes.columns) == 10
    assert load_bundled("digits", 0.2, 0).columns == ()
    assert diabetes.class_names == () and diabetes.train.labels().dtype == np.float32


def test_classes_have_their_share() -> None:
    splits = load_bundled("digits", 0.3, seed=0)
    assert splits.evaluation is not None
    train, test = np.bincount(splits.train.labels()), np.bincount(splits.evaluation.labels())
    np.testing.assert_allclose(test / (train + test), 0.3, atol=0.01)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_the_seed_decides(name: str) -> None:
    first, again, other = (
        all_of(load_bundled(name, 0.2, seed).evaluation)[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_digits_split_is_that_of_published_runs() -> None:
    """The sum of the places' labels: another order of shuffling or sorting would change it."""
    labels = all_of(load_bundled("digits", 0.2, seed=0).train)[1]
    assert int((labels * np.arange(len(labels))).sum()) == 4_675_078
