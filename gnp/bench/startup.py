"""From the start of a command to the end of its first step, with a cold and a warm cache.

    python -m gnp.bench.startup [--config FILE] [--model NAME] [--batch_size N] [--runs N]
        [--out FILE] [--config.KEY=VALUE ...]

The command is `python -m gnp.main.main` on a batch of noise, in a process of its own that ends when
its first step's metrics are there. The batch is small, so that the step itself hardly counts. Each
run has a fresh cache directory (JAX_COMPILATION_CACHE_DIR): the first process fills it, cold, and
the second one, warm, has a new run directory and the same cache. What else the environment says of
caches (JAX_PERSISTENT_CACHE_*) is left out. Times are medians over the runs, "+-" is half the
distance between the quartiles, "over cold" the median of the ratios within a run.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gnp.analysis.command_line import whole
from gnp.bench.measure import (
    ROOT,
    BenchError,
    half_spread,
    noise,
    paired_ratio,
    parser,
    report,
    run,
    step_config,
)
from gnp.main import runtime

COLUMNS = {"cache": "{}", "seconds": "{:.1f}", "+-": "{:.2f}", "over cold": "{:.3f}"}
_FIRST_STEP_DONE = 64
# The log's step is called with the first metrics. The command's imports come first, as in a run.
_PROGRAM = f"""
import os, sys
from gnp.main.main import main
from gnp.training.log import Log
Log.step = lambda *_: os._exit({_FIRST_STEP_DONE})
sys.exit(main(sys.argv[1:]))
"""


def seconds_to_first_step(arguments: Sequence[str], cache: str) -> float:
    """Return the seconds from the start of a process to the end of its first step.

    Args:
        arguments: Of gnp.main.main.
        cache: Folder of compiled programs.

    Raises:
        BenchError: it ended before, with what it said.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_PERSISTENT_CACHE")}
    environment = inherited | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": cache}
    runtime.keep_compiled(environment)  # gnp.main.main does it only where it is the program itself
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode != _FIRST_STEP_DONE:
        raise BenchError((done.stderr.strip().splitlines() or ["it took no step"])[-1])
    return seconds


def measure(
    arguments: Sequence[str], name: str, batch_size: int, runs: int
) -> list[dict[str, Any]]:
    """Return a row for the cold cache and one for the warm one.

    Args:
        arguments: Of gnp.main.main, without data and directories.
        name: Of the model.
        batch_size: Examples in a batch.
        runs: How often each is measured.
    """
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        batch = noise(name, batch_size).train.batch(np.arange(max(batch_size, 10)))
        images, labels = batch["input"], batch["label"]
        np.savez(folder / "noise.npz", x=images, y=labels, x_test=images, y_test=labels)
        for number in tqdm(range(runs), desc="starting", leave=False, disable=None):
            for kind, values in seconds.items():
                line = [
                    *arguments,
                    f"--config.model.model_name={name}",
                    f"--config.batch_size={batch_size}",
                    "--config.dataset.dataset_name=npz",
                    f"--config.dataset.data_dir={folder / 'noise.npz'}",
                    f"--working_dir={folder / f'{kind}_{number}'}",
                ]
                values.append(seconds_to_first_step(line, str(folder / f"cache_{number}")))
    return [
        {
            "cache": kind,
            "seconds": statistics.median(values),
            "+-": half_spread(values),
            "over cold": paired_ratio(values, seconds["cold"]),
        }
        for kind, values in seconds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and measure; return the exit code."""
    return run(lambda: _bench(arguments))


def _bench(arguments: Sequence[str] | None) -> None:
    flags = parser("startup", __doc__)
    flags.add_argument("--config", default=f"{ROOT / 'config' / 'original.py'}:wideresnet_cifar")
    flags.add_argument("--model", default="WideResNet_28_10")
    flags.add_argument("--batch_size", type=whole(1), default=2)
    flags.add_argument("--runs", type=whole(1), default=3, help="measurements of each")
    options, others = flags.parse_known_args(arguments)
    for other in others:
        if not other.startswith("--config."):
            flags.error(f"unknown argument {other}: --config.KEY=VALUE is handed on")
    step_config(options.model, options.batch_size)
    line = [f"--config={options.config}", *others]
    rows = measure(line, options.model, options.batch_size, options.runs)
    report(
        rows, COLUMNS, options.out,
        model=options.model, batch_size=options.batch_size, runs=options.runs,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
