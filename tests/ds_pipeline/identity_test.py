"""What identifies data: what changes it, what does not, and evaluation on other data."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ds_pipeline.build
import ds_pipeline.tfds_source
from ds_pipeline import DataError, Dataset, InMemorySource, identity, identity_problems
from ds_pipeline.build import build_dataset
from ds_pipeline.splits import Splits
from tests.data_sets import (
    write_csv_table,
    write_image_folder,
    write_tfds_set,
    write_ucr_set,
)
from tests.ds_pipeline.build_test import config_of


def through_a_file(values: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(values))
    return result


def images(folder: Path, **keys: Any) -> SimpleNamespace:
    return config_of(dataset_name="image_folder", data_dir=str(folder), image_size=8, **keys)


def table(folder: Path, **keys: Any) -> SimpleNamespace:
    file = folder / "table.csv"
    return config_of(dataset_name="csv", data_dir=str(file), target="kind", **keys)


def write(kind: str, folder: Path, more: int = 0, seed: int = 0) -> SimpleNamespace:
    """Write data of a kind, with so many more training examples, and return their config."""
    folder.mkdir()
    if kind == "images":
        return images(write_image_folder(folder, n_train=4 + more, seed=seed))
    if kind == "table":
        write_csv_table(folder / "table.csv", rows=40 + more, is_regression=False, seed=seed)
        return table(folder)
    if kind == "series":
        write_ucr_set(folder, n_train=12 + more, seed=seed)
        return config_of(dataset_name="ucr/Waves", data_dir=str(folder))
    write_tfds_set(folder, n_train=32 + more, seed=seed)
    return config_of(dataset_name="mnist", data_dir=str(folder))


KINDS = ["images", "table", "series", "tfds", "large tfds"]


@pytest.fixture(autouse=True)
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "large" in request.node.name:
        monkeypatch.setattr(ds_pipeline.tfds_source, "IN_MEMORY_BYTES", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_elsewhere_are_the_same(tmp_path: Path, kind: str) -> None:
    one, other = (write(kind, tmp_path / name) for name in ("one", "other"))
    other.dataset.label_noise = 0.5
    other.dataset.batch_level_augmentations = "mixup"
    stored = through_a_file(identity(build_dataset(one)))
    assert identity_problems(stored, identity(build_dataset(other))) == []
    assert build_dataset(other, known=stored).warnings == ()


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_grew_are_named_by_their_counts(tmp_path: Path, kind: str) -> None:
    one, other = write(kind, tmp_path / "one"), write(kind, tmp_path / "other", more=10)
    data, grown = build_dataset(one), build_dataset(other)
    problems = identity_problems(through_a_file(identity(data)), identity(grown))
    counts = f"train examples: {len(data.train)} there, {len(grown.train)} here"
    assert counts in problems
    warned = build_dataset(other, known=through_a_file(identity(data))).warnings
    assert len(warned) == 1 and counts in warned[0]
    assert "the data are not those of the training" in warned[0]


@pytest.mark.parametrize("kind", ["table", "series", "tfds"])
def test_other_values_are_noticed(tmp_path: Path, kind: str) -> None:
    one, other = (
        identity(build_dataset(write(kind, tmp_path / str(seed), seed=seed))) for seed in (0, 1)
    )
    assert identity_problems(one, other)
    problems = identity_problems(one | {"digest": other["digest"]}, one)
    assert len(problems) == 1 and problems[0].startswith("contents")


def test_a_renamed_photograph_is_noticed(tmp_path: Path) -> None:
    config = write("images", tmp_path / "one")
    stored = identity(build_dataset(config))
    file = tmp_path / "one" / "train" / "cat" / "0.jpg"
    file.rename(file.with_name("00.jpg"))
    assert len(identity_problems(stored, identity(build_dataset(config)))) == 1


HOSTILE = (
    None, 7, -1.5, True, "x", "\x1b[2J\n", [], {}, [[]], [{}], [None], ["x", 1], [1e999],
    [float("nan")], 10**5000, [10**5000], {"a": {"b": []}}, ["a"] * 10_000, ["y" * 10**6],
    "y" * 10**6, b"z",
)  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: ascii(type(value)))
def test_whatever_was_stored_is_a_difference(tmp_path: Path, value: Any) -> None:
    config = write("table", tmp_path / "one")
    here = identity(build_dataset(config))
    for key in here:
        for stored in ({**here, key: value}, {k: v for k, v in here.items() if k != key}):
            problems = identity_problems(stored, here)
            assert problems and all(p.isprintable() and len(p) < 1000 for p in problems)
            try:
                warnings = build_dataset(config, known=stored).warnings
            except DataError as error:
                assert str(error).isprintable() and len(str(error)) < 1000
            else:
                assert len(warnings) == 1 and "not those of the training" in warnings[0]
    assert identity_problems(value, here)
    if value is not None:
        with pytest.raises(DataError, match="what the run stored of its data"):
            build_dataset(config, known=value)


def labels_by_name(data: Dataset) -> list[str]:
    return [data.class_names[label] for label in data.evaluation.labels()]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    a = images(write_image_folder(tmp_path / "a", classes=("ant", "cat", "dog")))
    b = images(write_image_folder(tmp_path / "b", classes=("cat", "dog"), n_test=3))
    known = through_a_file(identity(build_dataset(a)))
    data = build_dataset(b, known=known)
    assert data.class_names == ("ant", "cat", "dog") and data.num_classes == 3
    assert data.evaluation.labels().tolist() == [1] * 3 + [2] * 3
    batch = data.evaluation.batch(np.array([0, 5]))
    assert batch["label"].tolist() == [1, 2] and batch["input"].shape == (2, 8, 8, 3)
    assert data.train.labels().tolist() == [1] * 4 + [2] * 4


def test_one_class_of_the_runs_is_enough_to_evaluate_on(tmp_path: Path) -> None:
    a = images(write_image_folder(tmp_path / "a"))
    b = images(write_image_folder(tmp_path / "b", classes=("dog",)))
    known = identity(build_dataset(a))
    assert labels_by_name(build_dataset(b, known=known)) == ["dog"] * 2
    with pytest.raises(DataError, match="needs two classes"):
        build_dataset(b)


def test_a_class_that_the_run_does_not_know_is_refused_with_both_lists(tmp_path: Path) -> None:
    a = images(write_image_folder(tmp_path / "a", classes=("cat", "dog")))
    b = images(write_image_folder(tmp_path / "b", classes=("dog", "emu")))
    with pytest.raises(DataError, match=r"'emu' is none .* on cat, dog, .* have dog, emu"):
        build_dataset(b, known=identity(build_dataset(a)))


def rows_of(folder: Path, header: str, change: Callable[[list[str]], list[str]]) -> SimpleNamespace:
    """Write the table of the first folder with other columns."""
    lines = (folder.parent / "a" / "table.csv").read_text().splitlines()[1:]
    folder.mkdir()
    content = [header, *(",".join(change(line.split(","))) for line in lines)]
    (folder / "table.csv").write_text("\n".join(content) + "\n")
    return table(folder)


def test_columns_are_matched_by_name(tmp_path: Path) -> None:
    a = build_dataset(write("table", tmp_path / "a"))
    known = through_a_file(identity(a))
    assert known["columns"] == ["a", "b", "c"]
    other = rows_of(tmp_path / "b", "kind,c,extra,a,b", lambda v: [v[3], v[2], "1", v[0], v[1]])
    b = build_dataset(other, known=known)
    rows = np.arange(len(a.evaluation))
    np.testing.assert_allclose(
        np.asarray(b.normalize(b.evaluation.batch(rows)["input"])),
        np.asarray(a.normalize(a.evaluation.batch(rows)["input"])),
        rtol=1e-6,
    )
    assert b.columns == ("a", "b", "c") and b.shape == (3,)
    assert any("left out: extra" in warning for warning in b.warnings)


def test_a_column_that_is_missing_is_refused_with_both_lists(tmp_path: Path) -> None:
    known = identity(build_dataset(write("table", tmp_path / "a")))
    other = rows_of(tmp_path / "b", "a,c,z,kind", lambda v: [v[0], v[2], v[1], v[3]])
    with pytest.raises(DataError, match=r"'b' is missing: .* on a, b, c, .* have a, c, z"):
        build_dataset(other, known=known)


def test_other_inputs_and_targets_are_refused(tmp_path: Path) -> None:
    known = identity(build_dataset(write("series", tmp_path / "a")))
    write_ucr_set(tmp_path / "b", length=30)
    config = config_of(dataset_name="ucr/Waves", data_dir=str(tmp_path / "b"))
    with pytest.raises(DataError, match=r"shape 20, 1 .* have 30, 1"):
        build_dataset(config, known=known)
    with pytest.raises(DataError, match=r"trained on the classes -1, 1, .* numbers to predict"):
        build_dataset(config_of(dataset_name="diabetes"), known=known)
    with pytest.raises(DataError, match=r"trained on numbers to predict, .* classes setosa, "):
        build_dataset(
            config_of(dataset_name="iris"),
            known=identity(build_dataset(config_of(dataset_name="diabetes"))),
        )
    known = identity(build_dataset(config_of()))
    with pytest.raises(DataError, match=r"type float32, and these data have .* uint8"):
        build_dataset(config_of(), known=known | {"dtype": "float32"})


@pytest.mark.parametrize("kind", ["table", "series"])
def test_other_data_are_normalized_as_in_training(tmp_path: Path, kind: str) -> None:
    known = identity(build_dataset(write(kind, tmp_path / "a")))
    known["mean"] = [value + 1.5 for value in known["mean"]]
    data = build_dataset(write(kind, tmp_path / "b", seed=1), known=known)
    np.testing.assert_array_equal(data.mean, known["mean"])
    np.testing.assert_array_equal(data.std, known["std"])


def test_a_photograph_is_normalized_as_in_training(tmp_path: Path) -> None:
    config = write("images", tmp_path / "a")
    config.dataset.mean = (0.25,)
    known = identity(build_dataset(config))
    other = write("images", tmp_path / "b", seed=1)
    assert build_dataset(other, known=known).mean.tolist() == [63.75] * 3


def test_names_are_compared_in_one_encoding(tmp_path: Path) -> None:
    names = (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"))
    one, other = (
        images(write_image_folder(tmp_path / str(i), classes=("x", name)))
        for i, name in enumerate(names)
    )
    assert identity_problems(identity(build_dataset(one)), identity(build_dataset(other))) == []
    shutil.rmtree(tmp_path / "0")
    assert build_dataset(other, known=identity(build_dataset(other))).warnings == ()


def wide(monkeypatch: pytest.MonkeyPatch, inputs: np.ndarray, columns: tuple[str, ...]) -> Any:
    """Return the config of a data set whose reader gives these float64 inputs."""
    labels = np.arange(len(inputs)) % 2
    splits = Splits(
        train=InMemorySource(inputs, labels),
        evaluation=InMemorySource(inputs[:4], labels[:4]),
        evaluation_name="test",
        shape=inputs.shape[1:],
        dtype=inputs.dtype,
        class_names=("no", "yes"),
        columns=columns,
    )
    monkeypatch.setattr(ds_pipeline.build, "load_csv", lambda *_: splits)
    return config_of(dataset_name="csv", data_dir="table.csv")


@pytest.mark.parametrize("shape", [(40, 2), (40, 5, 2), (40, 4, 4, 2)])
@pytest.mark.parametrize(("origin", "step"), [(1.7e12, 1.0), (5.0, 1e-9), (1e-60, 1e-70)])
def test_values_that_float32_does_not_hold_are_standardized_before(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], origin: float, step: float
) -> None:
    rng = np.random.default_rng(0)
    inputs = origin + step * rng.integers(0, 1000, shape)
    data = build_dataset(wide(monkeypatch, inputs, ()))
    assert data.standardized and data.warnings == ()
    batch = data.train.batch(np.arange(40))["input"]
    assert batch.dtype == np.float32
    flat = np.asarray(data.normalize(batch), np.float64).reshape(-1, 2)
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(flat.std(axis=0), 1, atol=1e-5)
    exact = (inputs - inputs.reshape(-1, 2).mean(axis=0)) / inputs.reshape(-1, 2).std(axis=0)
    np.testing.assert_allclose(batch, exact, atol=1e-5)
    # Evaluated by other statistics: those of the training.
    known = through_a_file(identity(data))
    few = build_dataset(wide(monkeypatch, inputs[:8], ()), known=known)
    np.testing.assert_allclose(few.train.batch(np.arange(8))["input"], exact[:8], atol=1e-5)


def test_a_constant_column_is_named_and_becomes_0(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = np.stack([np.arange(40.0), np.full(40, 0.1), np.full(40, 1.7e12)], axis=1)
    data = build_dataset(wide(monkeypatch, inputs, ("age", "day", "year")))
    assert len(data.warnings) == 1
    assert "day" in data.warnings[0] and "year" in data.warnings[0]
    assert "age" not in data.warnings[0]
    batch = np.asarray(data.normalize(data.train.batch(np.arange(40))["input"]))
    np.testing.assert_allclose(batch[:, 1:], 0, atol=1e-6)
    np.testing.assert_allclose(batch[:, 0].std(), 1, atol=1e-5)


def test_the_configs_statistics_standardize_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = wide(monkeypatch, 1e12 + np.arange(80.0).reshape(40, 2), ())
    config.dataset.mean, config.dataset.std = (1e12, 1e12 + 1), (2.0,)
    data = build_dataset(config)
    assert data.train.batch(np.array([3]))["input"].tolist() == [[3.0, 3.0]]


def test_what_standardizing_makes_too_large_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    config = wide(monkeypatch, 1e12 + np.arange(80.0).reshape(40, 2), ())
    config.dataset.mean, config.dataset.std = (0.0,), (1e-30, 1e12)
    with pytest.raises(DataError, match="column 1 is too large"):
        build_dataset(config).train.batch(np.arange(4))
