"""What a command says, on whatever terminal there is."""

import subprocess
import sys

import pytest

from gnp import terminal

PROGRAM = """
import os
from gnp import terminal
terminal.prepare_streams()
assert os.open("/dev/null", os.O_RDONLY) > 2
print("größe ±1")
terminal.warn("größe")
"""


@pytest.mark.parametrize("closed", ["", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_text_on_any_stream(gnp_environment, closed, encoding):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-P", "-c", PROGRAM]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        env={**gnp_environment, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0
    if not closed:
        text = done.stdout.decode(encoding) + done.stderr.decode(encoding)
        assert ("gr\\xf6" in text) == (encoding == "ascii") and "warning: gr" in text


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\x9b31m", "\u202e", "\r", "\x7f", "\udcff"])
def test_commands_of_a_terminal_are_printed_as_text(capsys, text):
    terminal.fail(f"class '{text}' is unknown", 1)
    terminal.warn(text)
    assert capsys.readouterr().err.replace("\n", "").isprintable()
    assert terminal.one_line(f"a\n{text}").isprintable()


def test_errors_of_the_system_name_the_file():
    error = OSError(28, "No space left on device", "runs/a\nb/metrics.jsonl")
    assert terminal.describe(error) == "runs/a\\nb/metrics.jsonl: No space left on device"
