"""Image-classification sets in TFDS' format, read without TensorFlow.

A set lies in `DATA_DIR/NAME[/CONFIG]/VERSION`: `dataset_info.json`, `features.json`, the class
names, and each split's examples in array_record files. `recipe/prepare_data.sh` writes them.
"""

import contextlib
import fnmatch
import logging
import os
import re
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from ds_pipeline.errors import DataError, nearest, one_line
from ds_pipeline.source import Batch, Indices, InMemorySource, Source

# Uint8 sets up to this size are decoded once and stay in memory; larger ones are decoded batch
# by batch.
IN_MEMORY_BYTES = 2 * 2**30

_DESCRIPTION_FILES = ("dataset_info.json", "features.json")
_FILE_FORMAT = "array_record"
_CHUNK_EXAMPLES = 256
_PROGRESS_AFTER_SECONDS = 1.0
_PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class SetName:
    """A TFDS name in its parts: `name`, `name/config`, `name:version`, `name/config:version`."""

    name: str
    config: str | None = None
    version: str | None = None

    @property
    def full(self) -> str:
        """The name as TFDS and `recipe/prepare_data.sh` take it."""
        config = f"/{self.config}" if self.config else ""
        version = f":{self.version}" if self.version else ""
        return f"{self.name}{config}{version}"


def parse_name(text: str) -> SetName:
    """Splits a TFDS name.

    Args:
        text: such as `cifar10`, `emnist/letters`, `mnist:3.0.1` or `mnist:3.*.*`.

    Raises:
        DataError: it has another form.

    Example:
        >>> parse_name("emnist/letters:3.1.0")
        SetName(name='emnist', config='letters', version='3.1.0')
    """
    match = re.fullmatch(r"(\w+)(?:/([\w.+-]+))?(?::([\w.*]+))?", text)
    if match is None:
        raise DataError(
            f"'{text}' is no data set name; allowed: 'digits', or NAME, NAME/CONFIG, NAME:VERSION "
            "of a TFDS set"
        )
    return SetName(*match.groups())


def prepared_names(data_dir: Path) -> tuple[str, ...]:
    """Names of the folders in `data_dir` that hold at least one prepared set, sorted."""
    try:
        folders = [folder for folder in data_dir.iterdir() if folder.is_dir()]
    except OSError:
        return ()
    return tuple(sorted(folder.name for folder in folders if _is_set_folder(folder)))


def tfds_names() -> tuple[str, ...]:
    """Names of the sets that the installed TFDS can prepare (not only images)."""
    import tensorflow_datasets as tfds

    # Community sets would be looked up over the network, with TensorFlow.
    return tuple(tfds.list_builders(with_community_datasets=False))


def find_directory(data_dir: Path, name: SetName) -> Path:
    """The folder with the files of a prepared set; of several versions, the newest that matches.

    Args:
        data_dir: where TFDS sets lie.
        name: what to look for.

    Raises:
        DataError: unknown name; `data_dir` missing, not a folder or not readable; the set not
            prepared there, in several configs without one being named, or incomplete.
    """
    try:
        return _find_directory(data_dir, name)
    except OSError as error:
        raise DataError(f"{data_dir} cannot be read ({one_line(error)})") from error


def _find_directory(data_dir: Path, name: SetName) -> Path:
    _check_known(data_dir, name)
    _check_readable_folder(data_dir)
    root = data_dir / name.name
    if not os.path.isdir(root):
        raise DataError(
            f"data set '{name.full}' is not prepared in {data_dir} "
            f"(prepared there: {_listing(prepared_names(data_dir))}); {_how_to(name, data_dir)}"
        )
    _check_readable_folder(root)
    root = root / name.config if name.config else root
    versions = _versions(root)
    if not versions:
        _raise_no_versions(data_dir, name, root)
    if name.version:
        wanted = [v for v in versions if fnmatch.fnmatchcase(v, name.version)]
        if not wanted:
            raise DataError(
                f"data set '{name.full}' has no such version in {data_dir}; "
                f"prepared there: {', '.join(versions)}"
            )
        versions = wanted
    directory = root / versions[-1]
    _check_readable_folder(directory)
    for file in _DESCRIPTION_FILES:
        if not os.path.isfile(directory / file):
            raise DataError(
                f"{directory} has no {file}: not a prepared TFDS set, or an incomplete one; "
                f"{_again(name, data_dir)}"
            )
    return directory


