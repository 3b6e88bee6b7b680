"""python -m gnp.main.main: parse the command line and call train, evaluate, inspect or plan."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from gnp import terminal
from gnp.main import runtime

if __name__ == "__main__":
    terminal.prepare_streams()
# What libraries have to say reaches people as an exception.
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

import config as configs
import ds_pipeline
import model
import optimizer
from gnp import experiment
from gnp.main import command_line, evaluate, inspect, plan, train
from gnp.training import distributed, run_directory
from gnp.training.checkpoint import CheckpointError
from gnp.training.files import FileFormatError
from gnp.training.metrics import NonFiniteError
from gnp.training.topology import TopologyError
from gnp.training.trackers import TrackerError

USAGE_ERRORS = (
    command_line.UsageError,
    configs.ConfigError,
    model.ModelError,
    optimizer.OptimizerError,
    run_directory.RunDirectoryError,
)
RUN_ERRORS = (
    ds_pipeline.DataError,
    experiment.DeviceError,
    CheckpointError,
    FileFormatError,
    NonFiniteError,
    TopologyError,
    TrackerError,
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
    runtime.quiet_libraries()
    try:
        line = command_line.parse(arguments)
    except USAGE_ERRORS as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    try:
        if line is None:
            print(command_line.usage(), flush=True)
            return 0
        if line.processes or distributed.is_launched():
            distributed.initialize(*line.processes or (), stoppable=line.mode == "train")
        code = _run(line)
        sys.stdout.flush()
        distributed.finish()
        return code
    except USAGE_ERRORS as error:
        return _fail(error, 2)
    except RUN_ERRORS as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception:  # a bug: ours, in a user's model, or in XLA
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        distributed.end(1)  # the others must not wait for this one


def _run(line: command_line.CommandLine) -> int:
    directory = line.working_dir or Path()
    match line.mode:
        case "inspect":
            if not distributed.is_first():
                return 0
            return inspect.run(line.config, directory, line.checkpoint, line.values)
        case "plan":
            return plan.run(line.config, line.topology) if distributed.is_first() else 0
        case "eval":
            return evaluate.run(line.config, line.working_dir, line.checkpoint, line.overrides)
        case _:
            with ExitStack() as held:
                lock = run_directory.locked(directory)
                distributed.on_first(
                    lambda: held.enter_context(lock), run_directory.RunDirectoryError
                )
                return train.run(line.config, directory, line.profile)


def _fail(problem: BaseException | str, code: int) -> int:
    """Say what went wrong, a line a problem; of several processes, end all."""
    terminal.fail(problem, code)
    if jax.distributed.is_initialized():
        distributed.end(code)
    return code


if __name__ == "__main__":
    if _interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
