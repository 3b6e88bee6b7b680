"""Photographs in folders: DIR/train/CLASS/*.JPEG, and the same in DIR/test or DIR/val.

The list of files is made once and kept beside the run, not in the data. In memory it is one
buffer of bytes, some 25 bytes a file; images are read when they are asked for.
"""

import json
import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ds_pipeline.errors import DataError
from ds_pipeline.source import Batch, EncodedImage, Indices
from ds_pipeline.splits import Splits, listing

SUFFIXES = (".jpg", ".jpeg", ".png")

_LAYOUT = "an image folder is DIR/train/CLASS/*.jpg, and the same in DIR/test or DIR/val"
_EVALUATION_FOLDERS = (("test", "test"), ("val", "validation"), ("validation", "validation"))


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """The images of one split folder, sorted by class, then by name.

    Args:
        names: uint8, the file names one after the other.
        ends: int64 [n], where each ends.
        labels: int32 [n], indices into the class names.
        ignored: entries that are no images.
        example: one of these, or the empty string.
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


class ImageFolder:
    """Encoded images in class folders.

    Args:
        folder: a split's, with the class folders in it.
        class_names: names of these; label i is in the i-th.
        index: its files.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], index: FolderIndex) -> None:
        self.folder = folder
        self.class_names = class_names
        self.index = index

    def __len__(self) -> int:
        return len(self.index.labels)

    def batch(self, indices: Indices) -> Batch:
        """Read these files, as `EncodedImage`.

        Raises:
            DataError: a file is gone, empty or cannot be read; it is named.
        """
        labels = self.index.labels[indices]
        images = [
            self._read(int(index), self.class_names[label])
            for index, label in zip(indices, labels, strict=True)
        ]
        return {"input": images, "label": labels}

    def labels(self) -> np.ndarray:
        """Return all labels in order, int32 [n]."""
        return self.index.labels

    def _read(self, index: int, class_name: str) -> EncodedImage:
        file = os.path.join(self.folder, class_name, self.index.name(index))
        try:
            with open(file, "rb") as stream:
                data = stream.read()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        if not data:
            raise DataError(f"{file} is empty (0 bytes); remove it, or copy it again")
        return EncodedImage(data, file)


def load_image_folder(folder: Path, use_test_set: bool, cache_dir: Path | None = None) -> Splits:
    """Load an image folder's splits; classes are the folders in DIR/train, sorted.

    Args:
        folder: DIR.
        use_test_set: read DIR/test, else DIR/val, too.
        cache_dir: where the lists of files are kept; None: nowhere.

    Raises:
        DataError: a split folder or all class folders are missing; a class folder of train is
            empty or cannot be read; a class is in the evaluation split alone.
    """
    train = _open_split(folder / "train", None, cache_dir)
    counts = np.bincount(train.index.labels, minlength=len(train.class_names))
    if not counts.all():
        empty = train.folder / train.class_names[int(np.argmin(counts))]
        raise DataError(
            f"{empty} holds no image ({', '.join(SUFFIXES)}); add some, or remove the folder"
        )
    warnings = _ignored(train)
    evaluation, name = None, "validation"
    if use_test_set:
        evaluation_folder, name = _evaluation_folder(folder)
        evaluation = _open_split(evaluation_folder, train.class_names, cache_dir)
        warnings += _ignored(evaluation) + _absent(evaluation)
    return Splits(
        train=train,
        evaluation=evaluation,
        evaluation_name=name,
        shape=None,
        dtype=np.dtype(np.uint8),
        class_names=train.class_names,
        warnings=tuple(warnings),
    )


def _evaluation_folder(folder: Path) -> tuple[Path, str]:
    """Return the first with class folders: a test set may come without labels, in one heap."""
    for split, name in _EVALUATION_FOLDERS:
        if os.path.isdir(folder / split) and _class_folders(folder / split):
            return folder / split, name
    raise DataError(
        f"{folder} has neither test/CLASS nor val/CLASS folders ({_LAYOUT}); add them, or set "
        "use_test_set to False to hold out examples of train"
    )


