"""Image folders: what is listed, the index beside the run, memory, and damage."""

import os
import stat
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import ds_pipeline.image_folder as image_folder
from ds_pipeline import DataError
from ds_pipeline.image_folder import ImageFolder, load_image_folder, make_index
from ds_pipeline.splits import Splits
from tests.data_sets import write_image_folder


def load(folder: Path, use_test_set: bool = True, cache_dir: Path | None = None) -> Splits:
    return load_image_folder(folder, use_test_set, cache_dir)


def train_of(splits: Splits) -> ImageFolder:
    assert isinstance(splits.train, ImageFolder)
    return splits.train


def files_of(splits: Splits) -> list[str]:
    batch = splits.train.batch(np.arange(len(splits.train)))
    return [os.path.relpath(image.where, train_of(splits).folder) for image in batch["input"]]


def test_lists_class_folders_and_images_sorted(tmp_path: Path) -> None:
    write_image_folder(tmp_path, classes=("b", "a", "C"), n_train=2, n_test=1)
    (tmp_path / "train" / "a" / "1.jpg").rename(tmp_path / "train" / "a" / "00 é.JPEG")
    (tmp_path / "train" / "b" / "0.jpg").rename(tmp_path / "train" / "b" / "x.Png")
    splits = load(tmp_path)
    assert (splits.class_names, splits.shape, splits.dtype) == (("C", "a", "b"), None, np.uint8)
    assert (splits.evaluation_name, splits.warnings) == ("test", ())
    assert files_of(splits) == [
        "C/0.jpg",
        "C/1.jpg",
        "a/0.jpg",
        "a/00 é.JPEG",
        "b/1.jpg",
        "b/x.Png",
    ]
    assert splits.train.labels().tolist() == [0, 0, 1, 1, 2, 2]
    batch = splits.train.batch(np.array([5, 1]))
    assert batch["label"].tolist() == [2, 0] and batch["label"].dtype == np.int32
    assert batch["input"][0].data == (tmp_path / "train" / "b" / "x.Png").read_bytes()


@pytest.mark.parametrize(("name", "says"), [("val", "validation"), ("validation", "validation")])
def test_names_of_the_evaluation_folder(tmp_path: Path, name: str, says: str) -> None:
    write_image_folder(tmp_path, evaluation=name)
    # As ImageNet's: images without labels.
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.JPEG").write_bytes(b"x")
    splits = load(tmp_path)
    assert splits.evaluation is not None
    assert (splits.evaluation_name, len(splits.evaluation)) == (says, 4)


def test_the_evaluation_folder_is_not_needed_where_a_part_is_held_out(tmp_path: Path) -> None:
    write_image_folder(tmp_path, n_test=0, evaluation="train")
    assert load(tmp_path, use_test_set=False).evaluation is None
    with pytest.raises(DataError, match="neither test/CLASS nor val/CLASS .* set use_test_set"):
        load(tmp_path)


def test_other_entries_are_counted(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "cat" / "folder.jpg").mkdir()
    (tmp_path / "train" / "cat" / ".hidden").write_text("x")
    (tmp_path / "train" / "README").write_text("x")
    (tmp_path / "train" / ".git").mkdir()
    for _ in range(2):  # from the files, then from the index
        splits = load(tmp_path, cache_dir=tmp_path / "run")
        (line,) = splits.warnings
        assert "ignored as they are no images (.jpg, .jpeg, .png): 3, such as " in line
        assert str(tmp_path / "train" / "README") in line
        assert splits.class_names == ("cat", "dog")


def test_classes_without_test_images_are_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path, classes=("a", "b", "c"))
    for file in (tmp_path / "test" / "b").iterdir():
        file.unlink()
    os.rename(tmp_path / "test" / "c", tmp_path / "gone")
    (line,) = load(tmp_path).warnings
    assert line == f"{tmp_path / 'test'} has no images of 2 of 3 classes: b, c"


def remove_train(folder: Path) -> None:
    os.rename(folder / "train", folder / "training")


def empty_a_class(folder: Path) -> None:
    for file in (folder / "train" / "dog").iterdir():
        file.unlink()


def flatten(folder: Path) -> None:
    for name in ("cat", "dog"):
        os.rename(folder / "train" / name, folder / name)


