"""Sources that change the columns of another's inputs."""

import numpy as np

from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, Indices, Source, View


class ColumnSource(View):
    """Some of the columns of a table, in another order.

    Args:
        source: examples with "input" [b, d].
        columns: indices of the columns.

    Example:
        >>> from ds_pipeline.source import InMemorySource
        >>> source = ColumnSource(InMemorySource(np.array([[1.0, 2, 3]]), [0]), [2, 0])
        >>> source.batch(np.array([0]))["input"].tolist()
        [[3.0, 1.0]]
    """

    def __init__(self, source: Source, columns: list[int]) -> None:
        super().__init__(source)
        self.columns = columns

    def batch(self, indices: Indices) -> Batch:
        """Return the examples at these indices, with these columns."""
        batch = self.source.batch(indices)
        return {**batch, "input": batch["input"][:, self.columns]}


class StandardizedSource(View):
    """Examples whose inputs are (x - mean) / std, computed in float64 and given as float32.

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
        super().__init__(source)
        self.mean = mean
        self.std = std

    def batch(self, indices: Indices) -> Batch:
        """Return the examples at these indices, standardized.

        Raises:
            DataError: a result is too large for float32.
        """
        batch = self.source.batch(indices)
        with np.errstate(over="ignore"):  # it is said below
            inputs = ((batch["input"] - self.mean) / self.std).astype(np.float32)
        if not np.isfinite(inputs).all():
            column = int(np.argwhere(~np.isfinite(inputs))[0][-1])
            raise DataError(
                f"a value of column {column + 1} is too large for float32 once the mean "
                f"{self.mean[column]:g} is subtracted and it is divided by {self.std[column]:g}"
            )
        return {**batch, "input": inputs}
