"""Classification sets in TFDS' format, read by TFDS without TensorFlow.

A set lies in `DATA_DIR/NAME[/CONFIG]/VERSION`: `dataset_info.json`, `features.json`, the class
names, and each split's examples in array_record files. `recipe/prepare_data.sh` writes them.
TFDS finds the versions, reads the description and the records, and takes these apart. Checked here
is what it takes on trust: that a description names nothing but TFDS' own classes and files in its
folder, and that each example fits the description.
"""

import contextlib
import fnmatch
import io
import json
import logging
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tqdm import tqdm

from ds_pipeline import bundled
from ds_pipeline.decode import ImageError, image_size, load_image, without_metadata
from ds_pipeline.errors import DataError, nearest, one_line
from ds_pipeline.files import OWN_FILES
from ds_pipeline.loader import usable_cores
from ds_pipeline.source import Batch, EncodedImage, Indices, InMemorySource, Source
from ds_pipeline.splits import Splits, listing, normalized

# Sets up to this size are decoded once and stay in memory; larger ones are decoded batch by batch.
IN_MEMORY_BYTES = 2 * 2**30

_FILE_FORMAT = "array_record"
_CHUNK_EXAMPLES = 256
_CHUNK_BYTES = 2**23
_PROGRESS_AFTER_SECONDS = 1.0
_PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# All that TFDS raised for some thousand damaged descriptions and records. It takes apart what it
# reads before it checks it, so TypeError and AttributeError, raised inside TFDS, tell of damage.
_DESCRIPTION_ERRORS = (
    json_format.ParseError,
    OSError,
    ValueError,
    TypeError,
    ImportError,
    RecursionError,
)
_RECORD_ERRORS = (
    RuntimeError,  # of array_record
    DecodeError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    zlib.error,
    cv2.error,
)
# TFDS imports the module of any class that features.json names, whoever wrote it; these are the
# keys with such a name, as protobuf reads them, and of older files.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_TFDS_CLASS = re.compile(r"tensorflow_datasets\.core\.features\.\w+\.\w+")
# In the names of a split's files. Anything else in braces is Python's format language.
_TEMPLATE = re.compile(
    r"([^{}]|\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})*"
)
# TFDS lists the names of this many, without a look at the examples.
_MOST_CLASSES = 2**20

# What dataset.dataset_name may be besides a TFDS name.
OTHER_NAMES = (*bundled.NAMES, *OWN_FILES, "ucr/NAME")

# Mean and standard deviation of the training split's channels, for values from 0 to 1, as they
# are in common use; those of mnist and cifar10 agree with the files of TFDS to all digits.
_STATISTICS: dict[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("mnist", "train"): ((0.13066048,), (0.30810779,)),
    # The pair of the PyTorch and torchvision examples.
    ("fashion_mnist", "train"): ((0.2860,), (0.3530,)),
    # Used by the SAM and GNP authors' pipelines, among many.
    ("cifar10", "train"): (
        (0.49139968, 0.48215841, 0.44653091),
        (0.24703223, 0.24348513, 0.26158784),
    ),
    ("cifar100", "train"): (
        (0.50707516, 0.48654887, 0.44091784),
        (0.26733429, 0.25643846, 0.27615047),
    ),
    # Of the 73,257 training images, without the extra ones, and with them.
    ("svhn_cropped", "train"): (
        (0.4376821, 0.4437697, 0.47280442),
        (0.19803012, 0.20101562, 0.19703614),
    ),
    ("svhn_cropped", "train+extra"): (
        (0.43090966, 0.4302428, 0.44634357),
        (0.19759192, 0.20029082, 0.19811132),
    ),
}


def parse_name(text: str) -> tuple[str, str | None, str | None]:
    """Split a TFDS name, such as `emnist/letters:3.*.*`, into name, config and version."""
    match = re.fullmatch(r"(\w+)(?:/([\w.+-]+))?(?::([\w.*]+))?", text)
    if match is None:
        raise DataError(
            f"'{text}' is no data set name; allowed: {', '.join(OTHER_NAMES)}, or NAME, "
            "NAME/CONFIG, NAME:VERSION of a TFDS set"
        )
    return match[1], match[2], match[3]


