"""Common to the benchmarks: a config's compiled steps, measurements in turn, tables, JSON."""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from config import load_config, rules
from ds_pipeline.dataset import Dataset, from_arrays
from gnp.analysis import command_line
from gnp.experiment import Experiment, build_experiment, device_count, name_problems
from gnp.main.main import RUN_ERRORS, USAGE_ERRORS
from gnp.training.mesh import shard_batch

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = "MnistTutorialCNN"
MODELS = ("WideResNet_16_4", "ResNet18", "ViT_TI4", TUTORIAL)
_SHAPES = {TUTORIAL: (28, 28, 1), "DigitsCNN": (8, 8, 1)}
PENALTY = {"gnp.r": 0.05, "gnp.alpha": 0.8}
# A measurement of steps lasts about this long, and at most so many steps.
_SECONDS, _MOST_STEPS = 0.2, 20

Measure = Callable[[int], float]


class BenchError(RuntimeError):
    """A measurement that cannot be made; one line."""


class Steps:
    """A config's train steps, each compiled when it is first needed, on one batch of noise.

    Args:
        experiment: Its batches are `batch_size` examples of its data set.
        batch_size: Over all devices.

    Attributes:
        state: After the steps that were taken.
        batch: On the devices, as in a run.
        compile_seconds: penalize -> how long it took to trace and compile that step.
    """

    def __init__(self, experiment: Experiment, batch_size: int) -> None:
        self.experiment = experiment
        self.state, _ = experiment.initialize()
        self.compile_seconds: dict[bool, float] = {}
        batch = experiment.dataset.train.batch(np.arange(batch_size))
        self.batch = shard_batch(batch, experiment.mesh)
        # The number of the step is no constant, as in a run.
        self._rest = self.batch, jax.random.key(0), np.uint32(1)
        self._programs: dict[bool, Any] = {}

    def program(self, penalize: bool) -> Any:
        """Return the compiled step, penalized or plain."""
        if penalize not in self._programs:
            step = self.experiment.penalized_step if penalize else self.experiment.plain_step
            start = time.perf_counter()
            with jax.set_mesh(self.experiment.mesh):
                self._programs[penalize] = step.lower(self.state, *self._rest).compile()
            self.compile_seconds[penalize] = time.perf_counter() - start
        return self._programs[penalize]

    def take(self, *penalize: bool) -> None:
        """Take steps, without waiting for the devices."""
        for each in penalize:
            self.state, _ = self.program(each)(self.state, *self._rest)

    def cycle(self, *penalize: bool) -> Measure:
        """Compile what is missing, and return a measure of these steps, taken over and over.

        Args:
            penalize: Of each step of a cycle.

        Returns:
            A function that takes whole cycles of at least so many steps, after one that is not
            counted, and returns seconds a step.
        """
        for each in penalize:
            self.program(each)

        def seconds(steps: int) -> float:
            cycles = math.ceil(steps / len(penalize))
            self.take(penalize[0])
            jax.block_until_ready(self.state)
            start = time.perf_counter()
            for _ in range(cycles):
                self.take(*penalize)
            jax.block_until_ready(self.state)
            return (time.perf_counter() - start) / (cycles * len(penalize))

        return seconds


def noise(model_name: str, count: int) -> Dataset:
    """Return noise with ten classes in memory, of a size that suits a model.

    Args:
        model_name: Of one for CIFAR-10, but for the small ones that have other images.
        count: Examples to train on; at least ten are made, one of each class.

    Example:
        >>> noise("DigitsCNN", 12).train.batch(np.arange(12))["input"].shape
        (12, 8, 8, 1)
    """
    shape = _SHAPES.get(model_name, (32, 32, 3))
    images = np.random.default_rng(0).integers(0, 256, (max(count, 10), *shape), np.uint8)
    labels = np.arange(len(images)) % 10
    return from_arrays("noise", (images, labels), (images[:10], labels[:10]))


def step_config(
    model_name: str,
    batch_size: int,
    changes: Mapping[str, Any] | None = None,
    precision: str = "float32",
    base: str = "config/default.py",
) -> ml_collections.ConfigDict:
    """Return the config of a step: Nesterov momentum (the tutorial's CNN: Adam) without a penalty.

    Args:
        model_name: As in the config.
        batch_size: Over all devices.
        changes: Key -> value.
        precision: "float32" or "bfloat16".
        base: The config file that the rest comes from, in the checkout.

    Raises:
        ConfigError, UsageError: a line for each thing that is wrong.

    Example:
        >>> step_config("DigitsCNN", 8, PENALTY).gnp.r
        0.05
    """
    values = {
        "model.model_name": model_name,
        "batch_size": batch_size,
        "precision": precision,
        "base_lr": 1e-3,
        "lr_schedule_type": "constant",
        "opt.opt_type": "Adam" if model_name == TUTORIAL else "Momentum",
        **(changes or {}),
    }
    config = load_config(str(ROOT / base), [(key, str(value)) for key, value in values.items()])
    rules.check(config, devices=device_count())
    if problems := name_problems(config):
        raise command_line.UsageError("\n".join(problems))
    return config


