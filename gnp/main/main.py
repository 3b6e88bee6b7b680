"""python -m gnp.main.main: parses the command line and calls train, evaluate or inspect."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

# What libraries have to say reaches people as an exception, told in one line below.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The imports below take seconds, in which Ctrl-C should not end in a traceback.
_interruptible = (
    __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _interruptible:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import jax
from absl import logging as absl_logging

import config as configs
import ds_pipeline
import model
import optimizer
from gnp import build
from gnp.main import command_line, evaluate, inspect, train
from gnp.training.checkpoint import CheckpointError
from gnp.training.files import FileFormatError
from gnp.training.loop import NonFiniteError
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
    sys.unraisablehook = _without_closed_event_loops
    try:
        line = command_line.parse(arguments)
        if line is None:
            print(command_line.usage())
            return 0
        match line.mode:
            case "inspect":
                return inspect.run(line.config)
            case "eval":
                return evaluate.run(line.config, line.working_dir, line.checkpoint, line.overrides)
            case _:
                return train.run(line.config, line.working_dir, line.profile)
    except USAGE_ERRORS as error:
        return _fail(error, 2)
    except RUN_ERRORS as error:
        return _fail(error, 1)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "; try a smaller batch_size" if "memory" in reason.lower() else ""
        return _fail(RuntimeError(f"the device failed: {reason}{advice}"), 1)
    except KeyboardInterrupt:
        return _fail(RuntimeError("interrupted"), 130)


def _without_closed_event_loops(unraisable: Any) -> None:
    """After a checkpoint could not be written, each of TensorStore's threads reports this one."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _fail(error: BaseException, code: int) -> int:
    for line in str(error).splitlines():
        print(f"gnp: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    if _interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
