"""`python -m gnp.main.main` that ends with a code of its own when the first step is done.

    python -m gnp.bench.first_step ARGUMENT ...

A process of `gnp.bench.startup`. It imports what the command imports, and nothing before that.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from gnp.main.main import main as run_command
from gnp.training.log import Log

_FIRST_STEP_DONE = 64


def end(*_: Any) -> NoReturn:
    """Take the place of the log's step, which is called with the first metrics: end the process."""
    os._exit(_FIRST_STEP_DONE)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return only where it takes no step."""
    setattr(Log, "step", end)  # noqa: B010 - mypy allows no assignment to a method
    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
