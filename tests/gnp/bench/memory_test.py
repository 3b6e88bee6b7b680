"""The memory benchmark at a tiny size."""

import json

import pytest

from gnp.bench import memory


def test_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "in_fresh_process", lambda function, *args: function(*args))
    out = tmp_path / "memory.json"
    memory.main(["--models", "MLP", "--batch_size=2", f"--out={out}"])
    plain, penalized = json.loads(out.read_text())["rows"]
    assert plain["copies"] == 0.0 and plain["parameters"] == 4 * 411146
    # The first gradient and the perturbed parameters, or less where XLA reuses room.
    assert 0 < penalized["copies"] < 2.5
    assert plain["in_use"] is None
    # Parameters, momentum, batch statistics and batch.
    assert plain["arguments"] > 2 * plain["parameters"]
    assert "MLP    penalized" in capsys.readouterr().out


def test_what_the_device_says_has_a_column():
    row = memory.Row("m", "plain", 1, 1, 1, 1, 0.0, 3 << 20)
    assert memory.table([row]).lines[0][-1] == "3.0"


def test_wrong_arguments(capsys):
    with pytest.raises(SystemExit) as error:
        memory.main(["--models", "DigitCNN"])
    assert error.value.code == 2
    assert "unknown model_name 'DigitCNN'" in capsys.readouterr().err
