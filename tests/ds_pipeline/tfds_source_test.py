"""TFDS sets: what is read equals what was written, and damage is one clear line."""

import functools
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest

import ds_pipeline.tfds_source as tfds_source
from ds_pipeline import DataError, InMemorySource
from ds_pipeline.tfds_source import (
    TfdsSplit,
    find_directory,
    in_memory,
    load_tfds,
    open_builder,
    parse_name,
    prepared_names,
)
from tests.data_sets import _write_records, write_split_files, write_tfds_set
from tests.marks import quick_first


def images_of(count: int, shape: tuple[int, int, int], dtype: type) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", [(9, 7, 1), (6, 6, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_reads_what_was_written(tmp_path: Path, shape: tuple[int, int, int], dtype: type) -> None:
    images = images_of(7, shape, dtype)
    labels = [3, 1, 2, 0, 3, 3, 1]
    folder = write_split_files(
        tmp_path / "set" / "1.0.0",
        "set",
        {"train": (images, labels)},
        shape=shape,
        num_classes=4,
        shards=3,
    )
    split = TfdsSplit(folder, "train")
    assert (len(split), split.shape, split.num_classes) == (7, shape, 4)
    assert split.dtype == dtype
    assert split.class_names == ("class_0", "class_1", "class_2", "class_3")
    batch = split.batch(np.array([6, 0, 3]))
    np.testing.assert_array_equal(batch["input"], np.stack(images)[[6, 0, 3]])
    assert batch["label"].tolist() == [1, 3, 0] and batch["label"].dtype == np.int32
    whole = in_memory(split, "set")
    assert isinstance(whole, InMemorySource)
    np.testing.assert_array_equal(whole.inputs, np.stack(images))
    assert whole.labels().tolist() == labels


def test_grayscale_files_in_a_color_set_become_color(tmp_path: Path) -> None:
    images = images_of(2, (6, 6, 3), np.uint8)
    images[1] = images[1][:, :, :1]
    folder = write_split_files(
        tmp_path / "set" / "1.0.0",
        "set",
        {"train": (images, [0, 1])},
        shape=(6, 6, 3),
        num_classes=2,
    )
    found = TfdsSplit(folder, "train").batch(np.array([1]))["input"][0]
    np.testing.assert_array_equal(found, np.repeat(images[1], 3, axis=-1))


def test_large_sets_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = TfdsSplit(write_tfds_set(tmp_path, n_train=8), "train")
    monkeypatch.setattr(tfds_source, "IN_MEMORY_BYTES", 8 * 28 * 28 - 1)
    assert in_memory(split, "mnist") is split


def write_float_png_set(folder: Path, images: list[np.ndarray]) -> None:
    """TFDS stores float32 images [h, w, 1] as PNG, four bytes a pixel."""
    bytes_ = [image.astype(np.float32).view(np.uint8) for image in images]
    labels = [0] * len(images)
    shape = images[0].shape[0], images[0].shape[1], 4
    write_split_files(
        folder, folder.parent.name, {"train": (bytes_, labels)}, shape=shape, num_classes=2
    )
    file = folder / "features.json"
    features = json.loads(file.read_text())
    image = features["featuresDict"]["features"]["image"]["image"]
    image["dtype"] = "float32"
    image["shape"]["dimensions"][-1] = "1"
    file.write_text(json.dumps(features))


def test_float_images_stored_as_png(tmp_path: Path) -> None:
    images = [np.full((4, 4, 1), value) for value in (0.5, -3.25)]
    write_float_png_set(tmp_path / "png" / "1.0.0", images)
    split = TfdsSplit(tmp_path / "png" / "1.0.0", "train")
    assert split.shape == (4, 4, 1) and split.dtype == np.float32
    np.testing.assert_array_equal(split.batch(np.arange(2))["input"], np.stack(images))


