"""Photographs in folders: DIR/train/CLASS/*.JPEG, and the same in DIR/test or DIR/val.

The list of files is made once and kept beside the run, not in the data. In memory it is one
buffer of bytes, some 25 bytes a file; images are read when they are asked for.
"""

import contextlib
import errno
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ds_pipeline.errors import DataError
from ds_pipeline.files import NPZ_ERRORS
from ds_pipeline.source import Batch, EncodedImage, Indices
from ds_pipeline.splits import Splits, listing, normalized

SUFFIXES = (".jpg", ".jpeg", ".png")

_LAYOUT = "an image folder is DIR/train/CLASS/*.jpg, and the same in DIR/test or DIR/val"
# Of an index: that of 50 million files has fewer.
_MOST_BYTES = 2**31
_SHORTEST_NAME = len("a.jpg")
_EVALUATION_FOLDERS = (("test", "test"), ("val", "validation"), ("validation", "validation"))


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The images of one split folder, sorted by class, then by name.

    Args:
        names: uint8, the file names one after the other.
        ends: int64 [n], where each ends.
        labels: int32 [n], indices into the class names.
        ignored: entries that are no images.
        example: one of these, and what is wrong with it, or the empty string.
    """

    names: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    ignored: int
    example: str

    def name(self, index: int) -> str:
        """Return the file name of an image."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]].tobytes())


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Encoded images in class folders.

    Args:
        folder: a split's, with the class folders in it.
        class_folders: names of these, as they are on the disk; label i is in the i-th.
        index: its files.
    """

    folder: Path
    class_folders: tuple[str, ...]
    index: FolderIndex

    def __len__(self) -> int:
        return len(self.index.labels)

    def batch(self, indices: Indices) -> Batch:
        """Read these files, as `EncodedImage`.

        Raises:
            DataError: a file is gone, empty or cannot be read; it is named.
        """
        labels = self.index.labels[indices]
        images = [
            self._read(int(index), self.class_folders[label])
            for index, label in zip(indices, labels, strict=True)
        ]
        return {"input": images, "label": labels}

    def labels(self) -> np.ndarray:
        """Return all labels in order, int32 [n]."""
        return self.index.labels

    def _read(self, index: int, class_folder: str) -> EncodedImage:
        file = os.path.join(self.folder, class_folder, self.index.name(index))
        try:
            # A pipe is empty then, and is not waited for.
            with open(file, "rb", opener=lambda path, how: os.open(path, how | os.O_NONBLOCK)) as s:
                data = s.read()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        if not data:
            raise DataError(f"{file} is empty (0 bytes); remove it, or copy it again")
        return EncodedImage(data, file)


def load_image_folder(folder: Path, use_test_set: bool, cache_dir: Path | None = None) -> Splits:
    """Load an image folder's splits; classes are the folders in DIR/train, sorted by name.

    Args:
        folder: DIR.
        use_test_set: read DIR/test, else DIR/val, too.
        cache_dir: where the lists of files are kept; None: nowhere.

    Raises:
        DataError: a split folder or all class folders are missing; a class folder of train is
            empty or cannot be read; a class is in the evaluation split alone.
    """
    folders = _class_folders(folder / "train")
    class_names = tuple(sorted(folders))
    train = _open_split(folder / "train", class_names, folders, cache_dir)
    counts = np.bincount(train.index.labels, minlength=len(class_names))
    if not counts.all():
        empty = train.folder / train.class_folders[int(np.argmin(counts))]
        raise DataError(
            f"{empty} holds no image ({', '.join(SUFFIXES)}); add some, or remove the folder"
        )
    warnings = _warnings(train, class_names)
    evaluation, name = None, "validation"
    if use_test_set:
        evaluation_folder, name, folders = _evaluation_folder(folder)
        evaluation = _open_split(evaluation_folder, class_names, folders, cache_dir)
        warnings += _warnings(evaluation, class_names)
    return Splits(
        train=train,
        evaluation=evaluation,
        evaluation_name=name,
        shape=None,
        dtype=np.dtype(np.uint8),
        class_names=class_names,
        warnings=tuple(warnings),
    )


def _evaluation_folder(folder: Path) -> tuple[Path, str, dict[str, os.DirEntry[str]]]:
    """Return the first with class folders: a test set may come without labels, in one heap."""
    for split, name in _EVALUATION_FOLDERS:
        if os.path.isdir(folder / split) and (folders := _class_folders(folder / split)):
            return folder / split, name, folders
    raise DataError(
        f"{folder} has neither test/CLASS nor val/CLASS folders ({_LAYOUT}); add them, or set "
        "use_test_set to False to hold out examples of train"
    )


def _open_split(
    folder: Path,
    class_names: tuple[str, ...],
    folders: dict[str, os.DirEntry[str]],
    cache_dir: Path | None,
) -> ImageFolder:
    """Open a split with its index; `folders` are its class folders."""
    if not folders:
        raise DataError(f"{folder} holds no class folders ({_LAYOUT})")
    unknown = sorted(set(folders) - set(class_names))
    if unknown:
        raise DataError(
            f"class folder {folders[unknown[0]].path} has no counterpart in "
            f"{folder.parent / 'train'}, which has {listing(class_names)}"
        )
    class_folders = tuple(folders[n].name if n in folders else n for n in class_names)
    modified = {entry.name: entry.stat().st_mtime_ns for entry in folders.values()}
    key = json.dumps(
        [os.fspath(folder.absolute()), folder.stat().st_mtime_ns, class_folders, modified]
    )
    cache = None if cache_dir is None else cache_dir / f"image_folder_{folder.name}.npz"
    index = None if cache is None else read_index(cache, key, len(class_names))
    if index is None:
        index = make_index(folder, class_folders)
        if cache is not None:
            write_index(cache, key, index)
    if not len(index.labels):
        raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES)}) in its class folders")
    return ImageFolder(folder, class_folders, index)


def _class_folders(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Map the class that each folder in it stands for, unless hidden, to that folder."""
    found: dict[str, os.DirEntry[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or not _is(entry.is_dir):
                    continue
                class_name = normalized(entry.name)
                if class_name in found:
                    raise DataError(
                        f"{folder} has two folders of the class '{class_name}', whose names are "
                        f"encoded in two ways: {ascii(found[class_name].name)} and "
                        f"{ascii(entry.name)}; move the images into one"
                    )
                found[class_name] = entry
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} is no folder ({_LAYOUT}); set dataset.data_dir to DIR") from None
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return found


def _is(kind: Callable[[], bool]) -> bool:
    """Ask an entry for its kind; a link to itself is none, like one to nothing."""
    try:
        return kind()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def make_index(folder: Path, class_folders: tuple[str, ...]) -> FolderIndex:
    """List the images of a split folder, one class folder in memory at a time.

    Args:
        folder: with the class folders.
        class_folders: the label of a file is the index of its folder in them; a folder that is not
            there has no files.

    Raises:
        DataError: a folder cannot be read.
    """
    images, others = _scan(folder)
    others += [(True, os.path.join(folder, name)) for name in images]
    others = [each for each in others if os.path.basename(each[1]) not in class_folders]
    count, first = len(others), sorted(others)[:1]
    names: list[bytes] = []
    ends: list[np.ndarray] = []
    counts: list[int] = []
    end = 0
    for class_folder in class_folders:
        images, others = _scan(folder / class_folder)
        count, first = count + len(others), sorted(first + others[:1])[:1]
        encoded = [os.fsencode(name) for name in images]
        ends.append(end + np.cumsum([len(name) for name in encoded], dtype=np.int64))
        names.append(b"".join(encoded))
        end += len(names[-1])
        counts.append(len(images))
    example = "".join(
        path + (", a link that leads nowhere" if not ok else "") for ok, path in first
    )
    return FolderIndex(
        names=np.frombuffer(b"".join(names), np.uint8),
        ends=np.concatenate(ends),
        labels=np.repeat(np.arange(len(class_folders), dtype=np.int32), counts),
        ignored=count,
        example=example,
    )


def _scan(folder: Path) -> tuple[list[str], list[tuple[bool, str]]]:
    """List (names of images, other entries), sorted; neither has hidden entries.

    The others are (leads somewhere, path), broken links first: they may be images that are missed.
    """
    images: list[str] = []
    others: list[tuple[bool, str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(SUFFIXES) and _is(entry.is_file):
                    images.append(entry.name)
                else:
                    leads = not entry.is_symlink() or os.path.exists(entry.path)
                    others.append((leads, entry.path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return sorted(images), sorted(others)


def read_index(file: Path, key: str, class_count: int) -> FolderIndex | None:
    """Read an index that was written with this key; None: there is none, or it is damaged.

    Args:
        file: in a run directory, which may come from elsewhere: what it says is checked.
        key: of what the folder is like now.
        class_count: labels are below it.
    """
    try:
        # Opened here: numpy leaves open what it finds damaged.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                return None
            with np.load(stream, allow_pickle=False) as stored:
                # Stored as they are, the arrays are no larger than the file.
                if any(each.compress_type != zipfile.ZIP_STORED for each in stored.zip.infolist()):
                    return None
                if stored["key"].tobytes() != key.encode():
                    return None
                index = FolderIndex(
                    names=stored["names"],
                    ends=stored["ends"],
                    labels=stored["labels"],
                    ignored=int(stored["ignored"]),
                    example=os.fsdecode(stored["example"].tobytes()),
                )
    except (OSError, *NPZ_ERRORS):
        return None
    return index if _is_intact(index, class_count) else None


def _is_intact(index: FolderIndex, class_count: int) -> bool:
    """Tell whether each name is that of a file in its class folder, and each label a class."""
    arrays = ((index.names, np.uint8), (index.ends, np.int64), (index.labels, np.int32))
    if any(array.dtype != dtype or array.ndim != 1 for array, dtype in arrays):
        return False
    sizes = np.diff(index.ends, prepend=0)
    return bool(
        len(index.ends) == len(index.labels) > 0
        and (sizes >= _SHORTEST_NAME).all()
        and index.ends[-1] == len(index.names)
        and not np.isin(index.names, (0, ord(os.sep))).any()
        and 0 <= np.min(index.labels) <= np.max(index.labels) < class_count
    )


def write_index(file: Path, key: str, index: FolderIndex) -> None:
    """Write an index, atomically; a folder that cannot be written to goes without."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            np.savez(
                stream,
                key=np.frombuffer(key.encode(), np.uint8),
                names=index.names,
                ends=index.ends,
                labels=index.labels,
                ignored=np.array(index.ignored),
                example=np.frombuffer(os.fsencode(index.example), np.uint8),
            )
        os.replace(temporary, file)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):  # it has its name, or could not be made
            os.unlink(temporary)


def _warnings(split: ImageFolder, class_names: tuple[str, ...]) -> list[str]:
    warnings = []
    if split.index.ignored:
        warnings.append(
            f"{split.folder}: entries ignored as they are no images ({', '.join(SUFFIXES)}): "
            f"{split.index.ignored}, such as {split.index.example}"
        )
    counts = np.bincount(split.index.labels, minlength=len(class_names))
    absent = [name for name, n in zip(class_names, counts, strict=True) if not n]
    if absent:
        warnings.append(
            f"{split.folder} has no images of {len(absent)} of {len(class_names)} classes: "
            f"{listing(absent)}"
        )
    return warnings
