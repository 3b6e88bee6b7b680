"""MNIST's own files: what is read equals what was written, and damage is one clear line."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ds_pipeline import DataError, build_dataset, files
from ds_pipeline.idx_file import load_idx
from tests.data_sets import write_idx_set
from tests.ds_pipeline.build_test import config_of, refusal

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize("compressed", [True, False])
def test_reads_what_was_written(tmp_path: Path, compressed: bool) -> None:
    """A file's bytes, taken apart by hand."""
    write_idx_set(
        tmp_path, n_train=12, n_test=5, shape=(6, 5), num_classes=3, compressed=compressed
    )
    splits = load_idx(tmp_path)
    assert splits.evaluation is not None
    assert (splits.shape, splits.dtype, splits.class_names) == (
        (6, 5, 1),
        np.uint8,
        ("0", "1", "2"),
    )
    assert (len(splits.train), len(splits.evaluation)) == (12, 5)
    file = tmp_path / f"{IMAGES}{'.gz' * compressed}"
    raw = gzip.decompress(file.read_bytes()) if compressed else file.read_bytes()
    batch = splits.train.batch(np.array([11, 0]))
    assert batch["input"][0].tobytes() == raw[16 + 11 * 30 :] and len(raw) == 16 + 12 * 30
    assert batch["label"].tolist() == [2, 0] and splits.evaluation.labels().tolist() == [
        0,
        1,
        2,
        0,
        1,
    ]


def test_as_a_config_asks_for_it(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    keys = {"image_size": 28, "num_channels": 1, "num_classes": 10}
    dataset = build_dataset(config_of(dataset_name="idx", data_dir=str(tmp_path), **keys))
    assert (dataset.shape, len(dataset.train), dataset.evaluation_name) == ((28, 28, 1), 32, "test")
    assert "set it to the folder of the idx files" in refusal(config_of(dataset_name="idx"))


def changed(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def apply(folder: Path) -> object:
        return (folder / file).write_bytes(change((folder / file).read_bytes()))

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / LABELS).unlink(), f"{LABELS} does not exist; set dataset.data_"),
        (changed(IMAGES, lambda raw: raw[:-1]), "is truncated: 3,149 values of 3,150; get it"),
        (changed(IMAGES, lambda raw: raw[:14]), "is truncated"),
        (changed(IMAGES, lambda raw: raw + b"x"), "holds more than the 3,150 values that it says"),
        (changed(IMAGES, lambda raw: b""), "begins with the bytes of an empty file"),
        (changed(IMAGES, lambda raw: b"\0\0\x0d" + raw[3:]), "00 00 0d 03, not with 00 00 08 03"),
        (changed(LABELS, lambda raw: raw[:3] + b"\3" + raw[4:]), "idx file of bytes with 1 axes"),
        (changed(IMAGES, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:]), "half of the machine's"),
        (changed(LABELS, lambda raw: raw[:4] + bytes([0, 0, 0, 1]) + raw[8:9]), "and 1 labels in"),
        (changed(IMAGES, lambda raw: raw[:4] + bytes(12)), "has no examples"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    write_idx_set(tmp_path, n_train=35, shape=(9, 10))
    damage(tmp_path)
    message = refusal(config_of(dataset_name="idx", data_dir=str(tmp_path)))
    assert said in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:-20], "is damaged"),
        (lambda raw: raw[:10] + b"\xff" + raw[11:], "is damaged"),
        (lambda raw: b"hello" + raw, "cannot be read: Not a gzipped file"),
    ],
)
def test_a_damaged_archive(tmp_path: Path, change: Callable[[bytes], bytes], said: str) -> None:
    write_idx_set(tmp_path, compressed=True)
    changed(f"{IMAGES}.gz", change)(tmp_path)
    assert said in refusal(config_of(dataset_name="idx", data_dir=str(tmp_path)))


def test_images_of_two_sizes(tmp_path: Path) -> None:
    write_idx_set(tmp_path, shape=(9, 10))
    write_idx_set(tmp_path / "other", shape=(9, 9))
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / "other" / f"t10k-{name}-ubyte").rename(tmp_path / f"t10k-{name}-ubyte")
    with pytest.raises(DataError, match="images of 9 x 10 pixels for training, and of 9 x 9"):
        load_idx(tmp_path)


def test_no_more_is_unpacked_than_the_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx_set(tmp_path, n_train=100, compressed=True)
    changed(f"{IMAGES}.gz", lambda raw: gzip.compress(gzip.decompress(raw)[:16] + bytes(78_400)))(
        tmp_path
    )
    load_idx(tmp_path)
    monkeypatch.setattr(files, "_HARMLESS_BYTES", 78_399)
    with pytest.raises(DataError, match="to 78,400 bytes; allowed are up to 78,399, half of the"):
        load_idx(tmp_path)
