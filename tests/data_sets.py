"""Tiny data sets of every kind, TFDS' without TensorFlow: for tests, and as a reference.

write_tfds_set(tmp_path, "mnist", n_train=32, n_test=8)
python -m gnp.main.main ... --config.dataset.data_dir=TMP_PATH
"""

import gzip
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
    ids: Sequence[str] | None = None,
) -> Path:
    """Write a set of random images, with labels 0, 1, 2, ... in turn.

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
        ids: of the examples of 'train'; those of another split have the first ones.

    Returns:
        The folder with the files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     folder = write_tfds_set(Path(tmp), "tiny", n_train=4, n_test=2)
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
        folder, name, examples, shape=shape, num_classes=num_classes, config=config, shards=shards,
        ids=ids,
    )  # fmt: skip


def random_image(
    rng: np.random.Generator, shape: tuple[int, int, int], dtype: np.dtype
) -> np.ndarray:
    """Draw uniform levels for uint8, normally distributed values for float32."""
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.normal(size=shape).astype(dtype)


def write_split_files(
    folder: Path,
    name: str,
    examples: Mapping[str, tuple[Sequence[np.ndarray], Sequence[int]]],
    *,
    shape: tuple[int | None, ...],
    num_classes: int,
    config: str | None = None,
    shards: int = 1,
    key: str = "image",
    ids: Sequence[str] | None = None,
) -> Path:
    """Write given examples as a TFDS set, and its description.

    Args:
        folder: where; its name is the version, such as 1.0.0. Created.
        name: of the set.
        examples: (inputs, labels) of each split; images uint8 or float32, vectors float32.
        shape: as the description states it; None for a side that varies.
        num_classes: as the description states it.
        config: TFDS' builder config; None: none.
        shards: files a split.
        key: name of the input, such as 'features'.
        ids: of the first examples of each split, as many as its examples or more; None: they have
            none.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> examples = {"train": ([np.zeros((8, 8, 1), np.uint8)], [0])}
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     folder = Path(tmp) / "one" / "1.0.0"
        ...     write_split_files(folder, "one", examples, shape=(8, 8, 1), num_classes=2).name
        '1.0.0'
    """
    folder.mkdir(parents=True)
    dtype = next(iter(examples.values()))[0][0].dtype
    splits = []
    for split, (images, labels) in examples.items():
        names = [None] * len(labels) if ids is None else ids[: len(labels)]
        rows_of_split = zip(images, labels, names, strict=True)
        records = [_example(key, image, label, name) for image, label, name in rows_of_split]
        shard_rows = np.array_split(np.arange(len(records)), shards)
        for shard, rows in enumerate(shard_rows):
            file = folder / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"
            _write_records(file, [records[i] for i in rows])
        splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(len(record) for record in records)),
                "shardLengths": [str(len(rows)) for rows in shard_rows],
            }
        )
    info: dict[str, Any] = {
        "fileFormat": "array_record",
        "moduleName": f"tensorflow_datasets.image_classification.{name}",
        "name": name,
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": key}, {"featureKey": "label"}]}},
        "version": folder.name,
    }
    if config:
        info["configName"] = config
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    features = _features(key, shape, num_classes, dtype)
    if ids is not None:
        text = "tensorflow_datasets.core.features.text_feature.Text"
        features["featuresDict"]["features"]["id"] = {"pythonClassName": text, "text": {}}
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "label.labels.txt").write_text("".join(f"class_{i}\n" for i in range(num_classes)))
    return folder


def write_image_folder(
    folder: Path,
    *,
    classes: Sequence[str] = ("cat", "dog"),
    n_train: int = 4,
    n_test: int = 2,
    evaluation: str = "test",
    sides: tuple[int, int] = (20, 40),
    suffix: str = ".jpg",
    seed: int = 0,
) -> Path:
    """Write random photographs of varying size to FOLDER/train/CLASS and FOLDER/test/CLASS.

    Args:
        folder: DIR, which `dataset.data_dir` names. Created.
        classes: names of the class folders.
        n_train: images a class.
        n_test: images a class.
        evaluation: name of the evaluation folder.
        sides: smallest and largest height and width, in pixels.
        suffix: of the file names, such as .JPEG or .png.
        seed: of sizes and colors.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     folder = write_image_folder(Path(tmp), classes=("cat",), n_train=2)
        ...     sorted(path.name for path in (folder / "train" / "cat").iterdir())
        ['0.jpg', '1.jpg']
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", n_train), (evaluation, n_test)):
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                height, width = rng.integers(sides[0], sides[1] + 1, 2)
                # Few large squares: compressible, and not the same everywhere.
                squares = PIL.Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
                image = squares.resize((int(width), int(height)), PIL.Image.Resampling.BICUBIC)
                image.save(folder / split / name / f"{i}{suffix}")
    return folder


