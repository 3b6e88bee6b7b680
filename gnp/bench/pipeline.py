"""Images a second of the data pipeline, beside the same work in tf.data.

    python -m gnp.bench.pipeline [--data_dir DIR] [--images DIR] [--tensorflow_python PYTHON]
        [--runs N] [--seconds S] [--json FILE]

CIFAR-10 in batches of 64, from the TFDS set in --data_dir (without it, noise of the same size), on
the host unless the row says otherwise; with --images, whose train/CLASS folders hold JPEGs, random
crops at 224 pixels too. All pipelines of a kind are measured in turn, run after run, so that what
else happens on the machine meets all of them alike; the figures are medians over the runs, the
ratio is the median of the ratios within a run. tf.data normalizes on the host; here the compiled
step does it, so the rows "normalized on the device" are what does the same work. Each uses all
cores; for one core, put `taskset -c 0` before the command.
"""

import argparse
import dataclasses
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from config import default
from ds_pipeline import DataError, build_dataset, train_batches
from ds_pipeline.augment import get_augment, get_erase, get_mix
from ds_pipeline.augment.policies import POLICIES, SIGNED, parameter
from ds_pipeline.dataset import Dataset
from ds_pipeline.loader import usable_cores
from ds_pipeline.source import SubsetSource
from gnp.analysis.command_line import local_path
from gnp.bench.loop import random_data
from gnp.bench.measure import (
    CIFAR_SHAPE,
    AskedProcess,
    Table,
    about_this_machine,
    half_spread,
    in_fresh_process,
    in_turn,
    paired_ratio,
)
from gnp.bench.step import python_of
from gnp.training.mesh import build_mesh, shard_batch

BATCH_SIZE = 64
CROP, PAD = 224, 4
# Made ahead when a measurement starts, at most; not counted.
_SKIPPED_IMAGES = 6 * 1024
_POLICY = "cifar"
_ENDLESS = 2**40
_NORMALIZED = ", normalized on the device"

