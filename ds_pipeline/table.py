"""Inputs that float32 does not hold."""

import functools

import numpy as np

from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, Source, View


class StandardizedSource(View):
    """Examples whose inputs are (x - mean) / std, computed in float64 and given as float32.

    A batch with a result that is too large for float32 is a DataError.

    Args:
        source: examples with "input" [b, ..., c], which float32 does not hold.
        mean: float64 [c].
        std: float64 [c].

    Example:
        >>> from ds_pipeline.source import InMemorySource
        >>> source = InMemorySource(np.array([[1e12], [1e12 + 1]]), [0, 1])
        >>> StandardizedSource(source, np.array([1e12]), np.array([0.5])).batch([1])["input"]
        array([[2.]], dtype=float32)
    """

    def __init__(self, source: Source, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__(source, functools.partial(_standardized, mean, std))


def _standardized(mean: np.ndarray, std: np.ndarray, batch: Batch) -> Batch:
    with np.errstate(over="ignore"):  # it is said below
        inputs = ((batch["input"] - mean) / std).astype(np.float32)
    if not np.isfinite(inputs).all():
        column = int(np.argwhere(~np.isfinite(inputs))[0][-1])
        raise DataError(
            f"a value of column {column + 1} is too large for float32 once the mean "
            f"{mean[column]:g} is subtracted and it is divided by {std[column]:g}"
        )
    return {**batch, "input": inputs}
