"""Other labels from a file: each goes to its example, and what does not fit is one clear line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ds_pipeline.tfds_source
from ds_pipeline import build_dataset, identity, identity_problems
from ds_pipeline.errors import DataError
from tests.data_sets import write_tfds_set
from tests.ds_pipeline.build_test import config_of, refusal

# Of example i of the data as they are read, in no order; and the other labels by that number.
NUMBERS = np.random.default_rng(0).permutation(40)
LABELS = np.random.default_rng(1).integers(0, 10, 40)


def tfds(folder: Path, ids: list[str] | None = None, **keys: Any) -> SimpleNamespace:
    """Write a TFDS set and a file of labels; return a config of both."""
    ids = [f"train_{number:05d}" for number in NUMBERS] if ids is None else ids
    write_tfds_set(folder, n_train=40, shape=(6, 6, 3), ids=ids or None)
    return with_file(folder, dataset_name="mnist", data_dir=str(folder), **keys)


def with_file(folder: Path, labels: Any = LABELS, **keys: Any) -> SimpleNamespace:
    np.savez(folder / "labels.npz", people=labels, others=(labels + 1) % 10)
    defaults = {"labels_file": str(folder / "labels.npz"), "labels_array": "people"}
    return config_of(**{**defaults, **keys})


def test_labels_go_by_the_ids_of_a_tfds_set(tmp_path: Path) -> None:
    config = tfds(tmp_path)
    dataset = build_dataset(config)
    own = np.arange(40) % 10
    np.testing.assert_array_equal(dataset.train.labels(), LABELS[NUMBERS])
    assert dataset.train.labels().dtype == np.int32
    np.testing.assert_array_equal(dataset.wrong_labels, np.flatnonzero(LABELS[NUMBERS] != own))
    np.testing.assert_array_equal(dataset.evaluation.labels(), np.arange(8) % 10)
    config.dataset.labels_array = "others"
    np.testing.assert_array_equal(build_dataset(config).train.labels(), (LABELS[NUMBERS] + 1) % 10)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_held_out_keeps_its_own_labels(
    tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr(ds_pipeline.tfds_source, "IN_MEMORY_BYTES", 0)
    config = tfds(tmp_path, validation_fraction=0.25, subset=20, use_test_set=False)
    dataset = build_dataset(config)
    config.dataset.labels_file = config.dataset.labels_array = None
    plain = build_dataset(config)
    every = np.arange(20)
    batch, own = dataset.train.batch(every), plain.train.batch(every)
    np.testing.assert_array_equal(batch["input"], own["input"])
    whole = build_dataset(config_of(dataset_name="mnist", data_dir=str(tmp_path))).train
    images = [image.tobytes() for image in whole.batch(np.arange(40))["input"]]
    rows = [images.index(image.tobytes()) for image in batch["input"]]
    assert batch["label"].tolist() == LABELS[NUMBERS[rows]].tolist()
    assert dataset.wrong_labels.tolist() == np.flatnonzero(batch["label"] != own["label"]).tolist()
    np.testing.assert_array_equal(dataset.evaluation.labels(), plain.evaluation.labels())


def test_without_ids_labels_go_by_place(tmp_path: Path) -> None:
    """Also of examples of which the test set is drawn, whose labels are then not used."""
    labels = (np.arange(1797) * 7) % 10
    dataset = build_dataset(with_file(tmp_path, labels))
    images = build_dataset(config_of(test_fraction=0.2)).train
    np.testing.assert_array_equal(dataset.train.labels(), labels[images.indices])  # type: ignore[attr-defined]
    assert len(dataset.evaluation) == 359


def test_a_run_goes_on_with_the_same_labels_alone(tmp_path: Path) -> None:
    config = with_file(tmp_path, (np.arange(1797) * 7) % 10)
    one = identity(build_dataset(config))
    (tmp_path / "elsewhere").mkdir()
    same = with_file(tmp_path / "elsewhere", (np.arange(1797) * 7) % 10)
    assert identity_problems(one, identity(build_dataset(same))) == []
    for other in (config_of(), with_file(tmp_path, np.arange(1797) % 10)):
        (problem,) = identity_problems(one, identity(build_dataset(other)))
        assert problem.startswith("contents")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"labels_file": "missing.npz"}, "missing.npz does not exist; set dataset.labels_file to"),
        ({"labels_file": __file__}, "is no .npz file"),
        ({"labels_file": " "}, "dataset.labels_file is empty"),
        ({"labels_array": None}, "set dataset.labels_array to one of people, others"),
        ({"labels_array": "peple"}, "no array 'peple'; allowed: people, others; did you mean"),
        ({"labels": np.arange(1796)}, "[1796]; allowed is a whole number for each of the 1797"),
        ({"labels": np.zeros(1797)}, "people holds float64"),
        ({"labels": np.arange(1797) % 11}, "people[10] = 10 is no class; allowed are 0 to 9"),
        ({"labels": np.arange(1797) % 3 - 1}, "people[0] = -1 is no class"),
        ({"dataset_name": "diabetes"}, "these data have none; set it to None"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    assert said in refusal(with_file(tmp_path, **{"labels": np.zeros(1797, int), **keys}))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([], "the examples have no ids such as train_00042"),
        (["a"] * 40, "the examples have no ids such as train_00042"),
        ([f"train_{i // 2}" for i in range(40)], "are not 0 to 39, each once"),
    ],
)
def test_ids_that_tell_nothing(tmp_path: Path, ids: list[str], said: str) -> None:
    assert said in refusal(tfds(tmp_path, ids))


def test_a_stand_in_reads_no_file() -> None:
    keys = {"dataset_name": "cifar10", "labels_file": "missing.npz", "labels_array": "x"}
    assert not len(build_dataset(config_of(**keys), stands_in=True).wrong_labels)
    with pytest.raises(DataError):
        build_dataset(config_of(**keys, data_dir="nowhere"))
