"""The methods side by side: gradients and time a step, and the test error on a part of MNIST.

    python -m gnp.bench.methods --data_dir=DIR --out=DIR [--seeds=N] [--runs=N] [--jobs=N]
        [--tune] [--methods NAME ...]

Each method is a run of config/methods.py:mnist with some keys changed, once a seed, in a run
directory of its own under --out. Finished runs are only read, so the same command goes on where it
was stopped. Then the steps are measured with WideResNet_16_4 and batches of 64 images of 32 x 32
pixels, all methods in turn; a method that penalizes some steps only has the mean of its two steps,
weighted by how often each is taken. OUT/methods.json
has all measurements, and a log lies beside each run directory.

Each method has the numbers of its paper, or of the recipes. With --tune the radius of each one that
has a radius is chosen first: 0.5, 1 or 2 times that number, by one run each of a seed that no other
run has, evaluated on a held-out tenth of the training set, not on the test set. OUT/grid.json keeps
the choice and the errors behind it, and every later run under OUT has that radius. Nothing else is
tuned, of no method.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

import config as configs
import optimizer
from config import default, load_config
from gnp.analysis.command_line import Parser, local_path, make_folder, whole
from gnp.bench.measure import (
    PENALTY,
    ROOT,
    BenchError,
    build_steps,
    half_spread,
    measure_in_turn,
    report,
    run,
)
from gnp.training.distributed import catch_signals
from gnp.training.files import read_json, read_rows, write_json
from gnp.training.run_directory import refuse_other_config

CONFIG = str(ROOT / "config" / "methods.py:mnist")
# What --tune has chosen, in OUT; and the seed of its runs, which no other has.
_GRID, _TUNING_SEED = "grid.json", 10_000
# Of the steps that are measured.
STEP = {"model.model_name": "WideResNet_16_4", "batch_size": 64}
COLUMNS = {
    "method": "{}",
    "gradients a step": "{:.2f}",
    "radius": "{:g}",
    "time a step": "{:>}",
    "test error": "{:>}",
}

RADII = (0.5, 1.0, 2.0)  # of the grid, times a method's own
_SAM = {"gnp.r": 0.05, "gnp.alpha": 1.0}
_GC = {"opt.centralize": "all"}
_ADAM = {"opt.opt_type": "Adam", "base_lr": 1e-3}


def _relative(method: str, r: float, **params: float) -> dict[str, Any]:
    return {"gnp.method": method, "gnp.r": r, "gnp.method_params": params}


# What each method changes in the config. SGD-G and Adam-G have their paper's learning rates.
METHODS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "SGD + GC": _GC,
    "SGD + GNP": PENALTY,
    "SGD + GNP + GC": PENALTY | _GC,
    "SAM": _SAM,
    "ASAM": {"gnp.r": 0.5, "gnp.alpha": 1.0, "gnp.adaptive": True},
    "SAM-ON": _relative("sam_on", 0.05),
    "WSAM": _relative("wsam", 0.05),
    "WSAM, decoupled": _relative("wsam", 0.05, decouple=True),
    "GSAM": _relative("gsam", 0.05, rho_min=0.01),
    "StableSAM": _relative("stable_sam", 0.05),
    "F-SAM": _relative("friendly_sam", 0.05),
    "VaSSO": _relative("vasso", 0.05),
    "USAM": _relative("unnormalized_sam", 0.05),
    "MSAM": _relative("momentum_sam", 0.3),
    "CR-SAM": _relative("cr_sam", 0.05),
    "GAM": _relative("gam", 0.2),
    "RWP": _relative("random_weight_perturbation", 0.01),
    "RWP, mixed": _relative("random_weight_perturbation", 0.01, lmbda=0.5),
    "functional SAM": _relative("functional_sam", 0.05),
    "SAM from half of the batch": _SAM | {"gnp.ascent_share": 0.5},
    "SAM in the last quarter": _SAM | {"gnp.tail_epochs": 5.0},
    "SAM where the norm is unusual": _SAM | {"gnp.unusual_norm": "1,-1"},
    "GNP every 5th step": PENALTY | {"gnp.every": 5},
    "GNP every 5th step, 5 α": PENALTY | {"gnp.every": 5, "gnp.every_scales_alpha": True},
    "GNP hybrid p = 0.5": PENALTY | {"use_hybrid_training": True, "hybrid_config.p": 0.5},
    "LookSAM k = 5": _SAM | {"gnp.every": 5, "gnp.reuse": 0.7},
    "SGD-G": {"opt.opt_type": "SGDG", "base_lr": 0.01},
    "Adam-G": {"opt.opt_type": "AdamG", "base_lr": 0.01},
    "Adam": _ADAM,
    "Adam + GNP": _ADAM | PENALTY,
    "Adam + GNP, zero warmup": _ADAM
    | PENALTY
    | {"gr_warmup_strategy": "zero", "gnp.warmup_epochs": 5.0},
}


class Run:
    """The training run of a method and a seed.

    Args:
        method: Its name.
        seed: From 0 on.
        data_dir: Folder with MNIST as TFDS prepares it.
        out: Where the run directories are.
        radius: Instead of the method's own; None: that.
        folder: Its name under the method's; empty: that of the seed.

    Raises:
        RunDirectoryError: its directory holds another run.
    """

    def __init__(
        self,
        method: str,
        seed: int,
        data_dir: str,
        out: Path,
        radius: float | None = None,
        folder: str = "",
    ) -> None:
        self.method, self.name = method, f"{method}, {folder or f'seed {seed}'}"
        self.directory = out / method.replace(" ", "_") / (folder or f"seed_{seed}")
        self.log = self.directory.with_name(f"{self.directory.name}.log")
        keys = {"seeds": seed, "init_seeds": seed, "dataset.data_dir": data_dir}
        keys |= {} if radius is None else {"gnp.r": radius}
        keys |= {"use_test_set": False} if folder else {}
        self._overrides = [(key, str(value)) for key, value in (METHODS[method] | keys).items()]
        self.config = load_config(CONFIG, self._overrides)
        if (self.directory / "config.json").exists():
            values, defaults = map(configs.as_json, (self.config, default.get_config()))
            advice = "choose another --out, or remove that directory"
            refuse_other_config(self.directory, values, default.FREE_KEYS, defaults, advice)

    def error(self) -> float | None:
        """Return the error of its evaluation, as a share; None where the run is not finished."""
        rows = read_rows(self.directory / "metrics.jsonl")
        done = rows and rows[-1]["epoch"] == self.config.total_epochs
        split = "test" if self.config.use_test_set else "validation"
        return rows[-1][f"{split}_error_rate"] if done else None

    def start(self) -> "subprocess.Popen[bytes]":
        """Train, or go on, in a process of its own; what it says goes to `log`."""
        arguments = [f"--config.{key}={value}" for key, value in self._overrides]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(self.directory.parents[1] / "compiled")}
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "gnp.main.main", f"--config={CONFIG}",
                 f"--working_dir={self.directory}", *arguments],
                env={**cache, **os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,  # a second signal, from the terminal, would end it at once
                stdout=log,
                stderr=log,
            )  # fmt: skip

    def last_words(self) -> str:
        """Return the last line that it has written."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended early"


