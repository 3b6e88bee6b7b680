"""The first signal is noted, the second ends the process even while it computes."""

import signal
import subprocess
import sys

import pytest

from gnp.training.interrupt import catch_signals

FIRST = """
import signal, sys
from gnp.training.interrupt import catch_signals

with catch_signals() as interrupt:
    signal.raise_signal(signal.Signals[sys.argv[1]])
    assert interrupt.signal == signal.Signals[sys.argv[1]]
    print("noted", flush=True)
    sum(range(10**12))  # as a compilation: no Python handler can run in here
"""


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once(gnp_environment, first, second):
    with subprocess.Popen(
        [sys.executable, "-c", FIRST, first],
        env=gnp_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "noted\n"
            process.send_signal(signal.Signals[second])
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == -signal.Signals[second]
    assert errors == ""


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with catch_signals() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_scheduler_and_its_launcher_may_both_send_it(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with catch_signals() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.now()
        assert interrupt.signal == signal.SIGTERM