def prepared_names(data_dir: Path) -> tuple[str, ...]:
    """List the folders in `data_dir` that hold at least one prepared set, sorted."""
    return tuple(
        folder.name
        for folder in _folders(data_dir)
        if _versions(folder) or any(map(_versions, _folders(folder)))
    )


def find_directory(data_dir: Path, text: str) -> Path:
    """Find the folder of a prepared set; of several versions, the newest that matches.

    Args:
        data_dir: where TFDS sets lie.
        text: name of the set, as `parse_name` takes it.

    Raises:
        DataError: unknown name; a folder that is none or cannot be read; the set not prepared
            there, not in that version, or in several configs without one being named.
    """
    name, config, version = parse_name(text)
    root = data_dir / name
    if not os.path.isdir(root):
        _check_known(data_dir, text, name)
    for folder in (data_dir, root) if os.path.isdir(root) else (data_dir,):
        try:
            os.scandir(folder).close()
        except OSError as error:
            raise DataError(
                f"the data folder {folder} cannot be read ({error.strerror}); set dataset.data_dir "
                "to the folder that holds the prepared TFDS sets (recipe/prepare_data.sh prepares "
                "one)"
            ) from None
    versions = _versions(root / (config or ""))
    configs = [folder.name for folder in _folders(root) if _versions(folder)]
    if not versions and configs:
        raise DataError(
            f"data set '{text}' is prepared in {data_dir} in the configs "
            f"{', '.join(configs)}; name one, such as '{name}/{configs[0]}'"
        )
    if not versions:
        raise DataError(
            f"data set '{text}' is not prepared in {data_dir} (prepared there: "
            f"{listing(prepared_names(data_dir))}); run: bash recipe/prepare_data.sh {text} "
            f"{shlex.quote(str(data_dir))}"
        )
    wanted = [v for v in versions if fnmatch.fnmatchcase(v, version or "*")]
    if not wanted:
        raise DataError(
            f"data set '{text}' has no such version in {data_dir}; "
            f"prepared there: {', '.join(versions)}"
        )
    return root / (config or "") / wanted[-1]


def _check_known(data_dir: Path, text: str, name: str) -> None:
    import tensorflow_datasets as tfds

    prepared = prepared_names(data_dir)
    # Community sets would be looked up over the network, with TensorFlow.
    ours = tfds.list_builders(with_community_datasets=False)
    known = (*OTHER_NAMES, *prepared, *ours)
    if name not in known:
        raise DataError(
            f"unknown data set '{text}'; allowed: {', '.join(OTHER_NAMES)}, the sets prepared "
            f"in {data_dir} ({listing(prepared)}) and the classification sets of "
            f"TFDS{nearest(name, known)}"
        )


def _folders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _versions(folder: Path) -> list[str]:
    """List version folders such as 3.0.1, the newest last."""
    from tensorflow_datasets.core.utils.version import list_all_versions

    return [str(version) for version in list_all_versions(folder)]


def load_tfds(text: str, data_dir: Path, train_split: str, use_test_set: bool) -> Splits:
    """Load a prepared set; small ones are read into memory.

    Args:
        text: its name, such as `cifar10`.
        data_dir: where TFDS sets lie.
        train_split: such as `train` or `train+extra`.
        use_test_set: read the split 'test', else 'validation', too; of sets whose test split has
            no labels (imagenet2012), 'validation'.

    Raises:
        DataError: unknown or not prepared, damaged, no such split, or not classification.
    """
    directory = find_directory(data_dir, text)
    train = TfdsSplit(directory, train_split)
    evaluation = _evaluation_split(directory, train) if use_test_set else None
    if evaluation is not None and evaluation.shape != train.shape:
        raise DataError(
            f"{directory}: inputs of shape {train.shape} in split '{train_split}' and "
            f"{evaluation.shape} in split '{evaluation.split}'"
        )
    mean, std = _published(parse_name(text)[0], train)
    return Splits(
        train=in_memory(train, text),
        evaluation=None if evaluation is None else in_memory(evaluation, text),
        evaluation_name="validation" if evaluation is None else evaluation.split,
        shape=train.shape,
        dtype=train.dtype,
        class_names=train.class_names,
        mean=mean,
        std=std,
        numbers=train.numbers,
    )


