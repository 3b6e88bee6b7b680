"""The methods side by side: gradients and time a step, and the test error on a part of MNIST.

    python -m gnp.bench.methods --data_dir DIR --out DIR [--seeds N] [--runs N] [--jobs N]
        [--methods NAME ...] [--page FILE]

Each method is a run of config/mnist_methods.py with some keys changed, once a seed, in a run
directory of its own under --out; what is there already is not trained again. Then its steps are
measured with WideResNet_16_4 and batches of 64 images of 32 x 32 pixels, all methods in turn; a
method that penalises some steps only has the mean of its two steps, weighted by how often each is
taken. --page puts the table between the marks of a Markdown page.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from tqdm import tqdm

import optimizer
from config import default, load_config
from config.schema import ConfigError, flatten
from gnp.bench.step import CompiledStep, about_this_machine, measure_in_turn
from gnp.training.files import read_rows
from gnp.training.regularizer import build_regularizer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "mnist_methods.py"
MODEL, BATCH_SIZE = "WideResNet_16_4", 64
STEPS_PER_EPOCH = 2000 // 64
START, END = "<!-- table of gnp.bench.methods -->", "<!-- end of the table -->"

_GNP = {"gnp.r": 0.05, "gnp.alpha": 0.8}
_SAM = {"gnp.r": 0.05, "gnp.alpha": 1.0}
_GC = {"opt.centralize": "all"}
_ADAM = {"opt.opt_type": "Adam", "base_lr": 1e-3}
# What each method changes in the config. SGD-G and Adam-G have their paper's learning rates.
METHODS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "SGD + GC": _GC,
    "SGD + GNP": _GNP,
    "SGD + GNP + GC": {**_GNP, **_GC},
    "SAM": _SAM,
    "ASAM": {"gnp.r": 0.5, "gnp.alpha": 1.0, "gnp.adaptive": True},
    "GNP every 5th step": {**_GNP, "gnp.every": 5},
    "GNP hybrid p = 0.5": {**_GNP, "use_hybrid_training": True, "hybrid_config.p": 0.5},
    "LookSAM k = 5": {**_SAM, "gnp.every": 5, "gnp.reuse": 0.7},
    "SGD-G": {"opt.opt_type": "SGDG", "base_lr": 0.01},
    "Adam-G": {"opt.opt_type": "AdamG", "base_lr": 0.01},
    "Adam": _ADAM,
    "Adam + GNP": {**_ADAM, **_GNP},
    "Adam + GNP, zero warmup": {
        **_ADAM,
        **_GNP,
        "gr_warmup_strategy": "zero",
        "gnp.warmup_epochs": 5.0,
    },
}


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        method: its name.
        gradients: gradients a step, mean over the run.
        ratio: time a step over SGD's, median of paired runs.
        ratio_spread: half the distance between the quartiles.
        errors: test error of each seed, as a share.
    """

    method: str
    gradients: float
    ratio: float
    ratio_spread: float
    errors: tuple[float, ...]


class RunError(RuntimeError):
    """A training run that failed; one line."""


def config_of(method: str, seed: int, data_dir: str) -> ml_collections.ConfigDict:
    """The complete config of a method's run.

    Example:
        >>> config_of("SAM", 0, "data").gnp.alpha
        1.0
    """
    return load_config(str(CONFIG), _overrides(method, seed, data_dir))


def penalised_share(method: str) -> float:
    """Share of a run's steps that are penalised.

    Example:
        >>> penalised_share("SAM"), penalised_share("SGD")
        (1.0, 0.0)
    """
    config = config_of(method, 0, "unused")
    rule = optimizer.build_step_rule(config, STEPS_PER_EPOCH)
    return statistics.fmean(rule(step) for step in range(STEPS_PER_EPOCH * config.total_epochs))


def train_all(
    methods: Sequence[str], seeds: int, data_dir: str, out: Path, jobs: int
) -> dict[str, tuple[float, ...]]:
    """Test errors of every method and seed; finished run directories are only read.

    Args:
        methods: names.
        seeds: how many, from 0 on.
        data_dir: folder with MNIST as TFDS prepares it.
        out: where the run directories are.
        jobs: processes at a time.

    Raises:
        RunError: a run failed; what is done stays.
    """
    wanted = [(method, seed) for seed in range(seeds) for method in methods]
    errors: dict[tuple[str, int], float] = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(_test_error, method, seed, data_dir, out): (method, seed)
            for method, seed in wanted
        }
        try:
            for done in tqdm(as_completed(futures), total=len(wanted), desc="runs", unit="run"):
                errors[futures[done]] = done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {m: tuple(errors[m, seed] for seed in range(seeds)) for m in methods}


