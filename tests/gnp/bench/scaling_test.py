"""The scaling benchmark: layouts, what is computed of them, and processes of its own."""

import json

import pytest

from gnp.bench import scaling, scaling_step


class StandIn:
    """A team of one process whose devices work side by side but for a tenth."""

    def __init__(self, name, layout, dtype):
        self.layout = layout

    def wait(self):
        pass

    def images_per_second(self, step):
        devices = self.layout.total
        return 100.0 * (devices if devices == 1 else 0.9 * devices)

    def close(self):
        pass


def test_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "Team", StandIn)
    out = tmp_path / "scaling.json"
    scaling.main(["--model=DigitsCNN", "--batch_size=8", "--runs=1", f"--out={out}"])
    rows = json.loads(out.read_text())["rows"]
    shapes = [(row["processes"], row["devices"]) for row in rows[:5]]
    assert shapes == [(1, 1), (1, 2), (1, 4), (2, 2), (4, 4)]
    assert {row["batch_size"] for row in rows if row["scaling"] == "strong"} == {8}
    weak = [row for row in rows if row["scaling"] == "weak" and row["step"] == "penalized"]
    assert [row["batch_size"] for row in weak] == [8, 16, 32, 16, 32]
    assert [row["efficiency"] for row in weak] == pytest.approx([1.0, 0.9, 0.9, 0.9, 0.9])
    assert weak[2]["speed"] == pytest.approx(3.6)
    assert "scaling  step" in capsys.readouterr().out


def test_a_process_has_both_steps():
    plain, penalized = scaling_step.steps_of("MLP", "float32", 1, 1, 4)
    assert plain.penalize == (False,) and penalized.penalize == (True,)
    assert penalized(1) > 0


def test_devices_that_are_not_there():
    with pytest.raises(SystemExit, match="5 devices were asked for, there are"):
        scaling_step.steps_of("MLP", "float32", 1, 5, 5)


@pytest.mark.slow
def test_devices_and_processes(capsys):
    scaling.main(["--model=DigitsCNN", "--batch_size=4", "--runs=1",
                  "--devices", "2", "--processes", "2"])  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count("strong") == printed.count("weak") == 6


@pytest.mark.parametrize(
    "arguments", [["--model=DigitCNN"], ["--batch_size=6", "--devices", "4"], ["--devices", "0"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        scaling.main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err