def _evaluation_split(directory: Path, train: "TfdsSplit") -> "TfdsSplit":
    splits = train.splits
    for name in ("test", "validation"):
        if name in splits:
            split = TfdsSplit(directory, name)
            if split.is_labeled:
                break
    else:
        raise DataError(
            f"{directory} has neither a split 'test' nor 'validation' with labels, only "
            f"{', '.join(splits)}; set use_test_set to False to hold out examples of 'train'"
        )
    if re.search(rf"(^|\+)\s*({name}|all)\b", train.split):
        raise DataError(
            f"dataset.train_split {train.split} trains on '{name}', which is evaluated on; leave "
            "it out, or set use_test_set to False to hold out examples"
        )
    return split


def _published(name: str, train: "TfdsSplit") -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the published mean and deviation in levels from 0 to 255, for as many channels."""
    published = _STATISTICS.get((name, train.split.replace(" ", "")))
    fits = train.dtype == np.uint8 and train.shape is not None
    if not published or not fits or len(published[0]) != (train.shape or ())[-1]:
        return None, None
    mean, std = (np.array(values, np.float64) * 255 for values in published)
    return mean.astype(np.float32), std.astype(np.float32)


class _File(NamedTuple):
    """Examples of one file that belong to a split: `take` of them from `skip` on."""

    path: Path
    skip: int
    take: int


class TfdsSplit:
    """One split of a prepared set, or several, read at each access.

    Args:
        directory: with dataset_info.json, features.json and the split's files.
        split: its name, such as 'train', or several: 'train+extra'.

    Attributes:
        files: that hold its examples.
        shape: of every input, (h, w, c) or (d,); an input of another shape raises a DataError
            when read. None: images of any size, which are not decoded here.
        dtype: uint8, or float32 for any other type.
        num_classes: of the labels.
        class_names: one a class.
        splits: names of all that the set has.
        is_labeled: the first example's label is a class; test splits of competitions have -1.

    Raises:
        DataError: files missing, damaged or of another kind; not classification; no examples.
    """

    def __init__(self, directory: Path, split: str) -> None:
        import tensorflow_datasets as tfds

        self.directory = directory
        self.split = split
        builder = open_builder(directory)
        info = builder.info
        self.splits = tuple(info.splits)
        self.files = _split_files(directory, info, split)
        self._ends = np.cumsum([file.take for file in self.files])
        self._input_key, self._label_key = _feature_keys(info, directory)
        label = info.features[self._label_key]
        self.num_classes = int(label.num_classes or 0)
        if self.num_classes > _MOST_CLASSES:
            raise DataError(
                f"{directory}: features.json declares {self.num_classes} classes, more than "
                f"{_MOST_CLASSES}"
            )
        self.class_names = tuple(map(normalized, label.names)) if self.num_classes else ()
        text = dict(info.features.items()).get("id")
        self._id = (
            tfds.features.FeaturesDict({"id": text})
            if isinstance(text, tfds.features.Text)
            else None
        )
        # Nothing else of an example is decoded, and images by what is known to open a JPEG or PNG.
        feature = info.features[self._input_key]
        self._features = tfds.features.FeaturesDict(
            {self._input_key: feature, self._label_key: label}
        )
        self._image: Any = feature if isinstance(feature, tfds.features.Image) else None
        self._decoders = {self._input_key: tfds.decode.SkipDecoding()} if self._image else {}
        self._mode = _PIL_MODES.get((feature.shape or (None,))[-1] or 3)
        self._label_cache: np.ndarray | None = None
        with _quiet():
            self._examples = builder.as_data_source(
                split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format=_FILE_FORMAT,
            )
            first = self._read(np.zeros(1, np.int64))[0]  # where TFDS gives its advice
        self.is_labeled = self._label(first, 0) >= 0
        self.shape: tuple[int, ...] | None = None
        self.dtype = np.dtype(np.uint8)
        if not self._image or self._image.np_dtype != np.uint8 or None not in feature.shape[:2]:
            decoded = self._input(first, 0)
            self.shape, self.dtype = decoded.shape, decoded.dtype
            if len(self.shape) not in (1, 3):
                raise DataError(
                    f"{self._where(0)}: an input of shape {self.shape}; allowed are images "
                    "(h, w, c) and vectors (d,)"
                )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        """Pickle for another process, without labels, which it never asks for."""
        return {**self.__dict__, "_label_cache": None}

    def batch(self, indices: Indices) -> Batch:
        """Read these examples, and decode them where all have one shape.

        Raises:
            DataError: a damaged file, an undecodable image, one of another shape, a value that
                is not finite, a label outside the classes; it names the example.
        """
        examples = self._read(indices)
        labels = self._checked_labels(examples, indices)
        pairs = zip(examples, indices.tolist(), strict=True)
        if self.shape is None:
            encoded = [EncodedImage(self._stored(e, i), self._where(i)) for e, i in pairs]
            return {"input": encoded, "label": labels}
        inputs = np.empty((len(indices), *self.shape), self.dtype)
        for row, (example, index) in enumerate(pairs):
            decoded = self._input(example, index)
            if decoded.shape != self.shape:
                raise DataError(
                    f"{self._where(index)}: an input of shape {_by(decoded.shape)}, but "
                    f"example 0 has {_by(self.shape)}, and the set declares one shape"
                )
            inputs[row] = decoded
        return {"input": inputs, "label": labels}

    def labels(self) -> np.ndarray:
        """Return all labels in order, int32 [n]: one pass over the data, no image decoded."""
        if self._label_cache is None:
            chunks = []  # a damaged description may count more examples than fit into memory
            with _bar(len(self), f"reading labels of {self.split}") as bar:
                for start in range(0, len(self), _CHUNK_EXAMPLES):
                    indices = np.arange(start, min(start + _CHUNK_EXAMPLES, len(self)))
                    chunks.append(self._checked_labels(self._read(indices), indices))
                    bar.update(len(indices))
            self._label_cache = np.concatenate(chunks)
        return self._label_cache

    def numbers(self) -> Indices:
        """Return the number at the end of each example's id, 42 of `train_00042`: another pass.

        Raises:
            DataError: the examples have no such ids.
        """
        found: list[int] = []
        with _bar(len(self), f"reading ids of {self.split}") as bar:
            for start in range(0, len(self), _CHUNK_EXAMPLES):
                indices = np.arange(start, min(start + _CHUNK_EXAMPLES, len(self)))
                examples = self._read(indices, self._id) if self._id else [{"id": b""}]
                for example in examples:
                    match = re.search(rb"[0-9]{1,18}$", example["id"] or b"")
                    if match is None:
                        raise DataError(
                            f"{self.directory}: the examples have no ids such as train_00042, by "
                            "which dataset.labels_file names them; set it to None"
                        )
                    found.append(int(match[0]))
                bar.update(len(indices))
        return np.array(found, np.int64)

    def _read(self, indices: Indices, features: Any = None) -> list[dict[str, Any]]:
        """Return input and label of these examples as they are stored, or these features alone."""
        rows = indices.tolist()
        decoders = self._decoders if features is None else {}
        features = self._features if features is None else features
        try:
            return [
                features.deserialize_example_np(record, decoders=decoders)
                for record in self._examples.__getitems__(rows)
            ]
        except _RECORD_ERRORS as error:
            if len(indices) > 1:
                # Name the example that is at fault.
                for index in indices:
                    self._read(np.array([index]), features)
            raise DataError(
                f"{self._where(int(indices[0]))}: cannot be read ({one_line(error)}); remove "
                f"{self.directory} and prepare it again with recipe/prepare_data.sh"
            ) from error

    def _checked_labels(self, examples: list[dict[str, Any]], indices: Indices) -> np.ndarray:
        pairs = zip(examples, indices.tolist(), strict=True)
        labels = np.array([self._label(example, index) for example, index in pairs], np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(wrong):
            raise DataError(
                f"{self._where(int(indices[wrong[0]]))}: label {labels[wrong[0]]} is outside "
                f"0..{self.num_classes - 1}"
            )
        return labels.astype(np.int32)

    def _label(self, example: dict[str, Any], index: int) -> int:
        value = example[self._label_key]
        if value is None:
            raise DataError(f"{self._where(index)}: it has no '{self._label_key}'")
        return int(value)

    def _stored(self, example: dict[str, Any], index: int) -> Any:
        """Return an example's input as it is stored: the bytes of an image, or numbers."""
        value = example[self._input_key]
        if value is None or (self._image is not None and not value):
            raise DataError(f"{self._where(index)}: it has no '{self._input_key}'")
        return value

    def _input(self, example: dict[str, Any], index: int) -> np.ndarray:
        value = self._stored(example, index)
        image = np.asarray(value) if self._image is None else self._pixels(value, index)
        if image.dtype == np.uint8:
            return image
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise DataError(
                f"{self._where(index)}: the input holds values that are NaN or infinite"
            )
        return image

    def _pixels(self, encoded: bytes, index: int) -> np.ndarray:
        """Decode an image: of bytes twice as fast as TFDS does, and grayscale images to color."""
        if self._image.np_dtype == np.uint8:
            try:
                image = load_image(encoded)
            except ImageError as error:
                raise self._undecodable(index, error) from error
            if self._mode not in (None, image.mode):
                image = image.convert(self._mode)
            pixels = np.asarray(image)
            return pixels[:, :, None] if pixels.ndim == 2 else pixels
        # 16 bits a channel, or float32 stored as a PNG: OpenCV, once it is known as one.
        image_size(EncodedImage(encoded, self._where(index)))
        try:
            return np.asarray(self._image.decode_example_np(without_metadata(encoded)))
        except _RECORD_ERRORS as error:
            raise self._undecodable(index, error) from error

    def _undecodable(self, index: int, error: Exception) -> DataError:
        return DataError(f"{self._where(index)}: the image cannot be decoded ({one_line(error)})")

    def _where(self, index: int) -> str:
        """Return `FILE, example 3 (17 of split 'train')`, the first counted in the file."""
        row = int(np.searchsorted(self._ends, index, side="right"))
        file = self.files[row]
        example = index - int(self._ends[row]) + file.take + file.skip
        return f"{file.path}, example {example} ({index} of split '{self.split}')"


