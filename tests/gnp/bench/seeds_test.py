"""The benchmark of several seeds end to end at a tiny size."""

import json
from pathlib import Path

import pytest

from gnp.bench import seeds

ROOT = Path(__file__).resolve().parents[3]


def test_measures_and_writes(tmp_path, capsys):
    out, config = tmp_path / "seeds.json", str(ROOT / "config" / "iris.py")
    seeds.main(["--config", config, "--num_seeds=2", "--runs=2", f"--out={out}"])
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    assert (row["config"], result["num_seeds"]) == (config, 2)
    assert row["a_seed"] > 0 and row["one_ms"] > 0 and row["at_once_ms"] > 0
    assert "of 2 at once" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--num_seeds=1"], ["--config", "nowhere.py"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        seeds.main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err