def measure_all(methods: Sequence[str], runs: int) -> dict[str, list[float]]:
    """Time a step over SGD's, for each method in each run.

    Args:
        methods: names.
        runs: measurements of each step.
    """
    shares = {method: penalised_share(method) for method in {"SGD": None, **dict.fromkeys(methods)}}
    steps = {
        f"{method}, penalize={penalize}": _compiled(method, penalize)
        for method, share in tqdm(shares.items(), desc="compiling", unit="method")
        for penalize in _kinds(share)
    }
    print(f"measuring {len(steps)} steps {runs + 1} times", file=sys.stderr)
    seconds = measure_in_turn(steps, runs)

    def mean(method: str, run: int) -> float:
        share = shares[method]
        return sum(
            (share if penalize else 1 - share) * seconds[f"{method}, penalize={penalize}"][run]
            for penalize in _kinds(share)
        )

    return {m: [mean(m, run) / mean("SGD", run) for run in range(runs)] for m in methods}


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table.

    Example:
        >>> print(table([Row("SGD", 1.0, 1.0, 0.0, (0.02, 0.04))]))
        | method | gradients a step | time a step | test error |
        | --- | ---: | ---: | ---: |
        | SGD | 1.00 | 1.00 ± 0.00 | 3.00 ± 1.41% |
    """
    lines = ["| method | gradients a step | time a step | test error |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        mean = f"{statistics.fmean(row.errors):.2%}"
        if len(row.errors) > 1:
            mean = f"{mean[:-1]} ± {statistics.stdev(row.errors):.2%}"
        ratio = f"{row.ratio:.2f} ± {row.ratio_spread:.2f}"
        lines.append(f"| {row.method} | {row.gradients:.2f} | {ratio} | {mean} |")
    return "\n".join(lines)


def write_page(page: Path, text: str) -> None:
    """Puts a text between the marks of a page.

    Raises:
        ValueError: the page has not both marks.
    """
    content = page.read_text()
    before, start, rest = content.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"--page={page}: it needs the lines {START} and {END}")
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")


def _overrides(method: str, seed: int, data_dir: str) -> list[tuple[str, str]]:
    changes = {
        **METHODS[method], "seeds": seed, "init_seeds": seed, "dataset.data_dir": data_dir
    }  # fmt: skip
    return [(key, str(value)) for key, value in changes.items()]


def _test_error(method: str, seed: int, data_dir: str, out: Path) -> float:
    directory = out / method.replace(" ", "_") / f"seed_{seed}"
    config = config_of(method, seed, data_dir)
    if not _is_finished(directory, config):
        command = [
            sys.executable, "-P", "-m", "gnp.main.main", f"--config={CONFIG}",
            f"--working_dir={directory}",
            *(f"--config.{key}={value}" for key, value in _overrides(method, seed, data_dir)),
        ]  # fmt: skip
        cache = {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled")}
        environment = {**cache, **os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not _is_finished(directory, config):
            reason = (done.stderr.strip().splitlines() or ["it ended early"])[-1]
            raise RunError(f"{method}, seed {seed}: {reason}")
    error: float = read_rows(directory / "metrics.jsonl")[-1]["test_error_rate"]
    return error


def _is_finished(directory: Path, config: ml_collections.ConfigDict) -> bool:
    """Whether the directory holds the whole run of this config."""
    file = directory / "config.json"
    if not file.exists():
        return False
    expected = json.loads(json.dumps(flatten(config, default.KEYS)))
    stored = json.loads(file.read_text())
    rows = read_rows(directory / "metrics.jsonl")
    different = {key for key in expected if stored.get(key) != expected[key]}
    last = rows[-1]["epoch"] if rows else 0
    return different <= set(default.FREE_KEYS) and last == config.total_epochs


def _kinds(share: float) -> Iterator[bool]:
    """The steps that are taken: plain, penalised or both."""
    if share < 1:
        yield False
    if share > 0:
        yield True


def _compiled(method: str, penalize: bool) -> CompiledStep:
    config = config_of(method, 0, "unused")
    return CompiledStep(
        MODEL,
        BATCH_SIZE,
        optimizer.build_optimizer(config, STEPS_PER_EPOCH),
        penalize,
        build_regularizer(
            l2=lambda params: optimizer.l2_coefficients(config, params),
            labels=optimizer.build_labels(config),
            omega=config.opt.omega,
        ),
    )


def _rows(
    methods: Sequence[str],
    errors: Mapping[str, tuple[float, ...]],
    ratios: Mapping[str, Sequence[float]],
) -> list[Row]:
    rows = []
    for method in methods:
        values = ratios[method]
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        rows.append(
            Row(
                method,
                1 + penalised_share(method),
                statistics.median(values),
                (high - low) / 2,
                errors[method],
            )
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, trains, measures, writes methods.md and methods.json."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.methods", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data_dir", required=True, help="folder with MNIST as TFDS prepares it")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=7, help="measurements of each step")
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--page", type=Path, help="Markdown page to put the table into")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.runs, options.jobs) < 1:
        parser.error("--seeds, --runs and --jobs must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        errors = train_all(
            options.methods, options.seeds, options.data_dir, options.out, options.jobs
        )
        rows = _rows(options.methods, errors, measure_all(options.methods, options.runs))
        if options.page:
            write_page(options.page, table(rows))
    except (ConfigError, RunError, OSError, ValueError) as error:
        sys.exit(str(error))
    (options.out / "methods.md").write_text(table(rows) + "\n")
    result = {**about_this_machine(), "rows": [row._asdict() for row in rows]}
    (options.out / "methods.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(rows))
    print(f"in {options.out}: methods.md, methods.json, a run directory for each method and seed")


if __name__ == "__main__":
    main()