def _split_files(directory: Path, info: Any, split: str) -> list[_File]:
    """Return the files of a split's examples: at least one, in the folder, readable."""
    try:
        with _quiet():
            instructions = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        raise DataError(
            f"{directory} has no split '{split}'; it has: {', '.join(info.splits)}, and several "
            "are joined by +"
        ) from None
    files = [_File(Path(each.filename), int(each.skip), int(each.take)) for each in instructions]
    if not sum(file.take for file in files):
        raise DataError(f"split '{split}' of {directory} has no examples")
    for file, _, _ in files:
        if file.parent != directory:
            raise DataError(
                f"{directory}: dataset_info.json names {file}, which is not in that "
                "folder; such a file is not read"
            )
        if not (os.path.isfile(file) and os.access(file, os.R_OK)):
            raise DataError(
                f"{file} is missing or cannot be read: an incomplete data set; remove {directory} "
                "and prepare it again with recipe/prepare_data.sh"
            )
    return files


def open_builder(directory: Path) -> Any:
    """Open a prepared set with TFDS.

    Raises:
        DataError: its description is missing or damaged, names what is not TFDS' own, or its files
            are not array_record.
    """
    import tensorflow_datasets as tfds

    try:
        for file, check in _CHECKS.items():
            json.loads((directory / file).read_text(encoding="utf-8"), object_hook=check)
        with _quiet():
            builder = tfds.builder_from_directory(directory)
            formats = [file_format.value for file_format in builder.info.available_file_formats()]
            _ = list(builder.info.splits), builder.info.features
    except _DESCRIPTION_ERRORS as error:
        if isinstance(error, DataError):
            raise DataError(f"{directory / file} {error}") from None
        raise DataError(
            f"{directory}: dataset_info.json or features.json is missing or is damaged "
            f"({one_line(error)}); remove the folder and prepare it again with "
            "recipe/prepare_data.sh"
        ) from error
    if _FILE_FORMAT not in formats:
        raise DataError(
            f"{directory} is stored as {', '.join(formats) or 'an unknown format'}, which needs "
            f"TensorFlow to read; prepare it as {_FILE_FORMAT} with recipe/prepare_data.sh, "
            "in another DATA_DIR"
        )
    return builder