@pytest.mark.slow
def test_reading_needs_no_tensorflow_and_prints_nothing(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "quiet", shape=(4, 4, 1))
    write_float_png_set(tmp_path / "png" / "1.0.0", [np.zeros((4, 4, 1))])
    write_tfds_set(tmp_path, "floats", shape=(4, 4, 1), dtype=np.float32)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ds_pipeline.tfds_source import *\n"
        "for name in ('quiet', 'floats', 'png'):\n"
        "    split = TfdsSplit(find_directory(Path(sys.argv[1]), name), 'train')\n"
        "    in_memory(split, name)\n"
        "assert not any(name.split('.')[0] == 'tensorflow' for name in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mnist", ("mnist", None, None)),
        ("mnist:3.0.1", ("mnist", None, "3.0.1")),
        ("emnist/letters", ("emnist", "letters", None)),
        ("a/b-c.d:1.*.*", ("a", "b-c.d", "1.*.*")),
    ],
)
def test_names(text: str, expected: tuple) -> None:
    assert parse_name(text) == expected


@pytest.mark.parametrize("text", ["", "../mnist", "a b", "mnist:", "/etc", "a/../b", "a/b/c"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match="is no data set name"):
        parse_name(text)


def test_the_newest_matching_version_is_read(tmp_path: Path) -> None:
    for version in ("2.0.0", "10.0.0", "10.1.0"):
        write_tfds_set(tmp_path, "many", n_train=2, n_test=1, version=version)
    (tmp_path / "many" / "incomplete.11.0.0").mkdir()
    find = [find_directory(tmp_path, f"many{v}").name for v in ("", ":2.0.0", ":10.0.*")]
    assert find == ["10.1.0", "2.0.0", "10.0.0"]
    with pytest.raises(DataError, match=r"no such version .*: 2\.0\.0, 10\.0\.0, 10\.1\.0"):
        find_directory(tmp_path, "many:3.0.0")


def test_configs_are_named(tmp_path: Path) -> None:
    for config in ("letters", "balanced"):
        write_tfds_set(tmp_path, "emnist", n_train=2, n_test=1, config=config)
    found = find_directory(tmp_path, "emnist/letters")
    assert found == tmp_path / "emnist" / "letters" / "1.0.0"
    assert len(TfdsSplit(found, "train")) == 2
    with pytest.raises(DataError, match="configs balanced, letters; name one"):
        find_directory(tmp_path, "emnist")
    with pytest.raises(DataError, match="configs balanced, letters; name one"):
        find_directory(tmp_path, "emnist/digits")


def test_prepared_names_are_the_folders_with_sets(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "plain", n_train=1, n_test=1)
    write_tfds_set(tmp_path, "with_config", n_train=1, n_test=1, config="a")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert prepared_names(tmp_path) == ("plain", "with_config")
    assert prepared_names(tmp_path / "none") == ()


def refusal(call: Callable[[], object]) -> str:
    """The message of the DataError that a call raises, which is one line."""
    with pytest.raises(DataError) as raised:
        call()
    message = str(raised.value)
    assert message and "\n" not in message
    return message


def test_unknown_and_unprepared_names(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "my_flowers", n_train=1, n_test=1)
    find = {
        name: refusal(functools.partial(find_directory, tmp_path, name))
        for name in ("mnsit", "MNIST", "my_flower", "digit", "cifar100")
    }
    assert "unknown data set 'mnsit'" in find["mnsit"] and "did you mean 'mnist'?" in find["mnsit"]
    assert "did you mean 'mnist'?" in find["MNIST"]
    assert "did you mean 'my_flowers'?" in find["my_flower"]
    assert "did you mean 'digits'?" in find["digit"]
    assert f"bash recipe/prepare_data.sh cifar100 {tmp_path}" in find["cifar100"]
    assert "prepared there: my_flowers" in find["cifar100"]


def test_folders_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (tmp_path / "none", file):
        found = refusal(functools.partial(find_directory, folder, "mnist"))
        assert (
            str(folder) in found and "cannot be read" in found and "set dataset.data_dir" in found
        )
    assert "prepared there: none" in refusal(lambda: find_directory(tmp_path, "mnist"))
    (tmp_path / "mnist").mkdir()
    assert "prepared there: none" in refusal(lambda: find_directory(tmp_path, "mnist"))
    (tmp_path / "mnist" / "1.0.0").mkdir()
    found = refusal(lambda: TfdsSplit(find_directory(tmp_path, "mnist"), "train"))
    assert "dataset_info.json" in found and "is missing" in found


@pytest.mark.parametrize("place", [".", "mnist", "mnist/1.0.0"])
def test_folders_without_permission(tmp_path: Path, place: str) -> None:
    write_tfds_set(tmp_path, n_train=1, n_test=1)
    folder = tmp_path / place
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        folder.chmod(0o755)
        pytest.skip("this user may read everything")
    try:
        message = refusal(lambda: TfdsSplit(find_directory(tmp_path, "mnist"), "train"))
    finally:
        folder.chmod(0o755)
    assert "read" in message or "permission" in message


def records(folder: Path) -> Path:
    return next(folder.glob("*-train.array_record*"))


def truncate(folder: Path) -> None:
    os.truncate(records(folder), records(folder).stat().st_size // 2)


def flip_bytes(folder: Path) -> None:
    content = bytearray(records(folder).read_bytes())
    content[5000:5100] = bytes(100)
    records(folder).write_bytes(bytes(content))


def edit_info(folder: Path, **changes: object) -> None:
    file = folder / "dataset_info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_file(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


def claim_more_examples(folder: Path) -> None:
    edit_file(folder / "dataset_info.json", '"400"', '"500"')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "cannot be read"),
        (flip_bytes, "cannot be read"),
        (lambda folder: records(folder).write_bytes(b""), "cannot be read"),
        (lambda folder: records(folder).write_text("foreign\n" * 20_000), "cannot be read"),
        (claim_more_examples, "cannot be read"),
        (lambda folder: records(folder).unlink(), "is missing"),
        (lambda folder: (folder / "dataset_info.json").write_text('{"na'), "is damaged"),
        (lambda folder: (folder / "dataset_info.json").write_text("{}"), "is damaged"),
        (lambda folder: (folder / "dataset_info.json").write_bytes(b"\xff\x00"), "is damaged"),
        (lambda folder: (folder / "features.json").write_text('{"x'), "is damaged"),
        (lambda folder: (folder / "features.json").write_text("[]"), "is damaged"),
        (lambda folder: edit_info(folder, fileFormat="tfrecord"), "needs TensorFlow to read"),
        (lambda folder: edit_info(folder, splits=[]), "has no split 'train'"),
        (lambda folder: edit_file(folder / "features.json", '"uint8"', '"uint7"'), "is damaged"),
        (lambda folder: edit_file(folder / "dataset_info.json", '"400"', '"0"'), "no examples"),
    ],
)
def test_damage_is_named(
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = write_tfds_set(tmp_path, n_train=400, n_test=2)
    damage(folder)

    def read() -> None:
        in_memory(TfdsSplit(find_directory(tmp_path, "mnist"), "train"), "mnist")

    found = refusal(read)
    assert message in found and str(folder) in found
    assert capfd.readouterr() == ("", "")


def test_the_damaged_example_is_named(tmp_path: Path) -> None:
    folder = write_tfds_set(tmp_path, n_train=40, n_test=2, shards=2)
    file = folder / "mnist-train.array_record-00001-of-00002"
    content = bytearray(file.read_bytes())
    place = content.index(b"IDAT", content.index(b"IDAT") + 1)
    content[place : place + 50] = bytes(50)
    file.write_bytes(bytes(content))
    found = refusal(lambda: TfdsSplit(folder, "train").batch(np.arange(40)))
    assert f"{file}, example 1 (21 of split 'train')" in found


EVIL = "bad_module.deep.Feature"


def evil_features(where: str) -> dict[str, Any]:
    """Return what features.json may hold, with a class of no TFDS module somewhere in it."""
    base = "tensorflow_datasets.core.features"
    evil: dict[str, Any] = {"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}}
    old = {"type": EVIL, "content": {}}
    content = {"x": old}
    inner: dict[str, Any] = {
        "top": evil,
        "snake": {"python_class_name": EVIL, "json_feature": {"json": "{}"}},
        "old": old,
        "old inside": {"type": f"{base}.features_dict.FeaturesDict", "content": content},
        "text": {
            "pythonClassName": f"{base}.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps(content)},
        },
        "sequence": {
            "pythonClassName": f"{base}.sequence_feature.Sequence",
            "sequence": {"feature": evil, "length": "-1"},
        },
    }[where]
    return {
        "pythonClassName": f"{base}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": inner, "label": inner}},
    }


