"""The benchmark of the start: which processes it starts, and, slowly, what they take."""

import json
from types import SimpleNamespace

import pytest

from gnp.bench import startup
from gnp.bench.measure import BenchError
from gnp.main import runtime
from gnp.training.log import Log


def test_measures_and_writes(tmp_path, monkeypatch, capsys):
    started = []

    def seconds(arguments, cache):
        started.append((arguments[-1].rpartition("/")[2], cache))
        return {"cold": 12.0, "warm": 3.0}[started[-1][0].split("_")[0]]

    monkeypatch.setattr(startup, "seconds_to_first_step", seconds)
    out = tmp_path / "startup.json"
    words = ["--model=DigitsCNN", "--runs=2", "--config.gnp.r=0.1", f"--out={out}"]
    assert startup.main(words) == 0
    assert [name for name, _ in started] == ["cold_0", "warm_0", "cold_1", "warm_1"]
    caches = [cache for _, cache in started]
    assert caches[0] == caches[1] != caches[2] == caches[3]
    rows = {row["cache"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["warm"]["over cold"] == 0.25 and rows["cold"]["seconds"] == 12.0
    assert "| warm  |" in capsys.readouterr().out


def test_a_process_keeps_what_the_command_keeps(monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    started = []

    def run(command, env, **_):
        started.append(env)
        return SimpleNamespace(returncode=startup._FIRST_STEP_DONE)

    monkeypatch.setattr(startup.subprocess, "run", run)
    assert startup.seconds_to_first_step([], "here") >= 0
    expected = {"JAX_COMPILATION_CACHE_DIR": "here"}
    runtime.keep_compiled(expected)
    assert len(expected) > 1 and expected.items() <= started[0].items()


def test_the_log_still_has_its_step():
    assert hasattr(Log, "step")


@pytest.mark.slow
def test_processes_end_at_their_first_step(capsys):
    assert startup.main(["--config=config/digits.py", "--model=DigitsCNN", "--runs=1"]) == 0
    assert "| warm  |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_command_that_takes_no_step():
    with pytest.raises(BenchError, match=r"gnp: .*gnp\.r"):
        startup.measure(["--config=config/digits.py", "--config.gnp.r=-1"], "DigitsCNN", 2, 1)


@pytest.mark.parametrize("arguments", [["--model=DigitCNN"], ["--runs=0"], ["--confg.gnp.r=1"]])
def test_wrong_arguments(arguments, capsys):
    assert startup.main(arguments) == 2
    assert capsys.readouterr().err.startswith("gnp: ")
