"""From the start of a command to the end of its first step, with a cold and a warm cache.

    python -m gnp.bench.startup [--config FILE] [--model NAME] [--batch_size N] [--runs N]
        [--out FILE] [--config.KEY=VALUE ...]

The command is `python -m gnp.main.main` on a batch of noise, in a process of its own that ends when
its first step's metrics are there. The batch is small, so that the step itself hardly counts. Each
run has a fresh cache directory (JAX_COMPILATION_CACHE_DIR): the first process fills it, cold, and
the second one, warm, has a new run directory and the same cache. What else the environment says of
caches (JAX_PERSISTENT_CACHE_*) is left out. Times are medians over the runs; "over cold" is the
median of the ratios within a run.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gnp.bench.measure import (
    CIFAR_SHAPE,
    SHAPES,
    Table,
    about_this_machine,
    check_models,
    command,
    half_spread,
    paired_ratio,
    positive,
    write_json,
)
from gnp.main import runtime

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("cold", "warm")
# The exit code of gnp.bench.first_step; importing it here would import the whole program.
_FIRST_STEP_DONE = 64


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        cache: "cold" or "warm".
        seconds: median over the runs.
        spread: half the distance between the quartiles.
        ratio: over the cold one; median over the runs.
    """

    cache: str
    seconds: float
    spread: float
    ratio: float


def write_noise(folder: Path, shape: Sequence[int], batch_size: int) -> Path:
    """Write a set of one batch, and as many for the test, of 10 classes.

    Args:
        folder: to write to.
        shape: of an image.
        batch_size: examples in a batch.
    """
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (max(batch_size, 10), *shape), np.uint8)
    labels = np.arange(len(images)) % 10
    file = folder / "noise.npz"
    np.savez(file, x=images, y=labels, x_test=images, y_test=labels)
    return file


def seconds_to_first_step(arguments: Sequence[str], variables: Mapping[str, str]) -> float:
    """Measure from the start of a process to the end of its first step.

    Args:
        arguments: of gnp.main.main.
        variables: of its environment, beside this one's.

    Raises:
        SystemExit: it ended before, with what it said.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_PERSISTENT_CACHE")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), **variables}
    runtime.keep_compiled(environment)  # gnp.main.main does it only where it is the program itself
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gnp.bench.first_step", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode != _FIRST_STEP_DONE:
        said = done.stderr.strip().splitlines() or ["it took no step"]
        sys.exit(said[-1])
    return seconds


def bench(arguments: Sequence[str], name: str, batch_size: int, runs: int) -> dict[str, Any]:
    """Measure, print the table, and return what --out holds.

    Args:
        arguments: of gnp.main.main, without data and directories.
        name: of the model.
        batch_size: examples in a batch.
        runs: measurements of each.
    """
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        file = write_noise(folder, SHAPES.get(name, CIFAR_SHAPE), batch_size)
        bar = tqdm(total=runs * len(KINDS), desc="starting", leave=False)
        for run in range(runs):
            cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / f"cache_{run}")}
            for kind in KINDS:
                seconds[kind].append(
                    seconds_to_first_step(
                        [*arguments, f"--config.model.model_name={name}",
                         f"--config.batch_size={batch_size}", "--config.dataset.dataset_name=npz",
                         f"--config.dataset.data_dir={file}",
                         f"--working_dir={folder / f'{kind}_{run}'}"],
                        cache,
                    )
                )  # fmt: skip
                bar.update()
        bar.close()
    rows = [
        Row(
            kind,
            statistics.median(values),
            half_spread(values),
            paired_ratio(values, seconds["cold"]),
        )
        for kind, values in seconds.items()
    ]
    print(table(rows).text())
    return {
        **about_this_machine(),
        "model": name,
        "batch_size": batch_size,
        "runs": runs,
        "rows": [row._asdict() for row in rows],
    }


def table(rows: Sequence[Row]) -> Table:
    """Return the rows.

    Example:
        >>> print(table([Row("cold", 30.0, 0.5, 1.0), Row("warm", 9.0, 0.25, 0.3)]).text())
        cache  seconds    +-  over cold
        cold      30.0  0.50      1.000
        warm       9.0  0.25      0.300
    """
    head = ("cache", "seconds", "+-", "over cold")
    lines = [(r.cache, f"{r.seconds:.1f}", f"{r.spread:.2f}", f"{r.ratio:.3f}") for r in rows]
    return Table(head, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the JSON file."""
    parser = command("startup", __doc__, runs=3)
    parser.add_argument("--config", default=f"{ROOT / 'config' / 'original.py'}:wideresnet_cifar")
    parser.add_argument("--model", default="WideResNet_28_10")
    parser.add_argument("--batch_size", type=positive, default=2)
    options, others = parser.parse_known_args(arguments)
    for other in others:
        if not other.startswith("--config."):
            parser.error(f"unknown argument {other}: --config.KEY=VALUE is handed on")
    check_models(parser, [options.model], jnp.float32)
    result = bench(
        [f"--config={options.config}", *others], options.model, options.batch_size, options.runs
    )
    write_json(options.out, "startup", result)


if __name__ == "__main__":
    main()