@pytest.mark.parametrize("where", ["top", "snake", "old", "old inside", "text", "sequence"])
def test_no_code_of_a_data_set_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    (tmp_path / "bad_module").mkdir()
    (tmp_path / "bad_module" / "deep.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    (folder / "features.json").write_text(json.dumps(evil_features(where)))
    found = refusal(lambda: TfdsSplit(folder, "train"))
    assert not (tmp_path / "ran").exists()
    assert EVIL in found and "features.json" in found and "none of TFDS' own" in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filepathTemplate": "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}, "not in that"),
        ({"filepathTemplate": "/etc/passwd"}, "not in that folder"),
        ({"filepathTemplate": "{SPLIT:>99999999999}"}, "other fields"),
        ({"filepathTemplate": "{SPLIT.__class__}"}, "other fields"),
    ],
)
def test_files_outside_of_the_folder_are_not_read(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0] |= changes
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert message in refusal(lambda: TfdsSplit(folder, "train"))


def test_a_module_name_in_the_description_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    (tmp_path / "bad_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    edit_info(folder, moduleName="bad_module")
    split = pickle.loads(pickle.dumps(TfdsSplit(folder, "train")))
    assert split.batch(np.arange(2))["label"].tolist() == [0, 1]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_deep_and_huge_descriptions_are_damage(tmp_path: Path, depth: int) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    (folder / "features.json").write_text('{"x":' * depth + "1" + "}" * depth)
    assert "is damaged" in refusal(lambda: TfdsSplit(folder, "train"))


def test_more_classes_than_can_be_listed_are_refused(tmp_path: Path) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    (folder / "label.labels.txt").unlink()
    file = folder / "features.json"
    file.write_text(file.read_text().replace('"10"', f'"{10**12}"'))
    assert "1000000000000 classes" in refusal(lambda: TfdsSplit(folder, "train"))


def foreign_image(kind: str) -> bytes:
    """Return an image that some decoder would open, of a format that TFDS never writes."""
    if kind == "EPS":
        head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
        return head + b"showpage\n%%EOF\n"
    stream = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("stored", ["bytes", "wide"])
@pytest.mark.parametrize("kind", ["EPS", "GIF", "BMP", "TIFF", "PPM", "WEBP", "ICO"])
def test_only_jpegs_and_pngs_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stored: str
) -> None:
    def started(*args: object, **options: object) -> None:
        raise AssertionError("a program was started, or OpenCV asked")

    data = foreign_image(kind)
    if stored == "wide":
        folder = tmp_path / "set" / "1.0.0"
        write_float_png_set(folder, [np.full((4, 4, 1), 0.5)] * 2)
    else:
        folder = write_tfds_set(tmp_path, "set", n_train=2, n_test=1, shape=(4, 4, 3))
    split = TfdsSplit(folder, "train")
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(cv2, "imdecode", started)
    monkeypatch.setattr(split, "_read", lambda rows: [{"image": data, "label": 0} for _ in rows])
    found = refusal(lambda: split.batch(np.zeros(1, np.int64)))
    assert "no whole JPEG or PNG" in found


