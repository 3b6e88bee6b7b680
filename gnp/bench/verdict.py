"""The methods at equal cost: learning rate and radius chosen for each, several tasks, statistics.

    bash recipe/verdict.sh [--data_dir=DIR] [--out=DIR] [--quick] [--jobs=N] [--seeds=N]
        [--tasks NAME ...] [--methods NAME ...]

Each method has the same grid: 0.5, 1 and 2 times the task's learning rate and radius (without a
radius, the first alone; MSAM's radius is 6 times as large, as in its paper, RWP's a fifth). One run
of each point is evaluated on a held-out part of the training data, and the smallest error is chosen
(of equal ones, the smallest loss). Then that point is trained on all training data and tested, once
a seed.

Tasks, and what each needs in --data_dir; one whose data are not there is left out, and named:

    digits   scikit-learn's digits, 40% wrong labels    nothing
    ucr      ItalyPowerDemand, 67 short series          ucr_ts/ItalyPowerDemand_TRAIN.ts, _TEST.ts
    mnist    2,000 images of MNIST                      tfds/mnist
    etth1    ETTh1, forecast 96 hours ahead             ett/ETTh1.csv
    cifar    2,000 images of CIFAR-10                   tfds/cifar10

--methods: twelve, unless it names others, among them sixteen relatives: ASAM, SAM-ON, WSAM, GSAM,
StableSAM, F-SAM, VaSSO, USAM, CR-SAM, GAM and more; a name that is none of them has all printed.

--quick: digits alone unless --tasks names others, half the epochs, three seeds, and a grid of two
radii. The same command goes on where it was stopped; finished runs are only read. OUT/TASK.json has
all numbers, OUT/verdict.png the picture, and a log lies beside each run directory.

A table has the gradients of a run, in units of plain training's; the seconds of training without
compiling, beside the other jobs; mean and standard deviation of the error; how much larger it is
than the full penalty's (GNP), as a share, with a 95% interval from bootstrap samples of the seeds,
paired; and what follows. A method is *better* where the interval lies below 0, *worse* where it
lies above, else *no worse* where it ends below 10%; the rest is *open*. A run that failed is named
at the end, and tried again the next time; its method has no verdict, or another point of the grid.
"""

import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import load_config
from gnp.analysis.command_line import Parser, UsageError, local_path, make_folder, whole
from gnp.analysis.figure_files import COLORS, drawn, picture
from gnp.analysis.report.runs import final_value
from gnp.bench.measure import PENALTY, ROOT, BenchError, report, run
from gnp.bench.methods import METHODS, error_cell, gradients, penalized_share
from gnp.bench.runs import Run, train

FULL, LONGER = "GNP", "plain, twice as long"
CHEAP = 1.3  # gradients
_MARGIN = 0.1  # of an error that is no worse
_TUNING_SEED = 10_000  # no other run has it
_RESAMPLES = 10_000
COLUMNS = {
    "method": "{}",
    "learning rate": "{:g}",
    "radius": "{:g}",
    "gradients": "{:.2f}",
    "seconds": "{:.1f}",
    "error": "{:>}",
    "over GNP": "{:>}",
    "verdict": "{}",
}


class Task(NamedTuple):
    """A config on which the methods are compared.

    Attributes:
        file: In config/, with its argument.
        epochs: Of plain training.
        radius: The middle of the grid, of methods whose usual radius is 0.05; of others as many
            times larger as theirs is.
        data: What dataset.data_dir is, in --data_dir; empty: nothing is needed.
        needs: In there, what must exist.
        keys: Further changes.
    """

    file: str
    epochs: int
    radius: float
    data: str = ""
    needs: str = ""
    keys: Mapping[str, Any] = {}


_UCR = {
    "dataset.dataset_name": "ucr/ItalyPowerDemand",
    "dataset.validation_fraction": 0.3,  # of 67 series
    "batch_size": 8,
}
# The best epoch counts, and all are trained, so that the cost is known.
_ETTH1 = {"early_stopping.patience": None, "evaluate_every_n_epochs": 1}
_CIFAR = {"model.model_name": "MnistTutorialCNN", "base_lr": 0.05}
TASKS = {
    "digits": Task("digits_noise.py", 60, 0.1),
    "ucr": Task("ucr.py", 120, 0.05, "ucr_ts", "ItalyPowerDemand_TRAIN.ts", _UCR),
    "mnist": Task("methods.py:mnist", 20, 0.05, "tfds", "mnist"),
    "etth1": Task("samformer.py", 10, 0.5, "ett/ETTh1.csv", "", _ETTH1),
    "cifar": Task("methods.py:cifar", 20, 0.05, "tfds", "cifar10", _CIFAR),
}