def write_ucr_set(
    data_dir: Path,
    name: str = "Waves",
    *,
    n_train: int = 12,
    n_test: int = 6,
    length: int = 20,
    labels: Sequence[int] = (-1, 1),
    seed: int = 0,
) -> Path:
    """Write noisy waves, a frequency a class, to DATA_DIR/NAME/NAME_TRAIN.tsv and NAME_TEST.tsv.

    Args:
        data_dir: the folder that `dataset.data_dir` names.
        name: of the set.
        n_train: series of the training split.
        n_test: series of the test split.
        length: values of a series.
        labels: of the classes, in turn.
        seed: of the noise.

    Returns:
        DATA_DIR/NAME.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     folder = write_ucr_set(Path(tmp), n_train=3)
        ...     len((folder / "Waves_TRAIN.tsv").read_text().splitlines())
        3
    """
    rng = np.random.default_rng(seed)
    folder = data_dir / name
    folder.mkdir(parents=True)
    for split, count in (("TRAIN", n_train), ("TEST", n_test)):
        lines = []
        for i in range(count):
            frequency = 1 + i % len(labels)
            wave = np.sin(2 * np.pi * frequency * np.arange(length) / length)
            values = wave + rng.normal(scale=0.1, size=length)
            lines.append("\t".join([str(labels[i % len(labels)]), *map(repr, values.tolist())]))
        (folder / f"{name}_{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_idx_set(
    folder: Path,
    *,
    n_train: int = 32,
    n_test: int = 8,
    shape: tuple[int, int] = (28, 28),
    num_classes: int = 10,
    compressed: bool = False,
    seed: int = 0,
) -> Path:
    """Write random images in MNIST's own format, with labels 0, 1, 2, ... in turn.

    Args:
        folder: which `dataset.data_dir` names. Created.
        n_train: examples of the training split.
        n_test: examples of the test split.
        shape: height and width of an image.
        num_classes: labels are taken modulo it.
        compressed: the files are .gz.
        seed: of the images.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     folder = write_idx_set(Path(tmp), n_train=2, shape=(3, 3))
        ...     (folder / "train-images-idx3-ubyte").stat().st_size
        34
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", n_train), ("t10k", n_test)):
        images = rng.integers(0, 256, (count, *shape), np.uint8)
        labels = (np.arange(count) % num_classes).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            content, file = header + array.tobytes(), f"{split}-{name}-ubyte"
            if compressed:
                content, file = gzip.compress(content), f"{file}.gz"
            (folder / file).write_bytes(content)
    return folder


def write_csv_table(
    file: Path, *, rows: int = 40, columns: int = 3, is_regression: bool = True, seed: int = 0
) -> Path:
    """Write a table: columns a, b, ..., and their sum as `price`, or its sign as `kind`.

    Args:
        file: where.
        rows: besides the header.
        columns: numbers a row besides the target, at most 26.
        is_regression: the target is `price`, else `kind`: high or low.
        seed: of the numbers.

    Returns:
        The file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     file = write_csv_table(Path(tmp) / "table.csv", columns=2)
        ...     file.read_text().splitlines()[0]
        'a,b,price'
    """
    rng = np.random.default_rng(seed)
    target = "price" if is_regression else "kind"
    lines = [",".join([*"abcdefghijklmnopqrstuvwxyz"[:columns], target])]
    for values in rng.normal(size=(rows, columns)).round(3):
        total = values.sum().round(3)
        kind = "low" if total < 0 else "high"
        lines.append(",".join([*map(str, values), str(total) if is_regression else kind]))
    file.write_text("\n".join(lines) + "\n")
    return file


def _features(
    key: str, shape: tuple[int | None, ...], num_classes: int, dtype: np.dtype
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
        "featuresDict": {"features": {key: image, "label": label}},
    }


def _example(key: str, image: np.ndarray, label: int, name: str | None = None) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    if image.dtype == np.uint8:
        value = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[_png(image)]))
    else:
        floats = tf_feature_pb2.FloatList(value=image.ravel().tolist())
        value = tf_feature_pb2.Feature(float_list=floats)
    number = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[label]))
    feature = {key: value, "label": number}
    if name is not None:
        texts = tf_feature_pb2.BytesList(value=[name.encode()])
        feature["id"] = tf_feature_pb2.Feature(bytes_list=texts)
    features = tf_feature_pb2.Features(feature=feature)
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
