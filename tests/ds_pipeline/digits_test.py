"""scikit-learn's digits."""

import numpy as np
from sklearn.datasets import load_digits as load_all

from ds_pipeline.digits import load_digits


def test_the_two_parts_are_the_whole() -> None:
    train, test = load_digits(seed=3)
    assert train.images.dtype == np.uint8 and train.images.shape[1:] == (8, 8, 1)
    found = np.concatenate([train.images, test.images]).reshape(-1, 64)
    expected = load_all().data.astype(np.uint8)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert (len(train), len(test)) == (1438, 359)


def test_classes_have_their_share() -> None:
    train, test = load_digits(seed=0)
    shares = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    np.testing.assert_allclose(shares, 0.2, atol=0.01)


def test_the_seed_decides() -> None:
    first, again, other = (load_digits(seed)[1].images for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