def train(runs: Sequence[Run], jobs: int) -> list[str]:
    """Train what is not finished; return a line for each run that failed.

    Args:
        runs: Of all methods and seeds.
        jobs: Processes at a time.

    Raises:
        KeyboardInterrupt: A signal came, and the runs have saved.
    """
    waiting = [each for each in runs if each.error() is None]
    running: dict[Run, subprocess.Popen[bytes]] = {}
    failures = []
    bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="runs", disable=None)
    with catch_signals() as interrupt, bar:
        try:
            while (waiting or running) and not interrupt.signal:
                while waiting and len(running) < jobs:
                    each = waiting.pop(0)
                    running[each] = each.start()
                time.sleep(0.1)
                for each in [each for each in running if running[each].poll() is not None]:
                    del running[each]
                    bar.update()
                    if each.error() is None:
                        failures.append(f"{each.name}: {each.last_words()}")
        finally:  # after a signal: they save, and go on there the next time
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    if interrupt.signal:
        raise KeyboardInterrupt
    return failures


def tune(methods: Sequence[str], data_dir: str, out: Path, jobs: int) -> dict[str, Any]:
    """Choose the radius of each method that has one, and return what OUT/grid.json holds.

    Args:
        methods: Their names.
        data_dir: Of MNIST.
        out: Where the run directories are.
        jobs: Processes at a time.

    Returns:
        Method -> {"r": the chosen radius, "errors": radius -> error on the held-out part}.

    Raises:
        BenchError: a run failed.
    """
    radii = {name: METHODS[name]["gnp.r"] for name in methods if METHODS[name].get("gnp.r")}
    runs = {
        method: {
            factor * r: Run(method, _TUNING_SEED, data_dir, out, factor * r, f"r_{factor * r:g}")
            for factor in RADII
        }
        for method, r in radii.items()
    }
    if failures := train([run for of_radius in runs.values() for run in of_radius.values()], jobs):
        raise BenchError("; ".join(failures))
    grid = {}
    for method, of_radius in runs.items():
        errors = {r: float(run.error() or 0.0) for r, run in of_radius.items()}
        grid[method] = {"r": min(errors, key=errors.__getitem__), "errors": errors}
    return grid


def gradients(config: ml_collections.ConfigDict, share: float) -> float:
    """Return the gradients a step, of which a share is penalized."""
    more = optimizer.gnp_gradients(config.gnp) - 1 - (1 - config.gnp.ascent_share)
    return 1 + share * more


