"""Series to forecast: a CSV file with a time column and numbers, cut into windows."""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ds_pipeline.csv_file import finite_number, nameless_columns, read_table
from ds_pipeline.errors import DataError
from ds_pipeline.files import LARGEST, numbers
from ds_pipeline.source import CONSTANT, Batch, Indices, is_constant
from ds_pipeline.splits import Splits, normalized, unknown_name

_TIME_COLUMNS = ("date", "time", "datetime", "timestamp")
# Beside what ISO 8601 has: 1990/1/1 0:00, 2016-7-1.
_TIME = re.compile(
    r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?: (\d{1,2}):(\d{2})(?::(\d{2}))?)?", re.ASCII
)
# Of the electricity transformers, by the first letters of the file: rows of a day. The published
# parts are 12, 4 and 4 months of 30 days.
_ROWS_A_DAY = {"ETTh": 24, "ETTm": 96}
_MONTHS = (12, 4, 4)
# Of any other series: shares of train and test; validation is what lies between.
_TRAIN, _TEST = 0.7, 0.2


class WindowSource:
    """Windows of a series: each example is `lookback` rows, its label the `horizon` rows after.

    The series is kept once; a batch copies its own windows alone.

    Args:
        series: [rows, channels], float32; at least lookback + horizon rows.
        lookback: rows of an input.
        horizon: rows of a label.

    Example:
        >>> source = WindowSource(np.arange(10.0)[:, None], lookback=3, horizon=2)
        >>> batch = source.batch(np.array([5]))
        >>> len(source), batch["input"][0, :, 0].tolist(), batch["label"][0, :, 0].tolist()
        (6, [5.0, 6.0, 7.0], [8.0, 9.0])
    """

    def __init__(self, series: np.ndarray, lookback: int, horizon: int) -> None:
        self.series, self.lookback, self.horizon = series, lookback, horizon

    def __len__(self) -> int:
        return len(self.series) - self.lookback - self.horizon + 1

    def batch(self, indices: Indices) -> Batch:
        """Return the windows that begin at these rows: [b, lookback, c] and [b, horizon, c]."""
        starts = np.asarray(indices)[:, None]
        after = starts + self.lookback
        return {
            "input": self.series[starts + np.arange(self.lookback)],
            "label": self.series[after + np.arange(self.horizon)],
        }

    def labels(self) -> np.ndarray:
        """Return all labels in order, [n, horizon, c]: a view of the series."""
        after = self.series[self.lookback :]
        return np.lib.stride_tricks.sliding_window_view(after, self.horizon, 0).swapaxes(1, 2)


def load_forecast(
    file: Path | None,
    lookback: int,
    horizon: int,
    columns: Sequence[str] | None = None,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    allow_gaps: bool = False,
) -> Splits:
    """Load a series, split in time, and standardize it by the mean and deviation of its first part.

    Rows are (train, validation, test) one after another: of a file whose name begins with ETTh or
    ETTm 12, 4 and 4 months of 30 days, of others the first 70%, the last 20%, and what lies
    between. The first window of validation and of test looks back into the part before.

    Args:
        file: CSV with a header, a time column (named date, time, datetime or timestamp; else the
            first one) and columns of numbers; None: `generated_series`.
        lookback: rows of an input.
        horizon: rows of a label.
        columns: names of those to forecast, from one another, in this order; None: all.
        statistics: (mean, std), float64 [c], to standardize by; None: those of the training part.
        allow_gaps: rows are taken as evenly spaced, though times are missing.

    Returns:
        Windows [lookback, c] and labels [horizon, c], float32, standardized in float64.

    Raises:
        DataError: the file is missing or cannot be read; a time is missing, repeated, or none; a
            value is no finite number; there is no such column; a part is shorter than a window.

    References:
        Zhou et al.: Informer, AAAI 2021, https://arxiv.org/abs/2012.07436 (ETT).
    """
    warnings: tuple[str, ...] = ()
    if file is None:
        names, rows = generated_series()
    else:
        names, rows, warnings = _read(file, allow_gaps)
    where = "the generated series" if file is None else str(file)
    if columns is not None:
        columns = tuple(map(normalized, columns))
        for name in columns:
            if name not in names:
                raise DataError(unknown_name(f"{where} has no column", name, names))
        rows, names = rows[:, [names.index(name) for name in columns]], columns
    ends = _ends(file.name if file else "", len(rows))
    needed = lookback + horizon, horizon, horizon
    lengths = np.diff([0, *ends])
    for part, length, least in zip(("train", "validation", "test"), lengths, needed, strict=True):
        if length < least:
            keys = f"dataset.horizon ({horizon})"
            if part == "train":
                keys = f"dataset.lookback ({lookback}) or {keys}"
            by_name = file is not None and file.name[:4] in _ROWS_A_DAY
            named = " (12, 4 and 4 months, by the file's name)" if by_name else ""
            raise DataError(
                f"{where} has {len(rows)} rows, {length} of them for {part}{named}, which needs "
                f"{least}: lower {keys}, or give more rows"
            )
    mean, std = statistics or _statistics(rows[: ends[0]])
    with np.errstate(over="ignore"):  # it is said below
        series = ((rows - mean) / std).astype(np.float32)
    if not np.isfinite(series).all():
        column = int(np.argwhere(~np.isfinite(series))[0][1])
        raise DataError(
            f"{where}, column '{names[column]}': a value is too far from the training part's mean, "
            f"{mean[column]:g}, for its deviation, {std[column]:g}; float32 does not hold it"
        )
    begins = (0, ends[0] - lookback, ends[1] - lookback)
    train, validation, test = (
        WindowSource(series[begin:end], lookback, horizon)
        for begin, end in zip(begins, ends, strict=True)
    )
    return Splits(
        train=train,
        evaluation=test,
        evaluation_name="test",
        shape=(lookback, len(names)),
        dtype=series.dtype,
        class_names=(),
        columns=names,
        mean=mean,
        std=std,
        warnings=warnings,
        task="forecasting",
        target_shape=(horizon, len(names)),
        validation=validation,
        standardized=True,
    )


