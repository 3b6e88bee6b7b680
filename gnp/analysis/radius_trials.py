"""The trainings behind the choice of r: a config's run in small, at each radius and seed."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

import config as configs
import ds_pipeline
from config import rules
from gnp.experiment import Experiment, build_experiment, device_count
from gnp.terminal import warn
from gnp.training.metrics import Progress, evaluate, to_floats
from gnp.training.state import TrainState
from gnp.training.tasks import TASKS

# Of a training whose length is not given.
MOST_STEPS = 1500
# What changes rate and penalty in a run, in epochs.
_IN_EPOCHS = ("warmup_epochs", "gnp.warmup_epochs", "gnp.tail_epochs")
# The one of lr_schedule_params that a type of schedule takes, and its value in a share of a run.
_SCHEDULES: dict[str, tuple[str, Callable[[Any, float], Any]]] = {
    "stepped": ("boundaries", lambda epochs, share: tuple(epoch * share for epoch in epochs)),
    "cosine_restarts": ("period", lambda epochs, share: max(1, round(epochs * share))),
    "exponential": ("rate", lambda rate, share: max(rate ** (1 / share), sys.float_info.min)),
    "inverse_time": ("decay", lambda decay, share: decay / share),
}


class Trial(NamedTuple):
    """Hold what a training came to: held-out loss and metric, means over its last epoch's steps.

    All are infinite where a step, or what is held out, was not finite.
    """

    loss: float
    metric: float
    train_loss: float
    gradient_norm: float


def search(
    file: str,
    overrides: Sequence[tuple[str, str]],
    radii: Sequence[float],
    steps: int | None,
    seeds: int,
) -> tuple[dict[float, list[Trial]], list[str], int]:
    """Return radius, 0: plain -> a trial of each seed; names of held-out loss and metric; steps."""
    trials: dict[float, list[Trial]] = {radius: [] for radius in (0.0, *radii)}
    for seed in range(seeds):
        keys = [*overrides, *((name, str(seed)) for name in ("seeds", "init_seeds"))]
        dataset = ds_pipeline.build_dataset(configs.load_config(file, keys))
        for warning in dataset.warnings if seed == 0 else ():
            warn(warning)
        for radius, found in trials.items():
            # Plain training is a run with the first radius, none of whose steps is penalized.
            given = [*keys, ("gnp.r", str(radius or radii[0]))]
            config = in_small(file, given, dataset, steps)
            experiment = build_experiment(config, dataset)
            state, report = experiment.initialize()
            if report and seed == 0 and not radius:  # the same in all of them
                print(f"{config.model.pretrained}: {report.summary()}", file=sys.stderr)
                for line in report.lines():
                    warn(f"pretrained weights, {line}")
            name = f"seed {seed}, {f'r = {radius:g}' if radius else 'plain'}"
            with tqdm(total=experiment.total_steps, desc=name, disable=None, leave=False) as bar:
                found.append(trial(experiment, state, seed, radius > 0, bar.update))
    metrics = ("loss", *experiment.objective.metrics)
    names = [f"{dataset.evaluation_name}_{name}" for name in metrics[:2]]
    return trials, names, experiment.total_steps


def in_small(
    file: str,
    overrides: Sequence[tuple[str, str]],
    dataset: ds_pipeline.Dataset,
    steps: int | None,
) -> ml_collections.ConfigDict:
    """Return the config of a run of about so many steps, whose schedules shrink with it.

    None: half of the run's own, `MOST_STEPS` at most.
    """
    config = configs.load_config(file, overrides)
    steps_per_epoch = ds_pipeline.count_steps(dataset, config.batch_size)
    if steps is None:
        steps = min(config.total_epochs * steps_per_epoch // 2, MOST_STEPS)
    epochs = max(1, round(steps / steps_per_epoch))
    epochs = min(epochs, config.total_epochs)
    share, values = epochs / config.total_epochs, configs.as_json(config)
    small = {key: values[key] * share for key in _IN_EPOCHS if values[key] is not None}
    if config.lr_schedule_type in _SCHEDULES:
        name, shrunk = _SCHEDULES[config.lr_schedule_type]
        key = f"lr_schedule_params.{name}"
        small[key] = shrunk(values[key], share)
    small["total_epochs"] = epochs
    config, _ = configs.apply_overrides(config, [(key, str(v)) for key, v in small.items()])
    devices, task = device_count(), TASKS[dataset.task]
    config = configs.with_group_size(config, {}, devices)
    count = len(dataset.train)
    rules.check(config, devices=devices, task=dataset.task, losses=task.losses, examples=count)
    return config


def trial(
    experiment: Experiment,
    state: TrainState,
    seed: int,
    penalize: bool,
    stepped: Callable[[], Any],
) -> Trial:
    """Train once, every step plain unless `penalize`; call `stepped` after each."""
    key, diverged = jax.random.key(seed), Trial(*[math.inf] * 4)
    progress, rule, total = Progress(), experiment.step_rule, experiment.total_steps
    for step, batch in enumerate(experiment.train_batches(0)):
        take = experiment.penalized_step if penalize and rule(step) else experiment.plain_step
        with jax.set_mesh(experiment.mesh):
            state, metrics = take(state, batch, key, np.uint32(step))
        values = to_floats(metrics)
        rule.observe(step, values["gradient_norm"])
        if not values.pop("finite"):
            return diverged
        if step >= total - experiment.steps_per_epoch:
            progress.add(values, finite=True)
        stepped()
    found, _ = evaluate(experiment.eval_step, state, experiment.eval_batches())
    loss, metric = found["loss"], found[next(iter(experiment.objective.metrics))]
    if not (math.isfinite(loss) and math.isfinite(metric)):
        return diverged
    means = progress.means()
    return Trial(loss, metric, means["loss"], means["gradient_norm"])
