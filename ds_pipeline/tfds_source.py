"""Classification sets in TFDS' format, read without TensorFlow.

A set lies in `DATA_DIR/NAME[/CONFIG]/VERSION`: `dataset_info.json`, `features.json`, the class
names, and each split's examples in array_record files. `recipe/prepare_data.sh` writes them.
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
from dataclasses import dataclass
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
from ds_pipeline.loader import usable_cores
from ds_pipeline.source import Batch, EncodedImage, Indices, InMemorySource, Source
from ds_pipeline.splits import Splits, listing, normalized

# Sets up to this size are decoded once and stay in memory; larger ones are decoded batch by batch.
IN_MEMORY_BYTES = 2 * 2**30

_DESCRIPTION_FILES = ("dataset_info.json", "features.json")
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

# All that features.json may name: TFDS imports the module of any other name, whoever wrote it.
_FEATURE_CLASSES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "audio_feature.Audio",
        "bounding_boxes.BBoxFeature",
        "class_label_feature.ClassLabel",
        "dataset_feature.Dataset",
        "feature.Tensor",  # of TFDS before 4.4
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "labeled_image.LabeledImage",
        "scalar.Scalar",
        "sequence_feature.Sequence",
        "tensor_feature.Tensor",
        "text_feature.Text",
        "translation_feature.Translation",
        "translation_feature.TranslationVariableLanguages",
        "video_feature.Video",
    )
}
# Keys with such a name, as protobuf reads them, and of older files.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
# In the names of a split's files. Anything else in braces is Python's format language.
_TEMPLATE = re.compile(
    r"([^{}]|\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})*"
)
# TFDS lists the names of this many, without a look at the examples.
_MOST_CLASSES = 2**20

# What dataset.dataset_name may be besides a TFDS name.
OTHER_NAMES = (*bundled.NAMES, "image_folder", "ucr/NAME", "csv", "npz")

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


@dataclass(frozen=True)
class SetName:
    """A parsed TFDS name: `name`, `name/config`, `name:version`, `name/config:version`."""

    name: str
    config: str | None = None
    version: str | None = None

    @property
    def full(self) -> str:
        """Return the name as TFDS and `recipe/prepare_data.sh` take it."""
        config = f"/{self.config}" if self.config else ""
        version = f":{self.version}" if self.version else ""
        return f"{self.name}{config}{version}"


def parse_name(text: str) -> SetName:
    """Split a TFDS name into name, config and version.

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
            f"'{text}' is no data set name; allowed: {', '.join(OTHER_NAMES)}, or NAME, "
            "NAME/CONFIG, NAME:VERSION of a TFDS set"
        )
    return SetName(*match.groups())


def prepared_names(data_dir: Path) -> tuple[str, ...]:
    """List the folders in `data_dir` that hold at least one prepared set, sorted."""
    try:
        folders = [folder for folder in data_dir.iterdir() if folder.is_dir()]
    except OSError:
        return ()
    return tuple(sorted(folder.name for folder in folders if _is_set_folder(folder)))


def tfds_names() -> tuple[str, ...]:
    """List the sets that the installed TFDS can prepare (not only images)."""
    import tensorflow_datasets as tfds

    # Community sets would be looked up over the network, with TensorFlow.
    return tuple(tfds.list_builders(with_community_datasets=False))


