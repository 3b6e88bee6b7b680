"""--mode=train."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections

from config import default
from gnp import build
from gnp.analysis.curves import plot_curves
from gnp.main.command_line import UsageError
from gnp.main.tables import print_results
from gnp.training import processes
from gnp.training.checkpoint import Checkpoints
from gnp.training.evolution import EvolutionWriter, layer_names
from gnp.training.files import read_rows
from gnp.training.gradient_files import GradientFiles, check_space, size_line
from gnp.training.interrupt import Interrupt, catch_signals
from gnp.training.loop import Progress, evaluate, train
from gnp.training.metrics import Log
from gnp.training.profile import FOLDER, ProfiledSteps
from gnp.training.run_directory import (
    RunDirectoryError,
    check_run_directory,
    claim_run_directory,
    read_config,
)
from gnp.training.state import TrainState

# Keys that may differ between the machines of a run.
_OF_A_MACHINE = ("dataset.data_dir", "dataset.workers")


def run(
    config: ml_collections.ConfigDict, working_dir: Path, profile: tuple[int, int] | None = None
) -> int:
    """Trains, or goes on with, the run of a directory; returns the exit code.

    That of a run which SIGTERM stopped before its end is GNP_STOPPED, 0 where that is not set, in
    all its processes, whichever had the signal: a scheduler may have to know that there is more.

    Args:
        config: checked and complete.
        working_dir: the run directory.
        profile: the first and the last step to trace, counted from 1.
    """
    build.check_names(config)
    build.check_devices(config)
    active = processes.is_first()

    def stored() -> dict[str, Any]:
        fresh = config.retrain or not (working_dir / "config.json").is_file()
        return {} if fresh else read_config(working_dir)

    config = build.with_group_size(config, processes.decide(stored))
    as_json = build.config_as_json(config)
    _check_same(as_json)
    processes.decide(
        lambda: check_run_directory(
            working_dir,
            as_json,
            retrain=config.retrain,
            free=default.FREE_KEYS,
            defaults=build.config_as_json(default.get_config()),
        )
    )
    parts = build.build_run(config, directory=working_dir)
    for warning in parts.dataset.warnings if active else []:
        print(f"warning: {warning}", file=sys.stderr)
    if profile and profile[1] > parts.plan.total_steps:
        raise UsageError(
            f"--profile={profile[0]}:{profile[1]}: the run has {parts.plan.total_steps} steps, "
            f"{parts.plan.steps_per_epoch} an epoch"
        )
    like = build.abstract_state(parts)
    if config.record.steps and active:
        check_space(working_dir, _parameters(like), parts.plan.total_steps)
    # Pretrained weights may not fit, which shows here. A run that goes on needs them no more.
    begins = config.retrain or not processes.decide(lambda: _has_checkpoints(working_dir))
    begun = build.initial_state(parts, config.init_seeds) if parts.pretrained and begins else None
    # Only now: a command that cannot run leaves the directory as it was.
    processes.decide(lambda: claim_run_directory(working_dir, as_json, retrain=config.retrain))
    if not active:
        _check_shared(working_dir, as_json)
    with catch_signals() as interrupt:
        checkpoints = Checkpoints(working_dir, config.keep_checkpoints)
        try:
            progress = _train(
                config, working_dir, parts, checkpoints, like, begun, interrupt, profile
            )
        except BaseException as error:
            if not processes.is_lost(error):  # who is gone cannot write its part
                processes.bounded(checkpoints.close)
            raise
        checkpoints.close()
    if active:
        _show(working_dir, parts.records)
    if interrupt.signal is None or progress.step == parts.plan.total_steps:
        return 0
    code = 130 if interrupt.signal == signal.SIGINT else int(os.environ.get("GNP_STOPPED", "0"))
    if not active:
        return code
    again = "" if config.retrain else "; the same command goes on from there"
    print(
        f"stopped by {interrupt.signal.name} after step {progress.step} of "
        f"{parts.plan.total_steps}, {'saved' if progress.step else 'nothing to save'}{again}",
        file=sys.stderr,
    )
    return code


def _has_checkpoints(working_dir: Path) -> bool:
    return any(path.name.isdigit() for path in (working_dir / "checkpoints").glob("*"))


def _check_same(as_json: dict[str, Any]) -> None:
    """Whether all processes were given one config."""
    here = json.loads(json.dumps(as_json))
    first = processes.decide(lambda: here)
    different = [
        name for name in first if name not in _OF_A_MACHINE and first[name] != here.get(name)
    ]
    if different:
        raise UsageError(
            f"this process was given another config than process 0: {', '.join(different)}; "
            "start all with the same command"
        )


def _check_shared(working_dir: Path, as_json: dict[str, Any]) -> None:
    """Whether this process sees what process 0 has written."""
    for wait in (0.0, 1.0, 5.0, 30.0):  # a network's file system may be late
        time.sleep(wait)
        with contextlib.suppress(RunDirectoryError):
            there, here = read_config(working_dir), json.loads(json.dumps(as_json))
            if all(there.get(name) == here[name] for name in here if name not in _OF_A_MACHINE):
                return
    raise RunDirectoryError(
        f"--working_dir={working_dir} of process 0 is not seen here: all processes need one on a "
        "file system that their machines share"
    )


def _show(working_dir: Path, recorded: bool) -> None:
    rows = read_rows(working_dir / "metrics.jsonl")
    if rows:
        plot_curves(rows, working_dir / "curves.png")
        print_results(rows, working_dir)
        if recorded:
            from gnp.analysis.evolution import show_evolution

            show_evolution(working_dir)


def _parameters(like: TrainState) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(like.params))


def _gradient_files(
    config: ml_collections.ConfigDict,
    parts: build.Run,
    like: TrainState,
    working_dir: Path,
    progress: Progress,
) -> GradientFiles | None:
    """Where process 0 writes every step's gradient."""
    if not config.record.steps or not processes.is_first():
        return None
    return GradientFiles(
        working_dir,
        layer_names(like.params),
        [leaf.shape for leaf in jax.tree.leaves(like.params)],
        parts.plan.steps_per_epoch,
        parts.plan.total_steps,
        from_step=progress.step,
    )


