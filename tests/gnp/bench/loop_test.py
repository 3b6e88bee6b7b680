"""The loop's overhead is measured against the same steps."""

import pytest

from gnp.bench import loop


def test_prints_a_ratio(capsys):
    ratio = loop.bench("DigitsCNN", batch_size=8, steps=2, runs=1)
    assert ratio > 0
    printed = capsys.readouterr().out
    assert printed.startswith("DigitsCNN, batch 8, 2 steps: ")
    assert f"ratio {ratio:.3f}" in printed


@pytest.mark.parametrize("words", [["--steps=0"], ["--model=Foo"]])
def test_bad_arguments(words, capsys):
    with pytest.raises(SystemExit) as stop:
        loop.main(words)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