def build_steps(config: ml_collections.ConfigDict) -> Steps:
    """Return the steps of a checked config; compile nothing yet."""
    data = noise(config.model.model_name, config.batch_size)
    return Steps(build_experiment(config, data), config.batch_size)


def measure_in_turn(steps: Mapping[str, Measure], runs: int) -> dict[str, list[float]]:
    """Return each step's seconds in each run; all are measured once a run, one after another.

    Args:
        steps: Name -> function of a number of steps that returns seconds a step.
        runs: How often.

    Example:
        >>> times = measure_in_turn({"a": lambda steps: 1.0, "b": lambda steps: 2.0}, runs=3)
        >>> times["b"]
        [2.0, 2.0, 2.0]
    """
    measures = {}
    for name, measure in steps.items():
        count = max(1, min(_MOST_STEPS, round(_SECONDS / measure(1))))
        measures[name] = partial(measure, count)
    return in_turn(measures, runs)


def in_turn(measures: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Return each function's values in each run; all are called once a run, one after another.

    Args:
        measures: Name -> function.
        runs: How often; each run starts with another function than the one before.

    Example:
        >>> in_turn({"a": lambda: 1.0, "b": lambda: 2.0}, runs=2)
        {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    with tqdm(total=runs * len(names), desc="measuring", leave=False, disable=None) as bar:
        for run in range(runs):
            first = run % len(names)
            for name in names[first:] + names[:first]:
                values[name].append(measures[name]())
                bar.update()
    return values


def paired_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios within a run.

    Example:
        >>> paired_ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def half_spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles.

    Example:
        >>> half_spread([1.0, 2.0, 3.0])
        0.5
    """
    low, high = np.percentile(values, [25, 75])
    return float(high - low) / 2


def markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return a Markdown table that is aligned on a terminal, too.

    Args:
        rows: Column -> value; one that is missing or None is shown as "-".
        columns: Column -> how its values are written; those of "{}" are aligned to the left.

    Example:
        >>> print(markdown([{"step": "plain", "ms": 1.254}], {"step": "{}", "ms": "{:.2f}"}))
        | step  |   ms |
        | ----- | ---: |
        | plain | 1.25 |
    """
    lines = [list(columns)]
    for row in rows:
        cells = ((row.get(name), form) for name, form in columns.items())
        lines.append(["-" if value is None else form.format(value) for value, form in cells])
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    left = [form == "{}" for form in columns.values()]
    rule = ["-" * w if each else "-" * (w - 1) + ":" for w, each in zip(widths, left, strict=True)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if each else cell.rjust(width)
            for cell, width, each in zip(line, widths, left, strict=True)
        )
        + " |"
        for line in (lines[0], rule, *lines[1:])
    )


def report(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    out: Path | None,
    **settings: Any,
) -> None:
    """Print a table and what its figures depend on; write both to a JSON file if one is asked for.

    Args:
        rows: Column -> value; the file has all of them.
        columns: As of `markdown`.
        out: The file.
        settings: Of the benchmark.
    """
    about = {
        **settings,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    print(markdown(rows, columns), end="\n\n")
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if out:
        out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a benchmark's parser, with --out.

    Args:
        name: Of the module in gnp.bench.
        doc: Its docstring.
    """
    new = command_line.Parser(f"python -m gnp.bench.{name}", doc)
    new.add_argument("--out", type=command_line.local_path, help="JSON file to write")
    return new


def add_models(to: argparse.ArgumentParser) -> None:
    """Add --models, --batch_size and --dtype to a parser."""
    to.add_argument("--models", nargs="+", default=list(MODELS))
    to.add_argument("--batch_size", type=command_line.whole(1), default=64)
    to.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def run(bench: Callable[[], None]) -> int:
    """Run a benchmark; say in a line what went wrong, and return the exit code."""
    return command_line.run(bench, USAGE_ERRORS, (*RUN_ERRORS, BenchError))
