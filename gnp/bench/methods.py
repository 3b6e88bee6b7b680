"""The methods side by side: gradients and time a step, and the test error on a part of MNIST.

    python -m gnp.bench.methods --data_dir=DIR --out=DIR [--seeds=N] [--runs=N] [--jobs=N]
        [--methods NAME ...]

Each method is a run of config/methods.py:mnist with some keys changed, once a seed, in a run
directory of its own under --out. Finished runs are only read, so the same command goes on where it
was stopped. Then the steps are measured with WideResNet_16_4 and batches of 64 images of 32 x 32
pixels, all methods in turn; a method that penalizes some steps only has the mean of its two steps,
weighted by how often each is taken. OUT/methods.json
has all measurements, and a log lies beside each run directory.

Each method has the numbers of its paper, or of the recipes; none is tuned. gnp.bench.verdict
compares some of them with learning rate and radius chosen for each, on several tasks.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from tqdm import tqdm

import optimizer
from config import load_config
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
from gnp.bench.runs import Run, train
from gnp.training.files import read_rows
from gnp.training.metrics import number

CONFIG = str(ROOT / "config" / "methods.py:mnist")
STEPS_PER_EPOCH = 31  # of 2,000 images in batches of 64
# Of the steps that are measured.
STEP = {"model.model_name": "WideResNet_16_4", "batch_size": 64}
COLUMNS = {
    "method": "{}",
    "gradients a step": "{:.2f}",
    "radius": "{:g}",
    "time a step": "{:>}",
    "test error": "{:>}",
}

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


def method_run(method: str, seed: int, data_dir: str, out: Path) -> Run:
    """Return the run of a method and a seed.

    Args:
        method: Its name.
        seed: From 0 on.
        data_dir: Folder with MNIST as TFDS prepares it.
        out: Where the run directories are.
    """
    keys = {"seeds": seed, "init_seeds": seed, "dataset.data_dir": data_dir}
    directory = out / method.replace(" ", "_") / f"seed_{seed}"
    return Run(f"{method}, seed {seed}", CONFIG, METHODS[method] | keys, directory, out)


def gradients(config: ml_collections.ConfigDict, share: float) -> float:
    """Return the gradients a step, of which a share is penalized."""
    more = optimizer.gnp_gradients(config.gnp) - 1 - (1 - config.gnp.ascent_share)
    return 1 + share * more


def penalized_share(config: ml_collections.ConfigDict, steps_per_epoch: int) -> float:
    """Return the share of a run's steps that are penalized."""
    rule = optimizer.build_step_rule(config, steps_per_epoch)
    return statistics.fmean(map(rule, range(steps_per_epoch * config.total_epochs)))


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


def error_cell(errors: Sequence[float | None], metric: str = "test_error_rate") -> str:
    """Write mean and standard deviation, and how many runs failed.

    Args:
        errors: Of the seeds; None: the run failed.
        metric: The name in metrics.jsonl, which says how they are written.

    Example:
        >>> error_cell([0.02, 0.04, None])
        '3.00% ± 1.41% (1 of 3 failed)'
        >>> error_cell([None])
        '- (1 of 1 failed)'
    """
    values = [error for error in errors if error is not None]
    numbers = [statistics.fmean(values)] if values else []
    numbers += [statistics.stdev(values)] if len(values) > 1 else []
    text = " ± ".join(number(metric, each) for each in numbers) or "-"
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
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args(arguments)
    out = options.out
    runs = {
        method: [method_run(method, n, options.data_dir, out) for n in range(options.seeds)]
        for method in options.methods
    }
    make_folder(out)
    by_seed = [each for of_seed in zip(*runs.values(), strict=True) for each in of_seed]
    failures = train(by_seed, options.jobs)
    shares = {}
    for method, of_method in runs.items():
        expected = (penalized_share(each.config, STEPS_PER_EPOCH) for each in of_method)
        shares[method] = logged_share(of_method) or statistics.fmean(expected)
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
