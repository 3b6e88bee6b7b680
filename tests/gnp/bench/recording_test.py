"""The recording benchmark end to end at a tiny size."""

import json

import pytest

from gnp.bench import recording


def test_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "recording.json"
    recording.main(["--model", "DigitsCNN", "--batch_size=2", "--runs=2", f"--out={out}"])
    result = json.loads(out.read_text())
    plain, recorded, handed_out = result["rows"]
    assert plain["ratio"] == 1.0 and plain["parameters"] == 0.0
    # Three sums, and the gradient itself, which the plain step need not keep.
    assert 3 <= recorded["parameters"] < 4.5
    assert recorded["parameters"] <= handed_out["parameters"] < 5.5
    assert result["end_of_epoch_seconds"] > 0
    assert "recorded" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--model", "DigitCNN"], ["--runs=0"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        recording.main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err