class Size(NamedTuple):
    """Hold what is tried: tasks, a share of their epochs, factors of rate and radius, seeds."""

    tasks: tuple[str, ...]
    epochs: float
    rates: tuple[float, ...]
    radii: tuple[float, ...]
    seeds: int


# More of the family; compared where --methods names them.
RELATIVES = (
    "ASAM", "SAM-ON", "WSAM", "WSAM, decoupled", "GSAM", "StableSAM", "F-SAM", "VaSSO", "USAM",
    "CR-SAM", "GAM", "RWP, mixed", "functional SAM", "SAM from half of the batch",
    "GNP every 5th step", "GNP hybrid p = 0.5",
)  # fmt: skip
WHOLE = Size(tuple(TASKS), 1.0, (0.5, 1.0, 2.0), (0.5, 1.0, 2.0), 10)
QUICK = Size(("digits",), 0.5, (1.0,), (0.5, 1.0), 3)


def methods(epochs: int) -> dict[str, dict[str, Any]]:
    """Return what each method changes in a config whose plain training has so many epochs."""
    after = {"gr_warmup_strategy": "zero", "gnp.warmup_epochs": epochs / 4}
    named = ("GNP every 5th step, 5 α", "SAM", "LookSAM k = 5", "MSAM", "RWP", *RELATIVES)
    return {
        "plain": {},
        LONGER: {"total_epochs": 2 * epochs},
        "GC": METHODS["SGD + GC"],
        FULL: PENALTY,
        "GNP + GC": METHODS["SGD + GNP + GC"],
        "GNP in the last quarter": PENALTY | {"gnp.tail_epochs": epochs / 4},
        "GNP after the first quarter": PENALTY | after,
        **{name: METHODS[name] for name in named},
    }


def train_task(
    name: str, chosen: Sequence[str], size: Size, epochs: int, data_dir: Path, out: Path, jobs: int
) -> tuple[dict[str, list[Run]], list[str]]:
    """Choose each method's point of the grid, and train it with each seed.

    Args:
        name: The task's.
        chosen: Names of methods.
        size: Of the grid, and how many seeds.
        epochs: Of plain training.
        data_dir: Where the data are.
        out: Where the run directories are.
        jobs: Processes at a time.

    Returns:
        Method -> its run of each seed; and a line for each run that failed, of the grid too.
    """
    task, file = TASKS[name], str(ROOT / "config" / TASKS[name].file)
    every = ("total_epochs", "evaluate_every_n_epochs", "save_ckpt_every_n_epochs")
    common = {"gnp.r": 0.0, "gnp.alpha": 0.0, **dict.fromkeys(every, epochs), **task.keys}
    if task.data:
        common["dataset.data_dir"] = data_dir / task.data
    rate = load_config(file, [(key, str(value)) for key, value in common.items()]).base_lr

    def make(method: str, point: Mapping[str, float], seed: int, **held_out: bool) -> Run:
        at = ",".join(f"{key}={value:g}" for key, value in point.items())
        words = [name, method, at, "held_out" if held_out else f"seed_{seed}"]
        seeds = {"seeds": seed, "init_seeds": seed}
        keys = {**common, **methods(epochs)[method], **point, **seeds, **held_out}
        directory = out.joinpath(*(word.replace(" ", "_") for word in words))
        return Run(", ".join(words), file, keys, directory, out)

    grid = {
        method: {
            make(method, point, _TUNING_SEED, use_test_set=False): point
            for point in points(rate, task.radius, methods(epochs)[method], size)
        }
        for method in chosen
    }
    several = [tried for tried in grid.values() if len(tried) > 1]
    failures = train([held_out for tried in several for held_out in tried], jobs)
    best = {method: tried[min(tried, key=score)] for method, tried in grid.items()}
    runs = {m: [make(m, point, n) for n in range(size.seeds)] for m, point in best.items()}
    by_seed = itertools.chain(*zip(*runs.values(), strict=True))
    return runs, failures + train(list(by_seed), jobs)


def points(
    rate: float, radius: float, changes: Mapping[str, Any], size: Size
) -> list[dict[str, float]]:
    """Return a method's grid: learning rates and, where it has a radius, radii.

    Args:
        rate: The learning rate in its middle.
        radius: See `Task`.
        changes: What the method changes in a config.
        size: The factors.

    Example:
        >>> points(0.1, 0.2, {"gnp.r": 0.05}, QUICK)
        [{'base_lr': 0.1, 'gnp.r': 0.1}, {'base_lr': 0.1, 'gnp.r': 0.2}]
    """
    rates = [{"base_lr": rate * factor} for factor in size.rates]
    if "gnp.r" not in changes:
        return rates
    middle = radius * (changes["gnp.r"] / PENALTY["gnp.r"])
    return [each | {"gnp.r": middle * factor} for each in rates for factor in size.radii]