def test_images_that_are_not_the_input_are_not_decoded(tmp_path: Path) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    features = json.loads((folder / "features.json").read_text())
    columns = features["featuresDict"]["features"]
    columns["other"] = columns["image"] | {"image": {"dtype": "uint16", "shape": {}}}
    (folder / "features.json").write_text(json.dumps(features))
    assert TfdsSplit(folder, "train").batch(np.arange(2))["label"].tolist() == [0, 1]


@pytest.mark.parametrize("kind", quick_first(["image", "tensor", "float png"]))
def test_records_damaged_before_they_were_written_are_named(tmp_path: Path, kind: str) -> None:
    """Return those whose checksum is right, so that TFDS takes them apart."""
    folder = tmp_path / "set" / "1.0.0"
    if kind == "float png":
        write_float_png_set(folder, [np.full((4, 4, 1), 0.5)] * 2)
    else:
        dtype = np.uint8 if kind == "image" else np.float32
        write_tfds_set(tmp_path, "set", n_train=2, n_test=1, shape=(4, 4, 1), dtype=dtype)
    split = TfdsSplit(folder, "train")
    whole = split._examples.data_source[0]
    rng = random.Random(0)
    causes = set()
    for _ in range(100):
        record = bytearray(whole)
        if rng.random() < 0.5:
            del record[rng.randrange(len(record)) :]
        else:
            record[rng.randrange(len(record))] = rng.randrange(256)
        _write_records(records(folder), [bytes(record), whole])
        try:
            TfdsSplit(folder, "train").batch(np.arange(2))
        except DataError as error:
            assert "example 0 (0 of split 'train'): " in str(error) and "\n" not in str(error)
            causes.add(type(error.__cause__).__name__)
    assert "DecodeError" in causes
    assert len(causes) > 1