Rate = Callable[[float], float]


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: what was measured.
        rate: images/s, median over the runs.
        spread: half the distance between the quartiles.
        tensorflow: images/s of tf.data.
        ratio: to tf.data; median over the runs.
    """

    name: str
    rate: float
    spread: float
    tensorflow: float | None
    ratio: float | None


class Stream:
    """Batches that go on from one measurement to the next.

    Args:
        batches: endless; what is measured is the time to get them.
        skipped: batches that are not counted at the start of a measurement.
    """

    def __init__(self, batches: Iterator[Any], skipped: int) -> None:
        self._batches = batches
        self._skipped = skipped

    def __call__(self, seconds: float) -> float:
        """Return images/s over about so many seconds."""
        for _ in range(self._skipped):
            next(self._batches)
        count, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            count += len(next(self._batches)["label"])
        return count / (time.perf_counter() - start)


class TensorflowPipelines(AskedProcess):
    """tf.data's pipelines in a process of their own that waits to be asked.

    Args:
        python: interpreter of an environment with TensorFlow.
        spec: the file for tensorflow_pipeline.py.

    Raises:
        SystemExit: the process does not start.
    """

    def __init__(self, python: str, spec: Path) -> None:
        script = Path(__file__).with_name("tensorflow_pipeline.py")
        super().__init__(
            [python, str(script), str(spec)],
            f"--tensorflow_python: {python}",
            "has this environment TensorFlow?",
            {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        )
        self.version = self.answer()

    def rate(self, kind: str) -> Rate:
        """Measure images/s of a pipeline."""
        return lambda seconds: float(self.answer(f"{kind} {seconds}"))


def cifar10(data_dir: str | None) -> Dataset:
    """Return CIFAR-10 in memory, or noise of its size.

    Raises:
        DataError: it is not there.
    """
    if data_dir is None:
        return random_data(CIFAR_SHAPE, 50_000)
    config = default.get_config()
    config.dataset.dataset_name, config.dataset.data_dir = "cifar10", data_dir
    return build_dataset(config)


def cifar10_pipelines(data: Dataset) -> dict[str, Dataset]:
    """Return the data set with the augmentations that are measured, by name.

    Example:
        >>> list(cifar10_pipelines(random_data((32, 32, 3), 64)))
        ['none', 'basic', 'autoaugment+cutout', 'basic+mixup']
    """
    uint8 = np.dtype(np.uint8)
    basic = get_augment("basic", shape=data.shape, dtype=uint8)
    policy = get_augment("autoaugment", shape=data.shape, dtype=uint8, policy=_POLICY)
    erase = get_erase("cutout", shape=data.shape, mean=data.mean, dtype=uint8)
    mix = get_mix("mixup", num_classes=data.num_classes)
    return {
        "none": data,
        "basic": dataclasses.replace(data, augment=basic),
        "autoaugment+cutout": dataclasses.replace(data, augment=policy, erase=erase),
        "basic+mixup": dataclasses.replace(data, augment=basic, mix=mix),
    }


def photographs(folder: str) -> tuple[Dataset, list[str]]:
    """Return (random crops at 224 pixels of an image folder's training images, their files).

    A small folder is read over and over, as if it were some epochs long.

    Raises:
        DataError: as `build_dataset`.
    """
    config = default.get_config()
    config.use_test_set = False
    config.dataset.dataset_name, config.dataset.data_dir = "image_folder", folder
    config.dataset.image_size = CROP
    config.dataset.image_level_augmentations = "inception"
    data = build_dataset(config)
    source = data.train
    indices = np.arange(max(len(source), 16 * BATCH_SIZE)) % len(source)
    files = [image.where for image in source.batch(np.arange(len(source)))["input"]]
    return dataclasses.replace(data, train=SubsetSource(source, indices)), files


def endless(data: Dataset) -> Iterator[Any]:
    """Return training batches without an end."""
    return train_batches(data, BATCH_SIZE, 0, 0, _ENDLESS)


def on_the_device(data: Dataset) -> Iterator[Any]:
    """Yield host batches, sent, normalized by a compiled function, and waited for."""
    mesh, normalize = build_mesh(), jax.jit(data.normalize)
    for batch in endless(data):
        sent = shard_batch(batch, mesh)
        yield jax.block_until_ready({**sent, "input": normalize(sent["input"])})


def device_basic(data: Dataset) -> Iterator[Any]:
    """Yield the images of 'basic', made by a compiled function on the device, which holds all.

    Mirrored half of the time, padded by reflection and cropped, as on the host, though with other
    random numbers.
    """
    everything = data.train.batch(np.arange(len(data.train)))
    images, labels = jnp.asarray(everything["input"]), jnp.asarray(everything["label"])
    height, width, channels = data.shape

    def one(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
        start = (corner[0], corner[1], 0)
        window = jax.lax.dynamic_slice(padded, start, (height, width, channels))
        return jnp.where(flip, window[:, ::-1], window)

    @jax.jit
    def make(images: jax.Array, labels: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), 3)
        indices = jax.random.randint(keys[0], (BATCH_SIZE,), 0, len(images))
        corners = jax.random.randint(keys[1], (BATCH_SIZE, 2), 0, 2 * PAD + 1)
        flips = jax.random.bernoulli(keys[2], shape=(BATCH_SIZE,))
        return {
            "input": jax.vmap(one)(images[indices], corners, flips),
            "label": labels[indices],
        }

    step = 0
    while True:
        yield jax.block_until_ready(make(images, labels, np.int32(step)))
        step += 1


def summarize(name: str, ours: Sequence[float], tensorflow: Sequence[float] | None = None) -> Row:
    """Return medians, spread and paired ratio.

    Example:
        >>> summarize("basic", [2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        Row(name='basic', rate=4.0, spread=1.75, tensorflow=2.0, ratio=2.0)
    """
    return Row(
        name,
        statistics.median(ours),
        half_spread(ours),
        statistics.median(tensorflow) if tensorflow else None,
        paired_ratio(ours, tensorflow) if tensorflow else None,
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text.

    Example:
        >>> print(table([Row("basic", 1e5, 2e3, 2e4, 5.0), Row("none", 1e6, 0.0, None, None)]))
        pipeline   images/s     +-  ms a batch  tf.data  ratio
        basic       100,000  2,000       0.640   20,000    5.0
        none      1,000,000      0       0.064        -      -
    """
    head = ("pipeline", "images/s", "+-", "ms a batch", "tf.data", "ratio")
    lines = [
        (
            row.name,
            f"{row.rate:,.0f}",
            f"{row.spread:,.0f}",
            f"{1e3 * BATCH_SIZE / row.rate:.3f}",
            "-" if row.tensorflow is None else f"{row.tensorflow:,.0f}",
            "-" if row.ratio is None else f"{row.ratio:.1f}",
        )
        for row in rows
    ]
    return Table(head, lines).text()


def memory_ratio(data_dir: str | None) -> float:
    """Return what CIFAR-10 in memory costs, over the size of its pixels as uint8.

    The most memory that a process has had, after reading it and taking batches of basic
    augmentation, less what it had before.
    """
    return in_fresh_process(_memory_ratio, data_dir)


def _memory_ratio(data_dir: str | None) -> float:
    # What else is imported or started when the first data set is read.
    warm = cifar10_pipelines(random_data(CIFAR_SHAPE, 10 * BATCH_SIZE))["basic"]
    next(endless(warm))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = cifar10_pipelines(cifar10(data_dir))["basic"]
    batches = endless(data)
    for _ in range(200):
        next(batches)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    examples = len(data.train) + len(data.evaluation)
    unit = 1 if sys.platform == "darwin" else 1024
    return (after - before) * unit / (examples * math.prod(data.shape))


def write_spec(folder: Path, data: Dataset, files: Sequence[str]) -> Path:
    """Write what tensorflow_pipeline.py needs into a folder; return SPEC.json.

    Args:
        folder: to write to.
        data: CIFAR-10.
        files: JPEGs.
    """
    everything = data.train.batch(np.arange(len(data.train)))
    np.save(folder / "images.npy", everything["input"])
    np.save(folder / "labels.npy", everything["label"])
    policy = POLICIES[_POLICY]
    steps = [
        [
            [
                step.operation,
                step.probability,
                parameter(step.operation, step.level, data.shape[0], policy.published),
                step.operation in SIGNED,
            ]
            for step in pair
        ]
        for pair in policy.subpolicies
    ]
    spec = {
        "images": str(folder / "images.npy"),
        "labels": str(folder / "labels.npy"),
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "batch_size": BATCH_SIZE,
        "subpolicies": steps,
        "files": list(files),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder / "spec.json"


def bench(
    data_dir: str | None, images: str | None, python: str | None, runs: int, seconds: float
) -> dict[str, Any]:
    """Measure everything, print the table, and return what --json holds.

    Args:
        data_dir: folder with CIFAR-10 as TFDS prepares it; None: noise.
        images: an image folder; None: none.
        python: interpreter with TensorFlow; None: without it.
        runs: measurements of each pipeline.
        seconds: of each measurement.

    Raises:
        DataError: the data are not there.
    """
    memory = memory_ratio(data_dir)
    data = cifar10(data_dir)
    crops, files = photographs(images) if images else (None, [])
    skipped = _SKIPPED_IMAGES // BATCH_SIZE
    groups: list[dict[str, Rate]] = [
        {
            name: Stream(endless(changed), skipped),
            name + _NORMALIZED: Stream(on_the_device(changed), skipped),
        }
        for name, changed in cifar10_pipelines(data).items()
    ]
    groups[1]["basic, on the device"] = Stream(device_basic(data), 1)
    if crops is not None:
        groups.append({"jpeg 224": Stream(endless(crops), 8)})
    version = None
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tensorflow = None
        if python:
            tensorflow = TensorflowPipelines(python, write_spec(Path(folder), data, files))
            version = tensorflow.version
            for group in groups:
                name = next(iter(group))
                for kind in _tensorflow_kinds(name):
                    group[_of_tensorflow(kind)] = tensorflow.rate(kind)
        for group in groups:
            for rate in group.values():
                rate(0.0)  # builds and compiles
            values |= in_turn({name: partial(rate, seconds) for name, rate in group.items()}, runs)
        if tensorflow:
            tensorflow.close()
    rows = _rows(values)
    print(table(rows))
    cores = usable_cores()
    if crops is not None:
        print(f"jpeg 224 a core, of {cores}: {rows[-1].rate / cores:,.0f} images/s")
    print(f"CIFAR-10 in memory: {memory:.2f} times its size as uint8, at most")
    if not python:
        print("TensorFlow was not measured: give --tensorflow_python or set GNP_TF_VENV")
    return {
        **about_this_machine(),
        "usable_cores": cores,
        "tensorflow": version,
        "batch_size": BATCH_SIZE,
        "data": data.name,
        "runs": runs,
        "seconds": seconds,
        "memory_over_uint8": memory,
        "rows": [row._asdict() for row in rows],
    }


def _tensorflow_kinds(name: str) -> tuple[str, ...]:
    if name.startswith("jpeg"):
        return ("jpeg",)
    return (name, f"{name},switch") if name.startswith("autoaugment") else (name,)


def _of_tensorflow(kind: str) -> str:
    return f"tf.data {kind}"


def _rows(values: Mapping[str, Sequence[float]]) -> list[Row]:
    rows = []
    for name, ours in values.items():
        if name.startswith("tf.data "):
            continue
        plain = name.removesuffix(_NORMALIZED)
        for kind in _tensorflow_kinds(plain):
            theirs = values.get(_of_tensorflow(kind))
            if kind == plain or kind == "jpeg":
                rows.append(summarize(name, ours, theirs))
            elif theirs:
                rows.append(summarize(f"{name} (tf.switch_case)", ours, theirs))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.pipeline", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data_dir", help="folder with cifar10 as TFDS prepares it")
    parser.add_argument("--images", help="image folder, with train/CLASS/*.JPEG")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each pipeline")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--json", type=local_path, help="file to write")
    parser.add_argument(
        "--tensorflow_python",
        default=python_of(os.environ.get("GNP_TF_VENV")),
        help="interpreter of an environment with TensorFlow (default: GNP_TF_VENV's)",
    )
    options = parser.parse_args(arguments)
    if options.runs < 1 or not options.seconds > 0:
        parser.error("--runs must be at least 1, and --seconds above 0")
    try:
        result = bench(
            options.data_dir,
            options.images,
            options.tensorflow_python,
            options.runs,
            options.seconds,
        )
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    except (DataError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