def generated_series(rows: int = 6000) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    r"""Make hourly series of seven channels that share a day, a week, and noise with a memory.

    x_c(t) = a_c sin(2 pi t / 24 + p_c) + b_c sin(2 pi t / 168 + q_c) + u_c(t), where
    u_c(t) = 0.9 u_c(t - 1) + e_c(t); a and b are uniform in [0.5, 1.5], p and q in [0, 2 pi], e is
    normal with deviation 0.5, all drawn from seed 0.

    Returns:
        (names, values [rows, 7]).
    """
    rng = np.random.default_rng(0)
    channels = 7
    time = np.arange(rows)[:, None]
    values = np.zeros((rows, channels))
    for period in (24, 168):
        amplitude = rng.uniform(0.5, 1.5, channels)
        values += amplitude * np.sin(2 * np.pi * (time / period + rng.uniform(0, 1, channels)))
    noise = np.zeros(channels)
    for row, shock in zip(values, rng.normal(0, 0.5, (rows, channels)), strict=True):
        noise = 0.9 * noise + shock
        row += noise
    return tuple(f"channel {i + 1}" for i in range(channels)), values


def _read(
    file: Path, allow_gaps: bool
) -> tuple[tuple[str, ...], npt.NDArray[np.float64], tuple[str, ...]]:
    """Return (names of the columns but time, values [rows, c], warnings), in the order of time."""
    table = read_table(file)
    _, header = next(table)
    lowered = [name.lower() for name in header]
    time = next((lowered.index(name) for name in _TIME_COLUMNS if name in lowered), 0)
    if _parse_time(header[time]):
        raise DataError(
            f"{file} begins with a row, not with the columns' names; put a header above it"
        )
    names = [name for i, name in enumerate(header) if i != time]
    if not names:
        raise DataError(f"{file} has one column; are commas between its columns?")
    lines: list[int] = []
    times: list[datetime] = []
    values: list[npt.NDArray[np.float64]] = []
    for line, fields in table:
        lines.append(line)
        times.append(_time(file, line, header[time], fields.pop(time)))
        values.append(_numbers(file, line, names, fields))
    if not values:
        raise DataError(f"{file} has a header and no rows")
    _check_times(file, lines, times, allow_gaps)
    header[time] = ""  # no input, whatever its name
    return tuple(names), np.array(values), nameless_columns(file, header)


def _numbers(
    file: Path, line: int, names: Sequence[str], fields: Sequence[str]
) -> npt.NDArray[np.float64]:
    try:
        row = numbers(fields)
        if np.abs(row).max() <= LARGEST:
            return row
    except ValueError:
        pass
    # Slower, and says which is none.
    return np.array([finite_number(file, line, *pair) for pair in zip(names, fields, strict=True)])


def _parse_time(text: str) -> datetime | None:
    """Return a time, in UTC where an offset is given; None where it is none."""
    match = _TIME.fullmatch(text.strip())
    try:
        if match:
            year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
            return datetime(year, month, day, hour, minute, second)
        time = datetime.fromisoformat(text.strip())
        return time if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # such as the 30th of February
        return None


def _time(file: Path, line: int, column: str, text: str) -> datetime:
    if (time := _parse_time(text)) is not None:
        return time
    found = f"'{text.strip()[:40]}' is no time" if text.strip() else "no time"
    raise DataError(
        f"{file}, line {line}, column '{column}': {found}; write times as 2016-07-01 00:00:00, in "
        f"a column named {' or '.join(_TIME_COLUMNS)}, or the first one"
    )


def _check_times(
    file: Path, lines: Sequence[int], times: Sequence[datetime], allow_gaps: bool
) -> None:
    """Raise DataError where times are not in order or, without `allow_gaps`, not evenly spaced.

    Steps may differ by half of the usual one, as months and years do.
    """
    for line, time in zip(lines, times, strict=True):
        if (time.tzinfo is None) != (times[0].tzinfo is None):
            raise DataError(
                f"{file}, line {line}: some times have an offset from UTC and others have none; "
                "write all in one way"
            )
    steps = [after - before for before, after in zip(times, times[1:], strict=False)]
    usual = Counter(steps).most_common(1)[0][0] if steps else timedelta()
    for line, time, step in zip(lines[1:], times[1:], steps, strict=True):
        if step <= timedelta():
            wrong = "is there twice" if not step else f"is before {time - step}, the row above it"
            raise DataError(f"{file}, line {line}: {time} {wrong}; sort or remove such rows")
        if 2 * step > 3 * usual and not allow_gaps:
            raise DataError(
                f"{file}, line {line}: times are missing between {time - step} and {time}, as most "
                f"rows are {usual} apart; fill them in, or set dataset.allow_gaps to True"
            )


def _ends(name: str, rows: int) -> tuple[int, int, int]:
    """Return the rows at which train, validation and test end."""
    if name[:4] in _ROWS_A_DAY:
        train, validation, test = (30 * months * _ROWS_A_DAY[name[:4]] for months in _MONTHS)
        first, second = min(train, rows), min(train + validation, rows)
        return first, second, min(train + validation + test, rows)
    return int(_TRAIN * rows), rows - int(_TEST * rows), rows


def _statistics(rows: npt.NDArray[np.float64]) -> tuple[np.ndarray, np.ndarray]:
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    return mean, np.where(is_constant(mean, std, rows.dtype), CONSTANT, std)
