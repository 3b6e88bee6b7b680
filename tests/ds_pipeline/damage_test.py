"""Whatever happened to a file, it is read or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ds_pipeline import DataError
from ds_pipeline.csv_file import load_csv
from ds_pipeline.idx_file import load_idx
from ds_pipeline.npz_file import load_npz
from ds_pipeline.splits import Splits
from ds_pipeline.ucr import load_ucr
from tests.data_sets import write_csv_table, write_idx_set, write_ucr_set

MUTATIONS = 50


def csv_file(folder: Path) -> tuple[Path, Callable[[], Splits]]:
    file = write_csv_table(folder / "a.csv", rows=12, is_regression=False)
    return file, lambda: load_csv(file, "kind", False, 0.25, 0)


def tsv_file(folder: Path) -> tuple[Path, Callable[[], Splits]]:
    file = write_ucr_set(folder, n_train=4, length=8) / "Waves_TRAIN.tsv"
    return file, lambda: load_ucr(folder, "Waves")


def ts_file(folder: Path) -> tuple[Path, Callable[[], Splits]]:
    text = "#\n@univariate false\n@classLabel true a b\n@data\n" + "1,2e1:3,-4:a\n5,6:7,8.5:b\n" * 2
    for part in ("TRAIN", "TEST"):
        (folder / f"A_{part}.ts").write_text(text)
    return folder / "A_TRAIN.ts", lambda: load_ucr(folder, "A")


def npz_file(folder: Path, save: Callable[..., None] = np.savez) -> tuple[Path, Callable]:
    file = folder / "a.npz"
    save(file, x=np.arange(24.0).reshape(12, 2), y=np.array(["b", "a"] * 6))
    return file, lambda: load_npz(file, False, 0.25, 0)


def packed_file(folder: Path) -> tuple[Path, Callable[[], Splits]]:
    return npz_file(folder, np.savez_compressed)


def idx_file(folder: Path, compressed: bool = False) -> tuple[Path, Callable[[], Splits]]:
    write_idx_set(folder, n_train=6, n_test=4, shape=(3, 2), num_classes=2, compressed=compressed)
    return folder / f"train-images-idx3-ubyte{'.gz' * compressed}", lambda: load_idx(folder)


def packed_idx_file(folder: Path) -> tuple[Path, Callable[[], Splits]]:
    return idx_file(folder, compressed=True)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, remove, repeat or overwrite a part."""
    start = int(rng.integers(len(content)))
    end = start + int(rng.integers(1, 9))
    return (
        content[:start],
        content[:start] + content[end:],
        content[:end] + content[start:],
        content[:start] + rng.bytes(end - start) + content[end:],
        content[:start]
        + bytes([content[start] ^ 1 << int(rng.integers(8))])
        + content[start + 1 :],
        content[:start] + b'9\n\r",\t:?_-+e@#('[start % 15 :][:1] + content[start + 1 :],
    )[int(rng.integers(6))]


@pytest.mark.parametrize(
    "kind", [csv_file, tsv_file, ts_file, npz_file, packed_file, idx_file, packed_idx_file]
)
def test_a_damaged_file_is_one_line(kind: Callable, tmp_path: Path) -> None:
    file, load = kind(tmp_path)
    load()
    whole = file.read_bytes()
    for seed in range(MUTATIONS):
        rng = np.random.default_rng(seed)
        content = whole
        for _ in range(rng.integers(1, 4)):
            content = mutated(content, rng) or b"\n"
        file.write_bytes(content)
        try:
            load()
        except DataError as error:
            assert str(error) and str(error).isprintable(), content
