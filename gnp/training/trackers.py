"""Hand a run's numbers on: to TensorBoard's events, and to trackers that are asked for."""

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from gnp.training.files import first_line, naming


class TrackerError(RuntimeError):
    """A tracker that is asked for and is not installed, or refuses the run; one line."""


class Writer(Protocol):
    """Take the numbers of a run."""

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step, by name; steps never fall."""

    def flush(self) -> None:
        """Write what is held back; at the end of each epoch."""

    def close(self, failed: bool = False) -> None:
        """Write the rest, and end; `failed`: by an error."""


class TensorBoard:
    """Events in DIR/tensorboard, written at once: a thread of their own would hide a full disk.

    Args:
        directory: The run directory.
        step: Steps taken so far; points of later ones in older files are hidden.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self._folder = directory / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        with naming(self._folder):
            self._events = EventsWriter(str(self._folder / "events"))
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`."""
        for name, value in values.items():
            self._write(step=step, summary=scalar(name, value))

    def flush(self) -> None:
        """See `Writer`."""
        with naming(self._folder):
            self._events.flush()

    def close(self, failed: bool = False) -> None:
        """See `Writer`."""
        with naming(self._folder):
            self._events.close()

    def _write(self, **values: Any) -> None:
        with naming(self._folder):
            self._events.write_event(Event(wall_time=time.time(), **values))


class WeightsAndBiases:
    """A run of Weights & Biases, in its project `gnp` unless WANDB_PROJECT names another.

    A run directory that goes on begins another run in the same group. WANDB_MODE=offline keeps
    all of it in DIR/wandb.

    Args:
        directory: The run directory; its name is the run's, its path the group's.
        config: Key -> value.

    Raises:
        TrackerError: it is refused, such as without an account.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        with _one_line("wandb", wandb.Error, "WANDB_MODE=offline needs no account"):
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "gnp"),
                name=directory.resolve().name,
                group=str(directory.resolve())[-128:],  # no more are allowed
                dir=directory,
                config=dict(config),
            )

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`."""
        self._run.log(dict(values), step=step)  # a process of its own sends it

    def flush(self) -> None:
        """See `Writer`."""

    def close(self, failed: bool = False) -> None:
        """See `Writer`."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names, or in MLflow's own default.

    A run directory that goes on begins another run of the same name.

    Args:
        directory: The run directory; its name is the run's.
        config: Key -> value, the run's parameters.

    Raises:
        TrackerError: the store refuses it, or is not reached; by `points`, too.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self._mlflow = importlib.import_module("mlflow")
        with self._one_line():
            self._mlflow.start_run(run_name=directory.resolve().name)
            self._mlflow.log_params(dict(config))

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`."""
        with self._one_line():
            self._mlflow.log_metrics(dict(values), step=step)

    def flush(self) -> None:
        """See `Writer`."""

    def close(self, failed: bool = False) -> None:
        """See `Writer`."""
        with self._one_line():
            self._mlflow.end_run("FAILED" if failed else "FINISHED")

    def _one_line(self) -> contextlib.AbstractContextManager[None]:
        error = self._mlflow.exceptions.MlflowException
        return _one_line("mlflow", error, "MLFLOW_TRACKING_URI says where it goes")


@contextlib.contextmanager
def _one_line(name: str, errors: type[Exception], advice: str) -> Iterator[None]:
    """Raise a tracker's own errors as TrackerError."""
    try:
        yield
    except errors as error:
        raise TrackerError(f"trackers = {name!r}: {first_line(error)}; {advice}") from error


# By their names in config.trackers, which are also those of the packages.
TRACKERS: Mapping[str, type[WeightsAndBiases | MLflow]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def installed_trackers(names: str | None) -> list[str]:
    """Return the trackers of config.trackers, commas between them.

    Raises:
        TrackerError: the package of one is not installed.

    Example:
        >>> installed_trackers(None)
        []
    """
    found = names.split(",") if names else []
    for name in found:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name is none, such as DIR/wandb
            raise TrackerError(f"trackers = {names!r}: {name} is not installed; pip install {name}")
    return found


@contextlib.contextmanager
def opened_writers(
    directory: Path,
    step: int,
    trackers: Sequence[str],
    config: Mapping[str, Any],
    active: bool = True,
) -> Iterator[list[Writer]]:
    """Open TensorBoard and the trackers of a run; close them at the end, whatever happened.

    Args:
        directory: The run directory.
        step: Steps taken so far.
        trackers: Names of TRACKERS.
        config: Key -> value, for the trackers.
        active: False: none is opened.
    """
    with contextlib.ExitStack() as stack:
        writers: list[Writer] = []

        def add(writer: Writer) -> None:
            writers.append(writer)
            stack.push(lambda error, *_: writer.close(failed=error is not None))

        if active:
            add(TensorBoard(directory, step))
            for name in trackers:
                add(TRACKERS[name](directory, config))
        yield writers
