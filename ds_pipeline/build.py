"""The data set that a config asks for."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ds_pipeline import bundled
from ds_pipeline.augment import Augment, chain, get_augment, get_erase, get_mix
from ds_pipeline.csv_file import load_csv
from ds_pipeline.dataset import Dataset
from ds_pipeline.decode import DecodedSource, center_crop, inception_crop
from ds_pipeline.errors import DataError, escaped
from ds_pipeline.forecast import WindowSource, load_forecast
from ds_pipeline.identity import (
    check_inputs,
    identity,
    identity_problems,
    innermost,
    known_columns,
    known_statistics,
    matched,
)
from ds_pipeline.idx_file import load_idx
from ds_pipeline.image_folder import load_image_folder
from ds_pipeline.label_noise import with_label_noise
from ds_pipeline.labels_file import with_labels_of
from ds_pipeline.loader import default_workers
from ds_pipeline.npz_file import load_npz
from ds_pipeline.source import (
    InMemorySource,
    Source,
    SubsetSource,
    channel_statistics,
    split_indices,
    stratified_draw,
)
from ds_pipeline.splits import Splits, check_splits, constant_columns
from ds_pipeline.stand_in import stand_in
from ds_pipeline.table import StandardizedSource
from ds_pipeline.tfds_source import load_tfds, prepared_names
from ds_pipeline.ucr import load_ucr

_SUBSET_TAG = 0x5375

# For encoded photographs: the published mean and deviation of ImageNet's training images, from 0
# to 1, and the side to which they are brought.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ENCODED_SIZE = 224
# Image-level augmentations that begin with a random crop at any scale of encoded photographs,
# and what follows it: the crop flips, so the policy needs no basic augmentation.
_AFTER_CROP = {
    "inception": "none",
    "autoaugment": "aa-only",
    "aa-only": "aa-only",
    "randaugment": "randaugment",
}


def build_dataset(
    config: Any,
    cache_dir: Path | None = None,
    known: Mapping[str, Any] | None = None,
    stands_in: bool = False,
) -> Dataset:
    """Build the data set that a config asks for, with its augmentation.

    With `known`, it is brought to a run that was trained on these or on other data: classes are
    numbered as there, columns are in that order, and that mean and deviation normalize it.

    Args:
        config: reads `seeds` (of splits, subset and label noise), `use_test_set`,
            `early_stopping.metric` and all keys of
            `dataset` that config/default.py lists.
        cache_dir: where lists of an image folder's files are kept; None: nowhere.
        known: what `identity` returned when the run was trained, from a file; None: train anew.
        stands_in: of a data set whose published size is known, see `stand_in`, take that and read
            nothing.

    Raises:
        DataError: an unknown name, data that are missing, damaged or of another kind, or that
            do not match the config or the run.
    """
    keys = config.dataset
    stood_in = stand_in(keys) if stands_in else None
    splits = stood_in or _read(keys, config.seeds, config.use_test_set, cache_dir, known)
    if known is not None:
        splits = matched(known, splits)
    where = " in ".join(filter(None, (keys.dataset_name, keys.data_dir)))
    warnings = [*splits.warnings, *check_splits(where, splits)]
    _check_requested(keys, splits)
    num_classes = len(splits.class_names) or 1
    train, evaluation, evaluation_name, validation = _split(config, splits)
    if keys.subset is not None:
        train = _subset(train, keys.subset, config.seeds, keys.shuffle)
    size = keys.image_size or _ENCODED_SIZE
    shape, dtype = splits.shape or (size, size, 3), splits.dtype
    if known is None:
        mean, std = _statistics(keys, splits, train)
    else:
        check_inputs(known, shape, dtype)
        mean, std = known_statistics(known, shape[-1])
    warnings += constant_columns(mean, std, splits.columns)
    train, wrong = with_label_noise(train, keys.label_noise, num_classes, config.seeds)
    if keys.labels_file is not None and stood_in is None:
        file = _path(keys.labels_file, "an .npz file", "dataset.labels_file")
        train, wrong = with_labels_of(
            file, keys.labels_array, train, num_classes, numbers=splits.numbers
        )
    crop, level, filling = None, keys.image_level_augmentations, mean
    if splits.shape is None:
        train, evaluation, validation, crop = _decoded(train, evaluation, validation, size, level)
        level = _AFTER_CROP.get(level, level)
    # What a run had to be trained on so is evaluated so, too.
    standardized = splits.standardized
    if not standardized and "float64" in (dtype.name, known and known.get("dtype")):
        standardized = True
        standardize = partial(StandardizedSource, mean=mean, std=std)
        train, evaluation = standardize(train), standardize(evaluation)
        validation = validation and standardize(validation)
        dtype, filling = np.dtype(np.float32), np.zeros_like(mean)
    augment = get_augment(
        level,
        shape=shape,
        dtype=dtype,
        policy=_policy(keys),
        padding=keys.padding,
        randaugment_layers=keys.randaugment_layers,
        randaugment_magnitude=keys.randaugment_magnitude,
    )
    dataset = Dataset(
        name=keys.dataset_name,
        train=train,
        evaluation=evaluation,
        evaluation_name=evaluation_name,
        shape=shape,
        class_names=splits.class_names,
        mean=mean,
        std=std,
        dtype=splits.dtype,
        columns=splits.columns,
        standardized=standardized,
        augment=chain([step for step in (crop, augment) if step is not None]),
        mix=get_mix(
            keys.batch_level_augmentations,
            num_classes=num_classes,
            mixup_alpha=keys.mixup_alpha,
            cutmix_alpha=keys.cutmix_alpha,
            shape=shape,
        ),
        erase=get_erase(
            keys.batch_level_augmentations,
            shape=shape,
            mean=filling,
            dtype=dtype,
            cutout_size=keys.cutout_size,
        ),
        shuffle=keys.shuffle,
        keep_last_batch=keys.keep_last_batch,
        workers=_workers(keys.workers, splits.train),
        warnings=tuple(map(escaped, warnings)),
        task=splits.task,
        target_shape=splits.target_shape,
        validation=validation,
        wrong_labels=wrong,
    )
    if known is not None and (problems := identity_problems(known, identity(dataset))):
        other = f"the data are not those of the training: {'; '.join(problems)}"
        dataset = replace(dataset, warnings=(*dataset.warnings, other))
    return dataset


def dataset_names(data_dir: str | None = None) -> tuple[str, ...]:
    """Return the names of the data sets that can be loaded now: bundled ones and TFDS sets.

    Args:
        data_dir: folder of the prepared TFDS sets; None: the environment's TFDS_DATA_DIR, else
            ~/tensorflow_datasets.

    Example:
        >>> dataset_names("a-folder-that-does-not-exist")
        ('digits', 'iris', 'wine', 'breast_cancer', 'diabetes')
    """
    return (*bundled.NAMES, *prepared_names(_tfds_dir(data_dir)))


def _read(
    keys: Any,
    seed: int,
    use_test_set: bool,
    cache_dir: Path | None,
    known: Mapping[str, Any] | None,
) -> Splits:
    """Read the files of the kind of data set that its name says."""
    name = keys.dataset_name
    is_regression = keys.task == "regression"
    test = keys.test_fraction, seed, keys.split
    if name in bundled.NAMES:
        splits = bundled.load_bundled(name, *test)
    elif name == "image_folder":
        splits = load_image_folder(_named_path(keys, "the image folder"), use_test_set, cache_dir)
    elif name.startswith("ucr/"):
        folder = _named_path(keys, "the folder of the UCR sets")
        normalize = keys.mean is None and keys.std is None
        splits = load_ucr(folder, name.removeprefix("ucr/"), normalize)
    elif name == "csv":
        splits = load_csv(_named_path(keys, "the CSV file"), keys.target, is_regression, *test)
    elif name == "forecast":
        splits = _read_series(keys, known)
    elif name == "npz":
        splits = load_npz(_named_path(keys, "the .npz file"), is_regression, *test)
    elif name == "idx":
        splits = load_idx(_named_path(keys, "the folder of the idx files"))
    else:
        data_dir = _tfds_dir(keys.data_dir)
        return load_tfds(name.removeprefix("tfds/"), data_dir, keys.train_split, use_test_set)
    if keys.train_split != "train":
        raise DataError(
            f"dataset.train_split {keys.train_split} is for TFDS sets; '{name}' has 'train' alone"
        )
    return splits


def _read_series(keys: Any, known: Mapping[str, Any] | None) -> Splits:
    """Read a series; its windows are of the channels, and standardized, as those of a known run."""
    for name, given in (("mean", keys.mean), ("std", keys.std)):
        if given is not None:
            raise DataError(
                f"dataset.{name} = {given}: a series to forecast is standardized by its "
                "training part; set it to None"
            )
    file = None if keys.data_dir is None else _named_path(keys, "the CSV file")
    columns: tuple[str, ...] | None = None if keys.target is None else (keys.target,)
    statistics = None
    if known is not None:
        columns = known_columns(known)
        statistics = known_statistics(known, len(columns))
    return load_forecast(
        file, keys.lookback, keys.horizon, columns, statistics, allow_gaps=keys.allow_gaps
    )


def _tfds_dir(data_dir: str | None) -> Path:
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return _path(data_dir, "the folder that holds the prepared TFDS sets")


def _named_path(keys: Any, meaning: str) -> Path:
    if keys.data_dir is None:
        raise DataError(f"'{keys.dataset_name}' needs dataset.data_dir: set it to {meaning}")
    return _path(keys.data_dir, meaning)


def _path(text: str, meaning: str, key: str = "dataset.data_dir") -> Path:
    if not text.strip():
        raise DataError(f"{key} is empty; set it to {meaning}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{text} names the home of a user who does not exist here; set {key} to {meaning}"
        ) from error


def _check_requested(keys: Any, splits: Splits) -> None:
    """Raise DataError unless the data are as the config expects; encoded images get any size."""
    shape = splits.shape or (keys.image_size, keys.image_size, 3)
    if keys.task not in (None, splits.task):
        raise DataError(
            f"dataset.task {keys.task} does not match '{keys.dataset_name}', whose labels are "
            f"{'classes' if splits.class_names else 'numbers to predict'}; set it to None"
        )
    is_image = len(shape) == 3
    size = f"{shape[0]} x {shape[1]}" if is_image else "no images"
    channels = str(shape[-1]) if len(shape) > 1 else "vectors"
    classes = str(len(splits.class_names) or "numbers to predict")
    found = (
        ("image_size", is_image and shape[0] == shape[1] == keys.image_size, size),
        ("num_channels", channels == str(keys.num_channels), channels),
        ("num_classes", len(splits.class_names) == keys.num_classes, classes),
    )
    for key, matches, actual in found:
        wanted = getattr(keys, key)
        if wanted is not None and not matches:
            raise DataError(
                f"dataset.{key} {wanted} does not match '{keys.dataset_name}', whose data have "
                f"{actual}; set it to {'that, or to None' if actual[0].isdigit() else 'None'}"
            )


def _split(config: Any, splits: Splits) -> tuple[Source, Source, str, Source | None]:
    """Return (train, evaluation, its name, validation).

    Evaluated is the test set, or the validation part: that of the data, else examples held out of
    train. Beside the test set there is a validation part where early stopping asks for it.
    """
    train, validation = splits.train, splits.validation
    test = splits.evaluation if config.use_test_set else None
    chosen_by_validation = (config.early_stopping.metric or "").startswith("validation_")
    if test is not None and (splits.evaluation_name == "validation" or not chosen_by_validation):
        return train, test, splits.evaluation_name, None
    if validation is None:
        kept, held_out = split_indices(
            config.dataset.split, train.labels(), config.dataset.validation_fraction, config.seeds
        )
        train, validation = SubsetSource(train, kept), SubsetSource(train, held_out)
    if test is None:
        return train, validation, "validation", None
    return train, test, splits.evaluation_name, validation


def _decoded(
    train: Source, evaluation: Source, validation: Source | None, size: int, level: str
) -> tuple[Source, Source, Source | None, Augment | None]:
    """Bring encoded images to one size: (train, evaluation, validation, crop of train)."""
    crop = inception_crop(size) if level in _AFTER_CROP else None
    center = center_crop(size) if crop else center_crop(size, 1.0)
    held = validation and DecodedSource(validation, center)
    return (
        train if crop else DecodedSource(train, center),
        DecodedSource(evaluation, center),
        held,
        crop,
    )


def _policy(keys: Any) -> str:
    """Return AutoAugment's policy: the one named, or that of the data it was found on."""
    name = keys.dataset_name.removeprefix("tfds/")
    found_on = next((each for each in ("cifar", "svhn") if name.startswith(each)), "imagenet")
    return keys.autoaugment_policy or found_on