class TfdsSplit:
    """One split of a prepared set, decoded at each access.

    Args:
        directory: with dataset_info.json, features.json and the split's files.
        split: its name, such as 'train'.

    Attributes:
        shape: (h, w, c) of every image; an image of another shape raises a DataError when read.
        dtype: uint8, or float32 for any other image type.
        num_classes: of the labels.
        class_names: one a class.

    Raises:
        DataError: files missing, damaged or of another kind; not image classification; no
            examples.
    """

    def __init__(self, directory: Path, split: str) -> None:
        self.directory = directory
        self.split = split
        builder = open_builder(directory)
        info = builder.info
        if split not in info.splits:
            raise DataError(f"{directory} has no split '{split}'; it has: {', '.join(info.splits)}")
        self._files = [
            (Path(part.filename), int(part.take)) for part in info.splits[split].file_instructions
        ]
        self._check_files()
        self._image_key, self._label_key = _feature_keys(info, directory)
        label = info.features[self._label_key]
        self.num_classes = int(label.num_classes or 0)
        self.class_names = _class_names(label)
        image = info.features[self._image_key]
        self._channels = image.shape[-1]
        self._examples = self._open(builder)
        # TFDS gives its advice at the first image.
        with _quiet():
            first = self._read(np.zeros(1, np.int64))[0][self._image_key]
        decoded = self._decode(first, 0)
        self.shape: tuple[int, ...] = decoded.shape
        self.dtype = decoded.dtype
        if len(self.shape) != 3:
            raise DataError(f"{self._where(0)}: an image of shape {self.shape}, not (h, w, c)")

    def __len__(self) -> int:
        return sum(count for _, count in self._files)

    def batch(self, indices: Indices) -> Batch:
        """Reads and decodes these examples.

        Raises:
            DataError: a damaged file, an undecodable image, one of another shape, a value that
                is not finite, a label outside the classes; it names the example.
        """
        images = np.empty((len(indices), *self.shape), self.dtype)
        labels = np.empty(len(indices), np.int32)
        for row, example in enumerate(self._read(indices)):
            index = int(indices[row])
            image = self._decode(example[self._image_key], index)
            if image.shape != self.shape:
                raise DataError(
                    f"{self._where(index)}: an image of shape {_by(image.shape)}, but example 0 "
                    f"has {_by(self.shape)}; only sets whose images have one shape can be read"
                )
            label = self._label(example[self._label_key], index)
            if not 0 <= label < self.num_classes:
                raise DataError(
                    f"{self._where(index)}: label {label} is outside 0..{self.num_classes - 1}"
                )
            images[row] = image
            labels[row] = label
        return {"image": images, "label": labels}

    def _check_files(self) -> None:
        if not len(self):
            raise DataError(f"split '{self.split}' of {self.directory} has no examples")
        for file, _ in self._files:
            if not os.path.isfile(file):
                raise DataError(
                    f"{file} is missing: an incomplete data set; remove {self.directory} and "
                    "prepare it again with recipe/prepare_data.sh"
                )
            if not os.access(file, os.R_OK):
                raise DataError(f"{file} cannot be read: no permission")

    def _open(self, builder: Any) -> Any:
        import tensorflow_datasets as tfds

        feature = builder.info.features[self._image_key]
        # Decoding uint8 images here instead is a third faster, and converts greyscale ones.
        self._encoded = isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
        decoders = {self._image_key: tfds.decode.SkipDecoding()} if self._encoded else None
        with _quiet():
            return builder.as_data_source(self.split, decoders=decoders, file_format=_FILE_FORMAT)

    def _read(self, indices: Indices) -> list[dict[str, Any]]:
        try:
            return list(self._examples.__getitems__([int(i) for i in indices]))
        except Exception as error:
            if len(indices) > 1:
                # Name the example that is at fault.
                for index in indices:
                    self._read(np.array([index]))
            raise DataError(
                f"{self._where(int(indices[0]))}: cannot be read ({one_line(error)}); remove "
                f"{self.directory} and prepare it again with recipe/prepare_data.sh"
            ) from error

    def _decode(self, value: Any, index: int) -> np.ndarray:
        if value is None or (self._encoded and not value):
            raise DataError(f"{self._where(index)}: it has no '{self._image_key}'")
        try:
            image = _decode_uint8(value, self._channels) if self._encoded else np.asarray(value)
        except Exception as error:
            raise DataError(
                f"{self._where(index)}: the image cannot be decoded ({one_line(error)})"
            ) from error
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
            if not np.isfinite(image).all():
                raise DataError(
                    f"{self._where(index)}: the image holds values that are NaN or infinite"
                )
        return image

    def _label(self, value: Any, index: int) -> int:
        if value is None:
            raise DataError(f"{self._where(index)}: it has no '{self._label_key}'")
        return int(value)

    def _where(self, index: int) -> str:
        """`FILE, example 3 (17 of split 'train')`, the first counted in the file."""
        place = index
        for file, count in self._files:
            if place < count:
                return f"{file}, example {place} ({index} of split '{self.split}')"
            place -= count
        return f"{self.directory}, example {index} of split '{self.split}'"