def find_directory(data_dir: Path, name: SetName) -> Path:
    """Find the folder of a prepared set; of several versions, the newest that matches.

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
            f"(prepared there: {listing(prepared_names(data_dir))}); {_how_to(name, data_dir)}"
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
    name = parse_name(text)
    directory = find_directory(data_dir, name)
    train = TfdsSplit(directory, train_split)
    evaluation = _evaluation_split(directory, train) if use_test_set else None
    if evaluation is not None and evaluation.shape != train.shape:
        raise DataError(
            f"{directory}: inputs of shape {train.shape} in split '{train_split}' and "
            f"{evaluation.shape} in split '{evaluation.split}'"
        )
    mean, std = _published(name.name, train)
    return Splits(
        train=in_memory(train, name.full),
        evaluation=None if evaluation is None else in_memory(evaluation, name.full),
        evaluation_name="validation" if evaluation is None else evaluation.split,
        shape=train.shape,
        dtype=train.dtype,
        class_names=train.class_names,
        mean=mean,
        std=std,
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
        self.directory = directory
        self.split = split
        builder = open_builder(directory)
        info = builder.info
        self.splits = tuple(info.splits)
        with _quiet():
            self.files = _split_files(directory, info, split)
        self._ends = np.cumsum([file.take for file in self.files])
        self._check_files()
        self._input_key, self._label_key = _feature_keys(info, directory)
        label = info.features[self._label_key]
        self.num_classes = int(label.num_classes or 0)
        if self.num_classes > _MOST_CLASSES:
            raise DataError(
                f"{directory}: features.json declares {self.num_classes} classes, more than "
                f"{_MOST_CLASSES}"
            )
        self.class_names = tuple(map(normalized, label.names)) if self.num_classes else ()
        self._channels = (info.features[self._input_key].shape or (None,))[-1]
        self._label_cache: np.ndarray | None = None
        self._examples = self._open(builder)
        # TFDS gives its advice at the first image.
        with _quiet():
            first = self._read(np.zeros(1, np.int64))[0]
        self.is_labeled = self._label(first[self._label_key], 0) >= 0
        self.shape: tuple[int, ...] | None = None
        self.dtype = np.dtype(np.uint8)
        if not self._any_size:
            decoded = self._decode(first[self._input_key], 0)
            self.shape, self.dtype = decoded.shape, decoded.dtype
            if len(self.shape) not in (1, 3):
                raise DataError(
                    f"{self._where(0)}: an input of shape {self.shape}; allowed are images "
                    "(h, w, c) and vectors (d,)"
                )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

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
        values = [example[self._input_key] for example in examples]
        if self._any_size:
            return {"input": self._encoded_images(values, indices), "label": labels}
        assert self.shape is not None
        inputs = np.empty((len(indices), *self.shape), self.dtype)
        for row, (value, index) in enumerate(zip(values, indices, strict=True)):
            decoded = self._decode(value, int(index))
            if decoded.shape != self.shape:
                raise DataError(
                    f"{self._where(int(index))}: an input of shape {_by(decoded.shape)}, but "
                    f"example 0 has {_by(self.shape)}, and the set declares one shape"
                )
            inputs[row] = decoded
        return {"input": inputs, "label": labels}

    def labels(self) -> np.ndarray:
        """Return all labels in order, int32 [n]: one pass over the data, no image decoded."""
        if self._label_cache is None:
            chunks = []
            with _bar(len(self), f"reading labels of {self.split}") as bar:
                for start in range(0, len(self), _CHUNK_EXAMPLES):
                    indices = np.arange(start, min(start + _CHUNK_EXAMPLES, len(self)))
                    chunks.append(self._checked_labels(self._read(indices), indices))
                    bar.update(len(indices))
            self._label_cache = np.concatenate(chunks)
        return self._label_cache

    def _checked_labels(self, examples: list[dict[str, Any]], indices: Indices) -> np.ndarray:
        labels = np.empty(len(indices), np.int32)
        for row, (example, index) in enumerate(zip(examples, indices, strict=True)):
            label = self._label(example[self._label_key], int(index))
            if not 0 <= label < self.num_classes:
                raise DataError(
                    f"{self._where(int(index))}: label {label} is outside 0..{self.num_classes - 1}"
                )
            labels[row] = label
        return labels

    def _encoded_images(self, values: list[Any], indices: Indices) -> list[EncodedImage]:
        origins = [self._where(int(index)) for index in indices]
        for value, origin in zip(values, origins, strict=True):
            if not value:
                raise DataError(f"{origin}: it has no '{self._input_key}'")
        return [EncodedImage(v, origin) for v, origin in zip(values, origins, strict=True)]

    def _check_files(self) -> None:
        if not len(self):
            raise DataError(f"split '{self.split}' of {self.directory} has no examples")
        for file, _, _ in self.files:
            if not os.path.isfile(file):
                raise DataError(
                    f"{file} is missing: an incomplete data set; remove {self.directory} and "
                    "prepare it again with recipe/prepare_data.sh"
                )
            if not os.access(file, os.R_OK):
                raise DataError(f"{file} cannot be read: no permission")

    def _open(self, builder: Any) -> Any:
        import tensorflow_datasets as tfds

        # Nothing else of an example is decoded, and images by what is known to open a JPEG or PNG.
        pair = {key: builder.info.features[key] for key in (self._input_key, self._label_key)}
        self._features = tfds.features.FeaturesDict(pair)
        self._image = self._features[self._input_key]
        self._decoders = {self._input_key: tfds.decode.SkipDecoding()}
        if not isinstance(self._image, tfds.features.Image):
            self._image, self._decoders = None, {}
        self._any_size = (
            self._image is not None
            and self._image.np_dtype == np.uint8
            and None in self._image.shape[:2]
        )
        with _quiet():
            return builder.as_data_source(
                self.split,
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
                file_format=_FILE_FORMAT,
            )

    def _read(self, indices: Indices) -> list[dict[str, Any]]:
        rows = indices.tolist()
        try:
            return [
                self._features.deserialize_example_np(record, decoders=self._decoders)
                for record in self._examples.__getitems__(rows)
            ]
        except _RECORD_ERRORS as error:
            if len(indices) > 1:
                # Name the example that is at fault.
                for index in indices:
                    self._read(np.array([index]))
            raise DataError(
                f"{self._where(int(indices[0]))}: cannot be read ({one_line(error)}); remove "
                f"{self.directory} and prepare it again with recipe/prepare_data.sh"
            ) from error

    def _decode(self, value: Any, index: int) -> np.ndarray:
        if value is None or (self._image is not None and not value):
            raise DataError(f"{self._where(index)}: it has no '{self._input_key}'")
        image = np.asarray(value) if self._image is None else self._pixels(value, index)
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
            if not np.isfinite(image).all():
                raise DataError(
                    f"{self._where(index)}: the input holds values that are NaN or infinite"
                )
        return image

    def _pixels(self, encoded: bytes, index: int) -> np.ndarray:
        if self._image.np_dtype != np.uint8:
            return self._wide_pixels(encoded, index)
        mode = _PIL_MODES.get(self._channels or 3)
        try:
            image = load_image(encoded)
        except ImageError as error:
            raise DataError(
                f"{self._where(index)}: the image cannot be decoded ({error})"
            ) from error
        # Twice as fast as TFDS' decoder, and converts grayscale images.
        pixels = np.asarray(image if mode in (None, image.mode) else image.convert(mode))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def _wide_pixels(self, encoded: bytes, index: int) -> np.ndarray:
        """Decode 16 bits a channel, or float32 stored as a PNG: OpenCV, once it is known as one."""
        where = self._where(index)
        image_size(EncodedImage(encoded, where))
        try:
            pixels: np.ndarray = self._image.decode_example_np(without_metadata(encoded))
        except _RECORD_ERRORS as error:
            raise DataError(f"{where}: the image cannot be decoded ({one_line(error)})") from error
        return pixels

    def _label(self, value: Any, index: int) -> int:
        if value is None:
            raise DataError(f"{self._where(index)}: it has no '{self._label_key}'")
        return int(value)

    def _where(self, index: int) -> str:
        """Return `FILE, example 3 (17 of split 'train')`, the first counted in the file."""
        row = int(np.searchsorted(self._ends, index, side="right"))
        if row == len(self._ends):
            return f"{self.directory}, example {index} of split '{self.split}'"
        file = self.files[row]
        example = index - int(self._ends[row]) + file.take + file.skip
        return f"{file.path}, example {example} ({index} of split '{self.split}')"


def _split_files(directory: Path, info: Any, split: str) -> list[_File]:
    try:
        instructions = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        raise DataError(
            f"{directory} has no split '{split}'; it has: {', '.join(info.splits)}, and several "
            "are joined by +"
        ) from None
    files = [_File(Path(each.filename), int(each.skip), int(each.take)) for each in instructions]
    for file, _, _ in files:
        if file.parent != directory:
            raise DataError(
                f"{directory}: dataset_info.json names {file}, which is not in that "
                "folder; such a file is not read"
            )
    return files


def open_builder(directory: Path) -> Any:
    """Open a prepared set with TFDS.

    Raises:
        DataError: its description is damaged, names what is not TFDS' own, or its files are not
            array_record.
    """
    import tensorflow_datasets as tfds

    try:
        _check_description(directory)
        with _quiet():
            builder = tfds.builder_from_directory(directory)
            formats = [file_format.value for file_format in builder.info.available_file_formats()]
            _ = list(builder.info.splits), builder.info.features
    except _DESCRIPTION_ERRORS as error:
        if isinstance(error, DataError):
            raise
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


def _check_description(directory: Path) -> None:
    """Raise DataError where a description would have TFDS import, or unfold, what it names."""
    for file in _DESCRIPTION_FILES:
        waiting = [json.loads((directory / file).read_text(encoding="utf-8"))]
        while waiting:
            value = waiting.pop()
            if isinstance(value, list):
                waiting += value
            elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                with contextlib.suppress(ValueError):  # a text; older files have JSON in strings
                    waiting.append(json.loads(value))
            elif isinstance(value, dict):
                waiting += value.values()
                names = [value[key] for key in _CLASS_KEYS if isinstance(value.get(key), str)]
                unknown = [name for name in names if name not in _FEATURE_CLASSES]
                if file == "features.json" and unknown:
                    raise DataError(
                        f"{directory / file} names {unknown[0]}, which is none of "
                        "TFDS' own feature classes: nothing of it is run; prepare the set again "
                        "with recipe/prepare_data.sh"
                    )
                for key in ("filepathTemplate", "filepath_template"):
                    template = value.get(key, "")
                    if isinstance(template, str) and not _TEMPLATE.fullmatch(template):
                        raise DataError(
                            f"{directory / file}: {key} '{template[:80]}' has other "
                            "fields than TFDS writes"
                        )


def in_memory(split: TfdsSplit, name: str) -> Source:
    """Decode a split into one uint8 or float32 array, where it is small; else return it.

    Args:
        split: what to read.
        name: of the data set, for the progress bar, which appears after a second, on a terminal.

    Raises:
        DataError: as `TfdsSplit.batch`.
    """
    total = len(split)
    if split.shape is None:
        return split
    example_bytes = int(np.prod(split.shape)) * split.dtype.itemsize
    if total * example_bytes > IN_MEMORY_BYTES:
        return split
    step = max(1, min(_CHUNK_EXAMPLES, _CHUNK_BYTES // example_bytes))
    inputs = np.empty((total, *split.shape), split.dtype)
    labels = np.empty(total, np.int32)

    def read(start: int) -> int:
        indices = np.arange(start, min(start + step, total))
        batch = split.batch(indices)
        inputs[indices[0] : indices[-1] + 1] = batch["input"]
        labels[indices[0] : indices[-1] + 1] = batch["label"]
        return len(indices)

    bar = _bar(total, f"reading {name} {split.split}")
    pool = ThreadPoolExecutor(max_workers=min(8, usable_cores()))
    try:
        with bar:
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

    features = info.features
    images: list[str] = []
    vectors: list[str] = []
    labels: list[str] = []
    if isinstance(features, tfds.features.FeaturesDict):
        for key, feature in features.items():
            is_tensor = type(feature) is tfds.features.Tensor and feature.np_dtype.kind in "iuf"
            if isinstance(feature, tfds.features.ClassLabel):
                labels.append(key)
            elif isinstance(feature, tfds.features.Image) or (
                is_tensor and len(feature.shape) == 3
            ):
                images.append(key)
            elif is_tensor and len(feature.shape) == 1:
                vectors.append(key)
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


def _check_known(data_dir: Path, name: SetName) -> None:
    if os.path.isdir(data_dir / name.name):
        return
    known = (*OTHER_NAMES, *prepared_names(data_dir), *tfds_names())
    if name.name not in known:
        raise DataError(
            f"unknown data set '{name.full}'; allowed: {', '.join(OTHER_NAMES)}, the sets prepared "
            f"in {data_dir} ({listing(prepared_names(data_dir))}) and the classification sets of "
            f"TFDS{nearest(name.name, known)}"
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
    """List version folders such as 3.0.1, the newest last."""
    if not os.path.isdir(folder):
        return []
    names = [
        path.name
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and path.is_dir()
    ]
    return sorted(names, key=lambda name: [int(field) for field in name.split(".")])


def _is_set_folder(folder: Path) -> bool:
    try:
        return bool(_versions(folder)) or any(_versions(path) for path in folder.iterdir())
    except OSError:
        return False


def _how_to(name: SetName, data_dir: Path) -> str:
    return f"run: bash recipe/prepare_data.sh {name.full} {shlex.quote(str(data_dir))}"


def _again(name: SetName, data_dir: Path) -> str:
    return f"remove it and {_how_to(name, data_dir)}"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS' advice, such as to install OpenCV or TensorFlow, off the terminal."""
    logger = logging.getLogger("absl")
    logger.addFilter(_is_error)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
