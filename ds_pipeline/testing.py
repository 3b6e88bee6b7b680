"""Tiny data sets in TFDS' format, written without TensorFlow: for tests, and as a reference.

write_tfds_set(tmp_path, "mnist", n_train=32, n_test=8)
python -m gnp.main.main ... --config.dataset.data_dir=TMP_PATH
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image


def write_tfds_set(
    data_dir: Path,
    name: str = "mnist",
    *,
    n_train: int = 32,
    n_test: int = 8,
    shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    dtype: npt.DTypeLike = np.uint8,
    config: str | None = None,
    version: str = "1.0.0",
    evaluation_split: str | None = "test",
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Writes a set of random images, with labels 0, 1, 2, ... in turn.

    Args:
        data_dir: the folder that `dataset.data_dir` names; the set goes into
            `data_dir/name[/config]/version`.
        name: of the set.
        n_train: examples of the split 'train'.
        n_test: examples of the evaluation split.
        shape: of the images, (h, w, c) with c of 1, 3 or 4 for uint8.
        num_classes: labels are taken modulo it.
        dtype: uint8 (stored as PNG), or float32 (stored as it is, normally distributed).
        config: TFDS' builder config; None: none.
        version: three numbers.
        evaluation_split: its name, such as 'validation'; None: only 'train' is written.
        shards: files a split.
        seed: of the images.

    Returns:
        The folder with the files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = write_tfds_set(Path(place), "tiny", n_train=4, n_test=2)
        ...     folder.name, len(list(folder.glob("*.array_record*")))
        ('1.0.0', 2)
    """
    rng = np.random.default_rng(seed)
    splits = {"train": n_train}
    if evaluation_split is not None:
        splits[evaluation_split] = n_test
    examples = {
        split: (
            [random_image(rng, shape, np.dtype(dtype)) for _ in range(count)],
            [i % num_classes for i in range(count)],
        )
        for split, count in splits.items()
    }
    folder = data_dir / name / config / version if config else data_dir / name / version
    return write_split_files(
        folder, name, examples, shape=shape, num_classes=num_classes, config=config, shards=shards
    )


def random_image(
    rng: np.random.Generator, shape: tuple[int, int, int], dtype: np.dtype
) -> np.ndarray:
    """Uniform levels for uint8, normally distributed values for float32."""
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.normal(size=shape).astype(dtype)


def write_split_files(
    folder: Path,
    name: str,
    examples: Mapping[str, tuple[Sequence[np.ndarray], Sequence[int]]],
    *,
    shape: tuple[int | None, int | None, int],
    num_classes: int,
    config: str | None = None,
    shards: int = 1,
) -> Path:
    """Writes given examples as a TFDS set, and its description.

    Args:
        folder: where; its last part is the version, such as 1.0.0. Created.
        name: of the set.
        examples: (images, labels) of each split; images uint8 or float32.
        shape: as the description states it; None for a side that varies.
        num_classes: as the description states it.
        config: TFDS' builder config; None: none.
        shards: files a split.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> examples = {"train": ([np.zeros((8, 8, 1), np.uint8)], [0])}
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = Path(place) / "one" / "1.0.0"
        ...     write_split_files(folder, "one", examples, shape=(8, 8, 1), num_classes=2).name
        '1.0.0'
    """
    folder.mkdir(parents=True)
    dtype = next(iter(examples.values()))[0][0].dtype
    splits = []
    for split, (images, labels) in examples.items():
        records = [_example(image, label) for image, label in zip(images, labels, strict=True)]
        parts = np.array_split(np.arange(len(records)), shards)
        for shard, part in enumerate(parts):
            file = folder / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
            _write_records(file, [records[i] for i in part])
        splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(len(record) for record in records)),
                "shardLengths": [str(len(part)) for part in parts],
            }
        )
    info: dict[str, Any] = {
        "fileFormat": "array_record",
        "moduleName": f"tensorflow_datasets.image_classification.{name}",
        "name": name,
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": folder.name,
    }
    if config:
        info["configName"] = config
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    (folder / "features.json").write_text(json.dumps(_features(shape, num_classes, dtype)))
    (folder / "label.labels.txt").write_text("".join(f"class_{i}\n" for i in range(num_classes)))
    return folder


def _features(
    shape: tuple[int | None, int | None, int], num_classes: int, dtype: np.dtype
) -> dict[str, Any]:
    base = "tensorflow_datasets.core.features"
    dimensions = {"dimensions": [str(-1 if size is None else size) for size in shape]}
    if dtype == np.uint8:
        image = {
            "pythonClassName": f"{base}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": dimensions},
        }
    else:
        image = {
            "pythonClassName": f"{base}.tensor_feature.Tensor",
            "tensor": {"dtype": dtype.name, "shape": dimensions, "encoding": "none"},
        }
    label = {
        "pythonClassName": f"{base}.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(num_classes)},
    }
    return {
        "pythonClassName": f"{base}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": image, "label": label}},
    }


def _example(image: np.ndarray, label: int) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    if image.dtype == np.uint8:
        value = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[_png(image)]))
    else:
        floats = tf_feature_pb2.FloatList(value=image.ravel().tolist())
        value = tf_feature_pb2.Feature(float_list=floats)
    number = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[label]))
    features = tf_feature_pb2.Features(feature={"image": value, "label": number})
    return bytes(tf_example_pb2.Example(features=features).SerializeToString())


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[-1] == 1 else image
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_records(file: Path, records: Sequence[bytes]) -> None:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