def score(held_out: Run) -> tuple[float, float]:
    """Return error and loss on the held-out part, both infinite where the run failed."""
    found = held_out.read()
    if found is None:
        return np.inf, np.inf
    error, loss = (final_value(found, name) for name in (found.metric, "validation_loss"))
    return np.inf if error is None else error, np.inf if loss is None else loss


def measured(method: str, runs: Sequence[Run], epochs: int) -> dict[str, Any]:
    """Return the row of a method before it is compared.

    Args:
        method: Its name.
        runs: One a seed.
        epochs: Of plain training.
    """
    config, errors = runs[0].config, [each.error() for each in runs]
    cells: dict[str, Any] = {"method": method, "learning rate": config.base_lr}
    cells |= {"radius": config.gnp.r or None, "errors": errors, "error": error_cell(errors)}
    finished = [found for each in runs if (found := each.read())]
    if finished:
        share = penalized_share(config, finished[0].rows[-1]["step"] // finished[0].epochs)
        cells["gradients"] = gradients(config, share) * config.total_epochs / epochs
        cells["seconds"] = statistics.fmean(training_time(found.rows) for found in finished)
        cells["error"] = error_cell(errors, finished[0].metric)
    return cells


def training_time(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of training as if its two slowest epochs, which compile, were as others.

    Example:
        >>> training_time([{"epoch_seconds": seconds} for seconds in (9.0, 1.0, 7.0, 2.0)])
        6.0
    """
    usual = sorted(row["epoch_seconds"] for row in rows)
    return len(rows) * statistics.fmean(usual[:-2] or usual)


def excess(row: Mapping[str, Any], full: Mapping[str, Any]) -> list[float] | None:
    """Return each seed's error minus the full penalty's, over the mean of that; None: a run failed.

    Example:
        >>> excess({"errors": [0.75, 0.5]}, {"errors": [0.5, 0.5]})
        [0.5, 0.0]
    """
    if None in row["errors"] + full["errors"]:
        return None
    scale = statistics.fmean(full["errors"]) or 1.0  # a mean of 0 is a unit of its own
    return [(a - b) / scale for a, b in zip(row["errors"], full["errors"], strict=True)]


def bootstrap(differences: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return the mean over tasks of the mean over seeds, and the ends of its 95% interval.

    Seeds are drawn with replacement within each task; the tasks stay. The interval has the middle
    95% of the means, which is a little short where seeds are few (Efron and Tibshirani, 1993,
    chapter 13).

    Args:
        differences: Of each task, those of its seeds.

    Example:
        >>> bootstrap([[0.5, 0.5], [0.0, 0.0]])
        (0.25, 0.25, 0.25)
    """
    random, means = np.random.default_rng(0), np.zeros(_RESAMPLES)
    for each in differences:
        seeds = random.integers(len(each), size=(_RESAMPLES, len(each)))
        means += np.asarray(each)[seeds].mean(axis=1) / len(differences)
    low, high = np.percentile(means, [2.5, 97.5])
    return statistics.fmean(map(statistics.fmean, differences)), float(low), float(high)


def compared(differences: Sequence[list[float] | None]) -> dict[str, str]:
    """Return the cells of a comparison with the full penalty.

    Example:
        >>> compared([[0.25, 0.25], [0.0, 0.0]])
        {'over GNP': '+12.5% [+12.5%, +12.5%]', 'verdict': 'worse'}
        >>> compared([[0.25, 0.25], None])
        {'over GNP': '-', 'verdict': 'a run failed'}
    """
    complete = [each for each in differences if each is not None]
    if len(complete) < len(differences):
        return {"over GNP": "-", "verdict": "a run failed"}
    mean, low, high = bootstrap(complete)
    not_worse = "no worse" if high <= _MARGIN else "open"
    verdict = "better" if high < 0 else "worse" if low > 0 else not_worse
    return {"over GNP": f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]", "verdict": verdict}


def compare(tables: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Add to each row how it compares with the full penalty's; return the rows of all tasks.

    Args:
        tables: Task -> its rows, of the same methods in each.
    """
    full = [next(each for each in rows if each["method"] == FULL) for rows in tables.values()]
    over_all = []
    for rows in zip(*tables.values(), strict=True):  # of a method
        together = {"method": rows[0]["method"]}
        if costs := [each["gradients"] for each in rows if "gradients" in each]:
            together["gradients"] = max(costs)
        if together["method"] != FULL:
            differences = list(map(excess, rows, full))
            for each, difference in zip(rows, differences, strict=True):
                each |= compared([difference])
            together |= compared(differences)
        over_all.append(together)
    return over_all


def conclusions(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Say which cheap methods are no worse than the full penalty, and how longer training does.

    Args:
        tables: Task, or all of them -> rows that are compared.
    """
    lines = []
    for name, rows in tables.items():
        verdicts = {each["method"]: each.get("verdict") for each in rows}
        cheap = [each["method"] for each in rows if each.get("gradients", np.inf) <= CHEAP]
        known = [method for method in cheap if verdicts[method] in ("better", "no worse")]
        shown = ", ".join(known) or "none is shown to be"
        lines.append(f"{name}: no worse than {FULL} at {CHEAP} gradients or fewer: {shown}")
        if LONGER in verdicts:
            lines.append(f"{name}: {LONGER}, beside {FULL}: {verdicts[LONGER]}")
    return lines


def plot(tables: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw each task's errors, mean and standard deviation, against gradients and seconds.

    The axis of errors is logarithmic, but where a mean is 0.

    Args:
        tables: Task -> its rows.
        path: The PNG to write; replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    # Neighbors differ in both; 7 shapes and 8 colors make 56 pairs.
    pairs = zip(itertools.cycle("os^vDP*"), itertools.cycle(COLORS), strict=False)
    looks = dict(zip(methods(1), pairs, strict=False))
    points = {}
    with picture(path, (9.0, 2.7 * len(tables) + 1.2), dpi=100) as figure:
        grid = figure.subplots(len(tables), 2, squeeze=False)
        for axes, (name, rows) in zip(grid, tables.items(), strict=True):
            for axis, cost in zip(axes, ("gradients", "seconds"), strict=True):
                axis.set(title=name, xlabel=cost, ylabel="error")
                finished = [each for each in rows if cost in each]
                if all(any(each["errors"]) for each in finished):  # 0 has no logarithm
                    axis.set_yscale("log", subs=(2, 5))
                    axis.yaxis.set_major_formatter("{x:g}")
                    axis.yaxis.set_minor_formatter("{x:g}")
                for each in finished:
                    errors = [error for error in each["errors"] if error is not None]
                    marker, color = looks[each["method"]]
                    spread = np.std(errors, ddof=1) if len(errors) > 1 else 0.0
                    points[each["method"]] = axis.errorbar(
                        each[cost], np.mean(errors), spread, color=color, fmt=marker, mfc="none"
                    )
        figure.legend(points.values(), points.keys(), loc="outside upper center", ncols=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 1 where a run failed, 130 where stopped."""
    return run(lambda: _bench(arguments))


def _bench(arguments: Sequence[str] | None) -> None:
    names = list(methods(1))
    usual = [name for name in names if name not in RELATIVES]
    parser = Parser("bash recipe/verdict.sh", __doc__)
    parser.add_argument("--data_dir", type=local_path, help="folder with the data of all tasks")
    parser.add_argument("--out", type=local_path, help="default: runs/verdict, or verdict-quick")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours")
    parser.add_argument("--jobs", type=whole(1), default=2, help="training runs at a time")
    parser.add_argument("--seeds", type=whole(2), help="default: 10, or 3 with --quick")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all, or digits")
    parser.add_argument("--methods", nargs="+", choices=names, default=usual, metavar="NAME")
    options = parser.parse_args(arguments)
    jobs, size = options.jobs, QUICK if options.quick else WHOLE
    size = size._replace(seeds=options.seeds or size.seeds)
    out = options.out or ROOT / "runs" / ("verdict-quick" if options.quick else "verdict")
    # What the others are compared with is always there.
    chosen = [name for name in names if name in (FULL, *options.methods)]
    make_folder(out)
    tables, failures, absent = {}, [], []
    for name in dict.fromkeys(options.tasks or size.tasks):
        task = TASKS[name]
        epochs = round(size.epochs * task.epochs)
        data = (
            options.data_dir / task.data / task.needs
            if options.data_dir
            else Path(task.data, task.needs)
        )
        if task.data and not (options.data_dir and data.exists()):
            absent.append(f"{name} is left out, as there is no {data}; --data_dir says where")
            continue
        print(f"{name}, {epochs} epochs", file=sys.stderr)
        runs, failed = train_task(name, chosen, size, epochs, options.data_dir, out, jobs)
        tables[name] = [measured(method, runs[method], epochs) for method in chosen]
        failures += failed
    if not tables:
        raise UsageError("\n".join(absent))
    judged = {**tables, "all tasks": compare(tables)}
    for name, rows in judged.items():
        columns = {each: form for each, form in COLUMNS.items() if any(each in row for row in rows)}
        print(f"\n{name}\n")
        report(rows, columns, out / f"{name}.json", seeds=size.seeds, jobs=jobs)
    print("", *conclusions(judged), *absent, sep="\n")
    if drawn(plot, tables, out / "verdict.png"):
        print(f"picture: {out / 'verdict.png'}")
    if failures:
        raise BenchError("; ".join(failures))


if __name__ == "__main__":
    sys.exit(main())
