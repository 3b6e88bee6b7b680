"""Common to the benchmarks: steps are taken, measured in turn, and reported."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from config import ConfigError
from gnp.analysis.command_line import UsageError
from gnp.bench import measure


@pytest.fixture(scope="module")
def steps():
    return measure.build_steps(measure.step_config("MLP", 4, measure.PENALTY))


def numbers(steps):
    return [np.array(leaf) for leaf in jax.tree.leaves(steps.state.params)]


@pytest.mark.slow
def test_steps_move_the_parameters_and_are_compiled_once(steps):
    before = numbers(steps)
    steps.take(True, True)
    assert any(np.any(a != b) for a, b in zip(before, numbers(steps), strict=True))
    assert list(steps.compile_seconds) == [True]
    assert steps.program(True) is steps.program(True)


def test_a_cycle_is_whole(steps, monkeypatch):
    taken = []
    monkeypatch.setattr(steps, "program", lambda penalize: None)
    monkeypatch.setattr(steps, "take", lambda *penalize: taken.append(penalize))
    assert steps.cycle(True, False, False)(4) > 0
    assert taken == [(True,), (True, False, False), (True, False, False)]


@pytest.mark.parametrize(
    ("name", "changes", "error", "said"),
    [
        ("DigitCNN", {}, UsageError, "unknown model_name 'DigitCNN'"),
        ("MLP", {"gnp.r": -1.0}, ConfigError, "gnp.r"),
        ("MLP", {**measure.PENALTY, "gnp.sync_perturbations": False, "gnp.m": 3}, ConfigError, "m"),
    ],
)
def test_a_config_that_cannot_run(name, changes, error, said):
    with pytest.raises(error, match=said):
        measure.step_config(name, 4, changes)


def test_steps_are_measured_in_turn():
    order = []
    measures = {name: lambda steps, name=name: order.append(name) or 10.0 for name in "ab"}
    assert measure.measure_in_turn(measures, runs=2) == {"a": [10.0, 10.0], "b": [10.0, 10.0]}
    assert order == ["a", "b", "a", "b", "b", "a"]


def test_a_report_is_printed_and_written(tmp_path, capsys):
    rows = [{"step": "plain", "ms": 1.25, "seconds": [1.25]}, {"step": "other"}]
    columns = {"step": "{}", "ms": "{:.1f}"}
    measure.report(rows, columns, tmp_path / "a.json", runs=1)
    printed = capsys.readouterr().out
    assert printed.startswith("| step  |  ms |\n| ----- | --: |\n| plain | 1.2 |\n| other |   - |")
    assert "runs 1, cores" in printed
    stored = json.loads((tmp_path / "a.json").read_text())
    assert (stored["rows"], stored["runs"]) == (rows, 1)


def test_a_file_that_cannot_be_written_ends_in_a_line(tmp_path, capsys):
    def bench():
        measure.report([], {"step": "{}"}, tmp_path / "none" / "a.json")

    assert measure.run(bench) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_cycles_seconds_are_those_of_a_step(steps, monkeypatch):
    monkeypatch.setattr(steps, "program", lambda penalize: None)
    monkeypatch.setattr(steps, "take", lambda *penalize: None)
    clock = SimpleNamespace(perf_counter=iter((10.0, 22.0)).__next__)
    monkeypatch.setattr(measure, "time", clock)
    assert steps.cycle(True, False, False)(4) == 2.0  # 12 s, two cycles of three
