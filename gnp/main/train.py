"""--mode=train."""

import sys
from pathlib import Path

import jax
import ml_collections

from config import default
from gnp.analysis.curves import plot_curves
from gnp.main import build
from gnp.main.tables import print_results
from gnp.training.checkpoint import Checkpoints
from gnp.training.files import read_rows
from gnp.training.interrupt import Interrupt, catch_signals
from gnp.training.loop import Progress, evaluate, train
from gnp.training.metrics import Log
from gnp.training.run_directory import check_run_directory, claim_run_directory, read_config
from gnp.training.state import TrainState


def run(config: ml_collections.ConfigDict, working_dir: Path) -> int:
    """Trains, or goes on with, the run of a directory; returns the exit code."""
    build.check_names(config)
    build.check_devices(config)
    fresh = config.retrain or not (working_dir / "config.json").is_file()
    config = build.with_group_size(config, {} if fresh else read_config(working_dir))
    as_json = build.config_as_json(config)
    check_run_directory(
        working_dir,
        as_json,
        retrain=config.retrain,
        free=default.FREE_KEYS,
        defaults=build.config_as_json(default.get_config()),
    )
    parts = build.build_run(config, directory=working_dir)
    for warning in parts.dataset.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    like = build.abstract_state(parts)
    # Pretrained weights may not fit, which shows here. A run that goes on needs them no more.
    saved = (path.name for path in (working_dir / "checkpoints").glob("*"))
    begins = config.retrain or not any(name.isdigit() for name in saved)
    begun = build.initial_state(parts, config.init_seeds) if parts.pretrained and begins else None
    active = jax.process_index() == 0
    # Only now: a command that cannot run leaves the directory as it was.
    if active:
        claim_run_directory(working_dir, as_json, retrain=config.retrain)
    with catch_signals() as interrupt:
        checkpoints = Checkpoints(working_dir, config.keep_checkpoints)
        try:
            progress = _train(config, working_dir, parts, checkpoints, like, begun, interrupt)
        finally:
            checkpoints.close()
    if active:
        _show(working_dir)
    if interrupt.signal is None or progress.step == parts.plan.total_steps:
        return 0
    again = "" if config.retrain else "; the same command goes on from there"
    print(
        f"stopped by {interrupt.signal.name} after step {progress.step} of "
        f"{parts.plan.total_steps}, {'saved' if progress.step else 'nothing to save'}{again}",
        file=sys.stderr,
    )
    return 130 if interrupt.signal.name == "SIGINT" else 0


def _show(working_dir: Path) -> None:
    rows = read_rows(working_dir / "metrics.jsonl")
    if rows:
        plot_curves(rows, working_dir / "curves.png")
        print_results(rows, working_dir)


def _train(
    config: ml_collections.ConfigDict,
    working_dir: Path,
    parts: build.Run,
    checkpoints: Checkpoints,
    like: TrainState,
    begun: build.Begun | None,
    interrupt: Interrupt,
) -> Progress:
    restored = checkpoints.restore(like)
    for warning in restored.warnings if restored else []:
        print(f"warning: {warning}", file=sys.stderr)
    progress = Progress(restored.progress if restored else None)
    if restored:
        begun = build.Begun(restored.state, None)
    state, pretrained = begun or build.initial_state(parts, config.init_seeds)
    active = jax.process_index() == 0
    log = Log(working_dir, from_step=progress.step, active=active)
    if restored:
        log.say(f"going on in {working_dir} after step {progress.step}")
    if pretrained:
        log.say(f"{config.model.pretrained}: {pretrained.summary()}")
        for line in pretrained.lines() if active else []:
            print(f"warning: pretrained weights, {line}", file=sys.stderr)

    def measure(state: TrainState) -> dict[str, float]:
        values, _ = evaluate(parts.evaluation_step, state, build.evaluation_batches(parts))
        return {f"{parts.dataset.evaluation_name}_{name}": v for name, v in values.items()}

    try:
        train(
            state,
            progress,
            plan=parts.plan,
            steps=parts.steps,
            key=jax.random.key(config.seeds),
            batches=build.training_batches(parts, config.seeds, progress.step),
            evaluate=measure,
            scalars=parts.scalars,
            log=log,
            checkpoints=checkpoints,
            interrupt=interrupt,
            skip_nonfinite=config.on_nonfinite == "skip",
        )
    finally:
        log.close()
    return progress
