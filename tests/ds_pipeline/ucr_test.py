"""UCR time series: read, z-normalized, and damage is one clear line."""

from pathlib import Path

import numpy as np
import pytest

from ds_pipeline import DataError
from ds_pipeline.testing import write_ucr_set
from ds_pipeline.ucr import load_ucr, znormalize


def refusal(folder: Path, name: str = "Waves") -> str:
    with pytest.raises(DataError) as raised:
        load_ucr(folder, name)
    message = str(raised.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("inside", [False, True])
def test_reads_what_was_written(tmp_path: Path, inside: bool) -> None:
    folder = write_ucr_set(tmp_path, n_train=5, n_test=3, length=7, labels=(10, 9, -1))
    splits = load_ucr(folder if inside else tmp_path, "Waves")
    assert splits.evaluation is not None
    assert (len(splits.train), len(splits.evaluation)) == (5, 3)
    assert (splits.shape, splits.dtype, splits.class_names) == (
        (7, 1),
        np.float32,
        ("-1", "9", "10"),
    )
    assert splits.train.labels().tolist() == [2, 1, 0, 2, 1]
    raw = np.loadtxt(folder / "Waves_TRAIN.tsv")[:, 1:]
    expected = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    found = splits.train.batch(np.arange(5))["input"]
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-6, atol=1e-6)
    assert splits.mean is not None and splits.std is not None
    assert (splits.mean.tolist(), splits.std.tolist()) == ([0], [1])


def test_constant_series_become_zero() -> None:
    assert znormalize(np.full(9, 0.1)).tolist() == [0] * 9


def test_labels_in_other_notations(tmp_path: Path) -> None:
    (tmp_path / "A_TRAIN.tsv").write_text("1.0000000e+00\t1\t2\r\n2\t2\t1\r\n\r\n")
    (tmp_path / "A_TEST.tsv").write_text("1\t1\t2\n")
    assert load_ucr(tmp_path, "A").class_names == ("1", "2")


TRAIN = "1\t0.5\t1.5\n2\t1.5\t0.5\n"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("1\t0.5\t1.5\n2\t1.5\n", TRAIN, "A_TRAIN.tsv, line 2: 1 values, but the first series has"),
        ("1\t0.5\tx\n", TRAIN, "A_TRAIN.tsv, line 1: 'x' (value 2) is no number"),
        (TRAIN, "1\t0.5\tNaN\n", "A_TEST.tsv, line 1: the last 1 of 2 values are NaN"),
        (TRAIN, "1\tNaN\t0.5\n", "A_TEST.tsv, line 1: value 1 is nan"),
        (TRAIN, "1\t0.5\tinf\n", "A_TEST.tsv, line 1: value 2 is inf"),
        (
            TRAIN,
            "3\t0.5\t1\n",
            "A_TRAIN.tsv and A_TEST.tsv: class '3' occurs in the test split alone",
        ),
        (TRAIN, "1\t0.5\t1\t2\n", "A_TEST.tsv: series of 3 values"),
        (TRAIN, "", "A_TEST.tsv is empty"),
        ("1\t1\t2\n1\t1\t2\n", TRAIN, "A_TRAIN.tsv and A_TEST.tsv: a classification needs two"),
        ("1 0.5 1.5\n", TRAIN, "line 1: no values after the label"),
        ("1.5\t0.5\t1.5\n2\t1\t2\n", TRAIN, "label 1.5 is no class"),
        ("\t0.5\t1.5\n", TRAIN, "line 1: no label"),
        (None, TRAIN, "has neither A/A_TRAIN.tsv nor A_TRAIN.tsv; UCR sets there: none"),
        (TRAIN, None, "A_TEST.tsv does not exist"),
    ],
)
def test_damage_is_named(tmp_path: Path, train: str | None, test: str | None, message: str) -> None:
    for part, text in (("TRAIN", train), ("TEST", test)):
        if text is not None:
            (tmp_path / f"A_{part}.tsv").write_text(text)
    assert message in refusal(tmp_path, "A")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    folder = write_ucr_set(tmp_path)
    (folder / "Waves_TRAIN.tsv").write_bytes(b"\xff\xfe\x00\x01")
    assert "is no text file" in refusal(tmp_path)
    (folder / "Waves_TRAIN.tsv").unlink()
    (folder / "Waves_TRAIN.tsv").mkdir()
    assert "is a folder" in refusal(tmp_path)


def test_real_computers(data_dir: Path) -> None:
    folder = data_dir.parent / "ucr"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not hold the UCR set Computers")
    splits = load_ucr(folder, "Computers")
    assert splits.evaluation is not None
    # As the archive's table says: 250 and 250 series of 720 values in 2 classes.
    assert (len(splits.train), len(splits.evaluation)) == (250, 250)
    assert (splits.shape, splits.class_names) == ((720, 1), ("1", "2"))


def test_a_misspelt_set_is_told_what_is_there(tmp_path: Path) -> None:
    write_ucr_set(tmp_path, "Computers")
    with pytest.raises(DataError, match=r"UCR sets there: Computers; did you mean 'Computers'\?"):
        load_ucr(tmp_path, "Computer")
