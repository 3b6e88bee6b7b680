"""Images a second of the data pipeline, on the host, when nothing else is done.

    python -m gnp.bench.pipeline [--data_dir DIR] [--images DIR] [--runs N] [--seconds S]
        [--out FILE]

CIFAR-10 in batches of 64, from the TFDS set in --data_dir (without it, noise of the same size);
with --images, whose train/CLASS folders hold JPEGs, random crops at 224 pixels too. All pipelines
are measured in turn, run after run, so that what else happens on the machine meets all of them
alike; the figures are medians over the runs, "+-" is half the distance between the quartiles.
Each uses all cores; for one core, put `taskset -c 0` before the command.

--out has every run's images/s. To compare two checkouts, run the command in both, in turn.
`python -m gnp.analysis.data` measures the pipeline of a config of yours.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from config import default
from ds_pipeline import build_dataset, train_batches
from ds_pipeline.augment import get_augment, get_erase, get_mix
from ds_pipeline.dataset import Dataset
from ds_pipeline.source import SubsetSource
from gnp.analysis.command_line import whole
from gnp.bench.measure import half_spread, in_turn, noise, parser, report, run

BATCH_SIZE = 64
# The most batches that are made ahead; not counted.
_AHEAD = 96
COLUMNS = {"pipeline": "{}", "images/s": "{:,.0f}", "+-": "{:,.0f}", "ms a batch": "{:.3f}"}


def cifar10(data_dir: str | None) -> Dataset:
    """Return CIFAR-10 in memory, or noise of its size."""
    if data_dir is None:
        return noise("any", 50_000)
    config = default.get_config()
    config.dataset.dataset_name, config.dataset.data_dir = "cifar10", data_dir
    return build_dataset(config)


def augmented(data: Dataset) -> dict[str, Dataset]:
    """Return a data set of small images with the augmentations that are measured, by name.

    Example:
        >>> list(augmented(noise("any", 64)))
        ['none', 'basic', 'autoaugment + cutout', 'basic + mixup']
    """
    uint8 = np.dtype(np.uint8)
    basic = get_augment("basic", shape=data.shape, dtype=uint8)
    policy = get_augment("autoaugment", shape=data.shape, dtype=uint8, policy="cifar")
    erase = get_erase("cutout", shape=data.shape, mean=data.mean, dtype=uint8)
    mix = get_mix("mixup", num_classes=data.num_classes)
    return {
        "none": data,
        "basic": dataclasses.replace(data, augment=basic),
        "autoaugment + cutout": dataclasses.replace(data, augment=policy, erase=erase),
        "basic + mixup": dataclasses.replace(data, augment=basic, mix=mix),
    }


def photographs(folder: str) -> Dataset:
    """Return random crops at 224 pixels of an image folder's training images.

    A small folder is read over and over, as if it were some epochs long.
    """
    config = default.get_config()
    config.use_test_set = False
    config.dataset.dataset_name, config.dataset.data_dir = "image_folder", folder
    config.dataset.image_level_augmentations = "inception"
    data = build_dataset(config)
    indices = np.arange(max(len(data.train), 16 * BATCH_SIZE)) % len(data.train)
    return dataclasses.replace(data, train=SubsetSource(data.train, indices))


def endless(data: Dataset) -> Iterator[Any]:
    """Return training batches without an end."""
    return train_batches(data, BATCH_SIZE, seed=0, start_step=0, total_steps=2**40)


def images_per_second(batches: Iterator[Any], seconds: float, ahead: int = _AHEAD) -> float:
    """Return the images a second of endless batches.

    Args:
        batches: Of BATCH_SIZE images.
        seconds: How long about they are counted.
        ahead: Batches that are taken before that.
    """
    for _ in range(ahead):
        next(batches)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        next(batches)
        count += BATCH_SIZE
    return count / passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and measure; return the exit code."""
    return run(lambda: _bench(arguments))


def _bench(arguments: Sequence[str] | None) -> None:
    flags = parser("pipeline", __doc__)
    flags.add_argument("--data_dir", help="folder with cifar10 as TFDS prepares it")
    flags.add_argument("--images", help="image folder, with train/CLASS/*.JPEG")
    flags.add_argument("--runs", type=whole(1), default=5, help="measurements of each pipeline")
    flags.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = flags.parse_args(arguments)
    if not options.seconds > 0:
        flags.error("--seconds must be above 0")
    crops = {"JPEG, crops at 224": photographs(options.images)} if options.images else {}
    data = augmented(cifar10(options.data_dir)) | crops
    streams = {name: endless(each) for name, each in data.items()}
    measures = {
        name: partial(images_per_second, batches, options.seconds, 8 if name in crops else _AHEAD)
        for name, batches in streams.items()
    }
    rates = in_turn(measures, options.runs)
    rows = [
        {
            "pipeline": name,
            "images/s": statistics.median(values),
            "+-": half_spread(values),
            "ms a batch": 1e3 * BATCH_SIZE / statistics.median(values),
            "each run's": values,
        }
        for name, values in rates.items()
    ]
    report(
        rows, COLUMNS, options.out,
        data=data["none"].name, batch_size=BATCH_SIZE, runs=options.runs, seconds=options.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
