"""Symmetric label noise: the usual test of how a method bears wrong labels."""

import numpy as np

from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, Indices, Source, View

_TAG = 0x4E6F


class RelabeledSource(View):
    """Another source's inputs with other labels.

    Args:
        source: where the inputs are.
        labels: [n], one for each of its examples.
    """

    def __init__(self, source: Source, labels: np.ndarray) -> None:
        super().__init__(source)
        self._labels = labels

    def batch(self, indices: Indices) -> Batch:
        """Return the inputs at these indices, and the new labels."""
        return {**self.source.batch(indices), "label": self._labels[indices]}

    def labels(self) -> np.ndarray:
        """Return all new labels in order, [n]."""
        return self._labels


def with_label_noise(
    source: Source, share: float, num_classes: int, seed: int
) -> tuple[Source, Indices]:
    """Replace round(share * n) of a source's labels by one of the other classes.

    Which examples, and which of the num_classes - 1 others, is uniform, from the seed alone.

    Args:
        source: labels are classes.
        share: between 0 and 1; 0 gives the source itself.
        num_classes: labels are 0 to num_classes - 1.
        seed: at least 0.

    Returns:
        The source, and the sorted indices of the examples whose labels are wrong now.

    Raises:
        DataError: there is no other class, as in a regression.

    References:
        Foret et al.: Sharpness-Aware Minimization for Efficiently Improving Generalization,
        ICLR 2021, section 3.3.
    """
    if share == 0:
        return source, np.empty(0, np.int64)
    if num_classes < 2:
        raise DataError(
            "dataset.label_noise replaces a class by another, and these data have no classes or "
            "one; set it to 0"
        )
    labels = source.labels().copy()
    rng = np.random.default_rng((seed, _TAG))
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    steps = rng.integers(1, num_classes, len(chosen))
    labels[chosen] = (labels[chosen] + steps) % num_classes
    return RelabeledSource(source, labels), np.sort(chosen)
