"""The experiments' recipes, and what makes two steps of one on tiny generated data."""

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from ds_pipeline import bundled
from tests import data_sets

ROOT = Path(__file__).resolve().parents[2]
SHARED = 'source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"'
OPTIMIZERS = ("SGD", "SGDG", "AdamG")
STEPS = BATCH = 2
# Measured on two cores: 633 s and 14.6 GB, nearly all of it compilation.
SHALLOWER = {"PyramidNet_272_200_ShakeDrop": "PyramidNet_20_200_ShakeDrop"}
# What the configs do not say: the length of a series; the columns of a table besides the target.
SERIES_LENGTHS = {"ucr/FordA": 500}
TABLE_COLUMNS = 13


class Experiment(NamedTuple):
    """A recipe and the config that it trains.

    Attributes:
        name: of the recipe, and of the optimizer where that is chosen.
        script: the recipe.
        config: in config/, FILE.py or FILE.py:ARGUMENT; empty: the script does not say.
        environment: what it is called with, besides the seed.
    """

    name: str
    script: Path
    config: str
    environment: dict[str, str]


def experiments(folder: Path = ROOT / "recipe") -> list[Experiment]:
    """Return the recipes that train an experiment: those that source experiment.sh, but sweeps.

    The quickstart trains two runs, and is no experiment that was published.
    """
    found = []
    for script in sorted(folder.glob("*.sh")):
        text = script.read_text(encoding="utf-8")
        if SHARED not in text or script.stem in ("quickstart", "sweep"):
            continue
        call = re.search(r"^experiment ([\w.:,]+) ", text, flags=re.MULTILINE)
        config = call[1] if call else ""
        if config.endswith(",OPTIMIZER"):
            for optimizer in OPTIMIZERS:
                chosen = config.replace("OPTIMIZER", optimizer.lower())
                name = f"{script.stem}-{optimizer}"
                found.append(Experiment(name, script, chosen, {"OPTIMIZER": optimizer}))
        else:
            found.append(Experiment(script.stem, script, config, {}))
    return found


def write_data(config: ml_collections.ConfigDict, folder: Path) -> Path | None:
    """Write data as a config asks for them, enough for two steps and an evaluation.

    Returns:
        What `dataset.data_dir` is to name; None: the set comes with scikit-learn.
    """
    keys = config.dataset
    name, count = keys.dataset_name, STEPS * BATCH
    folder.mkdir(parents=True)
    if name in bundled.NAMES:
        return None
    if name == "image_folder":
        classes = [f"class_{number:04d}" for number in range(keys.num_classes)]
        data_sets.write_image_folder(folder, classes=classes, n_train=1, n_test=0, evaluation="val")
        shutil.rmtree(folder / "val")  # all classes in training, two of them in both
        few = classes[:BATCH]
        return data_sets.write_image_folder(
            folder, classes=few, n_train=2, n_test=1, evaluation="val"
        )
    if name.startswith("ucr/"):
        length, short = SERIES_LENGTHS[name], name.removeprefix("ucr/")
        data_sets.write_ucr_set(folder, short, n_train=count, n_test=BATCH, length=length)
        return folder
    if name == "csv" and keys.task == "regression":
        file = data_sets.write_csv_table(folder / "table.csv", columns=TABLE_COLUMNS)
        file.write_text(file.read_text().replace("price", keys.target, 1))
        return file
    if "/" in name or name in ("csv", "npz") or not keys.image_size:
        raise ValueError(f"tests/recipe/experiments.py: add '{name}' to write_data")
    return _write_tfds(config, folder, count)


def _write_tfds(config: ml_collections.ConfigDict, folder: Path, count: int) -> Path:
    keys = config.dataset
    shape = (keys.image_size, keys.image_size, keys.num_channels)
    rng = np.random.default_rng(0)
    sizes = {split.strip(): count for split in keys.train_split.split("+")} | {"test": BATCH}
    examples = {
        split: (
            [data_sets.random_image(rng, shape, np.dtype(np.uint8)) for _ in range(size)],
            [number % keys.num_classes for number in range(size)],
        )
        for split, size in sizes.items()
    }
    name = keys.dataset_name
    data_sets.write_split_files(
        folder / name / "1.0.0", name, examples, shape=shape, num_classes=keys.num_classes
    )
    return folder


def overrides(
    config: ml_collections.ConfigDict, data: Path | None, published: bool = False
) -> dict[str, Any]:
    """Return the keys and values that make two steps of a recipe.

    Args:
        config: of the recipe.
        data: what `dataset.data_dir` is to name; None: nothing.
        published: leave every network as it is.
    """
    values: dict[str, Any] = {
        "batch_size": BATCH,
        "total_epochs": 1,
        "dataset.subset": STEPS * BATCH,
    }
    if not config.use_test_set:  # the few examples are all trained on
        values["use_test_set"] = True
    # A warmup takes one of the two.
    if config.warmup_epochs > 0:
        values["warmup_epochs"] = 1 / STEPS
    if config.gnp.warmup_epochs:
        values["gnp.warmup_epochs"] = 1 / STEPS
    network = config.model.model_name
    if network in SHALLOWER and not published:
        values["model.model_name"] = SHALLOWER[network]
    if data is not None:
        values["dataset.data_dir"] = data
    return values
