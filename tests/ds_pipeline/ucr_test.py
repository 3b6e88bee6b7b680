"""UCR time series: read, z-normalized, and damage is one clear line."""

from pathlib import Path

import numpy as np
import pytest

from ds_pipeline import DataError
from ds_pipeline.ucr import load_ucr, znormalize
from tests.data_sets import write_ucr_set


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
    as_they_are = load_ucr(folder, "Waves", normalize=False).train.batch(np.arange(5))["input"]
    np.testing.assert_array_equal(as_they_are[..., 0], raw.astype(np.float32))


def test_constant_series_become_zero() -> None:
    assert znormalize(np.full(9, 0.1)).tolist() == [0] * 9


def test_labels_in_other_notations(tmp_path: Path) -> None:
    (tmp_path / "A_TRAIN.tsv").write_text("1.0000000e+00\t1\t2\r\n2\t2\t1\r\n\r\n")
    (tmp_path / "A_TEST.tsv").write_text("1\t1\t2\n")
    assert load_ucr(tmp_path, "A").class_names == ("1", "2")


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("-1.0000000e+00", "1.0000000e+00", ("-1", "1")),
        ("2.0", "10.0", ("2", "10")),
        ("01", "1", ("01", "1")),
        ("1E3", "1000", ("1000", "1E3")),
        ("1_1", "11", ("11", "1_1")),
        ("nan", "inf", ("inf", "nan")),
    ],
)
def test_labels_are_what_is_written(
    tmp_path: Path, first: str, second: str, names: tuple[str, ...]
) -> None:
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"A_{part}.tsv").write_text(f"{first}\t1\t2\n{second}\t2\t1\n")
    assert load_ucr(tmp_path, "A").class_names == names


TRAIN = "1\t0.5\t1.5\n2\t1.5\t0.5\n"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("1\t0.5\t1.5\n2\t1.5\n", TRAIN, "A_TRAIN.tsv, line 2: 1 values, but the first series has"),
        ("1\t0.5\tx\n", TRAIN, "A_TRAIN.tsv, line 1: 'x' (value 2) is no number"),
        ("1\t0.5\t1_3\n", TRAIN, "A_TRAIN.tsv, line 1: '1_3' (value 2) is no number"),
        ("1\t\uff11\t1\n", TRAIN, "A_TRAIN.tsv, line 1: '\uff11' (value 1) is no number"),
        ("1\t1e999\t1\n", TRAIN, "A_TRAIN.tsv, line 1: value 1 is above 1e+150"),
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
            (tmp_path / f"A_{part}.tsv").write_text(text, encoding="utf-8")
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


HEAD = "# Of arms.\n@problemName A\n@timeStamps false\n@classLabel true wave rest\n@data\n"
ROWS = "1,2,3:4,-4,8.5e0:rest\n# half\n\n 3, 1,2:0,0,0:wave\n"


def write_ts(folder: Path, train: str, test: str = HEAD + ROWS) -> None:
    for part, text in (("TRAIN", train), ("TEST", test)):
        (folder / f"A_{part}.ts").write_text(text, encoding="utf-8")


def test_ts_files(tmp_path: Path) -> None:
    write_ts(tmp_path, HEAD.replace("\n", "\r\n") + ROWS)
    splits = load_ucr(tmp_path, "A")
    assert splits.class_names == ("rest", "wave") and splits.shape == (3, 2)
    batch = splits.train.batch(np.arange(2))
    assert batch["label"].tolist() == [0, 1] and batch["input"].dtype == np.float32
    raw = np.array([[[1, 2, 3], [4, -4, 8.5]], [[3, 1, 2], [1e-9, 0, -1e-9]]]).transpose(0, 2, 1)
    expected = (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)
    expected[1, :, 1] = 0
    np.testing.assert_allclose(batch["input"], expected, rtol=1e-6, atol=1e-7)
    assert splits.mean is not None and splits.mean.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + ROWS + "1,2:3,4:rest\n",
            "line 10: 2 values, but the first series has 3; series of",
        ),
        (HEAD + ROWS + "1,2,3:3,4:rest\n", "of different lengths, here 2 to 3, are not supported"),
        (HEAD + ROWS + "1,2,3:rest\n", "line 10: 1 channels, but the first series has 2"),
        (HEAD + ROWS + "1,?,3:1,2,3:rest\n", "line 10: value 2 is ?; fill in"),
        (HEAD + ROWS + "1,2,3:1,2,NaN:rest\n", "line 10: the last 1 of 3 values are NaN"),
        (HEAD + ROWS + "1,2,3:1_1,2,3:rest\n", "line 10: '1_1' (value 1) is no number"),
        (HEAD + ROWS + "1,2,3:1,2,:rest\n", "line 10: '' (value 3) is no number"),
        (
            HEAD + ROWS + "1,2,3:1,2,3:run\n",
            "'run', after the last colon, is no class; the header's",
        ),
        (HEAD + ROWS + "1,2,3:1,2,3\n", "'1,2,3', after the last colon, is no class"),
        (HEAD + ROWS + "1,2,3\n", "is no class; the header's @classLabel has wave, rest"),
        (HEAD + "(0,1),(1,2):rest\n", "line 6: values with timestamps are not supported"),
        (HEAD.replace("stamps f", "stamps F").replace("false", "TRUE"), "series with timestamps"),
        (
            HEAD.replace("@classLabel true wave rest", ""),
            "needs a line '@classLabel true NAME NAME'",
        ),
        (HEAD.replace("true wave rest", "false"), "needs a line '@classLabel true NAME NAME'"),
        (
            HEAD.replace("@classLabel true", "@targetlabel true"),
            "numbers to predict (@targetLabel)",
        ),
        (
            HEAD.replace("@data\n", "") + ROWS,
            "line 5: a header of lines such as '@data' comes first",
        ),
        (HEAD, "A_TRAIN.ts is empty"),
        ("", "needs a line '@classLabel true NAME NAME'"),
        (HEAD + ROWS.replace("wave", "rest"), "class 'wave' occurs in the test split alone"),
        (
            HEAD + "1,2:rest\n2,1:wave\n",
            "A_TEST.ts: series of 3 values in 2 channels, but those of",
        ),
    ],
)
def test_damage_of_ts_files_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_ts(tmp_path, text)
    found = refusal(tmp_path, "A")
    assert message in found and "A_TRAIN.ts" in found


def test_other_formats_are_told_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "A_TRAIN.arff").write_text("@relation A")
    assert "UCR sets there: none; read are .tsv and .ts, not .arff" in refusal(tmp_path, "A")
    write_ts(tmp_path, HEAD + ROWS)
    assert "UCR sets there: A; read are" in refusal(tmp_path, "AB")


def test_real_ts_sets(data_dir: Path) -> None:
    folder = data_dir.parent / "ucr_ts"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not hold sets in .ts files")
    # As the archive's table says.
    for name, counts, shape, classes in (
        ("GunPoint", (50, 150), (150, 1), 2),
        ("ItalyPowerDemand", (67, 1029), (24, 1), 2),
        ("BasicMotions", (40, 40), (100, 6), 4),
    ):
        splits = load_ucr(folder, name)
        assert splits.evaluation is not None
        assert (len(splits.train), len(splits.evaluation)) == counts
        assert splits.shape == shape and len(splits.class_names) == classes
    assert "here 7 to 26, are not supported" in refusal(folder, "JapaneseVowels")
