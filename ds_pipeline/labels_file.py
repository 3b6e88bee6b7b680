"""Other labels for the training examples of a data set, such as those that people gave it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ds_pipeline.errors import DataError
from ds_pipeline.label_noise import RelabeledSource
from ds_pipeline.npz_file import read_arrays
from ds_pipeline.source import Indices, Source, SubsetSource, View
from ds_pipeline.splits import listing, unknown_name


class FileLabels(RelabeledSource):
    """Another source's inputs with the labels of a file, which are data as they are."""


def with_labels_of(
    file: Path,
    name: str | None,
    source: Source,
    num_classes: int,
    numbers: Callable[[], Indices] | None = None,
) -> tuple[Source, Indices]:
    """Replace a source's labels by those of a file: entry i is that of the example with number i.

    Args:
        file: .npz, with an array of as many whole numbers as there are examples in the data that
            `source` is of, or is drawn from.
        name: of the array.
        source: labels are classes.
        num_classes: labels are 0 to num_classes - 1.
        numbers: returns the number of each of those examples; None: their order.

    Returns:
        The source, and the sorted indices of the examples whose label is another than their own.

    Raises:
        DataError: the file cannot be read or has no such array; that has another length, type or
            range; the source's labels are no classes, or the numbers none of the array's.
    """
    if num_classes < 2:
        raise DataError("dataset.labels_file has classes, and these data have none; set it to None")
    rows, count = _rows(source)
    arrays = read_arrays(
        file, lambda names: [_chosen(file, name, names)], "an .npz file", "dataset.labels_file"
    )
    (name, labels), *_ = arrays.items()
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file}: {name} holds {labels.dtype} of shape {list(labels.shape)}; allowed is a "
            f"whole number for each of the {count} examples that are read, [{count}]; for other "
            "data set dataset.labels_file to None"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise DataError(
            f"{file}: {name}[{outside[0]}] = {labels[outside[0]]} is no class; allowed are 0 to "
            f"{num_classes - 1}"
        )
    if numbers is not None:
        number_of = numbers()
        if not np.array_equal(np.sort(number_of), np.arange(count)):
            raise DataError(
                f"the numbers in the ids of the training examples are not 0 to {count - 1}, each "
                f"once, so {file} cannot be matched; set dataset.train_split to train"
            )
        rows = number_of[rows]
    given = labels[rows].astype(np.int32)
    return FileLabels(source, given), np.flatnonzero(given != source.labels())


def _chosen(file: Path, name: str | None, names: Sequence[str]) -> str:
    if name is None:
        raise DataError(
            f"which labels of {file}? set dataset.labels_array to one of {listing(names)}"
        )
    if name not in names:
        raise DataError(unknown_name(f"dataset.labels_array: {file} has no array", name, names))
    return name


def _rows(source: Source) -> tuple[Indices, int]:
    """Return each example's place in the data as they are read, and how many there are."""
    rows = np.arange(len(source))
    while isinstance(source, View):
        if isinstance(source, SubsetSource):
            rows = source.indices[rows]
        source = source.source
    return rows, len(source)
