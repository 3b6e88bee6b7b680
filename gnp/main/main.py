"""python -m gnp.main.main: parse the command line and call train, evaluate or inspect."""

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

import config as configs
import ds_pipeline
import model
import optimizer
from gnp import build
from gnp.main import command_line, evaluate, inspect, train
from gnp.training import distributed
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
    distributed.ProcessError,
    OSError,
)


def main(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code.

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
        code = _run(arguments)
        distributed.finish()
        return code
    except USAGE_ERRORS as error:
        return _fail(str(error), 2)
    except RUN_ERRORS as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception:  # of a program: ours, a user's model or config function, or XLA
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        distributed.end(1)  # the others must not wait for this one


def _run(arguments: Sequence[str]) -> int:
    line = command_line.parse(arguments)
    if line is None:
        print(command_line.usage())
        return 0
    if line.processes or distributed.is_launched():
        distributed.initialize(*line.processes or (), stoppable=line.mode == "train")
    match line.mode:
        case "inspect":
            return inspect.run(line.config) if distributed.is_first() else 0
        case "eval":
            return evaluate.run(line.config, line.working_dir, line.checkpoint, line.overrides)
        case _:
            return train.run(line.config, line.working_dir, line.profile)


def _without_closed_event_loops(unraisable: Any) -> None:
    """After a checkpoint could not be written, each of TensorStore's threads reports this one."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _fail(text: str, code: int) -> int:
    """Say what went wrong, a line a problem; of several processes, end all."""
    for line in text.splitlines():
        print(f"gnp: {line}", file=sys.stderr)
    if jax.distributed.is_initialized():
        distributed.end(code)
    return code


if __name__ == "__main__":
    if _interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
