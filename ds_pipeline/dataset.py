"""The data set that a config asks for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from ds_pipeline.augment import Augment, get_augment
from ds_pipeline.digits import load_digits
from ds_pipeline.errors import DataError
from ds_pipeline.source import (
    InMemorySource,
    Source,
    SubsetSource,
    channel_statistics,
    chunks,
    stratified_draw,
    stratified_split,
)
from ds_pipeline.tfds_source import (
    TfdsSplit,
    find_directory,
    in_memory,
    open_builder,
    parse_name,
    prepared_names,
)

# Mean and standard deviation of the training split's channels, for values from 0 to 1, as they
# are in common use; those of mnist and cifar10 agree with the files of TFDS to all digits.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.13066048,), (0.30810779,)),
    # The pair of the PyTorch and torchvision examples.
    "fashion_mnist": ((0.2860,), (0.3530,)),
    # Used by the SAM and GNP authors' pipelines, among many.
    "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
    # Of the 73,257 training images, without the extra ones.
    "svhn_cropped": ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614)),
}

_SUBSET_TAG = 0x5375


@dataclass(frozen=True, eq=False)
class Dataset:
    """What training and evaluation need to know of a data set.

    Args:
        name: as in the config.
        train: examples to train on.
        evaluation: examples to evaluate on.
        evaluation_name: 'test' or 'validation'.
        shape: of an image, (h, w, c).
        num_classes: labels are 0 to num_classes - 1.
        class_names: one a class.
        mean: float32 [c], in the units of the raw values (0 to 255 for uint8 photographs).
        std: float32 [c], in the same units.
        augment: changes training batches; None: nothing does.
    """

    name: str
    train: Source
    evaluation: Source
    evaluation_name: str
    shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    augment: Augment | None = None

    def normalize(self, images: npt.ArrayLike | jax.Array) -> jax.Array:
        """(x - mean) / std, to be called inside the compiled step: raw bytes go to the device.

        Args:
            images: [b, h, w, c], uint8 or float32, raw values.

        Returns:
            float32 [b, h, w, c].

        Example:
            >>> images, labels = np.full((4, 8, 8, 1), 3, np.uint8), np.zeros(4)
            >>> data = from_arrays("three", (images, labels), (images, labels))
            >>> float(data.normalize(images).max())
            0.0
        """
        values = jnp.asarray(images).astype(jnp.float32)
        channels = (1,) * (values.ndim - 1) + (-1,)
        return (values - self.mean.reshape(channels)) / self.std.reshape(channels)


def build_dataset(config: Any) -> Dataset:
    """The data set that a config asks for, with its augmentation.

    Args:
        config: reads `seeds` (of the splits), `use_test_set` and from `dataset`: `dataset_name`,
            `data_dir` (None: the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets),
            `validation_fraction`, `subset` (None: all training examples),
            `image_level_augmentations`, `batch_level_augmentations`, `cutout_size`, and what the
            data must match where it is not None: `image_size`, `num_classes`, `num_channels`.

    Raises:
        DataError: an unknown name, data that are missing, damaged or of another kind, or that
            do not match the config.

    Example:
        >>> from types import SimpleNamespace
        >>> keys = SimpleNamespace(
        ...     dataset_name="digits", data_dir=None, validation_fraction=0.1,
        ...     image_level_augmentations="none", batch_level_augmentations="none",
        ...     cutout_size=16, image_size=8, num_classes=10, num_channels=None, subset=None)
        >>> data = build_dataset(SimpleNamespace(seeds=0, use_test_set=False, dataset=keys))
        >>> data.evaluation_name, len(data.train), len(data.evaluation)
        ('validation', 1294, 144)
    """
    keys = config.dataset
    if keys.dataset_name == "digits":
        parts = _digits(config.seeds, config.use_test_set)
    else:
        parts = _tfds(keys.dataset_name, _data_dir(keys.data_dir), config.use_test_set)
    _check_requested(keys, parts)
    train, evaluation = parts.train, parts.evaluation
    if evaluation is None:
        kept, held_out = stratified_split(_labels(train), keys.validation_fraction, config.seeds)
        train, evaluation = SubsetSource(train, kept), SubsetSource(train, held_out)
    if keys.subset is not None:
        train = _subset(train, keys.subset, config.seeds)
    mean, std = _statistics(parts.statistics_name, parts.shape[-1], train)
    augment = get_augment(
        keys.image_level_augmentations,
        keys.batch_level_augmentations,
        shape=parts.shape,
        mean=mean,
        dtype=parts.dtype,
        cutout_size=keys.cutout_size,
    )
    return Dataset(
        name=keys.dataset_name,
        train=train,
        evaluation=evaluation,
        evaluation_name=parts.evaluation_name,
        shape=parts.shape,
        num_classes=len(parts.class_names),
        class_names=parts.class_names,
        mean=mean,
        std=std,
        augment=augment,
    )


def from_arrays(
    name: str,
    train: tuple[np.ndarray, npt.ArrayLike],
    evaluation: tuple[np.ndarray, npt.ArrayLike],
    augment: Augment | None = None,
) -> Dataset:
    """A data set from arrays in memory, with the training images' mean and deviation.

    Args:
        name: for messages.
        train: (images [n, h, w, c], labels [n]).
        evaluation: the same of the examples to evaluate on.
        augment: changes training batches; None: nothing does.

    Example:
        >>> images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 0])
        >>> from_arrays("mine", (images, labels), (images, labels)).num_classes
        3
    """
    source, held_out = InMemorySource(*train), InMemorySource(*evaluation)
    num_classes = int(max(source.labels.max(), held_out.labels.max())) + 1
    mean, std = channel_statistics(source)
    return Dataset(
        name=name,
        train=source,
        evaluation=held_out,
        evaluation_name="test",
        shape=source.images.shape[1:],
        num_classes=num_classes,
        class_names=tuple(str(i) for i in range(num_classes)),
        mean=mean,
        std=std,
        augment=augment,
    )


def dataset_names(data_dir: str | None = None) -> tuple[str, ...]:
    """Names of the data sets that can be loaded right now: digits, and what is prepared.

    Args:
        data_dir: folder of the prepared TFDS sets; None: the environment's TFDS_DATA_DIR, else
            ~/tensorflow_datasets.

    Example:
        >>> dataset_names("a-folder-that-does-not-exist")
        ('digits',)
    """
    return ("digits", *prepared_names(_data_dir(data_dir)))


@dataclass(frozen=True)
class _Parts:
    """A data set as its files give it; evaluation is None where a part of train is held out."""

    train: Source
    evaluation: Source | None
    evaluation_name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    class_names: tuple[str, ...]
    statistics_name: str


def _digits(seed: int, use_test_set: bool) -> _Parts:
    train, test = load_digits(seed)
    return _Parts(
        train=train,
        evaluation=test if use_test_set else None,
        evaluation_name="test" if use_test_set else "validation",
        shape=train.images.shape[1:],
        dtype=train.images.dtype,
        class_names=tuple(str(i) for i in range(10)),
        statistics_name="digits",
    )


def _tfds(text: str, data_dir: Path, use_test_set: bool) -> _Parts:
    name = parse_name(text)
    directory = find_directory(data_dir, name)
    evaluation_split = _evaluation_split(directory) if use_test_set else None
    train = TfdsSplit(directory, "train")
    evaluation = TfdsSplit(directory, evaluation_split) if evaluation_split else None
    if evaluation is not None and evaluation.shape != train.shape:
        raise DataError(
            f"{directory}: images of shape {train.shape} in split 'train' and "
            f"{evaluation.shape} in split '{evaluation.split}'"
        )
    return _Parts(
        train=in_memory(train, name.full),
        evaluation=None if evaluation is None else in_memory(evaluation, name.full),
        evaluation_name=evaluation_split or "validation",
        shape=train.shape,
        dtype=train.dtype,
        class_names=train.class_names,
        statistics_name=name.name if train.dtype == np.uint8 else "",
    )


def _evaluation_split(directory: Path) -> str:
    splits = list(open_builder(directory).info.splits)
    for split in ("test", "validation"):
        if split in splits:
            return split
    raise DataError(
        f"{directory} has neither a split 'test' nor 'validation', only {', '.join(splits)}; "
        "set use_test_set to False to hold out a part of 'train'"
    )


def _data_dir(data_dir: str | None) -> Path:
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if not data_dir.strip():
        raise DataError(
            "dataset.data_dir is empty; set it to the folder that holds the prepared TFDS sets"
        )
    return Path(data_dir).expanduser()


def _check_requested(keys: Any, parts: _Parts) -> None:
    height, width, channels = parts.shape
    found: tuple[tuple[str, Any, bool, str], ...] = (
        ("image_size", keys.image_size, height == width == keys.image_size, f"{height} x {width}"),
        ("num_channels", keys.num_channels, channels == keys.num_channels, str(channels)),
        (
            "num_classes",
            keys.num_classes,
            len(parts.class_names) == keys.num_classes,
            str(len(parts.class_names)),
        ),
    )
    for key, wanted, matches, actual in found:
        if wanted is not None and not matches:
            raise DataError(
                f"dataset.{key} {wanted} does not match '{keys.dataset_name}', whose data have "
                f"{actual}; set it to that, or to None"
            )


def _subset(train: Source, subset: float, seed: int) -> Source:
    """A number (from 1 up) or a share of the examples, the same share of each class."""
    count = round(subset * len(train)) if subset < 1 else round(subset)
    if not 1 <= count <= len(train):
        raise DataError(
            f"dataset.subset {subset:.10g} asks for {count} of {len(train)} training examples; "
            f"set it to a share below 1, or to a number up to {len(train)}"
        )
    return SubsetSource(train, stratified_draw(_labels(train), count, (seed, _SUBSET_TAG)))


def _labels(source: Source) -> np.ndarray:
    if isinstance(source, InMemorySource):
        return source.labels
    return np.concatenate([batch["label"] for batch in chunks(source)])


def _statistics(name: str, channels: int, train: Source) -> tuple[np.ndarray, np.ndarray]:
    """Published mean and deviation in levels from 0 to 255, or those of the training part."""
    published = _STATISTICS.get(name)
    if published is None or len(published[0]) != channels:
        return channel_statistics(train)
    mean, std = (np.array(values) * 255 for values in published)
    return mean.astype(np.float32), std.astype(np.float32)
