"""--mode=train: a run from its checked config to pictures and a table, in the order of events."""

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections

import config as configs
import ds_pipeline
from config import default, rules
from gnp.analysis.results import show_results
from gnp.experiment import Experiment, build_experiment, device_count
from gnp.main.recording import Recording
from gnp.terminal import warn
from gnp.training import distributed, run_directory
from gnp.training.checkpoint import Checkpoints, Restored, read_checkpoint
from gnp.training.early_stopping import best_row, has_ended
from gnp.training.files import FileFormatError
from gnp.training.log import Log, rows_of
from gnp.training.metrics import (
    NonFiniteError,
    Progress,
    evaluate,
    non_finite_error,
    row_line,
    to_floats,
)
from gnp.training.state import TrainState
from gnp.training.tasks import TASKS
from gnp.training.trackers import installed_trackers, opened_writers


def run(
    config: ml_collections.ConfigDict, working_dir: Path, profile: tuple[int, int] | None = None
) -> int:
    """Train, or go on with, the run of a directory; return the exit code.

    Args:
        config: Complete, each key checked.
        working_dir: The run directory.
        profile: The first and the last step to trace, counted from 1.
    """
    # The config and the directory. What cannot run leaves the directory as it was.
    devices, first = device_count(), distributed.is_first()
    stored = {} if config.retrain else run_directory.stored_config(working_dir)
    resumes = not config.retrain and run_directory.has_checkpoints(working_dir)
    data = run_directory.read_data(working_dir) if resumes else {}
    stored, resumes, data = distributed.broadcast((stored, resumes, data))  # as process 0 sees it
    config = configs.with_group_size(config, stored, devices)
    rules.check(config, devices=devices)
    values = configs.as_json(config)
    trackers = installed_trackers(config.trackers if first else None)
    run_directory.check_same(values, distributed.broadcast(values))
    run_directory.check(
        working_dir,
        values,
        retrain=config.retrain,
        free=default.FREE_KEYS,
        defaults=configs.as_json(default.get_config()),
    )

    # The parts of the run.
    dataset = ds_pipeline.build_dataset(config, working_dir)
    identity = ds_pipeline.identity(dataset)
    # Of a new run, all processes need those of process 0.
    begun_with = data or distributed.broadcast(identity)
    run_directory.check_data(working_dir, ds_pipeline.identity_problems(begun_with, identity))
    rules.check(
        config,
        devices=devices,
        task=dataset.task,
        losses=TASKS[dataset.task].losses,
        examples=len(dataset.train),
    )
    experiment = build_experiment(config, dataset)
    check_best(config, experiment)
    recording = Recording(config, experiment, working_dir, profile)
    # Pretrained weights may not fit, which shows here. A run that goes on needs them no more.
    loaded = None if resumes else read_start(config, experiment)
    begun = None if resumes or loaded else experiment.initialize()

    distributed.sync("all processes have built the run")
    if first:
        for warning in dataset.warnings:
            warn(warning)
        run_directory.claim(working_dir, values, data=identity, retrain=config.retrain)
    distributed.sync("the run directory is claimed")
    run_directory.wait_for_claim(working_dir)

    with (
        distributed.catch_signals() as interrupt,
        Checkpoints(working_dir, config.keep_checkpoints) as checkpoints,
    ):
        restored = checkpoints.restore(experiment.abstract_state) or loaded
        progress = Progress(restored.progress if restored else None)
        remembered = restored.progress.get("step_rule", {}) if restored else None
        experiment.step_rule.restore(remembered)
        epochs = progress.step // experiment.steps_per_epoch
        whole = config.start_from is None
        rows = distributed.on_first(lambda: rows_of(working_dir, epochs, whole), FileFormatError)
        with (
            opened_writers(working_dir, progress.step, trackers, values, active=first) as writers,
            Log(working_dir, rows, writers, active=first) as log,
            recording,
        ):
            if restored:
                for warning in restored.warnings:
                    log.say(f"warning: {warning}")
                where = f"from {config.start_from}" if loaded else f"in {working_dir}"
                log.say(f"going on {where} after step {progress.step}")
                state = restored.state
            else:
                state, report = begun or experiment.initialize()
                if report:
                    log.say(f"{config.model.pretrained}: {report.summary()}")
                    for line in report.lines():
                        log.say(f"warning: pretrained weights, {line}")
            del begun, loaded, restored  # no second copy of the state stays while it trains
            recording.start(progress.step, log)
            train(
                config, experiment, state, progress, log=log, recording=recording,
                checkpoints=checkpoints, interrupt=interrupt,
            )  # fmt: skip
    if first:
        show_results(working_dir, config.record.gradients, config.early_stopping.metric)
    stopping = config.early_stopping
    is_done = progress.step == experiment.total_steps or has_ended(
        log.rows, stopping.metric, stopping.patience
    )
    if is_done and not progress.has_learned:
        raise NonFiniteError(
            "every step was skipped, as its loss, gradient or update was not finite: nothing was "
            "learned; lower base_lr, or check the data (python -m gnp.analysis.data shows them)"
        )
    if is_done:
        return 0
    return exit_code(interrupt, progress.step, experiment.total_steps, config.retrain)


