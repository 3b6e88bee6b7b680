"""Series to forecast: parts, windows, standardization, and damage is one clear line."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ds_pipeline import build_dataset, identity
from ds_pipeline.errors import DataError
from ds_pipeline.forecast import WindowSource, generated_series, load_forecast
from tests.ds_pipeline.build_test import config_of

RNG = np.random.default_rng(0)
NAMES = ("load", "wind", "sun")


def write_series(
    file: Path, rows: int = 100, step: timedelta = timedelta(hours=1), names=NAMES, skip=()
) -> np.ndarray:
    """Write a series with a time column and return its values."""
    values = RNG.normal(5, 2, (rows, len(names)))
    times = [datetime(2020, 2, 27) + i * step for i in range(rows)]
    lines = [",".join(("date", *names))]
    lines += [
        ",".join((str(time), *map(repr, map(float, row))))
        for i, (time, row) in enumerate(zip(times, values, strict=True))
        if i not in skip
    ]
    file.write_text("\n".join(lines) + "\n")
    return values


def everything(source):
    return source.batch(np.arange(len(source)))


def test_parts_windows_and_standardization_against_slices(tmp_path: Path) -> None:
    values = write_series(tmp_path / "a.csv")
    splits = load_forecast(tmp_path / "a.csv", lookback=12, horizon=4)
    mean, std = values[:70].mean(0), values[:70].std(0)
    np.testing.assert_allclose(splits.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(splits.std, std, rtol=1e-14)
    series = ((values - mean) / std).astype(np.float32)
    for source, begin, end in (
        (splits.train, 0, 70),
        (splits.validation, 70 - 12, 80),
        (splits.evaluation, 80 - 12, 100),
    ):
        assert len(source) == end - begin - 16 + 1
        found = everything(source)
        for i in range(len(source)):
            start = begin + i
            np.testing.assert_array_equal(found["input"][i], series[start : start + 12])
            np.testing.assert_array_equal(found["label"][i], series[start + 12 : start + 16])
        np.testing.assert_array_equal(source.labels(), found["label"])
    assert (splits.task, splits.shape, splits.target_shape) == ("forecasting", (12, 3), (4, 3))
    assert splits.columns == NAMES and splits.standardized


@pytest.mark.parametrize(
    ("name", "step", "rows", "counts"),
    [
        ("ETTh1.csv", timedelta(hours=1), 14_600, (8640, 2880, 2880)),
        pytest.param(
            "ETTm2.csv",
            timedelta(minutes=15),
            57_700,
            (34_560, 11_520, 11_520),
            marks=pytest.mark.slow,
        ),
        ("ETTh1.csv", timedelta(hours=1), 14_000, (8640, 2880, 2480)),  # cut off
        ("other.csv", timedelta(days=1), 1003, (702, 101, 200)),
    ],
)
def test_published_parts(tmp_path: Path, name: str, step: timedelta, rows: int, counts) -> None:
    write_series(tmp_path / name, rows, step, names=("a",))
    splits = load_forecast(tmp_path / name, lookback=8, horizon=2)
    first, *others = (splits.train, splits.validation, splits.evaluation)
    found = (len(first) + 9, *(len(source) + 1 for source in others))
    assert found == counts


def test_one_channel_and_channels_in_another_order(tmp_path: Path) -> None:
    write_series(tmp_path / "a.csv")
    whole = load_forecast(tmp_path / "a.csv", 12, 4)
    inputs = everything(whole.train)["input"]
    for columns, places in ((("sun",), [2]), (("wind", "load"), [1, 0])):
        some = load_forecast(tmp_path / "a.csv", 12, 4, columns)
        assert some.columns == columns and some.target_shape == (4, len(columns))
        np.testing.assert_array_equal(everything(some.train)["input"], inputs[..., places])
    with pytest.raises(DataError, match="has no column 'snu'; allowed: load, wind, sun; did you"):
        load_forecast(tmp_path / "a.csv", 12, 4, ("snu",))


def test_statistics_of_another_run(tmp_path: Path) -> None:
    values = write_series(tmp_path / "a.csv")
    given = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 2.0])
    splits = load_forecast(tmp_path / "a.csv", 12, 4, statistics=given)
    expected = (values[:12] - given[0]) / given[1]
    np.testing.assert_allclose(splits.train.batch(np.array([0]))["input"][0], expected, rtol=1e-6)


def test_windows_are_views() -> None:
    """However many there are, memory is that of the series, and a batch that of its windows."""
    series = np.zeros((10_000, 3), np.float32)
    source = WindowSource(series, lookback=512, horizon=96)
    assert np.shares_memory(source.labels(), series)
    assert source.labels().shape == (10_000 - 607, 96, 3)
    batch = source.batch(np.array([4, 7]))
    assert batch["input"].base is None and batch["input"].nbytes == 2 * 512 * 3 * 4


def test_a_constant_channel_is_zero(tmp_path: Path) -> None:
    lines = ["date,a,b"] + [f"2020-01-{day:02d},{day},7.25" for day in range(1, 31)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    config = config_of(dataset_name="forecast", data_dir=str(tmp_path / "a.csv"), **SIZES)
    data = build_dataset(config)
    assert (everything(data.train)["input"][..., 1] == 0).all()
    assert any("column b (7.25)" in line for line in data.warnings)


@pytest.mark.parametrize(
    "written",
    [
        "2016-07-01 00:00:00",
        "2016-07-01",
        "1990/1/1 0:00",
        "2016-07-01T00:00Z",
        "2016-7-1 5:00",
        "2016-07-01 00:00:00.250+02:00",
    ],  # fmt: skip
)
def test_ways_to_write_times(tmp_path: Path, written: str) -> None:
    day = written.index("1", 6)
    times = [written[:day] + str(i) + written[day + 1 :] for i in range(1, 10)]
    lines = ["Time,a", *(f"{time},{i}" for i, time in enumerate(times))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert len(load_forecast(tmp_path / "a.csv", 1, 1).train) == 5


SIZES = {"lookback": 4, "horizon": 2}
GOOD = [f"2020-01-{day:02d},{day}" for day in range(1, 31)]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            "date,a",
            [*GOOD[:9], *GOOD[10:]],
            "line 11: times are missing between 2020-01-09",
        ),
        ("date,a", [*GOOD[:9], *GOOD[8:]], "line 11: 2020-01-09 00:00:00 is there twice"),
        ("date,a", [*GOOD[:9], GOOD[3]], "line 11: 2020-01-04 00:00:00 is before 2020-01-09 00:00"),
        ("date,a", [*GOOD[:3], ",4"], "line 5, column 'date': no time; write times as 2016"),
        ("date,a", [*GOOD[:3], "soon,4"], "line 5, column 'date': 'soon' is no time"),
        ("date,a", ["2020-02-30,4"], "line 2, column 'date': '2020-02-30' is no time"),
        ("date,a", [*GOOD[:3], "2020-01-04,"], "line 5, column 'a': an empty value"),
        ("date,a", [*GOOD[:3], "2020-01-04,nan"], "line 5, column 'a': 'nan' is no finite number"),
        ("date,a", [*GOOD[:3], "2020-01-04,inf"], "'inf' is no finite number"),
        ("date,a", [*GOOD[:3], "2020-01-04,four"], "'four' is no finite number"),
        ("date,a", [*GOOD[:3], "2020-01-04,4,5"], "line 5: 3 values, but the header names 2"),
        ("date,a", [], "has a header and no rows"),
        ("date", ["2020-01-01"], "has one column; are commas"),
        ("2019-12-31,1", GOOD, "begins with a row, not with the columns' names; put a header"),
        (
            "date,a",
            [*GOOD[:3], "2020-01-04T00:00+00:00,4"],
            "line 5: some times have an offset from UTC and others have none",
        ),
        ("", [], "is empty; it needs a header line and rows"),
        ("a,b", ["1,2"], "line 2, column 'a': '1' is no time"),
        (
            "date,a",
            [*GOOD[:29], "2020-01-30,1e60"],
            "column 'a': a value is too far from the",
        ),
        (
            "date,a",
            GOOD[:7],
            "7 rows, 4 of them for train, which needs 6: lower dataset.lookback (4) or",
        ),
        (
            "date,a",
            GOOD[:9],
            "9 rows, 1 of them for test, which needs 2: lower dataset.horizon (2), or",
        ),
    ],
)
def test_damage_is_one_line(tmp_path: Path, header: str, rows: list[str], message: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(DataError) as caught:
        load_forecast(tmp_path / "a.csv", **SIZES)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_times_with_offsets_are_in_order(tmp_path: Path) -> None:
    """As written by a clock that is put back by an hour in between."""
    times = ["2016-10-30T01:00+02:00", "2016-10-30T02:00+02:00", "2016-10-30T02:00+01:00"]
    times += [f"2016-10-30T{hour:02d}:00+01:00" for hour in range(3, 12)]
    (tmp_path / "a.csv").write_text("\n".join(["date,a", *(f"{time},1" for time in times)]))
    assert len(load_forecast(tmp_path / "a.csv", 1, 1).train) == 7


def test_a_column_that_numbers_the_rows_is_an_input_with_a_warning(tmp_path: Path) -> None:
    lines = [",date,a", *(f"{i},{row}" for i, row in enumerate(GOOD))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    splits = load_forecast(tmp_path / "a.csv", **SIZES)
    assert splits.columns == ("column 1", "a")
    assert "no name in the header for column 1, taken as an input" in splits.warnings[0]
    for header, warned in ((",a,b", False), ("date,,b", True)):
        (tmp_path / "a.csv").write_text("\n".join([header, *(f"{row},1" for row in GOOD)]))
        assert bool(load_forecast(tmp_path / "a.csv", **SIZES).warnings) is warned


def test_gaps_are_allowed_where_asked_for(tmp_path: Path) -> None:
    values = write_series(tmp_path / "a.csv", skip=(20, 21))
    splits = load_forecast(tmp_path / "a.csv", 12, 4, allow_gaps=True)
    raw = splits.train.series * splits.std + splits.mean
    np.testing.assert_allclose(raw[:21], values[[*range(20), 22]], rtol=1e-5)


def test_the_generated_series_is_its_formula() -> None:
    names, values = generated_series(2000)
    assert values.shape == (2000, len(names) == 7 and 7)
    time = np.arange(2000)
    waves = [f(2 * np.pi * time / period) for period in (24, 168) for f in (np.sin, np.cos)]
    basis = np.stack([*waves, np.ones(2000)], axis=1)
    noise = values - basis @ np.linalg.lstsq(basis, values)[0]
    shocks = noise[1:] - 0.9 * noise[:-1]
    np.testing.assert_allclose(shocks.std(0), 0.5, rtol=0.06)
    np.testing.assert_array_equal(generated_series(2000)[1], values)


def test_the_data_set_of_a_config(tmp_path: Path) -> None:
    write_series(tmp_path / "a.csv")
    keys = {"dataset_name": "forecast", "data_dir": str(tmp_path / "a.csv"), **SIZES}
    data = build_dataset(config_of(**keys))
    assert (data.task, data.shape, data.target_shape) == ("forecasting", (4, 3), (2, 3))
    assert (data.evaluation_name, data.validation, data.num_classes) == ("test", None, 1)
    inputs = data.train.batch(np.array([0]))["input"]
    np.testing.assert_array_equal(data.normalize(inputs), inputs)
    held = build_dataset(config_of(use_test_set=False, **keys))
    assert held.evaluation_name == "validation" and len(held.evaluation) == 9
    assert len(build_dataset(config_of(subset=10, **keys)).train) == 10
    generated = build_dataset(config_of(**{**keys, "data_dir": None}))
    assert generated.shape == (4, 7)
    for wrong, message in (
        ({"label_noise": 0.1}, "label_noise replaces a class"),
        ({"mean": (0.0,)}, r"dataset.mean = \(0.0,\): a series to forecast is standardized"),
        ({"task": "classification"}, "dataset.task classification does not match 'forecast'"),
    ):
        with pytest.raises(DataError, match=message):
            build_dataset(config_of(**keys, **wrong))


def test_another_series_for_a_run_is_brought_to_its_columns_and_statistics(tmp_path: Path) -> None:
    values = write_series(tmp_path / "a.csv")
    keys = {"dataset_name": "forecast", **SIZES}
    known = identity(build_dataset(config_of(**keys, data_dir=str(tmp_path / "a.csv"))))
    other = write_series(tmp_path / "b.csv", names=("sun", "more", "load", "wind"))
    config = config_of(**keys, data_dir=str(tmp_path / "b.csv"))
    data = build_dataset(config, known=known)
    expected = (other[0, [2, 3, 0]] - values[:70].mean(0)) / values[:70].std(0)
    np.testing.assert_allclose(data.train.series[0], expected, rtol=1e-5)
    write_series(tmp_path / "b.csv", names=("sun", "load"))
    with pytest.raises(DataError, match="has no column 'wind'"):
        build_dataset(config, known=known)


def test_etth1() -> None:
    file = Path(os.environ.get("GNP_DATA_DIR", "")).parent / "ett" / "ETTh1.csv"
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    splits = load_forecast(file, lookback=512, horizon=96)
    sources = (splits.train, splits.validation, splits.evaluation)
    assert [len(source) for source in sources] == [8033, 2785, 2785]
    assert splits.columns[-1] == "OT"
    np.testing.assert_allclose(splits.mean[-1], 17.1283, atol=1e-4)