def test_bugs_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = TfdsSplit(write_tfds_set(tmp_path, n_train=2, n_test=1), "train")
    with pytest.raises(AttributeError, match="tolist"):
        split.batch([0, 1])  # type: ignore[arg-type]
    monkeypatch.setattr(tfds_source, "load_image", lambda data: data.no_such_attribute)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        split.batch(np.arange(2))


def write_examples(
    folder: Path, images: list[np.ndarray], labels: list[int], shape: tuple[int | None, ...]
) -> Path:
    return write_split_files(
        folder / "set" / "1.0.0",
        "set",
        {"train": (images, labels)},
        shape=shape,  # type: ignore[arg-type]
        num_classes=2,
    )


def test_examples_that_do_not_fit_are_named(tmp_path: Path) -> None:
    images = images_of(3, (4, 4, 1), np.uint8)
    varying = [*images[:2], images[2][:, :3]]
    folder = write_examples(tmp_path / "a", varying, [0, 1, 0], (4, 4, 1))
    found = refusal(lambda: in_memory(TfdsSplit(folder, "train"), "set"))
    assert "example 2 " in found and "4 x 3 x 1, but example 0 has 4 x 4 x 1" in found

    folder = write_examples(tmp_path / "b", images, [0, 1, 2], (4, 4, 1))
    found = refusal(lambda: in_memory(TfdsSplit(folder, "train"), "set"))
    assert "example 2 " in found and "label 2 is outside 0..1" in found

    folder = write_examples(tmp_path / "c", images, [0, -1, 0], (4, 4, 1))
    assert "label -1" in refusal(lambda: in_memory(TfdsSplit(folder, "train"), "set"))

    floats = images_of(3, (4, 4, 1), np.float32)
    floats[1][2, 2] = np.nan
    folder = write_examples(tmp_path / "d", floats, [0, 1, 0], (4, 4, 1))
    found = refusal(lambda: in_memory(TfdsSplit(folder, "train"), "set"))
    assert "example 1 " in found and "NaN" in found


def write_varying(folder: Path, labels: list[int]) -> Path:
    images = images_of(3, (4, 4, 1), np.uint8)
    return write_examples(folder, [*images[:2], images[2][:, :3]], labels, (None, None, 1))


def test_images_of_any_size_stay_encoded(tmp_path: Path) -> None:
    folder = write_varying(tmp_path, [0, 1, 1])
    split = TfdsSplit(folder, "train")
    assert split.shape is None and split.dtype == np.uint8 and in_memory(split, "set") is split
    batch = split.batch(np.array([2, 0]))
    place = f"{records(folder)}, example 2 (2 of split 'train')"
    assert batch["input"][0].where == place and batch["label"].tolist() == [1, 0]
    with PIL.Image.open(io.BytesIO(batch["input"][0].data)) as image:
        assert image.size == (3, 4)
    assert split.labels().tolist() == [0, 1, 1] and split.labels().dtype == np.int32


def test_labels_are_read_once_and_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = TfdsSplit(write_tfds_set(tmp_path, n_train=600, shape=(2, 2, 1)), "train")
    monkeypatch.setattr(TfdsSplit, "_input", None)
    expected = [i % 10 for i in range(600)]
    assert split.labels().tolist() == expected
    monkeypatch.setattr(TfdsSplit, "_read", None)
    assert split.labels().tolist() == expected


def test_labels_outside_the_classes_are_named(tmp_path: Path) -> None:
    split = TfdsSplit(write_varying(tmp_path, [0, 2, 1]), "train")
    for read in (split.labels, lambda: split.batch(np.arange(3))):
        assert "example 1 (1 of split 'train'): label 2 is outside 0..1" in refusal(read)


def test_vectors(tmp_path: Path) -> None:
    vectors = [np.array([i, 0.5, -1, 2], np.float32) for i in range(4)]
    folder = write_split_files(
        tmp_path / "iris" / "2.0.0",
        "iris",
        {"train": (vectors, [0, 1, 2, 0])},
        shape=(4,),
        num_classes=3,
        key="features",
    )
    split = TfdsSplit(folder, "train")
    assert (split.shape, split.dtype, split.num_classes) == ((4,), np.float32, 3)
    np.testing.assert_array_equal(split.batch(np.arange(4))["input"], np.stack(vectors))


