"""bash recipe/all-smoke.sh [RECIPE ...]: do the experiments' recipes start, and train?

Runs each as it is (riemannian-* with every optimizer) for two steps, then an evaluation, on tiny
data that are generated in the shape and type that its config asks for: two examples a step, and
compiled without most optimizations, which would take longer than the steps. The networks are the
published ones but for PyramidNet 272, in whose place one of depth 20 is compiled. A run passes
where it ends with 0 and its losses are finite.

RECIPE          a file in recipe/ without .sh, such as riemannian-svhn; default: all
--published     PyramidNet 272 too, which takes ten minutes and 15 GB of memory to compile

It works in a new temporary folder, which it names (TMPDIR says where): logs/RECIPE.log has what a
recipe printed. Data and run directories of what passed are removed. One that fails ends no other.

Exit codes: 0 all passed; 1 some failed, which are named at the end; 2 the command line is wrong;
130 Ctrl-C.
"""

import argparse
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from tqdm import tqdm

from config import ConfigError, load_config
from ds_pipeline import bundled
from gnp.analysis.command_line import Parser, UsageError
from gnp.terminal import fail, prepare_streams
from gnp.training.files import FileFormatError, read_rows
from recipe.sweep import last_line
from tests import data_sets

ROOT = Path(__file__).resolve().parents[1]
SHARED = 'source "$(dirname -- "${BASH_SOURCE[0]}")/experiment.sh"'
OPTIMIZERS = ("SGD", "SGDG", "AdamG")
STEPS = 2
BATCH = 2
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


class Result(NamedTuple):
    """The end of an experiment; an empty `wrong`: it passed."""

    name: str
    seconds: float
    wrong: str


def experiments(folder: Path) -> list[Experiment]:
    """Find the recipes in a folder that train an experiment, sorted.

    They are those that source experiment.sh and are no sweep.

    Args:
        folder: with the scripts.
    """
    found = []
    for script in sorted(folder.glob("*.sh")):
        text = script.read_text(encoding="utf-8")
        if SHARED not in text or script.stem == "sweep":
            continue
        call = re.search(r"^experiment ([\w.:,]+) ", text, flags=re.MULTILINE)
        config = call[1] if call else ""
        if config.endswith(",OPTIMIZER"):
            for optimizer in OPTIMIZERS:
                name = f"{script.stem}-{optimizer}"
                chosen = config.replace("OPTIMIZER", optimizer.lower())
                found.append(Experiment(name, script, chosen, {"OPTIMIZER": optimizer}))
        else:
            found.append(Experiment(script.stem, script, config, {}))
    return found


def write_data(config: ml_collections.ConfigDict, folder: Path) -> Path | None:
    """Write a data set as the config asks for it, enough for two steps and an evaluation.

    Args:
        config: resolved.
        folder: where; created.

    Returns:
        What `dataset.data_dir` is to name; None: the set comes with scikit-learn.

    Raises:
        ValueError: no such data can be generated here.
    """
    keys = config.dataset
    name, count = keys.dataset_name, STEPS * BATCH
    folder.mkdir(parents=True)
    if name in bundled.NAMES:
        return None
    if name == "image_folder":
        classes = [f"class_{number:04d}" for number in range(keys.num_classes)]
        data_sets.write_image_folder(folder, classes=classes, n_train=1, n_test=0, evaluation="val")
        shutil.rmtree(folder / "val")
        few = classes[:BATCH]
        return data_sets.write_image_folder(
            folder, classes=few, n_train=2, n_test=1, evaluation="val"
        )
    if name.startswith("ucr/") and name in SERIES_LENGTHS:
        length, short = SERIES_LENGTHS[name], name.removeprefix("ucr/")
        data_sets.write_ucr_set(folder, short, n_train=count, n_test=BATCH, length=length)
        return folder
    if name == "csv" and keys.task == "regression":
        file = data_sets.write_csv_table(folder / "table.csv", columns=TABLE_COLUMNS)
        file.write_text(file.read_text().replace("price", keys.target, 1))
        return file
    if "/" in name or name in ("csv", "npz") or not keys.image_size:
        raise ValueError(f"recipe/all_smoke.py cannot generate '{name}' yet: add it to write_data")
    return _write_tfds(config, folder, count)


def _write_tfds(config: ml_collections.ConfigDict, folder: Path, count: int) -> Path:
    keys = config.dataset
    shape = (keys.image_size, keys.image_size, keys.num_channels)
    rng = np.random.default_rng(0)
    examples = {
        split: (
            [data_sets.random_image(rng, shape, np.dtype(np.uint8)) for _ in range(size)],
            [number % keys.num_classes for number in range(size)],
        )
        for split, size in (
            *((split.strip(), count) for split in keys.train_split.split("+")),
            ("test", BATCH),
        )
    }
    name = keys.dataset_name
    data_sets.write_split_files(
        folder / name / "1.0.0", name, examples, shape=shape, num_classes=keys.num_classes
    )
    return folder


