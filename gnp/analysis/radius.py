"""Choose r, the radius of the penalty: short trainings over a grid, judged on held-out examples.

    python -m gnp.analysis.radius --config=FILE [--out=DIR] [--radii=R,R,...] [--steps=N]
        [--seeds=N] [--config.KEY=VALUE ...]

Each training is the config's run in small: what the config says in epochs of the learning rate and
of the penalty shrinks with the epochs. Plain training is always there beside them. Each seed has
its own first parameters and order and, unless the data have a validation part of their own, holds
out another part of the training examples (a share dataset.validation_fraction); the test set is
read with --config.use_test_set=True alone. The radius with the smallest mean error there is
recommended, the smaller of two that are equal. Of classes the error is the error rate, not the
loss, which rises where a penalty makes a network less sure of itself.

DIR gets radius.json and radius.png; the trained weights are not kept. Exit codes: 0 done; 2 the
command line or a config value is wrong by itself; 1 anything that data or devices show; 130 Ctrl-C.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

import config as configs
import ds_pipeline
import model
import optimizer
from config import rules
from config.load import split_overrides
from gnp.analysis.command_line import Parser, UsageError, local_path, make_folder, run, whole
from gnp.analysis.figure_files import GRAY, drawn, picture
from gnp.analysis.results import print_table
from gnp.experiment import DeviceError, Experiment, build_experiment, device_count
from gnp.terminal import one_line, prepare_streams, warn
from gnp.training.files import write_json
from gnp.training.metrics import NonFiniteError, Progress, evaluate, number, to_floats
from gnp.training.tasks import TASKS

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_USUAL = {"gnp.r": "0.05", "gnp.alpha": "0.8"}  # of a config without a penalty
# What changes rate and penalty in a run, in epochs.
_IN_EPOCHS = ("warmup_epochs", "gnp.warmup_epochs", "gnp.tail_epochs")
_BOUNDARIES = "lr_schedule_params.boundaries"
_USAGE_ERRORS = (configs.ConfigError, model.ModelError, optimizer.OptimizerError)
_RUN_ERRORS = (ds_pipeline.DataError, DeviceError, NonFiniteError)


class Trial(NamedTuple):
    """What a training came to: held-out loss and metric, and means over its last epoch's steps.

    All are infinite where a step was not finite.
    """

    loss: float
    metric: float
    train_loss: float
    gradient_norm: float


def main(arguments: Sequence[str]) -> int:
    """Run a command line, without the program's name, and return the exit code."""
    return run(lambda: _run(*_parse(arguments)), _USAGE_ERRORS, _RUN_ERRORS)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Return the options, with radii, and the config's keys to set."""
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
    add("--steps", type=whole(1), default=300, metavar="N",
        help="of each training, rounded to epochs, at least one (default: %(default)s)")
    add("--seeds", type=whole(2), default=3, metavar="N", help="trainings of each radius "
        "(default: %(default)s)")
    # fmt: on
    options = parser.parse_args(rest)
    config = configs.load_config(options.config, overrides)
    if config.gnp.r == 0:
        overrides += [each for each in _USUAL.items() if configs.as_json(config)[each[0]] == 0]
        config = configs.load_config(options.config, overrides)
    options.radii = options.radii or [config.gnp.r * factor for factor in _FACTORS]
    return options, overrides