def penalized_share(configs: Sequence[ml_collections.ConfigDict]) -> float:
    """Return the share of the steps that are penalized, over several runs."""
    shares = []
    for config in configs:
        steps_per_epoch = int(config.dataset.subset) // config.batch_size
        rule = optimizer.build_step_rule(config, steps_per_epoch)
        shares.append(statistics.fmean(map(rule, range(steps_per_epoch * config.total_epochs))))
    return statistics.fmean(shares)


def logged_share(runs: Sequence[Run]) -> float | None:
    """Return the share that the runs have logged, which a rule of gradient norms decides."""
    rows = [row for each in runs for row in read_rows(each.directory / "metrics.jsonl")]
    shares = [row["train_penalized"] for row in rows if "train_penalized" in row]
    return statistics.fmean(shares) if shares else None


def step_times(shares: Mapping[str, float], runs: int) -> dict[str, list[float]]:
    """Return time a step over SGD's, of each method in each run.

    Args:
        shares: Method -> share of its steps that are penalized.
        runs: How often each step is measured.
    """
    measures, weights = {}, {}
    for method in tqdm({"SGD": 0.0, **shares}, desc="compiling", leave=False, disable=None):
        keys = METHODS[method] | STEP
        steps = build_steps(load_config(CONFIG, [(key, str(keys[key])) for key in keys]))
        share = shares.get(method, 0.0)
        for penalize, weight in ((False, 1 - share), (True, share)):
            if weight:
                name = f"{method}, penalize={penalize}"
                measures[name], weights[name] = steps.cycle(penalize), (method, weight)
    seconds = measure_in_turn(measures, runs)
    totals = {method: np.zeros(runs) for method, _ in weights.values()}
    for name, (method, weight) in weights.items():
        totals[method] += weight * np.array(seconds[name])
    return {method: (totals[method] / totals["SGD"]).tolist() for method in shares}


def error_cell(errors: Sequence[float | None]) -> str:
    """Write mean and standard deviation, and how many runs failed.

    Example:
        >>> error_cell([0.02, 0.04, None])
        '3.00 ± 1.41% (1 of 3 failed)'
        >>> error_cell([None])
        '- (1 of 1 failed)'
    """
    values = [100 * error for error in errors if error is not None]
    text = f"{statistics.fmean(values):.2f}" if values else "-"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.2f}"
    if values:
        text += "%"
    failed = len(errors) - len(values)
    return f"{text} ({failed} of {len(errors)} failed)" if failed else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 1 where a run failed, 130 where stopped."""
    return run(lambda: _bench(arguments))


def _bench(arguments: Sequence[str] | None) -> None:
    parser = Parser("python -m gnp.bench.methods", __doc__)
    parser.add_argument("--data_dir", required=True, help="folder with MNIST as TFDS prepares it")
    parser.add_argument("--out", type=local_path, required=True, help="folder for runs and results")
    parser.add_argument("--seeds", type=whole(1), default=5)
    parser.add_argument("--runs", type=whole(1), default=7, help="measurements of each step")
    parser.add_argument("--jobs", type=whole(1), default=1, help="training runs at a time")
    parser.add_argument("--tune", action="store_true", help="choose each method's radius first")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args(arguments)
    methods, out, file = list(dict.fromkeys(options.methods)), options.out, options.out / _GRID
    grid = read_json(file) if file.exists() else {}
    if options.tune:
        make_folder(out)
        grid |= tune(methods, options.data_dir, out, options.jobs)
        write_json(file, grid)
    radii = {method: grid[method]["r"] if method in grid else None for method in methods}
    runs = {
        method: [Run(method, n, options.data_dir, out, r) for n in range(options.seeds)]
        for method, r in radii.items()
    }
    make_folder(out)
    by_seed = [each for of_seed in zip(*runs.values(), strict=True) for each in of_seed]
    try:
        failures = train(by_seed, options.jobs)
    except KeyboardInterrupt:
        print(f"the same command goes on in {options.out}", file=sys.stderr)
        raise

    shares = {
        method: logged_share(of_method) or penalized_share([each.config for each in of_method])
        for method, of_method in runs.items()
    }
    rows = []
    for method, times in step_times(shares, options.runs).items():
        errors = [each.error() for each in runs[method]]
        rows.append(
            {
                "method": method,
                "radius": runs[method][0].config.gnp.r or None,
                "gradients a step": gradients(runs[method][0].config, shares[method]),
                "time a step": f"{statistics.median(times):.2f} ± {half_spread(times):.2f}",
                "test error": error_cell(errors),
                "times": times,
                "errors": errors,
            }
        )
    report(rows, COLUMNS, options.out / "methods.json", seeds=options.seeds, runs=options.runs)
    if failures:
        raise BenchError("; ".join(failures))


if __name__ == "__main__":
    sys.exit(main())
