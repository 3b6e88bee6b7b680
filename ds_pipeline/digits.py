"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels with 17 levels, 0 to 16."""

import numpy as np

from ds_pipeline.source import InMemorySource, stratified_split

TEST_FRACTION = 0.2


def load_digits(seed: int) -> tuple[InMemorySource, InMemorySource]:
    """The digits in two parts, 80% to train and 20% to test, stratified by class.

    Args:
        seed: of the split, at least 0.

    Returns:
        (train, test); images uint8 [n, 8, 8, 1], 0 to 16.

    Example:
        >>> train, test = load_digits(seed=0)
        >>> len(train), len(test)
        (1438, 359)

    References:
        Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998.
    """
    # Imported here: it takes a second, which other data sets need not spend.
    from sklearn.datasets import load_digits as load

    bunch = load()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = stratified_split(labels, TEST_FRACTION, seed)
    return InMemorySource(images[train], labels[train]), InMemorySource(images[test], labels[test])