def open_builder(directory: Path) -> Any:
    """TFDS' view of a prepared set.

    Raises:
        DataError: its description is damaged, or its files are not array_record.
    """
    import tensorflow_datasets as tfds

    try:
        with _quiet():
            builder = tfds.builder_from_directory(directory)
            formats = [file_format.value for file_format in builder.info.available_file_formats()]
            _ = list(builder.info.splits), builder.info.features
    except Exception as error:
        raise DataError(
            f"{directory}: dataset_info.json or features.json is damaged ({one_line(error)}); "
            "remove the folder and prepare it again with recipe/prepare_data.sh"
        ) from error
    if _FILE_FORMAT not in formats:
        raise DataError(
            f"{directory} is stored as {', '.join(formats) or 'an unknown format'}, which needs "
            f"TensorFlow to read; prepare it as {_FILE_FORMAT} with recipe/prepare_data.sh, "
            "in another DATA_DIR"
        )
    return builder


def in_memory(split: TfdsSplit, name: str) -> Source:
    """The split decoded into one uint8 or float32 array, where it is small; else the split.

    Args:
        split: what to read.
        name: of the data set, for the progress bar, which appears after a second, on a terminal.

    Raises:
        DataError: as `TfdsSplit.batch`.
    """
    total = len(split)
    if total * int(np.prod(split.shape)) * split.dtype.itemsize > IN_MEMORY_BYTES:
        return split
    images = np.empty((total, *split.shape), split.dtype)
    labels = np.empty(total, np.int32)

    def read(start: int) -> int:
        indices = np.arange(start, min(start + _CHUNK_EXAMPLES, total))
        batch = split.batch(indices)
        images[indices[0] : indices[-1] + 1] = batch["image"]
        labels[indices[0] : indices[-1] + 1] = batch["label"]
        return len(indices)

    bar = tqdm(
        total=total,
        desc=f"reading {name} {split.split}",
        unit=" images",
        unit_scale=True,
        disable=None,
        delay=_PROGRESS_AFTER_SECONDS,
        leave=False,
    )
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        with bar:
            for count in pool.map(read, range(0, total, _CHUNK_EXAMPLES)):
                bar.update(count)
    finally:
        pool.shutdown(cancel_futures=True)
    return InMemorySource(images, labels)


