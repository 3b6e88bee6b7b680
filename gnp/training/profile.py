"""An xprof trace of a few steps."""

from pathlib import Path
from typing import Any

import jax

from gnp.training.files import first_line
from gnp.training.state import TrainState

FOLDER = "profile"


class ProfiledSteps:
    """Train steps of which some, and what the host does between them, are traced into DIR/profile.

    The devices are waited for before the first and after the last of them, so that the trace holds
    these steps alone and whole.

    Args:
        train_step: Takes a step; see `Experiment`.
        first: The first traced one, counted from 1.
        last: The last one.
        directory: The run directory.
    """

    def __init__(self, train_step: Any, first: int, last: int, directory: Path) -> None:
        self._train_step, self._first, self._last = train_step, first, last
        self._folder = directory / FOLDER
        self._tracing = False

    def __call__(
        self, state: TrainState, batch: Any, key: jax.Array, step: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take step `step`, counted from 0."""
        if not self._first <= step + 1 <= self._last:
            return self._train_step(state, batch, key, step)
        if not self._tracing:
            self._folder.mkdir(exist_ok=True)
            jax.block_until_ready((state, batch))
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            new, metrics = self._train_step(state, batch, key, step)
        if step + 1 == self._last:
            jax.block_until_ready((new, metrics))
            self.close()
        return new, metrics

    def close(self) -> None:
        """Write what has been traced, where the run ends before the last of the steps.

        Raises:
            OSError: it cannot be written.
        """
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
        except jax.errors.JaxRuntimeError as error:
            reason = first_line(error)
            raise OSError(f"{self._folder}: the trace cannot be written: {reason}") from error
