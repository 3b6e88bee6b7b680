"""Common to the benchmarks: steps taken, in turn, by processes that are asked."""

import json
import sys

import jax
import numpy as np
import pytest

from gnp.bench import measure


@pytest.fixture(scope="module")
def trainer():
    return measure.Trainer("MLP", 4, measure.penalized_optimizer("MLP"))


def numbers(trainer):
    return [np.asarray(leaf).copy() for leaf in jax.tree.leaves(trainer.state.params)]


def test_a_cycle_takes_whole_cycles(trainer, monkeypatch):
    taken = []
    monkeypatch.setattr(trainer, "run", lambda penalize, cycles: taken.append((penalize, cycles)))
    monkeypatch.setattr(trainer, "_programs", {True: None, False: None})
    assert trainer.cycle(True, False, False)(4) > 0
    assert taken == [((True,), 1), ((True, False, False), 2)]


def test_penalized_and_plain_steps_differ(trainer):
    trainer.cycle(True)
    before = numbers(trainer)
    trainer.run((True,), 1)
    assert any(np.any(a != b) for a, b in zip(before, numbers(trainer), strict=True))
    assert trainer.cycle(True).memory_bytes == trainer.memory(True)["peak"]
    parts = trainer.memory(True)
    assert parts["peak"] == sum(value for name, value in parts.items() if name != "peak")
    # The program's batch and state, with momentum; the state is donated.
    state = 2 * sum(array.nbytes for array in before)
    assert parts["arguments"] > state and -parts["aliased"] >= state


def test_several_steps_a_call_are_the_same_steps():
    def after(steps_per_call, calls):
        trainer = measure.Trainer(
            "MLP",
            2,
            measure.base_optimizer("MLP"),
            steps_per_call=steps_per_call,
        )
        trainer.cycle(False)
        trainer.run((False,), calls)
        return numbers(trainer)

    for one, several in zip(after(1, 3), after(3, 1), strict=True):
        np.testing.assert_allclose(one, several, rtol=1e-5, atol=1e-7)


def test_steps_are_measured_in_turn():
    order = []

    def measured(name):
        def seconds(steps):
            order.append(name)
            return 10.0

        return seconds

    measure.measure_in_turn({"a": measured("a"), "b": measured("b")}, runs=2)
    assert order == ["a", "b", "a", "b", "b", "a"]


def test_asks_another_process():
    program = "import sys\nprint('ready', flush=True)\n"
    program += "for line in sys.stdin: print(len(line.strip()), flush=True)\n"
    process = measure.AskedProcess([sys.executable, "-c", program], "it")
    assert process.answer() == "ready"
    assert process.answer("four") == "4"
    process.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([sys.executable, "-c", "raise ValueError('no such thing')"],
         "it ended without an answer: ValueError: no such thing: try another"),
        ([sys.executable, "-c", ""], "it ended without an answer: try another"),
        (["/no/such/python"], "it does not start: No such file or directory"),
    ],
)  # fmt: skip
def test_a_process_that_cannot_help(command, said):
    with pytest.raises(SystemExit) as stop:
        measure.AskedProcess(command, "it", "try another").answer("question")
    assert str(stop.value) == said


def test_the_environment_comes_back(monkeypatch):
    monkeypatch.setenv("GNP_A", "1")
    monkeypatch.delenv("GNP_B", raising=False)
    with measure.environment(GNP_A="2", GNP_B="3"):
        assert measure.os.environ["GNP_A"] == "2"
    assert measure.os.environ["GNP_A"] == "1" and "GNP_B" not in measure.os.environ


def test_writes_json(tmp_path):
    measure.write_json(tmp_path / "a.json", "step", {"rows": []})
    assert json.loads((tmp_path / "a.json").read_text()) == {"bench": "step", "rows": []}
    with pytest.raises(SystemExit, match="--out=.*: "):
        measure.write_json(tmp_path / "none" / "a.json", "step", {})
