"""The methods side by side: gradients and time a step, and the test error on a part of MNIST.

    python -m gnp.bench.methods --data_dir DIR --out DIR [--seeds N] [--runs N] [--jobs N]
        [--methods NAME ...] [--page FILE]

Each method is a run of config/methods.py:mnist with some keys changed, once a seed, in a run
directory of its own under --out. A whole run with the same config is only read there, whatever
version of the code made it. Then the steps are measured with WideResNet_16_4 and batches of 64
images of 32 x 32 pixels, all methods in turn; a method that penalizes some steps only has the mean
of its two steps, weighted by how often each is taken. --page puts the table between the marks of a
Markdown page.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_collections
from tqdm import tqdm

import config as configs
import optimizer
from config import default, load_config
from gnp.analysis.command_line import local_path
from gnp.analysis.report.tables import mean_and_deviation, spread
from gnp.bench.measure import Cycle, Trainer, about_this_machine, measure_in_turn
from gnp.bench.pages import PageError, read_page, write_page
from gnp.training.files import read_rows
from gnp.training.regularizer import build_regularizer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "methods.py:mnist"
MODEL, BATCH_SIZE = "WideResNet_16_4", 64
MARKS = ("<!-- table of gnp.bench.methods -->", "<!-- end of the table -->")

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
        errors: test error of each seed, as a share; None: that run failed.
    """

    method: str
    gradients: float
    ratio: float
    ratio_spread: float
    errors: tuple[float | None, ...]


def config_of(method: str, seed: int, data_dir: str) -> ml_collections.ConfigDict:
    """Return the complete config of a method's run.

    Example:
        >>> config_of("SAM", 0, "data").gnp.alpha
        1.0
    """
    return load_config(str(CONFIG), _overrides(method, seed, data_dir))


def run_directory(out: Path, method: str, seed: int) -> Path:
    """Return the directory of the run of a method and seed.

    Example:
        >>> run_directory(Path("runs"), "SGD + GC", 0).as_posix()
        'runs/SGD_+_GC/seed_0'
    """
    return out / method.replace(" ", "_") / f"seed_{seed}"


def penalized_share(method: str, seeds: int) -> float:
    """Return the share of the steps that are penalized, over the runs of all seeds.

    Example:
        >>> penalized_share("SAM", seeds=1), penalized_share("SGD", seeds=1)
        (1.0, 0.0)
    """
    shares = []
    for seed in range(seeds):
        config = config_of(method, seed, "unused")
        rule = optimizer.build_step_rule(config, _steps_per_epoch(config))
        steps = range(_steps_per_epoch(config) * config.total_epochs)
        shares.append(statistics.fmean(rule(step) for step in steps))
    return statistics.fmean(shares)


def train_all(
    methods: Sequence[str], seeds: int, data_dir: str, out: Path, jobs: int
) -> tuple[dict[str, tuple[float | None, ...]], list[str]]:
    """Return test errors of every method and seed, and a line for each run that failed.

    Args:
        methods: names.
        seeds: how many, from 0 on.
        data_dir: folder with MNIST as TFDS prepares it.
        out: where the run directories are; whole ones are only read.
        jobs: processes at a time.
    """
    wanted = [(method, seed) for seed in range(seeds) for method in methods]
    errors: dict[tuple[str, int], float | None] = {}
    failures: list[str] = []
    running: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(_test_error, method, seed, data_dir, out, running): (method, seed)
            for method, seed in wanted
        }
        try:
            for done in tqdm(as_completed(futures), total=len(wanted), desc="runs", unit="run"):
                errors[futures[done]], failure = done.result()
                if failure:
                    failures.append(failure)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()  # it saves, and goes on there the next time
            raise
    return {m: tuple(errors[m, seed] for seed in range(seeds)) for m in methods}, failures


