"""From a config to a data set."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import jax
import numpy as np
import PIL.Image
import pytest

import ds_pipeline.build
import ds_pipeline.tfds_source
from ds_pipeline import DataError, build_dataset, dataset_names, evaluation_batches, train_batches
from ds_pipeline.augment import IMAGE_LEVEL
from ds_pipeline.bundled import NAMES
from tests.data_sets import (
    write_csv_table,
    write_image_folder,
    write_split_files,
    write_tfds_set,
    write_ucr_set,
)


def config_of(use_test_set: bool = True, seeds: int = 0, **keys: Any) -> SimpleNamespace:
    defaults = {
        "dataset_name": "digits",
        "data_dir": None,
        "train_split": "train",
        "target": None,
        "task": None,
        "image_level_augmentations": "none",
        "batch_level_augmentations": "none",
        "autoaugment_policy": None,
        "padding": 4,
        "randaugment_layers": 2,
        "randaugment_magnitude": 9.0,
        "mixup_alpha": 1.0,
        "cutmix_alpha": 1.0,
        "cutout_size": 16,
        "image_size": None,
        "num_classes": None,
        "num_channels": None,
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
        "split": "stratified",
        "shuffle": True,
        "keep_last_batch": False,
        "subset": None,
        "label_noise": 0.0,
        "labels_file": None,
        "labels_array": None,
        "mean": None,
        "std": None,
        "lookback": 512,
        "horizon": 96,
        "allow_gaps": False,
        "workers": None,
    }
    dataset = SimpleNamespace(**{**defaults, **keys})
    stopping = SimpleNamespace(metric=None)
    return SimpleNamespace(
        seeds=seeds, use_test_set=use_test_set, dataset=dataset, early_stopping=stopping
    )


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
    images = data.train.batch(np.arange(len(data.train)))["input"]
    np.testing.assert_allclose(data.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, images.std(axis=(0, 1, 2)), rtol=1e-6)


def test_normalize_is_traceable_and_float32() -> None:
    data = build_dataset(config_of())
    images = data.train.batch(np.arange(1438))["input"]
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
    images = own.train.batch(np.arange(32))["input"]
    np.testing.assert_allclose(own.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)


def test_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "mine", n_train=100, shape=(6, 6, 3))
    keys: dict[str, Any] = {"dataset_name": "mine", "data_dir": str(tmp_path)}
    data = build_dataset(config_of(use_test_set=False, validation_fraction=0.2, **keys))
    whole = build_dataset(config_of(**keys)).train.batch(np.arange(100))["input"]
    train = data.train.batch(np.arange(80))
    held_out = data.evaluation.batch(np.arange(20))
    assert (len(data.train), len(data.evaluation), data.evaluation_name) == (80, 20, "validation")
    assert np.bincount(held_out["label"]).tolist() == [2] * 10
    parts = {image.tobytes() for image in np.concatenate([train["input"], held_out["input"]])}
    assert parts == {image.tobytes() for image in whole}
    # Statistics come from what is trained on.
    np.testing.assert_allclose(data.mean, train["input"].mean(axis=(0, 1, 2)), rtol=1e-6)
    other = build_dataset(config_of(use_test_set=False, seeds=1, validation_fraction=0.2, **keys))
    assert (other.evaluation.batch(np.arange(20))["input"] != held_out["input"]).any()


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
    assert (batch["input"] == fill[None, None, None]).all(axis=-1).sum() >= 8 * 64
    assert data.mix is None and data.erase is not None
    plain = next(evaluation_batches(data.evaluation, 8))
    np.testing.assert_array_equal(plain["input"], data.evaluation.batch(np.arange(8))["input"])


def test_without_padding_basic_mirrors_alone() -> None:
    data = build_dataset(config_of(image_level_augmentations="basic", padding=0))
    batch = data.train.batch(np.arange(60))
    assert data.augment is not None
    found = data.augment(batch, 0, 0, np.arange(60))["input"]
    mirrored = (found == batch["input"][:, :, ::-1]).all((1, 2, 3))
    assert 10 < mirrored.sum() < 50
    np.testing.assert_array_equal(found[~mirrored], batch["input"][~mirrored])


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
        part.train.batch(np.arange(count))["input"], again.batch(np.arange(count))["input"]
    )


def test_each_seed_draws_its_own_subset(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "mnist", n_train=40, shape=(28, 28, 1))
    keys: dict[str, Any] = {"dataset_name": "mnist", "data_dir": str(tmp_path), "subset": 20}
    inputs = [
        build_dataset(config_of(seeds=seed, **keys)).train.batch(np.arange(20))["input"]
        for seed in (0, 1)
    ]
    first, second = ({image.tobytes() for image in images} for images in inputs)
    assert 0 < len(first - second) < 20


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset_name": "mnsit"}, "did you mean 'mnist'"),
        ({"dataset_name": "not a name"}, "is no data set name"),
        ({"dataset_name": "mnist", "data_dir": ""}, "dataset.data_dir is empty"),
        ({"dataset_name": "mnist", "data_dir": "/nonexistent/x"}, "x cannot be read"),
        (
            {"image_size": 28},
            "dataset.image_size 28 does not match 'digits', whose data have 8 x 8",
        ),
        ({"num_classes": 100}, "dataset.num_classes 100 does not match"),
        ({"num_channels": 3}, "dataset.num_channels 3 does not match"),
        ({"image_level_augmentations": "bassic"}, "did you mean 'basic'"),
        ({"dataset_name": "iris", "image_size": 8}, "whose data have no images"),
        ({"dataset_name": "iris", "num_channels": 4}, "whose data have vectors"),
        (
            {"dataset_name": "diabetes", "num_classes": 2},
            "whose data have numbers to predict; set it to None",
        ),
        ({"num_classes": 9}, "whose data have 10; set it to that, or to None"),
        ({"task": "regression"}, "dataset.task regression does not match 'digits', whose labels"),
        (
            {"dataset_name": "diabetes", "task": "classification"},
            "dataset.task classification does not match 'diabetes', whose labels are numbers",
        ),
        ({"dataset_name": "diabetes", "label_noise": 0.1}, "dataset.label_noise replaces a class"),
        ({"dataset_name": "diabetes", "batch_level_augmentations": "mixup"}, "have no classes"),
        ({"dataset_name": "iris", "image_level_augmentations": "basic"}, "is for images"),
        ({"dataset_name": "iris", "batch_level_augmentations": "cutout"}, "is for images"),
        ({"dataset_name": "iris", "batch_level_augmentations": "cutmix"}, "is for images"),
        ({"image_level_augmentations": "inception"}, "is for encoded photographs"),
        ({"mean": (0.1, 0.2)}, "dataset.mean has 2 values, the data have 1 channels; give 1"),
        ({"std": (0.1, 0.2, 0.3)}, "dataset.std has 3 values"),
        ({"train_split": "train+extra"}, "dataset.train_split train+extra is for TFDS sets"),
        ({"test_fraction": 0.0001}, "change dataset.test_fraction"),
        ({"dataset_name": "image_folder"}, "needs dataset.data_dir: set it to the image folder"),
        ({"dataset_name": "ucr/FordA"}, "needs dataset.data_dir: set it to the folder of the UCR"),
        ({"dataset_name": "csv"}, "needs dataset.data_dir: set it to the CSV file"),
        ({"dataset_name": "npz"}, "needs dataset.data_dir: set it to the .npz file"),
        ({"dataset_name": "image_foldr"}, "did you mean 'image_folder'"),
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
    assert dataset_names() == (*NAMES, "mine")
    assert len(build_dataset(config_of(dataset_name="mine")).train) == 4


def image_folder(tmp_path: Path, **keys: Any) -> SimpleNamespace:
    if not (tmp_path / "train").exists():
        write_image_folder(tmp_path, n_train=6)
    return config_of(dataset_name="image_folder", data_dir=str(tmp_path), **keys)


def test_photographs_get_one_size(tmp_path: Path) -> None:
    data = build_dataset(image_folder(tmp_path, image_size=24))
    assert data.shape == (24, 24, 3) and data.augment is None
    train, test = (s.batch(np.arange(4))["input"] for s in (data.train, data.evaluation))
    assert train.shape == test.shape == (4, 24, 24, 3) and train.dtype == np.uint8
    assert build_dataset(image_folder(tmp_path)).shape == (224, 224, 3)
    np.testing.assert_allclose(data.mean, [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(data.std, [58.395, 57.12, 57.375], rtol=1e-6)
    # Half of the shorter side, where the training images are cropped at random scales.
    keys = {"image_size": 32, "image_level_augmentations": "inception"}
    cropped = build_dataset(image_folder(tmp_path, **keys)).evaluation.batch(np.arange(4))["input"]
    whole = build_dataset(image_folder(tmp_path, image_size=32)).evaluation.batch(np.arange(4))
    assert (cropped != whole["input"]).any()


@pytest.mark.parametrize("level", IMAGE_LEVEL)
def test_every_augmentation_takes_photographs(tmp_path: Path, level: str) -> None:
    data = build_dataset(
        image_folder(
            tmp_path,
            image_size=24,
            image_level_augmentations=level,
            batch_level_augmentations="mixcut",
            use_test_set=False,
            validation_fraction=0.25,
            subset=8,
            label_noise=0.25,
        )
    )
    batch = next(train_batches(data, 4, 0, 0, 1))
    assert batch["input"].shape == (4, 24, 24, 3) and batch["label"].shape == (4, 2)
    plain = next(evaluation_batches(data.evaluation, 3))
    assert plain["input"].shape == (3, 24, 24, 3) and plain["input"].dtype == np.uint8
    for source, count in ((data.train_as_evaluated, 3), (data.mislabeled, 2)):
        trained = next(evaluation_batches(source, count))["input"]
        assert trained.shape == (count, 24, 24, 3) and trained.dtype == np.uint8


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        truncate,
        lambda file: file.write_text("a text file that is named as an image"),
        lambda file: file.unlink(),
    ],
    ids=["zero-byte", "truncated", "text", "missing"],
)
@pytest.mark.parametrize("level", ["none", "inception"])
def test_a_damaged_photograph_ends_the_run_and_is_named(
    tmp_path: Path, damage: Callable[[Path], object], level: str
) -> None:
    data = build_dataset(image_folder(tmp_path, image_size=16, image_level_augmentations=level))
    file = tmp_path / "train" / "dog" / "1.jpg"
    damage(file)
    with pytest.raises(DataError) as raised:
        for _ in train_batches(data, 4, 0, 0, 3):
            pass
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_other_kinds_of_images_are_converted(tmp_path: Path) -> None:
    config = image_folder(tmp_path, image_size=8)
    folder = tmp_path / "train" / "cat"
    color = PIL.Image.new("RGB", (8, 8), (200, 200, 200))
    color.convert("CMYK").save(folder / "0.jpg")
    color.convert("L").save(folder / "1.jpg")
    PIL.Image.fromarray(np.full((8, 8), 200 * 257, np.uint16)).save(folder / "2.png")
    color.quantize(2).save(folder / "3.png")
    (folder / "2.jpg").unlink()
    (folder / "3.jpg").unlink()
    images = build_dataset(config).train.batch(np.arange(4))["input"]
    assert np.abs(images.astype(int) - 200).max() <= 2


def test_tfds_sets_of_any_size_are_photographs(tmp_path: Path) -> None:
    sizes = [(30, 20, 3), (20, 30, 3), (25, 25, 3), (40, 20, 3)]
    images = [np.full(size, 50 * i, np.uint8) for i, size in enumerate(sizes)]
    write_split_files(
        tmp_path / "photos" / "1.0.0",
        "photos",
        {"train": (images, [0, 1, 0, 1]), "validation": (images[:1], [0])},
        shape=(None, None, 3),
        num_classes=2,
    )
    data = build_dataset(config_of(dataset_name="photos", data_dir=str(tmp_path), image_size=16))
    batch = data.train.batch(np.array([3, 0]))
    assert batch["label"].tolist() == [1, 0] and data.shape == (16, 16, 3)
    assert batch["input"].shape == (2, 16, 16, 3)
    assert (batch["input"] == np.array([150, 0]).reshape(2, 1, 1, 1)).all()
    np.testing.assert_allclose(data.mean, [123.675, 116.28, 103.53], rtol=1e-6)
    assert data.train.labels().tolist() == [0, 1, 0, 1]


def test_series_tables_and_arrays(tmp_path: Path) -> None:
    write_ucr_set(tmp_path)
    series = build_dataset(config_of(dataset_name="ucr/Waves", data_dir=str(tmp_path)))
    assert (series.shape, series.num_classes, series.class_names) == ((20, 1), 2, ("-1", "1"))
    assert (series.mean.tolist(), series.std.tolist()) == ([0], [1])

    file = write_csv_table(tmp_path / "a.csv", columns=4)
    keys = {"dataset_name": "csv", "data_dir": str(file), "target": "price"}
    table = build_dataset(config_of(**keys, task="regression"))
    assert table.task == "regression" and (table.num_classes, table.class_names) == (1, ())
    inputs = table.train.batch(np.arange(len(table.train)))["input"]
    found = np.asarray(table.normalize(inputs))
    np.testing.assert_allclose(found.mean(axis=0), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(found.std(axis=0), np.ones(4), atol=1e-6)

    images = np.random.default_rng(0).random((20, 5, 4, 3))
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(20) % 2)
    arrays = build_dataset(config_of(dataset_name="npz", data_dir=str(tmp_path / "a.npz")))
    assert (arrays.shape, arrays.num_classes, len(arrays.evaluation)) == ((5, 4, 3), 2, 4)
    assert arrays.task == "classification"


def test_a_part_of_a_regression_is_held_out() -> None:
    keys = {"dataset_name": "diabetes", "subset": 100}
    data = build_dataset(config_of(use_test_set=False, test_fraction=0.5, **keys))
    assert (len(data.train), len(data.evaluation)) == (100, 22)
    assert data.train.labels().dtype == np.float32


@pytest.mark.parametrize("keys", [{}, {"subset": 500}, {"use_test_set": False}])
def test_label_noise_has_its_share(keys: dict[str, Any]) -> None:
    plain, noisy = (
        build_dataset(config_of(**keys)),
        build_dataset(config_of(**keys, label_noise=0.4)),
    )
    before, after = plain.train.labels(), noisy.train.labels()
    changed = before != after
    assert changed.sum() == round(0.4 * len(before)) and after.dtype == np.int32
    steps = np.bincount((after - before)[changed] % 10, minlength=10)
    assert steps[0] == 0 and (steps[1:] > 0.5 * changed.sum() / 9).all()
    every = np.arange(len(before))
    np.testing.assert_array_equal(noisy.train.batch(every)["label"], after)
    np.testing.assert_array_equal(
        noisy.train.batch(every)["input"], plain.train.batch(every)["input"]
    )
    np.testing.assert_array_equal(noisy.evaluation.labels(), plain.evaluation.labels())
    wrong = noisy.mislabeled
    assert plain.mislabeled is None and wrong is not None and len(wrong) == changed.sum()
    np.testing.assert_array_equal(wrong.labels(), after[changed])
    np.testing.assert_array_equal(
        wrong.batch(np.arange(len(wrong)))["input"], plain.train.batch(every[changed])["input"]
    )
    again = build_dataset(config_of(**keys, label_noise=0.4)).train.labels()
    np.testing.assert_array_equal(after, again)
    other = build_dataset(config_of(**{**keys, "seeds": 1}, label_noise=1.0)).train.labels()
    assert len(other) == len(after) and (other != after).any()


def test_all_labels_may_be_noise() -> None:
    plain, noisy = (build_dataset(config_of(label_noise=share)) for share in (0.0, 1.0))
    assert (plain.train.labels() != noisy.train.labels()).all()


def test_the_configs_statistics_win(tmp_path: Path) -> None:
    """For bytes 1 stands for 255; other values are taken as they are."""
    keys = {"mean": (0.5, 0.4, 0.3), "std": (0.25,)}
    data = build_dataset(image_folder(tmp_path, **keys))
    np.testing.assert_allclose(data.mean, [127.5, 102, 76.5], rtol=1e-6)
    np.testing.assert_allclose(data.std, [63.75] * 3, rtol=1e-6)
    pixels = data.evaluation.batch(np.arange(2))["input"]
    expected = (pixels / 255 - np.array(keys["mean"])) / 0.25
    np.testing.assert_allclose(data.normalize(pixels), expected, rtol=1e-5, atol=1e-5)
    only_mean = build_dataset(image_folder(tmp_path, mean=(0.5,)))
    np.testing.assert_allclose(only_mean.std, [58.395, 57.12, 57.375], rtol=1e-6)
    iris = build_dataset(config_of(dataset_name="iris", mean=(1.0, 2.0, 3.0, 4.0), std=(2.0,)))
    assert (iris.mean.tolist(), iris.std.tolist()) == ([1, 2, 3, 4], [2] * 4)


def test_svhn_with_its_extra_images(tmp_path: Path) -> None:
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(6)]
    write_split_files(
        tmp_path / "svhn_cropped" / "3.0.0",
        "svhn_cropped",
        {"train": (images[:3], [0] * 3), "extra": (images[3:], [1] * 3), "test": (images, [0] * 6)},
        shape=(4, 4, 3),
        num_classes=10,
    )
    keys = {"dataset_name": "svhn_cropped", "data_dir": str(tmp_path)}
    plain, both = (
        build_dataset(config_of(**keys, train_split=split)) for split in ("train", "train+extra")
    )
    assert both.train.labels().tolist() == [0, 0, 0, 1, 1, 1] and len(plain.train) == 3
    np.testing.assert_allclose(plain.mean[0], 0.4376821 * 255, rtol=1e-6)
    np.testing.assert_allclose(both.mean[0], 0.43090966 * 255, rtol=1e-6)
    np.testing.assert_allclose(both.std[2], 0.19811132 * 255, rtol=1e-6)
    for split, message in (
        ("extr", "has no split 'extr'; it has: train, extra, test, and several"),
        ("train+", "has no split 'train+'"),
        ("train+test", "trains on 'test', which is evaluated on"),
    ):
        assert message in refusal(config_of(**keys, train_split=split))
    build_dataset(config_of(**keys, train_split="train+test", use_test_set=False))


def test_a_tfds_name_may_be_that_of_a_bundled_set(tmp_path: Path) -> None:
    vectors = [np.arange(4, dtype=np.float32) + i for i in range(5)]
    write_split_files(
        tmp_path / "iris" / "2.0.0",
        "iris",
        {"train": (vectors, [0, 1, 2, 0, 1])},
        shape=(4,),
        num_classes=3,
        key="features",
    )
    keys = {"data_dir": str(tmp_path), "use_test_set": False, "validation_fraction": 0.2}
    data = build_dataset(config_of(dataset_name="tfds/iris", **keys))
    assert (data.shape, len(data.train), len(data.evaluation)) == ((4,), 4, 1)
    assert len(build_dataset(config_of(dataset_name="iris", **keys)).train) == 96


def test_workers_are_for_what_is_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ds_pipeline.build, "default_workers", lambda encoded: 3 if encoded else 0)
    assert build_dataset(config_of(subset=100, label_noise=0.1)).workers == 0
    assert build_dataset(config_of(workers=2)).workers == 2
    assert build_dataset(image_folder(tmp_path, subset=0.5, label_noise=0.1)).workers == 3
    assert build_dataset(image_folder(tmp_path, workers=0)).workers == 0


def test_warnings_and_the_index_reach_the_caller(tmp_path: Path) -> None:
    config = image_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "cat" / "notes.txt").write_text("x")
    (line,) = build_dataset(config, tmp_path / "run").warnings
    assert (
        "(.jpg, .jpeg, .png): 1, such as" in line
        and (tmp_path / "run" / "image_folder_train.npz").is_file()
    )


@pytest.mark.parametrize("kind", ["images", "tfds", "npz", "csv", "ucr"])
def test_data_of_one_class_are_refused_whatever_their_kind(tmp_path: Path, kind: str) -> None:
    keys: dict[str, Any] = {"data_dir": str(tmp_path)}
    if kind == "images":
        write_image_folder(tmp_path, classes=("cat",))
        keys["dataset_name"] = "image_folder"
    elif kind == "tfds":
        write_tfds_set(tmp_path, num_classes=1)
        keys["dataset_name"] = "mnist"
    elif kind == "npz":
        np.savez(tmp_path / "x.npz", x=np.ones((20, 3)), y=np.ones(20, int))
        keys = {"dataset_name": "npz", "data_dir": str(tmp_path / "x.npz")}
    elif kind == "csv":
        (tmp_path / "x.csv").write_text("a,kind\n" + "1,cat\n" * 20)
        keys = {"dataset_name": "csv", "data_dir": str(tmp_path / "x.csv"), "target": "kind"}
    else:
        write_ucr_set(tmp_path, labels=(1,))
        keys["dataset_name"] = "ucr/Waves"
    assert "a classification needs two classes" in refusal(config_of(**keys))


@pytest.mark.parametrize("name", [b"caf\xe9", b"New\nYork", b"\x1b[2J"])
def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path, name: bytes) -> None:
    text = os.fsdecode(name)
    folder = write_image_folder(tmp_path, classes=("x", text))
    os.mkdir(folder / "train" / "x" / text)
    os.rename(folder / "train" / text / "0.jpg", folder / "train" / text / f"{text}.jpg")
    config = config_of(dataset_name="image_folder", data_dir=str(folder), image_size=8)
    data = build_dataset(config)
    for shown in (*data.class_names, *data.warnings):
        assert shown.isprintable() and shown.encode()
    assert len(data.warnings) == 1
    (folder / "test" / text / "0.jpg").write_bytes(b"broken")
    with pytest.raises(DataError) as raised:
        data.evaluation.batch(np.arange(len(data.evaluation)))
    assert str(raised.value).isprintable() and str(raised.value).encode()


def test_sources_travel_to_workers(tmp_path: Path) -> None:
    write_tfds_set(tmp_path, "mine", n_train=4, n_test=2, shape=(4, 4, 1))
    write_ucr_set(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ds_pipeline.tfds_source, "IN_MEMORY_BYTES", 0)
        configs = (
            image_folder(tmp_path / "data", image_size=8, subset=4, label_noise=0.5),
            config_of(dataset_name="mine", data_dir=str(tmp_path)),
            config_of(dataset_name="ucr/Waves", data_dir=str(tmp_path), use_test_set=False),
        )
        for config in configs:
            source = build_dataset(config).train
            again = cloudpickle.loads(cloudpickle.dumps(source))
            found, expected = (s.batch(np.arange(3)) for s in (again, source))
            np.testing.assert_array_equal(found["input"], expected["input"])
            np.testing.assert_array_equal(again.labels(), source.labels())


def test_splits_of_different_shapes_are_refused(tmp_path: Path) -> None:
    small, large = np.zeros((4, 4, 1), np.uint8), np.zeros((5, 5, 1), np.uint8)
    write_split_files(
        tmp_path / "mine" / "1.0.0",
        "mine",
        {"train": ([small], [0]), "test": ([large], [0])},
        shape=(4, 4, 1),
        num_classes=2,
    )
    found = refusal(config_of(dataset_name="mine", data_dir=str(tmp_path)))
    assert "(4, 4, 1) in split 'train' and (5, 5, 1) in split 'test'" in found


def test_real_mnist_has_the_published_statistics(data_dir: Path) -> None:
    data = build_dataset(config_of(dataset_name="mnist", data_dir=str(data_dir), image_size=28))
    images = data.train.batch(np.arange(len(data.train)))["input"]
    np.testing.assert_allclose(data.mean, [images.mean()], rtol=1e-5)
    np.testing.assert_allclose(data.std, [images.std()], rtol=1e-5)