def _subset(train: Source, subset: float, seed: int, shuffle: bool) -> Source:
    """Draw a count (from 1 up) or a share of the examples, the same share of each class.

    They are sorted by class, or, where they are not to be shuffled, in their order.
    """
    count = round(subset * len(train)) if subset < 1 else round(subset)
    if not 1 <= count <= len(train):
        raise DataError(
            f"dataset.subset {subset:.10g} asks for {count} of {len(train)} training examples; "
            f"set it to a share from {1 / len(train):.1g} to below 1, or to a number up to "
            f"{len(train)}"
        )
    drawn = stratified_draw(train.labels(), count, (seed, _SUBSET_TAG))
    return SubsetSource(train, drawn if shuffle else np.sort(drawn))


def _statistics(keys: Any, splits: Splits, train: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation: the config's, else the published ones, else those of train."""
    channels = 3 if splits.shape is None else splits.shape[-1]
    levels = 255 if splits.dtype == np.uint8 else 1
    mean = _given("mean", keys.mean, channels, levels)
    std = _given("std", keys.std, channels, levels)
    if mean is not None and std is not None:
        return mean, std
    if splits.shape is None:
        other = np.multiply(_IMAGENET_MEAN, levels), np.multiply(_IMAGENET_STD, levels)
    elif splits.mean is not None and splits.std is not None:
        other = splits.mean.astype(np.float64), splits.std.astype(np.float64)
    else:
        other = channel_statistics(train)
    return other[0] if mean is None else mean, other[1] if std is None else std


def _given(
    name: str, values: tuple[float, ...] | None, channels: int, levels: int
) -> np.ndarray | None:
    """Return the config's statistics in the units of the raw values."""
    if values is None:
        return None
    if len(values) not in (1, channels):
        raise DataError(
            f"dataset.{name} has {len(values)} values, the data have {channels} channels; give "
            f"{channels}, or 1"
        )
    return np.full(channels, np.multiply(values, levels), np.float64)


def _workers(wanted: int | None, train: Source) -> int:
    """Count worker processes; by default none for data in memory, which each would copy."""
    if wanted is not None:
        return wanted
    in_memory = isinstance(innermost(train), (InMemorySource, WindowSource))
    return default_workers(encoded=not in_memory)
