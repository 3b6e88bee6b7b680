"""To be deleted: what `splits` and `source` have once the readers' changes are merged."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from ds_pipeline.errors import DataError, escaped
from ds_pipeline.source import Source, chunks
from ds_pipeline.splits import Splits, listing

CONSTANT = float(np.finfo(np.float32).max)


def normalized(name: str) -> str:
    """Return the one form of a class's or column's name, however it is encoded; one line."""
    return escaped(unicodedata.normalize("NFC", name))


def check_splits(name: str, splits: Splits) -> list[str]:
    """Check what every data set must be, and return warnings, a line each."""
    for split, source in (("training", splits.train), (splits.evaluation_name, splits.evaluation)):
        if source is not None and not len(source):
            raise DataError(f"{name}: the {split} split has no examples")
    if len(splits.class_names) == 1:
        raise DataError(
            f"{name}: a classification needs two classes, all labels are '{splits.class_names[0]}'"
        )
    return []


def constant_columns(mean: np.ndarray, std: np.ndarray, columns: Sequence[str]) -> list[str]:
    """Return a warning that names the columns which tell nothing; empty where there are none."""
    names = columns or [str(i + 1) for i in range(len(mean))]
    found = [f"column {names[int(i)]} ({mean[i]:.17g})" for i in np.flatnonzero(std == CONSTANT)]
    if not found:
        return []
    return [f"constant in all training examples, so standardized to 0: {listing(found)}"]


def channel_statistics(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of each channel, float64."""
    values = np.concatenate([batch["input"] for batch in chunks(source)]).astype(np.float64)
    values = values.reshape(-1, values.shape[-1])
    mean, std = values.mean(axis=0), values.std(axis=0)
    return mean, np.where(std <= 8 * np.finfo(np.float64).eps * np.abs(mean), CONSTANT, std)