def _open_split(
    folder: Path, class_names: tuple[str, ...] | None, cache_dir: Path | None
) -> ImageFolder:
    """Open a split with its index; class_names None: they are its own folders."""
    modified = _class_folders(folder)
    if not modified:
        raise DataError(f"{folder} holds no class folders ({_LAYOUT})")
    if class_names is None:
        class_names = tuple(sorted(modified))
    unknown = sorted(set(modified) - set(class_names))
    if unknown:
        raise DataError(
            f"class folder {folder / unknown[0]} has no counterpart in "
            f"{folder.parent / 'train'}, which has {listing(class_names)}"
        )
    key = json.dumps(
        [os.fspath(folder.absolute()), folder.stat().st_mtime_ns, class_names, modified]
    )
    cache = None if cache_dir is None else cache_dir / f"image_folder_{folder.name}.npz"
    index = None if cache is None else read_index(cache, key)
    if index is None:
        index = make_index(folder, class_names)
        if cache is not None:
            write_index(cache, key, index)
    if not len(index.labels):
        raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES)}) in its class folders")
    return ImageFolder(folder, class_names, index)


def _class_folders(folder: Path) -> dict[str, int]:
    """Map each folder in it that is not hidden to the time of its last change."""
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name: entry.stat().st_mtime_ns
                for entry in sorted(entries, key=lambda entry: entry.name)
                if entry.is_dir() and not entry.name.startswith(".")
            }
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} is no folder ({_LAYOUT}); set dataset.data_dir to DIR") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def make_index(folder: Path, class_names: tuple[str, ...]) -> FolderIndex:
    """List the images of a split folder, one class folder in memory at a time.

    Args:
        folder: with the class folders.
        class_names: the label of a file is the index of its folder in them; a folder that is not
            there has no files.

    Raises:
        DataError: a folder cannot be read.
    """
    buffer = bytearray()
    ends: list[np.ndarray] = []
    counts = []
    ignored = _other_entries(folder, class_names)
    count, example = len(ignored), (ignored or [""])[0]
    for class_name in class_names:
        images, others = _scan(folder / class_name)
        count, example = count + len(others), example or (others or [""])[0]
        encoded = [os.fsencode(name) for name in images]
        sizes = np.array([len(name) for name in encoded], np.int64)
        ends.append(len(buffer) + np.cumsum(sizes))
        counts.append(len(images))
        buffer += b"".join(encoded)
    return FolderIndex(
        names=np.frombuffer(bytes(buffer), np.uint8),
        ends=np.concatenate(ends),
        labels=np.repeat(np.arange(len(class_names), dtype=np.int32), counts),
        ignored=count,
        example=example,
    )


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    """List (names of images, paths of other entries), sorted; neither has hidden entries."""
    images, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    images.append(entry.name)
                else:
                    others.append(entry.path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(images), sorted(others)


def _other_entries(folder: Path, class_names: tuple[str, ...]) -> list[str]:
    """List files beside the class folders."""
    images, others = _scan(folder)
    paths = [os.path.join(folder, name) for name in images]
    return sorted(paths + [path for path in others if os.path.basename(path) not in class_names])


def read_index(file: Path, key: str) -> FolderIndex | None:
    """Read an index that was written with this key; None: there is none, or it is damaged."""
    try:
        # Opened here: numpy leaves open what it finds damaged.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            if stored["key"].tobytes() != key.encode():
                return None
            index = FolderIndex(
                names=stored["names"],
                ends=stored["ends"],
                labels=stored["labels"],
                ignored=int(stored["ignored"]),
                example=os.fsdecode(stored["example"].tobytes()),
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    sizes = np.diff(index.ends, prepend=0)
    intact = len(index.ends) == len(index.labels) and (sizes > 0).all()
    return index if intact and sizes.sum() == len(index.names) else None


def write_index(file: Path, key: str, index: FolderIndex) -> None:
    """Write an index, atomically; a folder that cannot be written to goes without."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(
                stream,
                key=np.frombuffer(key.encode(), np.uint8),
                names=index.names,
                ends=index.ends,
                labels=index.labels,
                ignored=np.array(index.ignored),
                example=np.frombuffer(os.fsencode(index.example), np.uint8),
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except OSError:
        os.unlink(temporary)


def _ignored(split: ImageFolder) -> list[str]:
    if not split.index.ignored:
        return []
    return [
        f"{split.folder}: entries ignored as they are no images ({', '.join(SUFFIXES)}): "
        f"{split.index.ignored}, such as {split.index.example}"
    ]


def _absent(split: ImageFolder) -> list[str]:
    counts = np.bincount(split.index.labels, minlength=len(split.class_names))
    absent = [name for name, n in zip(split.class_names, counts, strict=True) if not n]
    if not absent:
        return []
    return [
        f"{split.folder} has no images of {len(absent)} of {len(split.class_names)} classes: "
        f"{listing(absent)}"
    ]
