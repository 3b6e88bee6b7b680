"""SIGTERM and Ctrl-C end a run between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gnp.training import processes

_LAUNCHERS = ("SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE")


class Interrupt:
    """Remembers the signal that ends the run; where several processes train, they agree on it.

    Attributes:
        signal: None until then.

    Example:
        >>> Interrupt().now()
        False
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def now(self) -> bool:
        """Whether to stop here; all processes ask at the same places and get the same answer."""
        if self.signal is None:
            self.signal = processes.stops_here()
        return self.signal is not None


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Within it, the first SIGTERM or SIGINT is only noted; a second one ends the process at once.

    A job's scheduler and its launcher may both send the one that they mean: there, the second one
    is ignored. They end the process with SIGKILL.

    Must be entered in the main thread.
    """
    interrupt = Interrupt()
    caught = (signal.SIGTERM, signal.SIGINT)
    launched = processes.several() or any(name in os.environ for name in _LAUNCHERS)

    def note(number: int, _: FrameType | None) -> None:
        # The second signal is the system's to handle: it need not wait for a compilation to end.
        for each in caught:
            signal.signal(each, signal.SIG_IGN if launched else signal.SIG_DFL)
        if processes.several():
            processes.ask_to_stop(signal.Signals(number))
        else:
            interrupt.signal = signal.Signals(number)

    before = {each: signal.signal(each, note) for each in caught}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
