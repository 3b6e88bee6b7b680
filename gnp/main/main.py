"""python -m gnp.main.main: parses the command line and calls train, evaluate or inspect."""

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from gnp.main import runtime

# What libraries have to say reaches people as an exception, told in one line below.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The imports below take seconds, in which Ctrl-C should not end in a traceback.
_interruptible = (
    __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _interruptible:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
if __name__ == "__main__":
    runtime.keep_compiled(os.environ)
runtime.set_flags(os.environ)

import jax
from absl import logging as absl_logging
from gnp.training.loop import NonFiniteError

import config as configs
import ds_pipeline
import model
import optimizer
from gnp import build
from gnp.main import command_line, evaluate, inspect, train
from gnp.training import processes
from gnp.training.checkpoint import CheckpointError
from gnp.training.files import FileFormatError
from gnp.training.run_directory import RunDirectoryError

USAGE_ERRORS = (
    command_line.UsageError,
    configs.ConfigError,
    model.ModelError,
    optimizer.OptimizerError,
    RunDirectoryError,
)
RUN_ERRORS = (
    ds_pipeline.DataError,
    build.DeviceError,
    CheckpointError,
    FileFormatError,
    NonFiniteError,
    processes.ProcessError,
    OSError,
)


def main(arguments: Sequence[str]) -> int:
    """Runs a command line and returns the exit code.

    Args:
        arguments: without the program's name.

    Example:
        >>> main(["--mode=inspect"])
        2
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # An entry that a killed process left half written is compiled again; one that a full disk does
    # not take, next time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    sys.unraisablehook = _without_closed_event_loops
    try:
        return processes.finish(_run(arguments))
    except USAGE_ERRORS as error:
        return _fail(str(error), 2)
    except Exception as error:
        line = _run_error(error)
        if line is None and not processes.several():
            raise
        if line is None:  # the others must not wait for this one
            traceback.print_exc()
            line = f"{type(error).__name__}: {processes.first_line(error)}"
        return _fail(line, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run(arguments: Sequence[str]) -> int:
    if not command_line.names_processes(arguments) and processes.detect():
        processes.start()
    line = command_line.parse(arguments)
    if line is None:
        if processes.is_first():
            print(command_line.usage())
        return 0
    if line.processes:
        processes.start(*line.processes)
    match line.mode:
        case "inspect":
            if processes.several():
                jax.devices()  # who asks first waits for the others
            return inspect.run(line.config) if processes.is_first() else 0
        case "eval":
            return evaluate.run(line.config, line.working_dir, line.checkpoint, line.overrides)
        case _:
            return train.run(line.config, line.working_dir, line.profile)


def _run_error(error: Exception) -> str | None:
    """What to say of an error that data, files, devices or other processes show."""
    if processes.is_lost(error):
        return processes.lost_line(processes.first_line(error))
    if isinstance(error, RUN_ERRORS):
        return str(error)
    if isinstance(error, (jax.errors.JaxRuntimeError, MemoryError)):
        reason = processes.first_line(error)
        advice = "; try a smaller batch_size" if "memory" in reason.lower() else ""
        return f"the device failed: {reason}{advice}"
    return None


def _without_closed_event_loops(unraisable: Any) -> None:
    """After a checkpoint could not be written, each of TensorStore's threads reports this one."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _fail(text: str, code: int) -> int:
    if processes.several():
        processes.fail(text, code)
    for line in text.splitlines():
        print(f"gnp: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    if _interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