def read_start(config: ml_collections.ConfigDict, experiment: Experiment) -> Restored | None:
    """Return the checkpoint that a new run goes on from, of another run; None: from none."""
    if config.start_from is None:
        return None
    path = configs.local_path(config.start_from)
    found = read_checkpoint(path, experiment.abstract_state, path)
    if found.step >= experiment.total_steps:
        raise configs.ConfigError(
            f"start_from = {config.start_from!r} is of step {found.step}, and the run has "
            f"{experiment.total_steps}: raise total_epochs = {config.total_epochs}"
        )
    return found


def check_best(config: ml_collections.ConfigDict, experiment: Experiment) -> None:
    """Raise ConfigError where early_stopping.metric is no number of this run's epochs."""
    given, dataset = config.early_stopping.metric, experiment.dataset
    parts = list(dict.fromkeys(["train", dataset.evaluation_name, "validation"]))
    parts += ["train_set"] if config.record.gradients else []
    if config.ema_decay is not None:
        parts += [f"{part}_ema" for part in parts[1:]]
    names = ("loss", *experiment.objective.metrics)
    allowed = [f"{part}_{name}" for part in parts for name in names]
    if given is not None and given not in allowed:
        raise configs.ConfigError(
            f"early_stopping.metric = {given!r} is no number of an epoch; allowed: "
            f"{', '.join(allowed)}"
        )


