"""The step benchmark end to end at a tiny size, with a stand-in for TensorFlow's process."""

import json
import sys

import pytest

from gnp.bench import step


def test_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "step.json"
    step.main(["--models", "DigitsCNN", "--batch_size=2", "--runs=2", f"--out={out}"])
    result = json.loads(out.read_text())
    assert [row["step"] for row in result["rows"]] == ["plain", "penalised", "zero warmup"]
    assert all(row["milliseconds"] > 0 and row["compile_seconds"] > 0 for row in result["rows"])
    assert result["rows"][0]["ratio"] == 1.0
    assert (result["batch_size"], result["runs"]) == (2, 2)
    assert "DigitsCNN  penalised" in capsys.readouterr().out


def test_steps_are_measured_in_turn():
    order = []

    def measure(name):
        def seconds(steps):
            order.append(name)
            return 10.0

        return seconds

    step.measure_in_turn({"a": measure("a"), "b": measure("b")}, runs=2)
    assert order == ["a", "b", "a", "b", "b", "a"]


def test_asks_another_process(tmp_path, monkeypatch):
    answers = "import sys\nprint('2.0', flush=True)\n"
    answers += "for line in sys.stdin: print(len(line.split()[0]), flush=True)\n"
    (tmp_path / "tensorflow_step.py").write_text(answers)
    monkeypatch.setattr(step, "__file__", str(tmp_path / "step.py"))
    process = step.TensorflowStep(sys.executable, batch_size=2)
    assert process.version == "2.0"
    assert process.measure("eager")(3) == 5.0
    process.close()


@pytest.mark.parametrize("script", [None, "raise SystemExit(1)"])
def test_a_python_that_cannot_help(tmp_path, monkeypatch, script):
    python = sys.executable if script else str(tmp_path / "python")
    (tmp_path / "tensorflow_step.py").write_text(script or "")
    monkeypatch.setattr(step, "__file__", str(tmp_path / "step.py"))
    with pytest.raises(SystemExit, match="--tensorflow_python"):
        step.TensorflowStep(python, batch_size=2)


@pytest.mark.parametrize("arguments", [["--models", "DigitCNN"], ["--runs=0"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        step.main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err