def _end_epoch(
    parts: build.Run,
    like: TrainState,
    working_dir: Path,
    progress: Progress,
    files: GradientFiles | None,
) -> Callable[[TrainState, int], TrainState] | None:
    """What a recorded run does at the end of an epoch."""
    if not parts.records:
        return None
    write = EvolutionWriter(
        working_dir,
        layer_names(like.params),
        tuple(leaf.size for leaf in jax.tree.leaves(like.params)),
        from_epoch=progress.step // parts.plan.steps_per_epoch,
        active=processes.is_first(),
    )

    def end_epoch(state: TrainState, epoch: int) -> TrainState:
        if files:
            files.flush()
        return write(state, epoch)

    return end_epoch


def _probe(
    config: ml_collections.ConfigDict, parts: build.Run
) -> Callable[[TrainState, int], dict[str, float]] | None:
    """What measures the sharpness as a run goes on."""
    every = config.record.sharpness_every_n_epochs
    if every is None:
        return None
    from gnp.analysis.sharpness.run import build_probe  # late: few runs need matfree

    loss = build.loss_parts(config, parts.dataset)
    return build_probe(parts, loss, every, radius=config.gnp.r, seed=config.seeds)


def _profiled(
    parts: build.Run,
    working_dir: Path,
    profile: tuple[int, int] | None,
    progress: Progress,
    log: Log,
) -> ProfiledSteps | None:
    """The steps, where some that are still to come are to be traced."""
    if profile is None:
        return None
    first, last = max(profile[0], progress.step + 1), profile[1]
    if first > last:
        log.say(f"warning: --profile={profile[0]}:{last}: these steps were taken before: no trace")
        return None
    if not processes.is_first():
        return None
    log.say(f"a trace of steps {first} to {last}: {working_dir / FOLDER}, for xprof or TensorBoard")
    return ProfiledSteps(parts.steps, first, last, working_dir)


def _train(
    config: ml_collections.ConfigDict,
    working_dir: Path,
    parts: build.Run,
    checkpoints: Checkpoints,
    like: TrainState,
    begun: build.Begun | None,
    interrupt: Interrupt,
    profile: tuple[int, int] | None,
) -> Progress:
    restored = checkpoints.restore(like)
    active = processes.is_first()
    for warning in restored.warnings if restored and active else []:
        print(f"warning: {warning}", file=sys.stderr)
    progress = Progress(restored.progress if restored else None)
    if restored:
        begun = build.Begun(restored.state, None)
    state, pretrained = begun or build.initial_state(parts, config.init_seeds)
    log = Log(working_dir, from_step=progress.step, active=active)
    if restored:
        log.say(f"going on in {working_dir} after step {progress.step}")
    if pretrained:
        log.say(f"{config.model.pretrained}: {pretrained.summary()}")
        for line in pretrained.lines() if active else []:
            print(f"warning: pretrained weights, {line}", file=sys.stderr)
    files = _gradient_files(config, parts, like, working_dir, progress)
    if files:
        size = size_line(working_dir, _parameters(like), parts.plan.total_steps)
        log.say(f"every step's gradient is written: {size}")

    steps = _profiled(parts, working_dir, profile, progress, log)

    def measure(state: TrainState) -> dict[str, float]:
        values, _ = evaluate(parts.evaluation_step, state, build.evaluation_batches(parts))
        return {f"{parts.dataset.evaluation_name}_{name}": v for name, v in values.items()}

    try:
        train(
            state,
            progress,
            plan=parts.plan,
            steps=steps or parts.steps,
            key=jax.random.key(config.seeds),
            batches=build.training_batches(parts, config.seeds, progress.step),
            evaluate=measure,
            scalars=parts.scalars,
            log=log,
            checkpoints=checkpoints,
            interrupt=interrupt,
            end_epoch=_end_epoch(parts, like, working_dir, progress, files),
            record=files,
            probe=_probe(config, parts),
            skip_nonfinite=config.on_nonfinite == "skip",
        )
    finally:
        log.close()
        if files:
            files.close()
        if steps:  # last: a trace that cannot be written takes nothing else with it
            steps.close()
    return progress
