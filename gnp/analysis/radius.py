"""Choose r, the radius of the penalty: short trainings over a grid, judged on held-out examples.

    python -m gnp.analysis.radius --config=FILE [--out=DIR] [--radii=R,R,...] [--steps=N]
        [--seeds=N] [--config.KEY=VALUE ...]

Each training is the config's run in small: the schedules of the learning rate and of the penalty
shrink with the epochs. Plain training is always there beside them. Where the config gives
gnp.lambda, alpha = lambda / r is another one for each radius. on_nonfinite, early_stopping and
ema_decay are not honored: what counts are the weights of the last epoch. Each seed has its own
first parameters and order and, unless the data have a validation part of their own, holds out
another part of the training examples (a share dataset.validation_fraction); the test set is read
with --config.use_test_set=True alone. The radius with the smallest mean error there is recommended,
the smaller of two that are equal. Of classes the error is the error rate, not the loss, which rises
where a penalty makes a network less sure of itself; else it is the mean absolute error.

DIR gets radius.json and radius.png; the trained weights are not kept. Exit codes: 0 done; 2 the
command line or a config value is wrong by itself; 1 anything that data or devices show; 130 Ctrl-C.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import config as configs
import ds_pipeline
import model
import optimizer
from config import default
from config.load import split_overrides
from gnp.analysis.command_line import Parser, UsageError, local_path, make_folder, run, whole
from gnp.analysis.figure_files import GRAY, drawn, picture
from gnp.analysis.radius_trials import MOST_STEPS, Trial, search
from gnp.analysis.results import print_table
from gnp.experiment import DeviceError
from gnp.terminal import one_line, prepare_streams
from gnp.training.files import write_json
from gnp.training.metrics import NonFiniteError, number

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_USUAL_R, _USUAL_ALPHA = 0.05, 0.8  # where the config has none
_USAGE_ERRORS = (configs.ConfigError, model.ModelError, optimizer.OptimizerError)
_RUN_ERRORS = (ds_pipeline.DataError, DeviceError, NonFiniteError)


def main(arguments: Sequence[str]) -> int:
    """Run a command line, without the program's name, and return the exit code."""
    return run(lambda: _run(*_parse(arguments)), _USAGE_ERRORS, _RUN_ERRORS)


def _parse(
    arguments: Sequence[str],
) -> tuple[argparse.Namespace, list[tuple[str, str]], list[float]]:
    """Return the options, the config's keys to set, and the radii."""
    rest, overrides, wrong = split_overrides(arguments)
    if wrong:
        raise UsageError("\n".join(wrong))
    parser = Parser("python -m gnp.analysis.radius", __doc__)
    add = parser.add_argument
    # fmt: off
    add("--config", required=True, metavar="FILE", help="what to train; config/ holds ready ones")
    add("--out", type=local_path, default=Path("runs/radius"), metavar="DIR",
        help="folder for the results (default: %(default)s)")
    add("--radii", type=_radii, metavar="R,R", help="to try (default: 1/4, 1/2, 1, 2 and 4 times "
        "gnp.r, or 0.05 where that is 0)")
    add("--steps", type=whole(1), metavar="N", help="of each training, rounded to epochs, at least "
        f"one (default: half of the run's, {MOST_STEPS:,} at most)")
    add("--seeds", type=whole(2), default=3, metavar="N", help="trainings of each radius "
        "(default: %(default)s)")
    # fmt: on
    options = parser.parse_args(rest)
    overrides = [("use_test_set", "False"), *overrides]
    if options.radii:  # a weight of the penalty, and its relatives, need one
        overrides.insert(0, ("gnp.r", str(options.radii[0])))
    config = configs.load_config(options.config, overrides)
    gnp, start = config.gnp, config.start_from
    if start is not None:
        raise UsageError(f"start_from = {start!r} does not go with this command: leave it out")
    for kind, value in gnp.r_by_kind.items():
        if value is not None:
            raise UsageError(f"gnp.r_by_kind.{kind} = {value:g} is no radius to try: leave it out")
    if gnp["lambda"] == 0:
        raise UsageError("gnp.lambda = 0 penalizes nothing: leave it out, or give one above 0")
    has_weight = gnp.method in default.PENALTY_METHODS and not gnp.norm_perturbations
    if has_weight and gnp.alpha == 0:
        overrides.append(("gnp.alpha", str(_USUAL_ALPHA)))
    radii = options.radii or [(gnp.r or _USUAL_R) * factor for factor in _FACTORS]
    return options, [*overrides, ("gnp.r", str(radii[0]))], radii