def flags(
    config: ml_collections.ConfigDict, data: Path | None, published: bool = False
) -> list[str]:
    """Return the arguments that make two steps of a recipe.

    Args:
        config: resolved.
        data: what `dataset.data_dir` is to name; None: nothing.
        published: leave every network as it is.
    """
    values: dict[str, Any] = {
        "batch_size": BATCH,
        "total_epochs": 1,
        "dataset.subset": STEPS * BATCH,
    }
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
    return [f"--config.{key}={value}" for key, value in values.items()]


def problem(directory: Path) -> str:
    """Return what is wrong with a run directory whose run has ended; empty: nothing."""
    try:
        rows = read_rows(directory / "metrics.jsonl")
    except (FileFormatError, OSError) as error:
        return str(error)
    if len(rows) != 1 or rows[0]["step"] != STEPS:
        return f"{directory}/metrics.jsonl has not one row, of step {STEPS}"
    losses = {name: value for name, value in rows[0].items() if name.endswith("_loss")}
    wrong = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
    if len(losses) < 2:
        wrong.append(f"only {', '.join(losses) or 'no loss'} in {directory}/metrics.jsonl")
    return "; ".join(wrong)


def train(experiment: Experiment, folder: Path, published: bool = False) -> Result:
    """Run one experiment.

    Args:
        experiment: which.
        folder: to work in; logs/NAME.log stays there, and where it fails the rest too.
        published: leave every network as it is.
    """
    started = time.monotonic()
    own = folder / experiment.name
    log = folder / "logs" / f"{experiment.name}.log"
    wrong = ""
    try:
        config = load_config(str(ROOT / "config" / experiment.config))
        data = write_data(config, own / "data")
        settings = flags(config, data, published)
        code = _call(experiment, [*settings, f"--working_dir={own / 'run'}"], log)
        if code:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            wrong = f"{how}: {last_line(log.read_text(errors='replace'))}"
        else:
            wrong = problem(own / "run" / "seed-0")
    except (ConfigError, ValueError) as error:
        wrong = f"no data or config: {error}"
    if not wrong:
        shutil.rmtree(own)
    return Result(experiment.name, time.monotonic() - started, wrong)


def _call(experiment: Experiment, arguments: Sequence[str], log: Path) -> int:
    """Run a recipe and return its exit code."""
    environment = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **os.environ,
        **experiment.environment,
        "SEEDS": "0",
        "PYTHONUNBUFFERED": "1",
    }
    with open(log, "wb") as output:
        process = subprocess.Popen(
            ["bash", str(experiment.script), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()  # it hands that on
                process.wait()


def table(results: Sequence[Result]) -> str:
    """Return a line each: name, seconds, passed.

    Example:
        >>> print(table([Result("mnist-tutorial", 11.96, ""), Result("x", 1, "exit code 2")]))
        recipe          seconds  passed
        mnist-tutorial     12.0  yes
        x                   1.0  no
    """
    width = max(len(name) for name in ["recipe", *(result.name for result in results)])
    lines = [f"{'recipe':<{width}}  seconds  passed"]
    lines += [
        f"{result.name:<{width}}  {result.seconds:>7.1f}  {'no' if result.wrong else 'yes'}"
        for result in results
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for and return the exit code.

    Args:
        arguments: without the program's name.
    """
    parser = Parser("bash recipe/all-smoke.sh", __doc__)
    parser.usage = argparse.SUPPRESS  # the description has it
    parser.add_argument("recipes", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--published", action="store_true", help=argparse.SUPPRESS)
    all_of_them = experiments(ROOT / "recipe")
    names = dict.fromkeys(experiment.script.stem for experiment in all_of_them)
    try:
        options = parser.parse_args(arguments)
        unknown = [name for name in options.recipes if name not in names]
        if unknown:
            parser.error(f"{unknown[0]} is no experiment's recipe; allowed are {', '.join(names)}")
    except UsageError as error:
        return fail(error, 2)
    chosen = [each for each in all_of_them if each.script.stem in (options.recipes or names)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return _all(chosen, Path(tempfile.mkdtemp(prefix="gnp-smoke-")), options.published)


def _all(chosen: Sequence[Experiment], folder: Path, published: bool) -> int:
    results: list[Result] = []
    try:
        (folder / "logs").mkdir()
        print(f"{len(chosen)} runs; logs in {folder / 'logs'}", flush=True)
        for experiment in tqdm(chosen, disable=None, unit="run", leave=False):
            result = train(experiment, folder, published)
            results.append(result)
            end = f"failed: {result.wrong}" if result.wrong else "passed"
            tqdm.write(f"{result.name}: {result.seconds:.0f} s, {end}")
            sys.stdout.flush()
    except OSError as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted", 128 + signal.SIGINT)
    finally:
        if results:
            print(f"\n{table(results)}\nlogs in {folder / 'logs'}", flush=True)
    failed = [result.name for result in results if result.wrong]
    return fail(f"failed: {', '.join(failed)}", 1) if failed else 0


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