def empty_the_test_folder(folder: Path) -> None:
    for file in folder.glob("test/*/*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_train, "train is no folder (an image folder is DIR/train/CLASS/*.jpg"),
        (empty_a_class, "train/dog holds no image (.jpg, .jpeg, .png); add some"),
        (flatten, "train holds no class folders"),
        (empty_the_test_folder, "test holds no image"),
        (lambda folder: (folder / "test" / "emu").mkdir(), "test/emu has no counterpart in"),
        (lambda folder: os.rename(folder / "test", folder / "t"), "has neither test/CLASS nor"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(write_image_folder(tmp_path))
    with pytest.raises(DataError) as raised:
        load(tmp_path)
    found = str(raised.value)
    assert message in found and str(tmp_path) in found and "\n" not in found


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    splits = load(tmp_path)
    file = tmp_path / "train" / "cat" / "1.jpg"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{file} is empty \(0 bytes\)"):
        splits.train.batch(np.arange(3))
    file.unlink()
    with pytest.raises(DataError, match=f"{file} cannot be read: No such file"):
        splits.train.batch(np.arange(3))


@pytest.mark.parametrize("place", [".", "train", "train/cat", "train/cat/0.jpg"])
def test_no_permission_is_named(tmp_path: Path, place: str) -> None:
    path = write_image_folder(tmp_path) / place
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.chmod(0o755)
        pytest.skip("this user may read everything")
    try:
        with pytest.raises(DataError, match="cannot be read: Permission denied") as raised:
            load(tmp_path).train.batch(np.arange(2))
    finally:
        path.chmod(0o755)
    assert str(path) in str(raised.value)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The split folders whose index is made, as they are."""
    made: list[Path] = []

    def counted(folder: Path, class_names: tuple[str, ...]) -> image_folder.FolderIndex:
        made.append(folder)
        return make_index(folder, class_names)

    monkeypatch.setattr(image_folder, "make_index", counted)
    return made


def test_the_index_is_made_once_and_lies_beside_the_run(
    tmp_path: Path, listings: list[Path]
) -> None:
    data, run = write_image_folder(tmp_path / "data"), tmp_path / "run"
    before = sorted(data.rglob("*"))
    first, again = load(data, cache_dir=run), load(data, cache_dir=run)
    assert [folder.name for folder in listings] == ["train", "test"]
    assert sorted(path.name for path in run.iterdir()) == [
        "image_folder_test.npz",
        "image_folder_train.npz",
    ]
    assert sorted(data.rglob("*")) == before
    assert files_of(first) == files_of(again)
    np.testing.assert_array_equal(first.train.labels(), again.train.labels())


def add_file(data: Path, run: Path) -> None:
    (data / "train" / "dog" / "new.jpg").write_bytes(b"x")


def remove_file(data: Path, run: Path) -> None:
    (data / "train" / "dog" / "0.jpg").unlink()


def rename_class(data: Path, run: Path) -> None:
    for split in ("train", "test"):
        os.rename(data / split / "dog", data / split / "ant")


def truncate_index(data: Path, run: Path) -> None:
    file = run / "image_folder_train.npz"
    os.truncate(file, file.stat().st_size // 2)


def foreign_index(data: Path, run: Path) -> None:
    (run / "image_folder_train.npz").write_text("hello")


def pickled_index(data: Path, run: Path) -> None:
    np.savez(run / "image_folder_train.npz", key=np.array([{}], object))


def inconsistent_index(data: Path, run: Path) -> None:
    file = run / "image_folder_train.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["ends"][-1] += 1
    np.savez(file, **arrays)


def edited(**changes: Callable[[Any], Any]) -> Callable[[Path, Path], None]:
    """Return a change of the arrays of an index, which leaves its key right."""

    def change(data: Path, run: Path) -> None:
        file = run / "image_folder_train.npz"
        with np.load(file) as stored:
            arrays = dict(stored)
        arrays |= {name: of(arrays[name]) for name, of in changes.items()}
        np.savez(file, **arrays)

    return change


def renamed(old: bytes, new: bytes) -> Callable[[Any], Any]:
    return lambda names: np.frombuffer(names.tobytes().replace(old, new), np.uint8)


def compressed_index(data: Path, run: Path) -> None:
    file = run / "image_folder_train.npz"
    with np.load(file) as stored:
        np.savez_compressed(file, **dict(stored))


def huge_index(data: Path, run: Path) -> None:
    """Claim an array of 4 TiB."""
    file = run / "image_folder_train.npz"
    content = file.read_bytes()
    place = content.index(b"'shape': (40,)")
    end = content.index(b"\n", place)
    claim = b"'shape': (4398046511104,), }"
    file.write_bytes(content[:place] + claim.ljust(end - place) + content[end:])


def pipe_as_index(data: Path, run: Path) -> None:
    file = run / "image_folder_train.npz"
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "change",
    [
        edited(names=renamed(b"0.jpg", b"../..")),
        edited(names=renamed(b"0.jpg", b"/etc/")),
        edited(names=renamed(b"0.jpg", b"0\0jpg")),
        edited(labels=lambda labels: labels + 1),
        edited(labels=lambda labels: labels - 1),
        edited(labels=lambda labels: labels.astype(np.int64)),
        edited(labels=lambda labels: labels[:, None]),
        edited(labels=lambda labels: labels[:0], ends=lambda e: e[:0], names=lambda n: n[:0]),
        edited(ends=lambda ends: ends[::-1]),
        edited(ignored=lambda ignored: np.array([1, 2])),
        compressed_index,
        huge_index,
        pipe_as_index,
        add_file,
        remove_file,
        rename_class,
        truncate_index,
        foreign_index,
        pickled_index,
        inconsistent_index,
    ],
)
def test_a_stale_or_damaged_index_is_made_again(
    tmp_path: Path, listings: list[Path], change: Callable[[Path, Path], None]
) -> None:
    data, run = write_image_folder(tmp_path / "data"), tmp_path / "run"
    load(data, cache_dir=run)
    listings.clear()
    change(data, run)
    found = load(data, cache_dir=run)
    assert data / "train" in listings
    assert files_of(found) == files_of(load(data))
    listings.clear()
    load(data, cache_dir=run)
    assert listings == []


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_index_is_for_those_whom_the_umask_allows(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        load(write_image_folder(tmp_path / "data"), cache_dir=tmp_path / "run")
    finally:
        os.umask(old)
    files = list((tmp_path / "run").iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}
    assert len(files) == 2


@pytest.mark.parametrize(("train", "test"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_class_is_one_however_its_name_is_encoded(tmp_path: Path, train: Any, test: Any) -> None:
    folder = write_image_folder(tmp_path, classes=("x", "café"))
    for split, form in (("train", train), ("test", test)):
        os.rename(folder / split / "café", folder / split / unicodedata.normalize(form, "café"))
    found = load(folder)
    assert found.class_names == ("café", "x")
    assert found.evaluation is not None and found.warnings == ()
    for source in (found.train, found.evaluation):
        assert len(source.batch(np.arange(len(source)))["input"]) == len(source)


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    classes = (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"))
    folder = write_image_folder(tmp_path, classes=classes)
    with pytest.raises(DataError, match="two folders of the class 'café'"):
        load(folder)


@pytest.mark.parametrize("target", ["self.jpg", "missing.jpg"])
@pytest.mark.parametrize("place", ["train", "train/dog"])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, place: str, target: str) -> None:
    folder = write_image_folder(tmp_path)
    (folder / "train" / "cat" / "notes.txt").write_text("x")
    (folder / place / "self.jpg").symlink_to(target)
    found = load(folder)
    assert len(found.train) == 8
    assert f"{folder / place / 'self.jpg'}, a link that leads nowhere" in found.warnings[0]


def test_a_run_folder_that_cannot_be_written_to_goes_without(tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "data")
    (tmp_path / "file").write_text("x")
    assert len(load(data, cache_dir=tmp_path / "file" / "run").train) == 8


def test_workers_get_the_index_and_no_more(tmp_path: Path) -> None:
    source = load(write_image_folder(tmp_path)).train
    pickled = cloudpickle.dumps(source)
    again = cloudpickle.loads(pickled)
    assert len(pickled) < 2000
    assert again.batch(np.arange(8))["input"] == source.batch(np.arange(8))["input"]


def test_memory_is_that_of_the_index(tmp_path: Path) -> None:
    """20,000 files: the list stays below 50 bytes a file, its name of 12 among them."""
    folder = tmp_path / "train"
    names = {name: [f"{i:08}.jpg" for i in range(10_000)] for name in ("a", "b")}

    def listed(path: Path) -> tuple[list[str], list[str]]:
        return list(names.get(path.name, [])), []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_folder, "_scan", listed)
        tracemalloc.start()
        try:
            index = make_index(folder, ("a", "b"))
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert index.name(10_001) == "00000001.jpg" and len(index.labels) == 20_000
    assert kept < 20_000 * 50
    # One class folder's names at a time.
    assert peak < 20_000 * 50 + 10_000 * 150
