"""--mode=train."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from config import default
from gnp import build
from gnp.analysis.curves import plot_curves
from gnp.main.command_line import UsageError
from gnp.main.tables import print_results
from gnp.training import distributed
from gnp.training.checkpoint import Checkpoints, Restored
from gnp.training.distributed import Interrupt, catch_signals
from gnp.training.evolution import EvolutionWriter, layer_names
from gnp.training.files import read_rows
from gnp.training.gradient_files import GradientFiles, check_space, size_line
from gnp.training.loop import Member, Progress, evaluate, train
from gnp.training.metrics import Log
from gnp.training.profile import FOLDER, ProfiledSteps
from gnp.training.run_directory import (
    RunDirectoryError,
    check_run_directory,
    claim_run_directory,
    read_config,
    refuse_mixture,
)
from gnp.training.seeds import stacked
from gnp.training.state import TrainState

# Keys that may differ between the machines of a run.
_OF_A_MACHINE = ("dataset.data_dir", "dataset.workers")


class _Seed(NamedTuple):
    """A seed of the run: its config, its directory and its parts."""

    config: ml_collections.ConfigDict
    directory: Path
    parts: build.Run
    name: str


def run(
    config: ml_collections.ConfigDict, working_dir: Path, profile: tuple[int, int] | None = None
) -> int:
    """Trains, or goes on with, the run of a directory; returns the exit code.

    With `num_seeds` above 1 that is a run directory a seed, in the one that is given.

    The exit code of a run which SIGTERM stopped before its end is GNP_STOPPED, 0 where that is not
    set, in all its processes, whichever had the signal: a scheduler may have to know that there is
    more.

    Args:
        config: checked and complete.
        working_dir: the run directory.
        profile: the first and the last step to trace, counted from 1.
    """
    build.check_names(config)
    build.check_devices(config)
    active = distributed.is_first()
    members, directories = build.members_of(config, working_dir)
    _decide(lambda: refuse_mixture(working_dir, len(members)))

    def stored() -> dict[str, Any]:
        fresh = config.retrain or not (directories[0] / "config.json").is_file()
        return {} if fresh else read_config(directories[0])

    there = _decide(stored)
    members = [build.with_group_size(member, there) for member in members]
    as_json = [build.config_as_json(member) for member in members]
    _check_same(as_json[0])
    for directory, values in zip(directories, as_json, strict=True):
        _check_directory(directory, values, config.retrain)
    runs = build.build_runs(members, directories)
    names = [f"seed {run.seed}" if len(runs) > 1 else "" for run in runs]
    seeds = [_Seed(*each) for each in zip(members, directories, runs, names, strict=True)]
    plan, like = runs[0].plan, build.abstract_state(runs[0])
    for warning in dict.fromkeys(w for each in runs for w in each.dataset.warnings if active):
        print(f"warning: {warning}", file=sys.stderr)
    if profile and profile[1] > plan.total_steps:
        raise UsageError(
            f"--profile={profile[0]}:{profile[1]}: the run has {plan.total_steps} steps, "
            f"{plan.steps_per_epoch} an epoch"
        )
    if config.record.steps and active:
        parts = directories if len(seeds) > 1 else ()
        check_space(working_dir, _parameters(like), plan.total_steps, parts)
    begun = [_pretrained(seed) for seed in seeds]
    # Only now: a command that cannot run leaves the directory as it was.
    for directory, values in zip(directories, as_json, strict=True):
        _claim(directory, values, config.retrain)
    if not active:
        _check_shared(directories[0], as_json[0])
    with catch_signals() as interrupt, contextlib.ExitStack() as open_ones:
        checkpoints = [Checkpoints(seed.directory, config.keep_checkpoints) for seed in seeds]
        for each in checkpoints:
            open_ones.enter_context(each)
        progress = _train(seeds, working_dir, checkpoints, like, begun, interrupt, profile)
    if active:
        for seed in seeds:
            _show(seed.directory, seed.parts.records)
    if interrupt.signal is None or progress.step == plan.total_steps:
        return 0
    code = 130 if interrupt.signal == signal.SIGINT else int(os.environ.get("GNP_STOPPED", "0"))
    if not active:
        return code
    again = "" if config.retrain else "; the same command goes on from there"
    print(
        f"stopped by {interrupt.signal.name} after step {progress.step} of "
        f"{plan.total_steps}, {'saved' if progress.step else 'nothing to save'}{again}",
        file=sys.stderr,
    )
    return code


def _decide(make: Callable[[], Any]) -> Any:
    """Return what process 0 makes."""
    return distributed.broadcast(make() if distributed.is_first() else None)


def _check_directory(directory: Path, as_json: dict[str, Any], retrain: bool) -> None:
    _decide(
        lambda: check_run_directory(
            directory,
            as_json,
            retrain=retrain,
            free=default.FREE_KEYS,
            defaults=build.config_as_json(default.get_config()),
        )
    )


def _claim(directory: Path, as_json: dict[str, Any], retrain: bool) -> None:
    _decide(lambda: claim_run_directory(directory, as_json, retrain=retrain))


def _pretrained(seed: _Seed) -> build.Begun | None:
    """Pretrained weights may not fit, which shows here. A run that goes on needs them no more."""
    config = seed.config
    begins = config.retrain or not _decide(lambda: _has_checkpoints(seed.directory))
    if not seed.parts.pretrained or not begins:
        return None
    return build.initial_state(seed.parts, config.init_seeds)


def _has_checkpoints(working_dir: Path) -> bool:
    return any(path.name.isdigit() for path in (working_dir / "checkpoints").glob("*"))


def _check_same(as_json: dict[str, Any]) -> None:
    """Whether all processes were given one config."""
    here = json.loads(json.dumps(as_json))
    first = _decide(lambda: here)
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
    if not config.record.steps or not distributed.is_first():
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
        active=distributed.is_first(),
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
    if not distributed.is_first():
        return None
    log.say(f"a trace of steps {first} to {last}: {working_dir / FOLDER}, for xprof or TensorBoard")
    return ProfiledSteps(parts.steps, first, last, working_dir)


def _train(
    seeds: Sequence[_Seed],
    working_dir: Path,
    checkpoints: Sequence[Checkpoints],
    like: TrainState,
    begun: list[build.Begun | None],
    interrupt: Interrupt,
    profile: tuple[int, int] | None,
) -> Progress:
    parts, active = seeds[0].parts, distributed.is_first()
    restored = _restore(seeds, checkpoints, like)
    states, members = [], []
    with contextlib.ExitStack() as open_ones:
        for seed, saved, first, at in zip(seeds, restored, begun, checkpoints, strict=True):
            progress = Progress(saved.progress if saved else None)
            log = Log(seed.directory, progress.step, active, seed.name, bar=seed is seeds[0])
            open_ones.callback(log.close)
            states.append(_first_state(seed, saved, first, log))
            files = _gradient_files(seed.config, seed.parts, like, seed.directory, progress)
            if files:
                open_ones.callback(files.close)
                size = size_line(seed.directory, _parameters(like), parts.plan.total_steps)
                log.say(f"every step's gradient is written: {size}")
            members.append(
                Member(
                    progress,
                    _measure(seed.parts),
                    log,
                    at,
                    name=seed.name,
                    end_epoch=_end_epoch(seed.parts, like, seed.directory, progress, files),
                    record=files,
                    probe=_probe(seed.config, seed.parts),
                )
            )
        progress = members[0].progress
        steps = _profiled(parts, working_dir, profile, progress, members[0].log)
        if steps:
            open_ones.callback(steps.close)
        state = stacked(states)
        for each in (states, restored, begun):  # no seed's own arrays are kept beside the stack
            each.clear()
        train(
            state,
            members,
            plan=parts.plan,
            steps=steps or parts.steps,
            key=stacked([jax.random.key(seed.config.seeds) for seed in seeds]),
            batches=build.training_batches([seed.parts for seed in seeds], progress.step),
            scalars=parts.scalars,
            interrupt=interrupt,
            skip_nonfinite=seeds[0].config.on_nonfinite == "skip",
        )
    return progress


def _restore(
    seeds: Sequence[_Seed], checkpoints: Sequence[Checkpoints], like: TrainState
) -> list[Restored | None]:
    """What each seed goes on from."""
    restored = [each.restore(like) for each in checkpoints]
    for seed, saved in zip(seeds, restored, strict=True):
        _warn(seed, saved.warnings if saved else [])
    return restored


def _warn(seed: _Seed, lines: Iterable[str]) -> None:
    whose = f"{seed.name}: " if seed.name else ""
    for line in lines if distributed.is_first() else []:
        print(f"warning: {whose}{line}", file=sys.stderr)


def _first_state(
    seed: _Seed, restored: Restored | None, begun: build.Begun | None, log: Log
) -> TrainState:
    """The state that a seed goes on from, or begins with; says which."""
    if restored:
        log.say(f"going on in {seed.directory} after step {restored.progress['step']}")
        return restored.state
    state, pretrained = begun or build.initial_state(seed.parts, seed.config.init_seeds)
    if pretrained:
        log.say(f"{seed.config.model.pretrained}: {pretrained.summary()}")
        _warn(seed, [f"pretrained weights, {line}" for line in pretrained.lines()])
    return state


def _measure(parts: build.Run) -> Callable[[TrainState], dict[str, float]]:
    def measure(state: TrainState) -> dict[str, float]:
        values, _ = evaluate(parts.evaluation_step, state, build.evaluation_batches(parts))
        return {f"{parts.dataset.evaluation_name}_{name}": v for name, v in values.items()}

    return measure
