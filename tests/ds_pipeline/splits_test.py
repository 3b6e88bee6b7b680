"""What all readers share: classes by name, and what a data set must be."""

from collections.abc import Sequence

import numpy as np
import pytest

from ds_pipeline import DataError, InMemorySource
from ds_pipeline.source import channel_statistics
from ds_pipeline.splits import (
    Splits,
    check_splits,
    constant_columns,
    encode_classes,
    float32_targets,
)


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        # Whole numbers, as they are written without ado: by size.
        (["10", "9", "-3", "0"], ["-3", "0", "9", "10"]),
        (["9" * 40, "1" + "0" * 39], ["1" + "0" * 39, "9" * 40]),
        # All others: each text a class, by text.
        (["1_1", "11", "1_2"], ["11", "1_1", "1_2"]),
        (["1E3", "1000", "1e3"], ["1000", "1E3", "1e3"]),
        (["01", "1", "001"], ["001", "01", "1"]),
        (["1.0", "1", "+1", "1."], ["+1", "1", "1.", "1.0"]),
        (["2.0", "10.0"], ["10.0", "2.0"]),
        (["\u0661", "1", "\uff11"], ["1", "\u0661", "\uff11"]),
        (["-0", "0"], ["-0", "0"]),
        (["inf", "sup"], ["inf", "sup"]),
        (["nan", "NaN", "None", "NA"], ["NA", "NaN", "None", "nan"]),
        (["0.37", "much"], ["0.37", "much"]),
        (["9" * 5000, "10"], ["10", "9" * 5000]),
        (["cafe\u0301", "caf\u00e9", "tea"], ["caf\u00e9", "tea"]),
        (["a\x1b[2J", "caf\udce9"], [r"a\x1b[2J", r"caf\udce9"]),
    ],
)
def test_classes_are_what_is_written(texts: list[str], names: list[str]) -> None:
    labels, test_labels, found = encode_classes("a.csv", texts, texts[:1])
    assert list(found) == names
    assert labels[0] == test_labels[0] and len(set(labels.tolist())) == len(names)


@pytest.mark.parametrize("texts", [["0.37", "1.52"], ["1", "2", "2.5"], ["1e-1", "01"]])
def test_numbers_with_fractions_are_no_classes(texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"is no class: .* need dataset.task=regression"):
        encode_classes("a.csv", texts)


def splits_of(labels: object, class_names: Sequence[str]) -> Splits:
    source = InMemorySource(np.zeros((2, 3), np.float32), np.asarray(labels))
    return Splits(source, None, "test", (3,), np.dtype(np.float32), tuple(class_names))


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (["a"], "needs two classes, all labels are 'a'"),
        (["a", "b", "a"], "two classes are named 'a'"),
        (["a", ""], "the class name '' has 0 characters"),
        (["a", "b" * 2000], "has 2,000 characters; allowed are 1 to 1,000"),
        (["a", "cafe\u0301"], "printable and composed"),
        (["a", "b\n"], "printable and composed"),
    ],
)
def test_what_is_no_classification(class_names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        check_splits("mine", splits_of([0, 0], class_names))
    assert str(raised.value).startswith("mine: ")


def test_what_passes() -> None:
    assert check_splits("mine", splits_of([0, 1], ["nan", "caf\u00e9"])) == []
    assert check_splits("mine", splits_of([0.5, 1], [])) == []
    (warning,) = check_splits("mine", splits_of([0.5, 0.5], []))
    assert warning == "mine: all targets of the training split are 0.5"


def test_a_constant_column_is_named_and_becomes_zero() -> None:
    """Also where it varies as rounding does, in float64 and in float32."""
    rng = np.random.default_rng(0)
    inputs = np.stack(
        [
            rng.normal(size=3000),
            np.full(3000, 20240131.0),
            np.full(3000, 0.1),
            np.where(np.arange(3000) % 2, 0.1 + 0.2, 0.3),
            1.7e12 + np.arange(3000),
            np.zeros(3000),
            1e140 * rng.normal(size=3000),
        ],
        axis=1,
    )
    columns = ("a", "day", "tenth", "sum", "time", "zero", "large")
    for dtype, constant in ((np.float64, [1, 2, 3, 5]), (np.float32, [1, 2, 3, 4, 5])):
        values = inputs[:, :6].astype(dtype) if dtype == np.float32 else inputs
        mean, std = channel_statistics(InMemorySource(values, np.zeros(3000, int)))
        (warning,) = constant_columns(mean, std, columns)
        for i in range(values.shape[1]):
            scaled = ((values[:, i] - mean[i]) / std[i]).astype(np.float32)
            assert scaled.std() == pytest.approx(int(i not in constant), abs=1e-3)
            assert np.abs(scaled).max() < (1e-30 if i in constant else 10)
            assert (f"column {columns[i]} (" in warning) == (i in constant)


def test_targets_that_float32_does_not_hold() -> None:
    assert float32_targets("a", np.full(5, 0.1)).dtype == np.float32
    assert float32_targets("a", np.arange(5) * 1e30).dtype == np.float32
    for targets, message in (
        (1.7e12 + np.arange(9), "about 1.7e.12, differ by; subtract"),
        (2**40 + np.arange(9), "differ by; subtract"),
        (np.array([0, 1e39]), "1e.39 is too large for float32"),
    ):
        with pytest.raises(DataError, match=message):
            float32_targets("a", targets)
