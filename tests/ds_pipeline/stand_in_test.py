"""Stand-ins: sizes as published, whatever the config makes of them."""

import numpy as np

from config import load_config
from ds_pipeline import build_dataset, train_batches


def dataset_of(*overrides):
    return build_dataset(load_config("config/cifar.py", overrides), stands_in=True)


def test_sizes_shapes_and_splits(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    dataset = dataset_of()
    assert (len(dataset.train), len(dataset.evaluation)) == (50_000, 10_000)
    assert dataset.shape == (32, 32, 3) and dataset.num_classes == 10
    held = dataset_of(("use_test_set", "False"), ("dataset.validation_fraction", "0.2"))
    assert (len(held.train), len(held.evaluation)) == (40_000, 10_000)


def test_photographs_are_brought_to_their_size(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    dataset = dataset_of(
        ("dataset.dataset_name", "imagenet2012"), ("dataset.num_classes", "1000"),
        ("dataset.image_size", "64"), ("dataset.image_level_augmentations", "inception"),
        ("dataset.workers", "0"),
    )  # fmt: skip
    assert len(dataset.train) == 1_281_167 and dataset.evaluation_name == "validation"
    batch = next(train_batches(dataset, 2, 0, 0, 1))
    assert batch["input"].shape == (2, 64, 64, 3) and batch["input"].dtype == np.uint8