def _run(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    make_folder(options.out)
    with tempfile.TemporaryDirectory() as folder:
        if jax.config.values["jax_compilation_cache_dir"] is None:
            # All seeds run the same programs.
            jax.config.update("jax_compilation_cache_dir", folder)
        trials, held_out, steps = search(options, overrides)
    chosen = choose({r: [each.metric for each in found] for r, found in trials.items()})
    advice = advise(chosen, options.radii)
    names, rows = (*held_out, "train_loss", "gradient_norm"), []
    for radius, found in trials.items():
        means = [float(mean) if math.isfinite(mean) else None for mean in np.mean(found, axis=0)]
        rows.append((f"{radius:g}" if radius else "plain", *map(number, names, means)))
    columns = ("r", *(name.replace("_", " ") for name in names))
    print_table(f"{steps} steps, means of {options.seeds} seeds", rows, columns, numbers=columns)
    print(advice)
    # JSON has no infinity: what is not finite is left out.
    values = {
        f"{radius:g}": [{k: v for k, v in t._asdict().items() if math.isfinite(v)} for t in found]
        for radius, found in trials.items()
    }
    write_json(options.out / "radius.json", {"r": chosen, "advice": advice, "trials": values})
    has_picture = drawn(plot, trials, chosen, options.out / "radius.png")
    print(f"in {one_line(options.out)}: radius.json{', radius.png' if has_picture else ''}")


def search(
    options: argparse.Namespace, overrides: list[tuple[str, str]]
) -> tuple[dict[float, list[Trial]], list[str], int]:
    """Return radius, 0: plain -> a trial of each seed; names of held-out loss and metric; steps."""
    trials: dict[float, list[Trial]] = {radius: [] for radius in (0.0, *options.radii)}
    for seed in range(options.seeds):
        keys = [("use_test_set", "False"), *overrides]
        keys += [(name, str(seed)) for name in ("seeds", "init_seeds")]
        dataset = ds_pipeline.build_dataset(configs.load_config(options.config, keys))
        for warning in dataset.warnings if seed == 0 else ():
            warn(warning)
        for radius, found in trials.items():
            # Plain training is a run with the first radius, none of whose steps is penalized.
            given = [*keys, ("gnp.r", str(radius or options.radii[0]))]
            config = in_small(options.config, given, dataset, options.steps)
            experiment = build_experiment(config, dataset)
            name = f"seed {seed}, {f'r = {radius:g}' if radius else 'plain'}"
            with tqdm(total=experiment.total_steps, desc=name, disable=None, leave=False) as bar:
                found.append(trial(experiment, seed, radius > 0, bar.update))
    metrics = ("loss", *experiment.objective.metrics)
    names = [f"{dataset.evaluation_name}_{name}" for name in metrics[:2]]
    return trials, names, experiment.total_steps


def in_small(
    file: str, overrides: Sequence[tuple[str, str]], dataset: ds_pipeline.Dataset, steps: int
) -> ml_collections.ConfigDict:
    """Return the config of a run of about so many steps, whose schedules shrink with it."""
    config = configs.load_config(file, overrides)
    epochs = max(1, round(steps / ds_pipeline.count_steps(dataset, config.batch_size)))
    epochs = min(epochs, config.total_epochs)
    share, values = epochs / config.total_epochs, configs.as_json(config)
    small = {key: values[key] * share for key in _IN_EPOCHS if values[key] is not None}
    small |= {"total_epochs": epochs, _BOUNDARIES: tuple(b * share for b in values[_BOUNDARIES])}
    given = [(key, str(value)) for key, value in small.items()]
    config = configs.load_config(file, [*overrides, *given])
    devices, task = device_count(), TASKS[dataset.task]
    config = configs.with_group_size(config, {}, devices)
    count = len(dataset.train)
    rules.check(config, devices=devices, task=dataset.task, losses=task.losses, examples=count)
    return config


def trial(experiment: Experiment, seed: int, penalize: bool, stepped: Callable[[], Any]) -> Trial:
    """Train once, every step plain unless `penalize`; call `stepped` after each."""
    key, (state, _) = jax.random.key(seed), experiment.initialize()
    progress, rule, total = Progress(), experiment.step_rule, experiment.total_steps
    for step, batch in enumerate(experiment.train_batches(0)):
        take = experiment.penalized_step if penalize and rule(step) else experiment.plain_step
        with jax.set_mesh(experiment.mesh):
            state, metrics = take(state, batch, key, np.uint32(step))
        values = to_floats(metrics)
        rule.observe(step, values["gradient_norm"])
        if not values.pop("finite"):
            return Trial(*[math.inf] * 4)
        if step >= total - experiment.steps_per_epoch:
            progress.add(values, finite=True)
        stepped()
    found, _ = evaluate(experiment.eval_step, state, experiment.eval_batches())
    metric, means = found[next(iter(experiment.objective.metrics))], progress.means()
    return Trial(found["loss"], metric, means["loss"], means["gradient_norm"])


def choose(errors: Mapping[float, Sequence[float]]) -> float:
    """Return the radius of the smallest mean error, the first of those.

    Args:
        errors: Radius, in ascending order -> those of the seeds.

    Example:
        >>> choose({0.0: [3.0, 3.2], 0.1: [1.0, 1.4], 0.2: [1.1, 1.1], 0.4: [1.0, math.inf]})
        0.2
    """
    best = min(errors, key=lambda radius: np.mean(errors[radius]))
    if not np.isfinite(errors[best]).all():
        raise NonFiniteError(
            "no radius had finite trainings alone: lower base_lr, or check the data"
        )
    return best


def advise(chosen: float, radii: Sequence[float]) -> str:
    """Return the line that says which radius to take.

    Example:
        >>> advise(0.2, [0.1, 0.2, 0.4])
        'take r = 0.2'
        >>> advise(0.2, [0.1, 0.2])
        'take r = 0.2 (the end of the grid: try r = 0.4)'
    """
    if chosen == 0:
        return "no gain: plain training is the best"
    further = {radii[0]: chosen / 2, radii[-1]: chosen * 2}.get(chosen)
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
        radii = [0.0]
    if not 0 < radii[0] <= radii[-1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: numbers > 0 are needed, such as 0.05,0.1")
    return radii


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