def _decode_uint8(encoded: bytes, channels: int | None) -> np.ndarray:
    mode = _PIL_MODES.get(channels or 3)
    try:
        image = PIL.Image.open(BytesIO(encoded))
    except PIL.UnidentifiedImageError:
        # Its own message is the address of the BytesIO.
        raise ValueError(f"{len(encoded)} bytes in no known image format") from None
    with image:
        pixels = np.asarray(image if image.mode == mode or mode is None else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _feature_keys(info: Any, directory: Path) -> tuple[str, str]:
    """Names of the image and of the label, or a DataError where the set has no such pair."""
    import tensorflow_datasets as tfds

    features = info.features
    images: list[str] = []
    labels: list[str] = []
    if isinstance(features, tfds.features.FeaturesDict):
        for key, feature in features.items():
            if isinstance(feature, tfds.features.ClassLabel):
                labels.append(key)
            elif isinstance(feature, tfds.features.Image) or (
                type(feature) is tfds.features.Tensor and len(feature.shape) == 3
            ):
                images.append(key)
    supervised = info.supervised_keys
    if isinstance(supervised, tuple) and len(supervised) == 2:
        image, label = supervised
        if image in images and label in labels:
            return image, label
    if len(images) == 1 and len(labels) == 1:
        return images[0], labels[0]
    raise DataError(
        f"{directory} is not an image-classification set: it needs one image and one class label, "
        f"and has the images {_listing(images)} and the labels {_listing(labels)}"
    )


def _class_names(label: Any) -> tuple[str, ...]:
    try:
        return tuple(label.names)
    except Exception:  # TFDS raises several types where no names are stored.
        return tuple(str(i) for i in range(int(label.num_classes or 0)))


def _check_known(data_dir: Path, name: SetName) -> None:
    if os.path.isdir(data_dir / name.name):
        return
    known = ("digits", *prepared_names(data_dir), *tfds_names())
    if name.name not in known:
        raise DataError(
            f"unknown data set '{name.full}'; allowed: digits, the sets prepared in {data_dir} "
            f"({_listing(prepared_names(data_dir))}) and the image-classification sets of TFDS"
            f"{nearest(name.name, known)}"
        )


def _check_readable_folder(folder: Path) -> None:
    if not os.path.exists(folder):
        raise DataError(
            f"the data folder {folder} does not exist; set dataset.data_dir to the folder that "
            "holds the prepared TFDS sets (recipe/prepare_data.sh prepares one)"
        )
    if not os.path.isdir(folder):
        raise DataError(
            f"{folder} is a file, not a folder; set dataset.data_dir to the folder that holds the "
            "prepared TFDS sets"
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"the data folder {folder} cannot be read: no permission")


def _raise_no_versions(data_dir: Path, name: SetName, root: Path) -> None:
    parent = data_dir / name.name
    configs = sorted(path.name for path in parent.iterdir() if path.is_dir() and _versions(path))
    if configs:
        raise DataError(
            f"data set '{name.full}' is prepared in {data_dir} in the configs "
            f"{', '.join(configs)}; name one, such as '{name.name}/{configs[0]}'"
        )
    raise DataError(
        f"data set '{name.full}' is not prepared in {data_dir}: {root} holds no version folder; "
        f"{_how_to(name, data_dir)}"
    )


def _versions(folder: Path) -> list[str]:
    """Names of version folders such as 3.0.1, the newest last."""
    if not os.path.isdir(folder):
        return []
    names = [
        path.name
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and path.is_dir()
    ]
    return sorted(names, key=lambda name: [int(part) for part in name.split(".")])


def _is_set_folder(folder: Path) -> bool:
    try:
        return bool(_versions(folder)) or any(_versions(path) for path in folder.iterdir())
    except OSError:
        return False


def _how_to(name: SetName, data_dir: Path) -> str:
    return f"run: bash recipe/prepare_data.sh {name.full} {shlex.quote(str(data_dir))}"


def _again(name: SetName, data_dir: Path) -> str:
    return f"remove it and {_how_to(name, data_dir)}"


def _listing(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) if names else "none"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS' advice, such as to install OpenCV, off the terminal."""
    logger = logging.getLogger("absl")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
