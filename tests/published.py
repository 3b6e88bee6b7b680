"""Read what the published code computes: archives, the rule of their weights, their thinning.

`meta` in each archive of tests/reference/published explains its keys, inputs and hyperparameters.
"""

import functools
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "reference" / "published"


@functools.cache
def load(name: str) -> tuple[Any, dict[str, Any]]:
    """Return an archive (arrays by key, read when asked for) and its meta."""
    arrays = np.load(FOLDER / f"{name}.npz", allow_pickle=False)
    return arrays, json.loads(str(arrays["meta"]))


def weight(name: str, shape: tuple[int, ...], statistics: bool = True) -> np.ndarray:
    """Return the weight of a name by the archives' rule, in float32.

    With z standard normal, seeded by the name: a kernel is z / sqrt(inputs), a scale 1 + 0.1 z, a
    mean 0.2 z, a variance 0.5 + sigmoid(z), all else 0.1 z.

    Args:
        name: with slashes; what comes after the last one is the kind.
        shape: of the weight.
        statistics: False: means are 0 and variances 1.
    """
    z = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape)
    match name.rpartition("/")[2]:
        case "kernel":
            value = z / math.sqrt(math.prod(shape[:-1]))
        case "scale":
            value = 1 + 0.1 * z
        case "mean":
            value = 0.2 * z if statistics else np.zeros(shape)
        case "var":
            value = 0.5 + 1 / (1 + np.exp(-z)) if statistics else np.ones(shape)
        case _:
            value = 0.1 * z
    return value.astype(np.float32)


def thinned(array: Any, count: int) -> np.ndarray:
    """Return every ceil(size / count)-th element of the flattened array."""
    flat = np.asarray(array).ravel()
    return flat[:: math.ceil(flat.size / count)]


def assert_drawn_alike(name: str, array: Any, expected: dict[str, Any]) -> None:
    """Assert that initial weights are drawn from the distribution of an archive's.

    By mean, standard deviation and kind: a kurtosis of 3 is normal, 1.8 uniform, 2.37 cut off at
    two deviations. Both have been drawn; their differences' deviations are those of normal samples.

    Args:
        name: for messages.
        array: ours.
        expected: of theirs, shape, mean, std and kurtosis.
    """
    values = np.asarray(array, np.float64)
    assert values.shape == tuple(expected["shape"]), name
    mean, std, size = values.mean(), values.std(), values.size
    if expected["std"] == 0:
        assert (mean, std) == (expected["mean"], 0), name
        return
    assert abs(mean - expected["mean"]) < 5 * expected["std"] * math.sqrt(2 / size), name
    assert abs(std / expected["std"] - 1) < 5 * math.sqrt(1 / size), name
    kurtosis = ((values - mean) ** 4).mean() / std**4
    assert abs(kurtosis - expected["kurtosis"]) < 5 * math.sqrt(48 / size), name
