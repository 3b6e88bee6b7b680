"""Images in MNIST's own format, as of Fashion-MNIST, KMNIST and EMNIST: four files of bytes.

Each begins with a number of four bytes: 0, 0, the type of its values (8: bytes) and how many axes
they have; then the length of each axis, four bytes, the highest first; then the values.
"""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from ds_pipeline.errors import DataError, one_line
from ds_pipeline.files import check_unpacked, opened
from ds_pipeline.source import InMemorySource
from ds_pipeline.splits import Splits, encode_classes

_BYTES = 8


def load_idx(folder: Path) -> Splits:
    """Load train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, the test split.

    Args:
        folder: with the four files, as they are or compressed (.gz).

    Returns:
        Images uint8 [n, h, w, 1]; classes are the labels, sorted.

    Raises:
        DataError: a file is missing, damaged, truncated or of another kind; there are not as many
            labels as images; images of both splits differ in size.
    """
    train, train_labels = _read_split(folder, "train")
    test, test_labels = _read_split(folder, "t10k")
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{folder}: images of {_size(train)} pixels for training, and of {_size(test)} to test"
        )
    labels, labels_of_test, class_names = encode_classes(str(folder), train_labels, test_labels)
    return Splits(
        train=InMemorySource(train, labels),
        evaluation=InMemorySource(test, labels_of_test),
        evaluation_name="test",
        shape=train.shape[1:],
        dtype=train.dtype,
        class_names=class_names,
    )


def _read_split(folder: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """Return the images [n, h, w, 1] and the labels of a split."""
    images = _read(folder, f"{name}-images-idx3-ubyte", axes=3)
    labels = _read(folder, f"{name}-labels-idx1-ubyte", axes=1)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {len(images)} images in {name}-images-idx3-ubyte, and {len(labels)} labels "
            f"in {name}-labels-idx1-ubyte; they must be as many"
        )
    return images[..., None], [str(label) for label in labels.tolist()]


def _read(folder: Path, name: str, axes: int) -> np.ndarray:
    """Return the array of a file, which may be compressed."""
    file = folder / name
    if not os.path.exists(file) and os.path.exists(folder / f"{name}.gz"):
        file = folder / f"{name}.gz"
    with opened(file, "the folder of the four idx files, train-... and t10k-...") as stream:
        unpacked = gzip.GzipFile(fileobj=stream) if file.suffix == ".gz" else stream
        try:
            return _array(file, unpacked, axes, os.fstat(stream.fileno()).st_size)
        except (EOFError, zlib.error) as error:
            raise DataError(f"{file} is damaged ({one_line(error)}); get it again") from error


def _array(file: Path, stream: IO[bytes] | gzip.GzipFile, axes: int, packed: int) -> np.ndarray:
    """Return the array that a stream holds, of a file of `packed` bytes."""
    magic, expected = stream.read(4), bytes((0, 0, _BYTES, axes))
    if magic != expected:
        raise DataError(
            f"{file} begins with the bytes {magic.hex(' ') or 'of an empty file'}, not with "
            f"{expected.hex(' ')}: it is no idx file of bytes with {axes} axes"
        )
    lengths = stream.read(4 * axes)
    shape = tuple(np.frombuffer(lengths[: len(lengths) // 4 * 4], ">u4").tolist())
    size = math.prod(shape)
    check_unpacked(file, packed, size)
    values = stream.read(size + 1)
    if len(shape) < axes or len(values) < size:
        raise DataError(f"{file} is truncated: {len(values):,} values of {size:,}; get it again")
    if len(values) > size:
        raise DataError(f"{file} holds more than the {size:,} values that it says; get it again")
    if not size:
        raise DataError(f"{file} has no examples")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _size(images: np.ndarray) -> str:
    return f"{images.shape[1]} x {images.shape[2]}"
