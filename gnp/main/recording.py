"""Recordings beside the metrics: gradients, their evolution, sharpness, a trace of steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

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

    Making it writes nothing; `start` does.

    Args:
        config: Of the run.
        experiment: Its parts.
        directory: The run directory.
        profile: The first and the last step to trace, counted from 1; None: none.

    Attributes:
        train_step: The experiment's, traced where that is asked for.

    Raises:
        UsageError: the run has no such steps to trace.
        DiskSpaceError: the disk has too little room for every step's gradient.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        experiment: Experiment,
        directory: Path,
        profile: tuple[int, int] | None = None,
    ) -> None:
        self._config, self._experiment, self._directory = config, experiment, directory
        self._profile = profile
        self.train_step: Any = experiment.train_step
        self._trace: ProfiledSteps | None = None
        self._files: GradientFiles | None = None
        self._evolution: EvolutionWriter | None = None
        self._probe: Callable[[TrainState, int], dict[str, float]] | None = None
        if profile and profile[1] > experiment.total_steps:
            raise UsageError(
                f"--profile={profile[0]}:{profile[1]}: the run has {experiment.total_steps} "
                f"steps, {experiment.steps_per_epoch} an epoch"
            )
        params = jax.tree.leaves(experiment.abstract_state.params)
        self._gradients = sum(leaf.size for leaf in params), experiment.total_steps
        if config.record.steps and is_first():
            check_space(directory, *self._gradients)

    def start(self, step: int, log: Log) -> None:
        """Open the files of a run that has taken `step` steps; what is later is recorded anew.

        Raises:
            FileFormatError: what was recorded before `step` is missing or damaged.
        """
        record, directory = self._config.record, self._directory
        state, steps_per_epoch = self._experiment.abstract_state, self._experiment.steps_per_epoch
        if record.gradients:
            epochs = step // steps_per_epoch
            self._evolution = EvolutionWriter(directory, state, epochs, active=is_first())
        if record.steps and is_first():
            self._files = GradientFiles(
                directory, state.params, steps_per_epoch, self._experiment.total_steps, step
            )
            log.say(f"every step's gradient is written: {size_line(directory, *self._gradients)}")
        if record.sharpness_every_n_epochs:
            from gnp.analysis.sharpness.run import build_probe  # late: few runs need it

            self._probe = build_probe(self._config, self._experiment)
        if self._profile and is_first():
            self._start_trace(*self._profile, step, log)

    def _start_trace(self, first: int, last: int, step: int, log: Log) -> None:
        if step >= last:
            log.say(f"warning: --profile={first}:{last}: no trace, the run is at {step}")
            return
        first = max(first, step + 1)
        self._trace = ProfiledSteps(self.train_step, first, last, self._directory)
        self.train_step = self._trace
        folder = self._directory / FOLDER
        log.say(f"a trace of steps {first} to {last}: {folder}, for xprof or TensorBoard")

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._files is not None:
                self._files.close()
        finally:
            if self._trace is not None:
                self._trace.close()
