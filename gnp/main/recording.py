"""Recordings beside the metrics: gradients, their evolution, sharpness, a trace of steps."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import ml_collections

from gnp.experiment import Experiment
from gnp.main.command_line import UsageError
from gnp.training.distributed import is_first
from gnp.training.evolution import EvolutionWriter
from gnp.training.gradient_files import GradientFiles, check_space, size_line
from gnp.training.log import Log
from gnp.training.profile import FOLDER, ProfiledSteps
from gnp.training.state import TrainState


class Recording:
    """Record what a config's `record` asks for; use it in a `with` statement.

    Args:
        config: Of the run.
        experiment: Its parts.
        directory: The run directory.
        step: Steps taken so far; what was recorded later is recorded anew.
        log: Says what is going to be written.
        profile: The first and the last step to trace, counted from 1; None: none.

    Attributes:
        train_step: The experiment's, traced where that is asked for.

    Raises:
        FileFormatError: what was recorded before `step` is missing or damaged.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        experiment: Experiment,
        directory: Path,
        step: int,
        log: Log,
        profile: tuple[int, int] | None = None,
    ) -> None:
        self.train_step: Any = experiment.train_step
        self._trace: ProfiledSteps | None = None
        self._files: GradientFiles | None = None
        self._evolution: EvolutionWriter | None = None
        self._probe: Callable[[TrainState, int], dict[str, float]] | None = None
        state, per_epoch = experiment.abstract_state, experiment.steps_per_epoch
        if config.record.gradients:
            self._evolution = EvolutionWriter(directory, state, step // per_epoch, is_first())
        if config.record.steps and is_first():
            self._files = GradientFiles(
                directory, state.params, per_epoch, experiment.total_steps, from_step=step
            )
            size = size_line(directory, parameter_count(experiment), experiment.total_steps)
            log.say(f"every step's gradient is written: {size}")
        if config.record.sharpness_every_n_epochs:
            from gnp.analysis.sharpness.run import build_probe  # late: few runs need matfree

            self._probe = build_probe(config, experiment)
        if profile and is_first():
            first, last = max(profile[0], step + 1), profile[1]
            if first > last:
                log.say(f"warning: --profile={profile[0]}:{last}: no trace, the run is at {step}")
            else:
                self.train_step = self._trace = ProfiledSteps(
                    experiment.train_step, first, last, directory
                )
                log.say(
                    f"a trace of steps {first} to {last}: {directory / FOLDER}, for xprof or "
                    "TensorBoard"
                )

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._files is not None:
            self._files.close()
        if self._trace is not None:
            self._trace.close()

    def step(self, step: int, gradients: Any) -> None:
        """Take the gradients of step `step`, counted from 1, where the steps give them."""
        if self._files is not None:
            self._files(step, gradients)

    def end_epoch(self, state: TrainState, epoch: int) -> tuple[TrainState, dict[str, float]]:
        """Return the state that begins the next epoch, and more numbers for this one's row."""
        if self._files is not None:
            self._files.flush()
        if self._evolution is not None:
            state = self._evolution(state, epoch)
        return state, self._probe(state, epoch) if self._probe is not None else {}


def check_recording(
    config: ml_collections.ConfigDict,
    experiment: Experiment,
    directory: Path,
    profile: tuple[int, int] | None,
) -> None:
    """Check what can be known of it before a run begins.

    Raises:
        UsageError: the run has no such steps to trace.
        DiskSpaceError: the disk has too little room for every step's gradient.
    """
    if profile and profile[1] > experiment.total_steps:
        raise UsageError(
            f"--profile={profile[0]}:{profile[1]}: the run has {experiment.total_steps} steps, "
            f"{experiment.steps_per_epoch} an epoch"
        )
    if config.record.steps and is_first():
        check_space(directory, parameter_count(experiment), experiment.total_steps)


def parameter_count(experiment: Experiment) -> int:
    """Return the number of elements of all parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract_state.params))
