"""Arrays in .npz files: read, split, and damage is one clear line; no pickle."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_pipeline import DataError, files
from ds_pipeline.npz_file import load_npz
from ds_pipeline.splits import Splits

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), np.uint8)
CLASSES = np.arange(20) % 4


def write(folder: Path, **arrays: Any) -> Path:
    file = folder / "data.npz"
    np.savez(file, **{name: np.asarray(array) for name, array in arrays.items()})
    return file


def load(file: Path, is_regression: bool = False) -> Splits:
    return load_npz(file, is_regression, 0.2, seed=0)


@pytest.mark.parametrize(
    ("x", "shape", "dtype"),
    [
        (IMAGES, (6, 5, 3), np.uint8),
        (IMAGES[..., 0], (6, 5, 1), np.uint8),
        (IMAGES / 255, (6, 5, 3), np.float32),
        (IMAGES / 256, (6, 5, 3), np.float32),
        (IMAGES.reshape(20, -1), (90,), np.float32),
        (IMAGES.reshape(20, -1).astype(np.int64) - 5, (90,), np.float32),
    ],
)
def test_published_parts(
    tmp_path: Path, x: np.ndarray, shape: tuple[int, ...], dtype: type
) -> None:
    splits = load(write(tmp_path, x=x[:14], y=CLASSES[:14], x_test=x[14:], y_test=CLASSES[14:]))
    assert splits.evaluation is not None
    assert (splits.shape, splits.dtype, splits.class_names) == (shape, dtype, ("0", "1", "2", "3"))
    train, test = splits.train.batch(np.arange(14)), splits.evaluation.batch(np.arange(6))
    np.testing.assert_array_equal(
        train["input"].reshape(14, -1), x[:14].reshape(14, -1).astype(dtype)
    )
    np.testing.assert_array_equal(test["input"].reshape(6, -1), x[14:].reshape(6, -1).astype(dtype))
    assert test["label"].tolist() == CLASSES[14:].tolist() and test["label"].dtype == np.int32


def test_without_a_test_part_one_is_drawn(tmp_path: Path) -> None:
    splits = load(write(tmp_path, x=IMAGES, y=CLASSES))
    assert splits.evaluation is not None
    assert np.bincount(splits.evaluation.labels()).tolist() == [1] * 4 and len(splits.train) == 16


def test_labels_as_text_and_for_regression(tmp_path: Path) -> None:
    names = np.array(["b", "a"] * 10)
    assert load(write(tmp_path, x=IMAGES, y=names)).class_names == ("a", "b")
    # Neighbors that are one number as floats.
    large = np.array([2**53, 2**53 + 1] * 10)
    assert load(write(tmp_path, x=IMAGES, y=large)).class_names == (str(2**53), str(2**53 + 1))
    splits = load(write(tmp_path, x=IMAGES, y=np.linspace(0, 1, 20)[:, None]), is_regression=True)
    assert splits.class_names == () and splits.train.labels().dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "has no array y; it needs x and y"),
        ({"x": IMAGES, "y": CLASSES, "x_test": IMAGES}, "has no array y_test"),
        ({"images": IMAGES, "y": CLASSES}, "has no array x; it needs x and y, may have x_test"),
        ({"x": IMAGES, "y": CLASSES[:5]}, "x has 20 examples and y 5"),
        ({"x": np.array([{}, 1], object), "y": [0, 1]}, "x is an array of Python objects"),
        ({"x": IMAGES, "y": CLASSES.astype(object)}, "y is an array of Python objects"),
        ({"x": IMAGES.astype(np.int64), "y": CLASSES}, "x holds int64; allowed are uint8"),
        ({"x": IMAGES.astype(complex), "y": CLASSES}, "x holds complex128"),
        ({"x": IMAGES > 5, "y": CLASSES}, "x holds bool"),
        ({"x": IMAGES[:, 0, 0, 0], "y": CLASSES}, "x has the shape [20]"),
        ({"x": IMAGES[:0], "y": CLASSES[:0]}, "x has no examples"),
        ({"x": 1, "y": CLASSES}, "x has no examples"),
        ({"x": IMAGES, "y": CLASSES + 0.5}, "label 0.5 is no class"),
        ({"x": IMAGES, "y": np.eye(4)[CLASSES]}, "y has the shape [20, 4]"),
        ({"x": IMAGES, "y": CLASSES > 1}, "y holds bool"),
        ({"x": IMAGES, "y": np.full(20, np.nan)}, "y[0] holds values that are NaN"),
        (
            {"x": IMAGES, "y": np.full((20, 2), 2**30, np.uint32).view("<U2")},
            "y holds text that is not Unicode",
        ),
        ({"x": IMAGES, "y": np.full(20, b"caf\xe9")}, "y holds |S4; allowed are whole numbers and"),
        ({"x": np.full((20, 3), np.inf), "y": CLASSES}, "x[0] holds values that are NaN"),
        ({"x": np.full((20, 3), np.inf, np.float32), "y": CLASSES}, "x[0] holds values that are"),
        ({"x": np.full((20, 3), 1e160), "y": CLASSES}, "too large (above 1e+150)"),
        (
            {"x": IMAGES, "y": CLASSES, "x_test": IMAGES[:, :3], "y_test": CLASSES},
            "x holds uint8 [6, 5, 3] an example and x_test uint8 [3, 5, 3]",
        ),
        (
            {"x": IMAGES, "y": CLASSES, "x_test": IMAGES, "y_test": CLASSES + 1},
            "class '4' occurs in the test split alone",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    file = write(tmp_path, **arrays)
    with pytest.raises(DataError) as raised:
        load(file)
    found = str(raised.value)
    assert message in found and "\n" not in found and str(file) in found


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = write(tmp_path, x=IMAGES, y=CLASSES).read_bytes()
    file = tmp_path / "a.npz"
    damaged = bytearray(whole)
    damaged[200:300] = bytes(100)
    for content, message in (
        (b"", "is no .npz file"),
        (b"hello", "is no .npz file"),
        (whole[: len(whole) // 2], "is no .npz file"),
        (bytes(damaged), "is damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message) as raised:
            load(file)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="does not exist; set dataset.data_dir to the .npz file"):
        load(tmp_path / "none.npz")


def test_labels_are_what_is_written(tmp_path: Path) -> None:
    for y, names in (
        (["01", "1", "1_1", "11"], ("01", "1", "11", "1_1")),
        (["nan", "inf"], ("inf", "nan")),
        ([1.0, -3.0, 0.0, -0.0], ("-3", "0", "1")),
        (["caf\u00e9", "cafe\u0301", "tea"], ("caf\u00e9", "tea")),
        (np.array([1, 2], np.longdouble), ("1", "2")),
    ):
        labels = np.tile(np.asarray(y), 12)
        file = write(tmp_path, x=np.zeros((len(labels), 2)), y=labels)
        assert load(file).class_names == names


def test_numbers_that_float32_does_not_hold(tmp_path: Path) -> None:
    seconds = 1_700_000_000 + np.arange(40)
    halves = seconds >= seconds[20]
    for x in (seconds, seconds.astype(np.float64), seconds.astype(">u8")):
        splits = load(write(tmp_path, x=x[:, None], y=halves.astype(int)))
        assert splits.dtype == np.float64
        found = splits.train.batch(np.arange(32))["input"]
        assert found.dtype == np.float64 and set(found[:, 0]) <= set(seconds.tolist())
    # One split needs it.
    splits = load(
        write(tmp_path, x=np.eye(4), y=CLASSES[:4], x_test=1.7e9 + np.eye(4), y_test=CLASSES[:4])
    )
    assert splits.evaluation is not None
    batches = (splits.train.batch(np.arange(4)), splits.evaluation.batch(np.arange(4)))
    assert [batch["input"].dtype for batch in batches] == [np.float64] * 2
    with pytest.raises(DataError, match="y: float32 does not hold what the targets, about"):
        load(write(tmp_path, x=x[:, None], y=seconds), is_regression=True)


def bomb(file: Path, size: int) -> Path:
    """Write an array of zeros of `size` bytes, which packs to a thousandth."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (size // 2**16, 2**16)}
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", b"")
        with archive.open("x.npy", "w") as member:
            member.write(header.getvalue())
            for _ in range(size // 2**20):
                member.write(bytes(2**20))
    return file


def test_arrays_that_would_fill_the_memory_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_HARMLESS_BYTES", 2**23)
    file = bomb(tmp_path / "a.npz", 2**24)
    with pytest.raises(
        DataError, match=r"unpacks from [\d,]{6,7} to 16,777,3.. bytes; allowed are up to 8,3"
    ):
        load(file)
    # What packs as pictures do may be as large as the memory allows.
    monkeypatch.setattr(files, "_MOST_RATIO", 10_000)
    with pytest.raises(DataError, match="y has no examples"):
        load(file)
    monkeypatch.setattr(os, "sysconf", lambda _: 2**12)
    with pytest.raises(DataError, match="up to 8,388,608, half"):
        load(file)


@pytest.mark.parametrize(
    ("part", "replacement"),
    [
        (b"(20, 3), }", b"(20, 3**9)"),
        (b"(20, 3), }        ", b"(20, 33333333333)}"),
        (b"(20, 3), }", b"(-2, -3), "),
        (b"'<f8'", b"'<O8'"),
        (b"'<f8'", b"'<z8'"),
        (b"{'descr'", b"(((((((("),
        (b"NUMPY", b"NUMPI"),
    ],
)
def test_headers_that_numpy_does_not_write(tmp_path: Path, part: bytes, replacement: bytes) -> None:
    """In an archive that is whole: each member's check sum is right."""
    arrays = {"x": np.zeros((20, 3)), "y": CLASSES}
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.save(stream, array)
            content = stream.getvalue()
            assert name == "y" or part in content
            archive.writestr(f"{name}.npy", content.replace(part, replacement))
    with pytest.raises(DataError, match="is damaged|of Python objects|no examples") as raised:
        load(file)
    assert "\n" not in str(raised.value)