def _run(options: argparse.Namespace, overrides: list[tuple[str, str]], radii: list[float]) -> None:
    make_folder(options.out)
    file, seeds = options.config, options.seeds
    trials, held_out, steps = search(file, overrides, radii, options.steps, seeds)
    chosen = choose({r: [each.metric for each in found] for r, found in trials.items()})
    advice = advise(chosen, radii, steps)
    names, rows = (*held_out, "train_loss", "gradient_norm"), []
    for radius, found in trials.items():
        means = [float(mean) if math.isfinite(mean) else None for mean in np.mean(found, axis=0)]
        rows.append((f"{radius:g}" if radius else "plain", *map(number, names, means)))
    columns = ("r", *(name.replace("_", " ") for name in names))
    print_table(f"{steps} steps, means of {seeds} seeds", rows, columns, numbers=columns)
    print(advice)
    # JSON has no infinity: what is not finite is left out.
    values = {
        f"{radius:g}": [{k: v for k, v in t._asdict().items() if math.isfinite(v)} for t in found]
        for radius, found in trials.items()
    }
    config = configs.as_json(configs.load_config(file, overrides))
    result = {"r": chosen, "advice": advice, "steps": steps, "seeds": seeds, "trials": values}
    write_json(options.out / "radius.json", result | {"config": config})
    has_picture = drawn(plot, trials, chosen, options.out / "radius.png")
    print(f"in {one_line(options.out)}: radius.json{', radius.png' if has_picture else ''}")


def choose(errors: Mapping[float, Sequence[float]]) -> float:
    """Return the radius of the smallest mean error, the first of those.

    Args:
        errors: Radius, in ascending order -> those of the seeds; 0: plain training.

    Raises:
        NonFiniteError: each has an error that is not finite.

    Example:
        >>> choose({0.0: [3.0, 3.2], 0.1: [1.0, 1.4], 0.2: [1.1, 1.1], 0.4: [1.0, math.inf]})
        0.2
    """
    # Rounded, so that equal shares of examples are equal whatever they were added up from.
    means = {radius: round(float(np.mean(found)), 9) for radius, found in errors.items()}
    finite = [radius for radius in means if np.isfinite(means[radius])]
    if not finite:
        raise NonFiniteError(
            "no radius, nor plain training, stayed finite with every seed: lower base_lr, or look "
            "at the data (python -m gnp.analysis.data)"
        )
    return min(finite, key=lambda radius: means[radius])


def advise(chosen: float, radii: Sequence[float], steps: int) -> str:
    """Return the line that says which radius to take.

    Example:
        >>> advise(0.2, [0.1, 0.2, 0.4], steps=300)
        'take r = 0.2'
        >>> advise(0.2, [0.1, 0.2], steps=300)
        'take r = 0.2 (the end of the grid: try r = 0.4)'
    """
    if chosen == 0:
        return (
            f"no gain in {steps} steps: plain training has the smallest error; more --steps may "
            "say otherwise"
        )
    ends = {radii[0]: chosen / 2, radii[-1]: chosen * 2} if len(radii) > 1 else {}
    further = ends.get(chosen)
    end = f" (the end of the grid: try r = {further:g})" if further else ""
    return f"take r = {chosen:g}{end}"


def plot(trials: Mapping[float, Sequence[Trial]], chosen: float, path: Path) -> None:
    """Draw losses over the radius: seeds as points, their means as lines, dotted without penalty.

    Args:
        trials: As `search` returns them.
        chosen: Marked, if it is not 0.
        path: The PNG to write; replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    radii = [radius for radius in trials if radius]
    with picture(path, (6.0, 3.6), dpi=100) as figure:
        axis = figure.subplots()
        for field, label in (("loss", "held-out loss"), ("train_loss", "training loss")):
            seeds = {r: [getattr(each, field) for each in trials[r]] for r in trials}
            (line,) = axis.plot(radii, [np.mean(seeds[r]) for r in radii], "o-", label=label)
            color = line.get_color()
            axis.plot(radii, [seeds[r] for r in radii], ".", color=color, alpha=0.5)
            plain = float(np.mean(seeds[0.0]))
            axis.axhline(plain, ls=":", color=color, label=f"{label}, plain")
        if chosen:
            axis.axvline(chosen, color=GRAY, lw=1, label=f"r = {chosen:g}")
        axis.set(xscale="log", xlabel="r", xticks=radii, xticklabels=[f"{r:g}" for r in radii])
        axis.minorticks_off()
        axis.legend()


def _radii(text: str) -> list[float]:
    """Return the numbers of `--radii`, in ascending order: the type of an argument."""
    try:
        radii = sorted({float(word) for word in text.split(",")})
    except ValueError:
        radii = []
    if not radii or not all(0 < radius < math.inf for radius in radii):
        raise argparse.ArgumentTypeError(f"{text}: numbers > 0 are needed, such as 0.05,0.1")
    return radii


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
