"""CSV tables: read, split, and damage is one clear line."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from ds_pipeline import DataError
from ds_pipeline.csv_file import load_csv
from ds_pipeline.splits import Splits
from tests.data_sets import write_csv_table


def load(file: Path, target: str | None = "price", is_regression: bool = True) -> Splits:
    return load_csv(file, target, is_regression, 0.25, seed=0)


def everything(splits: Splits) -> np.ndarray:
    """Rows of inputs and label, sorted."""
    assert splits.evaluation is not None
    batches = [source.batch(np.arange(len(source))) for source in (splits.train, splits.evaluation)]
    rows = np.concatenate([np.column_stack([b["input"], b["label"]]) for b in batches])
    return rows[np.lexsort(rows.T)]


def test_regression(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('x, "price",y\n1,"10",2\n\n3,30.5,4\n5,5e1,"6"\n7,-70,8\n')
    splits = load(file)
    assert splits.class_names == () and splits.shape == (2,) and splits.dtype == np.float32
    assert splits.evaluation is not None
    assert (len(splits.train), len(splits.evaluation)) == (3, 1)
    expected = np.array([[1, 2, 10], [3, 4, 30.5], [5, 6, 50], [7, 8, -70]], np.float32)
    np.testing.assert_array_equal(everything(splits), expected[np.lexsort(expected.T)])
    assert splits.train.labels().dtype == np.float32


def test_classification_by_text_and_by_number(tmp_path: Path) -> None:
    file = write_csv_table(tmp_path / "a.csv", rows=200, columns=4, is_regression=False)
    text = file.read_text().splitlines()
    splits = load(file, "kind", is_regression=False)
    assert splits.class_names == ("high", "low") and splits.shape == (4,)
    assert splits.evaluation is not None
    shares = [np.bincount(s.labels()) / len(s) for s in (splits.train, splits.evaluation)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)
    numbers = [line.replace("high", "10").replace("low", "9") for line in text]
    file.write_text("\n".join(numbers))
    assert load(file, "kind", is_regression=False).class_names == ("9", "10")


def test_the_seed_decides(tmp_path: Path) -> None:
    file = write_csv_table(tmp_path / "a.csv")
    labels = [load_csv(file, "price", True, 0.25, seed).train.labels().tolist() for seed in (0, 1)]
    assert labels[0] != labels[1] and len(labels[0]) == 30


HEAD = "a,b,kind\n"
ROWS = "1,2,x\n2,3,y\n3,4,x\n4,5,y\n5,6,x\n6,7,y\n7,8,x\n8,9,y\n"


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        (HEAD + ROWS, "knd", "has no column 'knd'; allowed: a, b, kind; did you mean 'kind'?"),
        (HEAD + ROWS, None, "set dataset.target to one of a, b, kind"),
        ("a,a,kind\n" + ROWS, "kind", "two columns are named 'a'"),
        (HEAD, "kind", "has a header and no rows"),
        ("", "kind", "is empty; it needs a header"),
        ("\n \n", "kind", "is empty; it needs a header"),
        (HEAD + ROWS + "1,2\n", "kind", "line 10: 2 values, but the header names 3 columns"),
        (HEAD + "\n1,two,x\n", "kind", "line 3, column 'b': 'two' is no finite number"),
        (HEAD + ROWS + "1,NaN,x\n", "kind", "line 10, column 'b': 'NaN' is no finite number"),
        (HEAD + ROWS + "inf,1,x\n", "kind", "line 10, column 'a': 'inf' is no finite number"),
        (HEAD + ROWS + "1,-1e160,x\n", "kind", "line 10, column 'b': '-1e160' is too large"),
        (HEAD + ROWS + "1,1e999,x\n", "kind", "line 10, column 'b': '1e999' is too large"),
        # What Python, C or a spreadsheet would take for a number.
        (HEAD + ROWS + "1,1_3,x\n", "kind", "line 10, column 'b': '1_3' is no finite number"),
        (HEAD + ROWS + "1,\uff11\uff13,x\n", "kind", "'\uff11\uff13' is no finite number"),
        (HEAD + ROWS + "1,\u0663,x\n", "kind", "'\u0663' is no finite number"),
        (HEAD + ROWS + "1,0x1A,x\n", "kind", "'0x1A' is no finite number"),
        (HEAD + ROWS + '1,"1,000",x\n', "kind", "'1,000' is no finite number"),
        (HEAD + ROWS + "1,1 3,x\n", "kind", "'1 3' is no finite number"),
        (HEAD + ROWS + "1,infinity,x\n", "kind", "'infinity' is no finite number"),
        (
            HEAD + '"two\n\nlines",5,x\n"a\nb",5,x',
            "kind",
            r"line 2, column 'a': 'two\n\nlines' is no",
        ),
        (
            'a,"b\nc",kind\n' + ROWS + "1,no,x\n",
            "kind",
            r"line 11, column 'b\nc': 'no' is no finite",
        ),
        (HEAD + ROWS + '1,"2,x\n3,4,y\n5,6,y\n', "kind", "line 10: unexpected end of data"),
        (HEAD + ROWS + "1,\x1b[2J,x\n", "kind", r"'\x1b[2J' is no finite number"),
        (HEAD + ROWS + "1,2,x\0\n", "kind", "line 10: a NUL byte"),
        (
            HEAD + ROWS + "1," + "2" * 200_000 + ",x",
            "kind",
            "line 10: field larger than field limit",
        ),
        ("caf\u00e9,cafe\u0301,kind\n" + ROWS, "kind", "two columns are named 'caf\u00e9'"),
        ("column 2,,kind\n" + ROWS, "kind", "two columns are named 'column 2'"),
        (HEAD + ROWS + ",1,x\n", "kind", "line 10, column 'a': an empty value"),
        (HEAD + ROWS + "1,1,\n", "kind", "line 10: column 'kind' is empty"),
        (HEAD + ROWS + "0,0,z\n", "kind", "class 'z' has too few examples"),
        (HEAD + ROWS.replace("x", "1.5").replace("y", "2"), "kind", "label 1.5 is no class"),
        ("a;b;kind\n1;2;x\n", "kind", "has no column 'kind'"),
        ("kind\nx\ny\n", "kind", "has one column"),
        (HEAD + '1,"2,x\n', "kind", "line 2: unexpected end of data"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, target: str | None, message: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        load_csv(file, target, False, 0.56, seed=0)
    found = str(raised.value)
    assert message in found and str(file) in found and "\n" not in found


def test_too_few_rows_for_a_test_part_are_named(tmp_path: Path) -> None:
    file = write_csv_table(tmp_path / "a.csv", rows=1)
    with pytest.raises(DataError, match="column 'price': a share of 0.25 of 1 examples") as raised:
        load(file)
    assert str(file) in str(raised.value)


def test_regression_needs_numbers(tmp_path: Path) -> None:
    file = write_csv_table(tmp_path / "a.csv", is_regression=False)
    with pytest.raises(DataError, match=r"line 2, column 'kind': '(low|high)' is no finite number"):
        load(file, "kind")


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name, message in (
        ("none.csv", "does not exist"),
        (".", "is a folder"),
        ("pipe", "is no regular file"),
        ("socket", "cannot be read: No such device"),
        ("/dev/zero", "is no regular file"),
        ("two\nlines", r"two\\nlines does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)
    file = write_csv_table(tmp_path / "a.csv")
    text = file.read_text()
    for content in (
        b"\x80\x81",
        text.encode("utf-16"),
        text.replace("a", "\xe9").encode("latin-1"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match="is no text file"):
            load(file)
    file.chmod(0)
    if not os.access(file, os.R_OK):
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            load(file)


def test_real_boston(data_dir: Path) -> None:
    file = data_dir.parent / "boston_housing.csv"
    if not file.is_file():
        pytest.skip(f"{file} does not exist")
    splits = load(file, "medv")
    rows = everything(splits)
    # The published table: 506 rows, 13 columns, a mean price of 22.53.
    assert rows.shape == (506, 14) and abs(rows[:, -1].mean() - 22.53) < 0.01


def test_text_in_the_target_of_a_regression_is_told_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("x,kind\n1,low\n2,high\n")
    with pytest.raises(DataError, match="for classes set dataset.task to classification"):
        load_csv(file, "kind", True, 0.5, 0)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + ROWS,
        "\ufeff" + HEAD + ROWS,
        (HEAD + ROWS).replace("\n", "\r"),
        (HEAD + ROWS).replace("\n", "\r\n"),
        (HEAD + ROWS).replace("\n", "\n\n  \n"),
        (HEAD + ROWS).replace("x", '"x"').replace("2", " 2.0e0 ").replace("3", "+3."),
    ],
)
def test_ways_to_write_a_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode())
    splits = load(tmp_path / "a.csv", "kind", is_regression=False)
    assert splits.class_names == ("x", "y") and splits.columns == ("a", "b")
    assert splits.warnings == () and everything(splits)[:, :2].sum() == 80


def test_line_breaks_are_part_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows = ROWS.replace("x", '"New\n\nYork"').replace("y", "NewYork")
    file.write_text('"a\nb",b,kind\n' + rows + "0,0,New York\n0,0,New York\n")
    splits = load(file, "kind", is_regression=False)
    assert splits.class_names == ("New York", "NewYork", r"New\n\nYork")
    assert splits.columns == (r"a\nb", "b")


def test_one_name_in_two_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    names = "caf\u00e9", "cafe\u0301"
    rows = "".join(f"{i},{names[i % 2]}\n{i},tea\n" for i in range(8))
    file.write_text(f"{names[1]},kind\n" + rows, encoding="utf-8")
    assert load(file, "kind", is_regression=False).class_names == (names[0], "tea")
    for target in names:
        with pytest.raises(DataError, match="column 'kind': 'caf\u00e9' is no finite number"):
            load(file, target)


def test_a_column_without_a_name_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(",b,kind\n" + ROWS)
    splits = load(file, "kind", is_regression=False)
    (warning,) = splits.warnings
    assert "no name in the header for column 1" in warning and str(file) in warning
    assert splits.columns == ("column 1", "b") and splits.shape == (2,)


def test_numbers_that_float32_does_not_hold(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    times = 1_700_000_000_000 + 500 * np.arange(20)
    file.write_text("time,y\n" + "".join(f"{time},{i}\n" for i, time in enumerate(times)))
    splits = load(file, "y")
    assert splits.dtype == np.float64
    assert sorted(everything(splits)[:, 0]) == times.tolist()
    with pytest.raises(DataError, match="float32 does not hold what the targets, about 1.7e"):
        load(file, "time")


@pytest.mark.slow
def test_a_million_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    count = 1_000_000
    file.write_text(",".join(map(str, range(count))) + "\n" + "1," * (count - 1) + "x\n")
    with pytest.raises(DataError, match=f"allowed: 0, 1, .* and {count - 10} more") as raised:
        load(file, "kind")
    assert len(str(raised.value)) < 1000