def measure_all(shares: Mapping[str, float], runs: int) -> dict[str, list[float]]:
    """Measure time a step over SGD's, for each method in each run.

    Args:
        shares: method -> share of its steps that are penalized.
        runs: measurements of each step.
    """
    shares = {"SGD": 0.0, **shares}
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

    return {m: [mean(m, run) / mean("SGD", run) for run in range(runs)] for m in shares}


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table.

    Example:
        >>> print(table([Row("SGD", 1.0, 1.0, 0.0, (0.02, 0.04))]))
        | method | gradients a step | time a step | test error |
        | --- | ---: | ---: | ---: |
        | SGD | 1.00 | 1.00 ± 0.00 | 3.00 ± 1.41% |
    """
    lines = ["| method | gradients a step | time a step | test error |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        ratio = f"{row.ratio:.2f} ± {row.ratio_spread:.2f}"
        lines.append(f"| {row.method} | {row.gradients:.2f} | {ratio} | {error_cell(row.errors)} |")
    return "\n".join(lines)


def error_cell(errors: Sequence[float | None]) -> str:
    """Write mean and standard deviation, and how many runs failed.

    Example:
        >>> error_cell([0.02, 0.04, None])
        '3.00 ± 1.41% (1 of 3 failed)'
    """
    values = [error for error in errors if error is not None]
    text = mean_and_deviation(spread(values), "{:.2%}".format) if values else ""
    failed = len(errors) - len(values)
    return f"{text} ({failed} of {len(errors)} failed)".strip() if failed else text


def _steps_per_epoch(config: ml_collections.ConfigDict) -> int:
    return int(config.dataset.subset) // config.batch_size


def _overrides(method: str, seed: int, data_dir: str) -> list[tuple[str, str]]:
    changes = {
        **METHODS[method], "seeds": seed, "init_seeds": seed, "dataset.data_dir": data_dir
    }  # fmt: skip
    return [(key, str(value)) for key, value in changes.items()]


def _test_error(
    method: str, seed: int, data_dir: str, out: Path, running: set[subprocess.Popen[str]]
) -> tuple[float | None, str]:
    """Return the test error of a run, or None and why it failed."""
    directory = run_directory(out, method, seed)
    config = config_of(method, seed, data_dir)
    if not _is_finished(directory, config):
        command = [
            sys.executable, "-P", "-m", "gnp.main.main", f"--config={CONFIG}",
            f"--working_dir={directory}",
            f"--config.retrain={_is_of_another(directory, config)}",
            *(f"--config.{key}={value}" for key, value in _overrides(method, seed, data_dir)),
        ]  # fmt: skip
        cache = {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled")}
        process = subprocess.Popen(
            command,
            env={**cache, **os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.add(process)
        _, stderr = process.communicate()
        running.discard(process)
        if process.returncode or not _is_finished(directory, config):
            reason = (stderr.strip().splitlines() or ["it ended early"])[-1]
            return None, f"{method}, seed {seed}: {reason}"
    return read_rows(directory / "metrics.jsonl")[-1]["test_error_rate"], ""


def _is_finished(directory: Path, config: ml_collections.ConfigDict) -> bool:
    """Tell whether the directory holds the whole run of this config."""
    if not (directory / "config.json").exists() or _is_of_another(directory, config):
        return False
    rows = read_rows(directory / "metrics.jsonl")
    return bool(rows) and rows[-1]["epoch"] == config.total_epochs


def _is_of_another(directory: Path, config: ml_collections.ConfigDict) -> bool:
    """Tell whether the directory holds a run of another config."""
    file = directory / "config.json"
    if not file.exists():
        return False
    try:
        stored = json.loads(file.read_text())
    except ValueError:
        return True
    expected = configs.as_json(config)
    return any(
        stored.get(key) != value for key, value in expected.items() if key not in default.FREE_KEYS
    )


def _kinds(share: float) -> Iterator[bool]:
    """Yield the kinds of steps that are taken: plain, penalized or both."""
    if share < 1:
        yield False
    if share > 0:
        yield True


def _compiled(method: str, penalize: bool) -> Cycle:
    config = config_of(method, 0, "unused")
    chain = optimizer.build_optimizer(config, _steps_per_epoch(config))
    regularize = build_regularizer(
        l2=lambda params: optimizer.l2_coefficients(config, params),
        labels=optimizer.build_labels(config),
        omega=config.opt.omega,
    )
    trainer = Trainer(MODEL, BATCH_SIZE, chain, regularize=regularize)
    return trainer.cycle(penalize)


def _rows(
    shares: Mapping[str, float],
    errors: Mapping[str, tuple[float | None, ...]],
    ratios: Mapping[str, Sequence[float]],
) -> list[Row]:
    rows = []
    for method, share in shares.items():
        values = ratios[method]
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        rows.append(
            Row(
                method,
                1 + share,
                statistics.median(values),
                (high - low) / 2,
                errors[method],
            )
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; exit with 1 where a run failed, with 130 where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.methods", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data_dir", required=True, help="folder with MNIST as TFDS prepares it")
    parser.add_argument("--out", type=local_path, required=True, help="folder for runs and results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=7, help="measurements of each step")
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--page", type=local_path, help="Markdown page to put the table into")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.runs, options.jobs) < 1:
        parser.error("--seeds, --runs and --jobs must be at least 1")
    if options.page and list(options.methods) != list(METHODS):
        parser.error("--page takes the table of all methods: leave --methods out")
    run_to_end(lambda: _compare(options), options.out, options.page, MARKS)


def run_to_end(
    work: Callable[[], Sequence[str]], out: Path, page: Path | None, marks: tuple[str, str]
) -> NoReturn:
    """Do the work of a benchmark that can be stopped, and end the process.

    Exits with 1 where a run failed or a file cannot be used, with 130 where it was stopped.

    Args:
        work: returns a line for each run that failed.
        out: folder for runs and results; is made first.
        page: into which a table is going to be put; looked at first.
        marks: of the table's place there.
    """
    for each in (signal.SIGTERM, signal.SIGINT):  # SIGINT too: a shell ignores it for its jobs
        signal.signal(each, _stop)
    try:
        if page:
            read_page(page, marks)
        out.mkdir(parents=True, exist_ok=True)
        failures = work()
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on in {out}", file=sys.stderr)
        sys.exit(130)
    except (PageError, OSError) as error:
        sys.exit(str(error))
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


def _stop(number: int, _: Any) -> NoReturn:
    raise KeyboardInterrupt


def _compare(options: argparse.Namespace) -> list[str]:
    """Train, measure, write the results; return a line for each run that failed."""
    errors, failures = train_all(
        options.methods, options.seeds, options.data_dir, options.out, options.jobs
    )
    shares = {method: penalized_share(method, options.seeds) for method in options.methods}
    rows = _rows(shares, errors, measure_all(shares, options.runs))
    about = about_this_machine()
    result = {**about, "seeds": options.seeds, "runs": options.runs}
    result["rows"] = [row._asdict() for row in rows]
    (options.out / "methods.json").write_text(json.dumps(result, indent=2) + "\n")
    text = (
        f"{table(rows)}\n\n{options.seeds} seeds, {options.runs} measurements of each step; "
        f"{about['cores']} cores ({about['machine']}, {about['device']}), jax {about['jax']}."
    )
    (options.out / "methods.md").write_text(text + "\n")
    print(text)
    print(f"in {options.out}: methods.md, methods.json, a run directory for each method and seed")
    if options.page:
        write_page(options.page, MARKS, text)
    return failures


if __name__ == "__main__":
    main()
