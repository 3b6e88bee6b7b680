"""The step benchmark end to end at a tiny size, with a stand-in for TensorFlow's process."""

import json
import sys

import pytest

from gnp.bench import step


def test_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "peak_flops", lambda device, dtype: 1e12)
    out = tmp_path / "step.json"
    step.main(
        ["--models", "MLP", "--steps", "penalised", "every_5", "zero_warmup", "hybrid",
         "--batch_size=2", "--runs=2", "--first_call", f"--out={out}"]
    )  # fmt: skip
    result = json.loads(out.read_text())
    rows = {row["step"]: row for row in result["rows"]}
    assert list(rows) == ["plain", "penalized", "every_5", "zero_warmup", "hybrid"]
    assert all(row["milliseconds"] > 0 for row in rows.values())
    assert rows["plain"]["ratio"] == 1.0
    # FLOPs over time and peak: the time cancels out.
    flops = {name: row["used"] * row["milliseconds"] for name, row in rows.items()}
    assert flops["penalized"] == pytest.approx(2 * flops["plain"])
    assert flops["every_5"] == pytest.approx(1.2 * flops["plain"])
    # Two for a weight and an image, forward and backward (of the first layer's input none).
    weights, first = 411_146, 3072 * 128
    products = 2 * 2 * (3 * weights - first)
    assert products < flops["plain"] * 1e9 < products + 12 * weights  # and the update
    assert (result["bench"], result["batch_size"], result["dtype"]) == ("step", 2, "float32")
    assert "MLP    penalized" in capsys.readouterr().out


def test_the_first_call_is_measured_where_nothing_is_compiled(monkeypatch, capsys):
    asked = []

    def in_fresh_process(function, case, name):
        asked.append((function, case.name, name, step.os.environ["JAX_ENABLE_COMPILATION_CACHE"]))
        return 12.34

    monkeypatch.setattr(step, "in_fresh_process", in_fresh_process)
    monkeypatch.setattr(step, "our_steps", lambda case: ({"plain": lambda steps: 1.0}, {}))
    step.main(["--models", "DigitsCNN", "--steps", "plain", "--runs=1"])
    assert asked == [(step.first_call_seconds, "DigitsCNN", "plain", "0")]
    assert "12.3" in capsys.readouterr().out


def test_the_first_call_takes_its_steps():
    case = step.Case("MLP", (), 2)
    assert step.first_call_seconds(case, "hybrid") > 0


@pytest.mark.slow
def test_every_variant_and_several_steps_a_call():
    case = step.Case("DigitsCNN", tuple(step.VARIANTS), 4, steps_per_call=2)
    steps, flops = step.our_steps(case)
    assert list(steps) == [*list(step.VARIANTS)[:-1], "m_2", "plain_2", "penalized_2"]
    assert all(measure(1) > 0 for measure in steps.values())
    assert flops["m_2"] == flops["penalized_2"] == 2 * flops["plain"]


def test_an_odd_batch_has_no_groups():
    steps, _ = step.our_steps(step.Case("MLP", ("plain", "m"), 3))
    assert list(steps) == ["plain"]


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", "DigitCNN"],
        ["--runs=0"],
        ["--steps", "penalty"],
        ["--dtype=float16"],
        ["--batch_size=3", "--first_call", "m"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        step.main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err
