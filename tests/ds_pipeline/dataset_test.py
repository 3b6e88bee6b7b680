"""From a config to a data set."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from ds_pipeline import DataError, build_dataset, dataset_names, evaluation_batches, train_batches
from ds_pipeline.testing import write_tfds_set


def config_of(use_test_set: bool = True, seeds: int = 0, **keys: Any) -> SimpleNamespace:
    defaults = {
        "dataset_name": "digits",
        "data_dir": None,
        "validation_fraction": 0.1,
        "image_level_augmentations": "none",
        "batch_level_augmentations": "none",
        "cutout_size": 16,
        "image_size": None,
        "num_classes": None,
        "num_channels": None,
        "subset": None,
    }
    dataset = SimpleNamespace(**{**defaults, **keys})
    return SimpleNamespace(seeds=seeds, use_test_set=use_test_set, dataset=dataset)


def refusal(config: SimpleNamespace) -> str:
    with pytest.raises(DataError) as raised:
        build_dataset(config)
    message = str(raised.value)
    assert message and "\n" not in message
    return message


def test_digits() -> None:
    data = build_dataset(config_of(image_size=8, num_classes=10, num_channels=1))
    assert (data.name, data.evaluation_name, data.shape) == ("digits", "test", (8, 8, 1))
    assert (len(data.train), len(data.evaluation), data.num_classes) == (1438, 359, 10)
    assert data.augment is None
    images = data.train.batch(np.arange(len(data.train)))["image"]
    np.testing.assert_allclose(data.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, images.std(axis=(0, 1, 2)), rtol=1e-6)


def test_normalize_is_traceable_and_float32() -> None:
    data = build_dataset(config_of())
    images = data.train.batch(np.arange(1438))["image"]
    found = jax.jit(data.normalize)(images)
    expected = (images.astype(np.float64) - data.mean.item()) / data.std.item()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert abs(float(found.mean())) < 1e-3 and abs(float(found.std()) - 1) < 1e-3


def test_the_published_statistics_are_used_where_they_fit(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "mnist")
    write_tfds_set(tmp_path, "cifar10", shape=(6, 6, 1))
    published = build_dataset(config_of(dataset_name="mnist", data_dir=str(tmp_path)))
    np.testing.assert_allclose(published.mean, [0.13066048 * 255], rtol=1e-6)
    np.testing.assert_allclose(published.std, [0.30810779 * 255], rtol=1e-6)
    # Named cifar10, but with one channel.
    own = build_dataset(config_of(dataset_name="cifar10", data_dir=str(tmp_path)))
    images = own.train.batch(np.arange(32))["image"]
    np.testing.assert_allclose(own.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)


def test_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "mine", n_train=100, shape=(6, 6, 3))
    keys: dict[str, Any] = {"dataset_name": "mine", "data_dir": str(tmp_path)}
    data = build_dataset(config_of(use_test_set=False, validation_fraction=0.2, **keys))
    whole = build_dataset(config_of(**keys)).train.batch(np.arange(100))["image"]
    train = data.train.batch(np.arange(80))
    held_out = data.evaluation.batch(np.arange(20))
    assert (len(data.train), len(data.evaluation), data.evaluation_name) == (80, 20, "validation")
    assert np.bincount(held_out["label"]).tolist() == [2] * 10
    parts = {image.tobytes() for image in np.concatenate([train["image"], held_out["image"]])}
    assert parts == {image.tobytes() for image in whole}
    # Statistics come from what is trained on.
    np.testing.assert_allclose(data.mean, train["image"].mean(axis=(0, 1, 2)), rtol=1e-6)
    other = build_dataset(config_of(use_test_set=False, seeds=1, validation_fraction=0.2, **keys))
    assert (other.evaluation.batch(np.arange(20))["image"] != held_out["image"]).any()


def test_a_validation_split_stands_in_for_a_missing_test_split(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "a", evaluation_split="validation")
    write_tfds_set(tmp_path, "b", evaluation_split=None)
    data = build_dataset(config_of(dataset_name="a", data_dir=str(tmp_path)))
    assert (data.evaluation_name, len(data.evaluation)) == ("validation", 8)
    found = refusal(config_of(dataset_name="b", data_dir=str(tmp_path)))
    assert "neither a split 'test' nor 'validation'" in found and "use_test_set" in found
    held_out = build_dataset(config_of(False, dataset_name="b", data_dir=str(tmp_path)))
    assert len(held_out.evaluation) == 3


def test_augmentation_is_that_of_the_config(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "mine", shape=(20, 20, 3))
    keys: dict[str, Any] = {
        "dataset_name": "mine",
        "data_dir": str(tmp_path),
        "image_level_augmentations": "basic",
        "batch_level_augmentations": "cutout",
    }
    data = build_dataset(config_of(**keys))
    batch = next(train_batches(data, 8, 0, 0, 1))
    fill = np.rint(data.mean).astype(np.uint8)
    assert (batch["image"] == fill[None, None, None]).all(axis=-1).sum() >= 8 * 64
    plain = next(evaluation_batches(data.evaluation, 8))
    np.testing.assert_array_equal(plain["image"], data.evaluation.batch(np.arange(8))["image"])


@pytest.mark.parametrize(("subset", "count"), [(500, 500), (0.5, 719), (1438, 1438)])
def test_a_subset_is_balanced_and_repeatable(subset: float, count: int) -> None:
    whole, part = build_dataset(config_of()), build_dataset(config_of(subset=subset))
    labels = part.train.batch(np.arange(len(part.train)))["label"]
    everything = np.bincount(whole.train.batch(np.arange(1438))["label"])
    assert len(labels) == count
    assert np.abs(np.bincount(labels) - everything * count / 1438).max() <= 1
    assert len(part.evaluation) == len(whole.evaluation)
    again = build_dataset(config_of(subset=subset)).train
    np.testing.assert_array_equal(
        part.train.batch(np.arange(count))["image"], again.batch(np.arange(count))["image"]
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset_name": "mnsit"}, "did you mean 'mnist'"),
        ({"dataset_name": "not a name"}, "is no data set name"),
        ({"dataset_name": "mnist", "data_dir": ""}, "dataset.data_dir is empty"),
        ({"dataset_name": "mnist", "data_dir": "/nonexistent/x"}, "does not exist"),
        (
            {"image_size": 28},
            "dataset.image_size 28 does not match 'digits', whose data have 8 x 8",
        ),
        ({"num_classes": 100}, "dataset.num_classes 100 does not match"),
        ({"num_channels": 3}, "dataset.num_channels 3 does not match"),
        ({"image_level_augmentations": "bassic"}, "did you mean 'basic'"),
        ({"subset": 1439}, "asks for 1439 of 1438 training examples"),
        ({"subset": 0.0001}, "asks for 0 of 1438 training examples"),
        ({"batch_level_augmentations": "cutout"}, "cutout_size 16 covers the whole 8 x 8 image"),
    ],
)
def test_bad_configs_are_one_line(
    keys: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert message in refusal(config_of(**keys))


def test_the_data_folder_comes_from_the_environment_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_tfds_set(tmp_path, "mine", n_train=4, n_test=2, shape=(4, 4, 1))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert dataset_names() == ("digits", "mine")
    assert len(build_dataset(config_of(dataset_name="mine")).train) == 4


def test_splits_of_different_shapes_are_refused(tmp_path: Path) -> None:
    from ds_pipeline.testing import write_split_files

    small, large = np.zeros((4, 4, 1), np.uint8), np.zeros((5, 5, 1), np.uint8)
    write_split_files(
        tmp_path / "mine" / "1.0.0",
        "mine",
        {"train": ([small], [0]), "test": ([large], [0])},
        shape=(None, None, 1),
        num_classes=2,
    )
    found = refusal(config_of(dataset_name="mine", data_dir=str(tmp_path)))
    assert "(4, 4, 1) in split 'train' and (5, 5, 1) in split 'test'" in found


def test_real_mnist_has_the_published_statistics() -> None:
    folder = os.environ.get("GNP_DATA_DIR")
    if not folder:
        pytest.skip("GNP_DATA_DIR names no folder with the real mnist")
    data = build_dataset(config_of(dataset_name="mnist", data_dir=folder, image_size=28))
    images = data.train.batch(np.arange(len(data.train)))["image"]
    np.testing.assert_allclose(data.mean, [images.mean()], rtol=1e-5)
    np.testing.assert_allclose(data.std, [images.std()], rtol=1e-5)
