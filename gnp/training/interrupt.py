"""SIGTERM and Ctrl-C end a run between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Remembers the first signal that came; false until then.

    Example:
        >>> bool(Interrupt())
        False
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Within it, the first SIGTERM or SIGINT is only noted; a second one ends the process at once.

    Must be entered in the main thread.
    """
    interrupt = Interrupt()
    caught = (signal.SIGTERM, signal.SIGINT)

    def note(number: int, _: FrameType | None) -> None:
        # The second signal is the system's to handle: it need not wait for a compilation to end.
        for each in caught:
            signal.signal(each, signal.SIG_DFL)
        interrupt.signal = signal.Signals(number)

    before = {each: signal.signal(each, note) for each in caught}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