def train(
    config: ml_collections.ConfigDict,
    experiment: Experiment,
    state: TrainState,
    progress: Progress,
    *,
    log: Log,
    recording: Recording,
    checkpoints: Checkpoints,
    interrupt: distributed.Interrupt,
) -> None:
    """Train from where `progress` stands to the last epoch, or until a signal.

    Args:
        config: Of the run.
        experiment: Its parts.
        state: On the devices; donated.
        progress: Updated in place.
        log: Rows, events and bar.
        recording: Takes what is recorded beside the metrics.
        checkpoints: Where to save.
        interrupt: Says after which step a signal ends the run, which then saves.

    Raises:
        NonFiniteError: where config.on_nonfinite is "stop".
        CheckpointError: a checkpoint could not be written.
    """
    key = jax.random.key(config.seeds)

    def stop() -> bool:
        return interrupt.signal is not None

    dataset = experiment.dataset
    batches = experiment.train_batches(progress.step, stop)
    steps_per_epoch, epochs = experiment.steps_per_epoch, config.total_epochs
    metric, patience = config.early_stopping.metric, config.early_stopping.patience

    def read(step: int, metrics: dict[str, Any], weight: float) -> None:
        """Wait for the metrics of step `step`, counted from 1, and take them in."""
        gradients = metrics.pop("gradients", None)
        values = to_floats(metrics)
        experiment.step_rule.observe(step - 1, values["gradient_norm"])
        finite = progress.add(values, values.pop("finite") > 0, weight)
        if not finite and config.on_nonfinite == "stop":
            raise non_finite_error(step, -(-step // steps_per_epoch), values)
        log.step(lambda: progress.postfix(config.batch_size))
        if step % config.log_every_n_steps == 0:
            log.points(step, {f"train/{name}": value for name, value in values.items()})
            log.points(step, experiment.scalars(step - 1))
        recording.step(step, gradients)

    def measure(name: str, source: ds_pipeline.Source) -> dict[str, float]:
        """Return the metrics of all examples of a source; say what is missing or not finite."""
        means: dict[str, float] = {}
        try:
            batches = experiment.eval_batches(stop, source)
            means, _ = evaluate(experiment.eval_step, state, batches)
        except ds_pipeline.StalledError as error:  # the epoch is saved without it
            log.say(f"warning: epoch {epoch}: no {name} metrics: {error}")
        if wrong := [metric for metric, value in means.items() if not math.isfinite(value)]:
            log.say(f"warning: epoch {epoch}: {name} {', '.join(wrong)} not finite")
        return {f"{name}_{metric}": value for metric, value in means.items()}

    def save() -> None:
        remembered = experiment.step_rule.to_json()
        rule = {"step_rule": remembered} if remembered else {}
        best = best_row(log.rows, metric)
        checkpoints.save(
            progress.step, state, progress.to_json() | rule, best=best["step"] if best else None
        )

    for epoch in range(progress.step // steps_per_epoch + 1, epochs + 1):
        if interrupt.reached(progress.step):
            break
        if has_ended(log.rows, metric, patience):
            log.say(f"{metric} was not below its best for {patience} evaluations: training ends")
            break
        end = epoch * steps_per_epoch
        log.start_epoch(epoch, epochs, steps_per_epoch, done=progress.step + steps_per_epoch - end)
        unread = None
        with progress.clock():
            for step in range(progress.step, end):
                try:
                    batch = progress.next_batch(batches)
                except ds_pipeline.StalledError:
                    break
                weight = len(batch["label"]) / config.batch_size
                state, metrics = recording.train_step(state, batch, key, step)
                progress.step = step + 1
                if unread:  # while the step that was just dispatched runs
                    read(*unread)
                unread = step + 1, metrics, weight
                if interrupt.reached(step + 1):
                    break
            if unread:
                read(*unread)
        if progress.step < end:
            break

        state, measured = recording.end_epoch(state, epoch)
        if config.record.gradients:
            measured |= measure("train_set", dataset.train_as_evaluated)
        if epoch == epochs or epoch % config.evaluate_every_n_epochs == 0:
            measured = measure(dataset.evaluation_name, dataset.evaluation) | measured
            if dataset.validation is not None:
                measured |= measure("validation", dataset.validation)
            if dataset.mislabeled is not None:
                measured |= measure("mislabeled", dataset.mislabeled)
        scalars = experiment.scalars(progress.step - 1)
        examples = min(steps_per_epoch * config.batch_size, len(dataset.train))
        row = progress.row(epoch, examples, measured, scalars)
        log.end_epoch(row, row_line(row, epochs))
        progress.start_epoch()
        is_best = best_row(log.rows, metric) is row
        is_last = epoch == epochs or has_ended(log.rows, metric, patience)
        if is_last or is_best or epoch % config.save_ckpt_every_n_epochs == 0:
            save()

    if progress.step and interrupt.reached(progress.step):
        save()
    log.close_bar()
    checkpoints.wait()


def exit_code(interrupt: distributed.Interrupt, step: int, total_steps: int, retrains: bool) -> int:
    """Say how a run ended before its last step, if it did, and return the exit code.

    That of a run which SIGTERM stopped is GNP_STOPPED, 0 where that is not set, in all its
    processes, whichever had the signal: a scheduler may have to know that there is more.
    """
    if interrupt.signal is None:
        return 0
    if distributed.is_first():
        saved = "saved" if step else "nothing to save"
        again = "" if retrains else "; the same command goes on from there"
        line = f"stopped by {interrupt.signal.name} after step {step} of {total_steps}"
        print(f"{line}, {saved}{again}", file=sys.stderr)
    return 130 if interrupt.signal == signal.SIGINT else int(os.environ.get("GNP_STOPPED", "0"))