def _check_classes(entries: dict[str, Any]) -> dict[str, Any]:
    """Raise DataError where an object of features.json names what is no class of TFDS."""
    for key, value in entries.items():
        if isinstance(value, str) and key in _CLASS_KEYS and not _TFDS_CLASS.fullmatch(value):
            raise DataError(
                f"names {value}, which is none of TFDS' own feature classes: nothing of it is "
                "run; prepare the set again with recipe/prepare_data.sh"
            )
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.lstrip()[:1] in ("{", "["):
                with contextlib.suppress(json.JSONDecodeError):  # older files have JSON in strings
                    json.loads(text, object_hook=_check_classes)
    return entries


def _check_templates(entries: dict[str, Any]) -> dict[str, Any]:
    """Raise DataError where a file name of dataset_info.json uses Python's format language."""
    for key in ("filepathTemplate", "filepath_template"):
        template = entries.get(key, "")
        if isinstance(template, str) and not _TEMPLATE.fullmatch(template):
            raise DataError(f"has a {key} '{template[:80]}' of other fields than TFDS writes")
    return entries


_CHECKS = {"dataset_info.json": _check_templates, "features.json": _check_classes}


def in_memory(split: TfdsSplit, name: str) -> Source:
    """Decode a split into one uint8 or float32 array, where it is small; else return it.

    Args:
        split: what to read.
        name: of the data set, for the progress bar.

    Raises:
        DataError: as `TfdsSplit.batch`.
    """
    total = len(split)
    example_bytes = max(1, int(np.prod(split.shape or ())) * split.dtype.itemsize)
    if split.shape is None or total * example_bytes > IN_MEMORY_BYTES:
        return split
    step = max(1, min(_CHUNK_EXAMPLES, _CHUNK_BYTES // example_bytes))
    inputs = np.empty((total, *split.shape), split.dtype)
    labels = np.empty(total, np.int32)

    def read(start: int) -> int:
        indices = np.arange(start, min(start + step, total))
        batch = split.batch(indices)
        inputs[start : start + step] = batch["input"]
        labels[start : start + step] = batch["label"]
        return len(indices)

    pool = ThreadPoolExecutor(max_workers=min(8, usable_cores()))
    try:
        with _bar(total, f"reading {name} {split.split}") as bar:
            for count in pool.map(read, range(0, total, step)):
                bar.update(count)
    finally:
        pool.shutdown(cancel_futures=True)
    return InMemorySource(inputs, labels)


def _bar(total: int, title: str) -> Any:
    """Show a progress bar on a terminal, after a second."""
    return tqdm(
        total=total,
        desc=title,
        unit=" examples",
        unit_scale=True,
        disable=None,
        delay=_PROGRESS_AFTER_SECONDS,
        leave=False,
    )


def _feature_keys(info: Any, directory: Path) -> tuple[str, str]:
    """Return the names of input and label; raise DataError where the set has no such pair."""
    import tensorflow_datasets as tfds

    Image, Tensor = tfds.features.Image, tfds.features.Tensor
    features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
    # By the class itself: a label is a kind of Tensor, too.
    rank_of = {
        key: len(feature.shape)
        for key, feature in features.items()
        if type(feature) is Tensor and feature.np_dtype.kind in "iuf"
    }
    images = [k for k, f in features.items() if isinstance(f, Image) or rank_of.get(k) == 3]
    vectors = [key for key, rank in rank_of.items() if rank == 1]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    supervised = info.supervised_keys
    if isinstance(supervised, tuple) and len(supervised) == 2:
        key, label = supervised
        if key in images + vectors and label in labels:
            return key, label
    inputs = images or vectors
    if len(inputs) == 1 and len(labels) == 1:
        return inputs[0], labels[0]
    raise DataError(
        f"{directory} is not a classification set: it needs one image or one vector of numbers, "
        f"and one class label, and has the images {listing(images)}, the vectors "
        f"{listing(vectors)} and the labels {listing(labels)}"
    )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS' advice, such as to install OpenCV or TensorFlow, off the terminal."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger = logging.getLogger("absl")
    logger.addFilter(is_error)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(is_error)
