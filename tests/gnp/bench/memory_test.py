"""The memory benchmark at a tiny size."""

import json

import pytest

from gnp.bench import memory


@pytest.mark.slow
def test_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "memory.json"
    assert memory.main(["--models", "MLP", "--batch_size=2", f"--out={out}"]) == 0
    plain, penalized = json.loads(out.read_text())["rows"]
    assert plain["copies"] == 0.0
    assert plain["parameters"] == pytest.approx(4 * 411146 / 2**20)
    # The first gradient and the perturbed parameters, or less where XLA reuses room.
    assert 0 < penalized["copies"] < 2.5
    # Parameters, momentum and batch; the new state takes the place of the old one.
    assert plain["arguments"] > 2 * plain["parameters"]
    parts = plain["arguments"] + plain["temporaries"]
    assert plain["peak MiB"] == pytest.approx(parts, rel=0.01)
    assert "| MLP   | penalized |" in capsys.readouterr().out


def test_wrong_arguments(capsys):
    assert memory.main(["--models", "DigitCNN"]) == 2
    assert "unknown model_name 'DigitCNN'" in capsys.readouterr().err