def test_splits_are_joined(tmp_path: Path) -> None:
    images = images_of(9, (4, 4, 1), np.uint8)
    folder = write_split_files(
        tmp_path / "set" / "1.0.0",
        "set",
        {"train": (images[:5], [0] * 5), "extra": (images[5:], [1] * 4)},
        shape=(4, 4, 1),
        num_classes=2,
        shards=2,
    )
    split = TfdsSplit(folder, "train+extra")
    np.testing.assert_array_equal(split.batch(np.arange(9))["input"], np.stack(images))
    assert split.labels().tolist() == [0] * 5 + [1] * 4
    assert split._where(8).endswith(
        "set-extra.array_record-00001-of-00002, example 1 (8 of split 'train+extra')"
    )
    part = TfdsSplit(folder, "train[80%:]")
    np.testing.assert_array_equal(part.batch(np.arange(1))["input"], images[4][None])
    assert "train.array_record-00001-of-00002, example 1 (0 of" in part._where(0)


def test_a_test_split_without_labels_is_passed_over(tmp_path: Path) -> None:
    """As that of imagenet2012, whose labels are -1."""
    images = images_of(2, (4, 4, 1), np.uint8)
    splits = {"train": (images, [0, 1]), "test": (images, [-1, -1]), "validation": (images, [0, 1])}
    for name, present in (("a", splits), ("b", {k: splits[k] for k in ("train", "test")})):
        write_split_files(tmp_path / name / "1.0.0", name, present, shape=(4, 4, 1), num_classes=2)
    splits = load_tfds("a", tmp_path, "train", use_test_set=True)
    assert splits.evaluation_name == "validation"
    found = refusal(lambda: load_tfds("b", tmp_path, "train", use_test_set=True))
    assert "neither a split 'test' nor 'validation' with labels" in found


@pytest.mark.slow
def test_memory_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most half of the images' bytes besides them, for a set of many chunks."""
    monkeypatch.setattr(tfds_source, "_CHUNK_EXAMPLES", 16)
    folder = write_tfds_set(tmp_path, "color", n_train=2000, n_test=1, shape=(32, 32, 3))
    split = TfdsSplit(folder, "train")
    split.batch(np.arange(2))
    tracemalloc.start()
    try:
        source = in_memory(split, "color")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = len(source) * 32 * 32 * 3
    assert size <= kept < 1.1 * size and peak < 1.5 * size


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=0)
    assert "no examples" in refusal(lambda: TfdsSplit(folder, "test"))


@pytest.mark.parametrize("missing", ["image", "label"])
def test_other_kinds_of_sets_are_refused(tmp_path: Path, missing: str) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    file = folder / "features.json"
    features = json.loads(file.read_text())
    del features["featuresDict"]["features"][missing]
    file.write_text(json.dumps(features))
    found = refusal(lambda: TfdsSplit(folder, "train"))
    assert "is not a classification set" in found


@pytest.mark.parametrize("key", ["image", "label"])
def test_records_without_a_feature_are_refused(tmp_path: Path, key: str) -> None:
    folder = write_tfds_set(tmp_path, n_train=2, n_test=1)
    for file, before, after in (
        ("features.json", f'"{key}": {{"pythonClassName"', '"other": {"pythonClassName"'),
        ("dataset_info.json", f'"featureKey": "{key}"', '"featureKey": "other"'),
    ):
        text = (folder / file).read_text()
        assert before in text
        (folder / file).write_text(text.replace(before, after))
    found = refusal(lambda: TfdsSplit(folder, "train").batch(np.arange(2)))
    assert "example 0 " in found and "it has no 'other'" in found


def test_real_mnist(data_dir: Path) -> None:
    folder = find_directory(data_dir, "mnist")
    assert set(open_builder(folder).info.splits) == {"train", "test"}
    source = in_memory(TfdsSplit(folder, "test"), "mnist")
    assert isinstance(source, InMemorySource)
    assert source.inputs.shape == (10_000, 28, 28, 1) and source.inputs.dtype == np.uint8
    # The test set's published class counts.
    assert np.bincount(source.labels()).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
