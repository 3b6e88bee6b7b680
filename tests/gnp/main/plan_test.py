"""--mode=plan as a user sees it: on the CPU; plan_tpu_test.py has those for TPUs."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from config import load_config
from gnp.main import plan as plan_mode
from gnp.training import topology
from tests.marks import quick_first

ROOT = Path(__file__).resolve().parents[3]
DIGITS = f"--config={ROOT / 'config' / 'digits.py'}"
IRIS = f"--config={ROOT / 'config' / 'iris.py'}"
PENALTY = ["--config.gnp.r=0.05", "--config.gnp.alpha=0.8"]
CIFAR = f"--config={ROOT / 'config' / 'cifar.py'}"


@pytest.fixture
def plan(run_gnp_here):
    """Run --mode=plan, and return what its JSON line says and what was printed."""

    def plan(*words):
        result = run_gnp_here("--mode=plan", *words)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1]), result

    return plan


@pytest.mark.slow
def test_digits_on_the_cpu(plan):
    found, result = plan(DIGITS, "--topology=cpu", "--config.total_epochs=2")
    steps, run = found["steps"], found["run"]
    assert list(steps) == ["plain step", "penalized step", "evaluation step"]
    ratio = steps["penalized step"]["flops"] / steps["plain step"]["flops"]
    assert 1.9 < ratio < 2.1
    # 1,437 of the 1,797 digits in batches of 64, and 360 in six.
    assert run == {"plain steps": 0, "penalized steps": 44, "evaluation steps": 12}
    assert "no times" in result.stdout and result.stderr == ""


def test_without_a_penalty_there_is_no_penalized_step(plan):
    found, result = plan(IRIS, "--topology=local")
    assert list(found["steps"]) == ["plain step", "evaluation step"]
    # 120 flowers in batches of 32, a hundred times; 30 in one.
    assert found["run"] == {"plain steps": 300, "penalized steps": 0, "evaluation steps": 10}
    assert "no times" in result.stdout and result.stderr == ""


def test_hours_follow_from_the_figures_of_a_chip(plan, monkeypatch):
    monkeypatch.setitem(topology.CHIPS, "cpu", topology.Chip(1e9, 1e12, 1e30, 1e30))
    found, _ = plan(IRIS, *PENALTY, "--topology=cpu", "--config.gnp.every=2")
    steps, run = found["steps"], found["run"]
    assert run["plain steps"] == run["penalized steps"] == 150
    counted = sum(steps[name]["flops"] * run[f"{name}s"] for name in steps)
    assert run["hours at least"] == pytest.approx(counted / 1e9 / 3600)
    assert run["chip-hours at least"] == run["hours at least"]


def test_what_does_not_fit_is_told_in_one_line(run_gnp_here, monkeypatch):
    monkeypatch.setitem(topology.CHIPS, "cpu", topology.Chip(1e9, 1e3, 1e9, 1e9))
    result = run_gnp_here("--mode=plan", IRIS, "--topology=cpu")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "does not fit" in line and "more chips" in line
    # Eight parts of the 32 examples are the first that are small enough.
    for way in ("accumulate_steps=", "model_params.remat=True"):
        assert way in line
    assert "fsdp" not in line  # there is one device
    assert json.loads(result.stdout.splitlines()[-1])["fits"] is False


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.30G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (40.30G) exceeds available HBM (15.75G).",
    ],
)
def test_what_libtpu_says_of_memory(text):
    assert plan_mode.memory_of(text) == (40.30 * 2**30, 15.75 * 2**30)
    assert plan_mode.memory_of("INTERNAL: another error") is None


@pytest.mark.parametrize(
    ("step", "times", "expected"),
    [
        ("penalized step", 1.5, "--config.accumulate_steps=2"),
        ("penalized step", 2.5, "--config.accumulate_steps=3"),
        ("penalized step", 99.0, "--config.accumulate_steps=6"),
        ("evaluation step", 2.5, "--config.eval_batch_size=4"),
    ],
)
def test_advice_is_what_the_rules_allow(step, times, expected):
    """Of 12 examples on two devices, each has six."""
    config = load_config(str(ROOT / "config" / "digits.py"), [("batch_size", "12")])
    assert expected in plan_mode.what_would_help(step, times, config, devices=2)


@pytest.mark.parametrize(
    ("key", "expected"),
    quick_first(
        [
            (["--config.ema_decay=0.9"], 20),
            (["--config.record.gradients=True"], 10 + 100 * 4),
            (["--config.dataset.label_noise=0.5"], 10 + 10 * 2),
        ]
    ),
)
def test_all_evaluations_count(plan, key, expected):
    found, _ = plan(IRIS, *key, "--topology=cpu")
    assert found["run"]["evaluation steps"] == expected


@pytest.mark.slow
def test_data_that_are_not_here_are_stood_in_for(plan, monkeypatch, tmp_path):
    found, result = plan(
        CIFAR, "--topology=cpu", f"--config.dataset.data_dir={tmp_path}",
        "--config.model.model_name=WideResNet_10_1", "--config.total_epochs=1",
    )  # fmt: skip
    assert found["run"]["evaluation steps"] == 40
    assert found["run"]["plain steps"] + found["run"]["penalized steps"] == 195
    assert "published size of the data set" in result.stderr


def test_unknown_data_that_are_not_here_are_an_error(run_gnp_here, tmp_path):
    words = ("--config.dataset.dataset_name=mine", f"--config.dataset.data_dir={tmp_path}")
    result = run_gnp_here("--mode=plan", CIFAR, *words)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mode=plan", DIGITS, "--topology=v5e:3x3"], "v5e:AxB"),
        (["--mode=train", DIGITS, "--working_dir=x", "--topology=cpu"], "--mode=plan only"),
        (["--mode=plan"], "--config=FILE is missing"),
    ],
)
def test_command_lines_that_are_wrong(run_gnp_here, words, says):
    result = run_gnp_here(*words)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert says in line


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: GNP_JAX=tpu")
def test_a_tpu_slice_that_is_not_here(plan):
    small = ["--config.model.model_name=WideResNet_10_1", "--config.batch_size=16"]
    found, result = plan(CIFAR, *small, "--topology=v5e:2x2")
    assert found["devices"] == 4 and found["run"]["chip-hours at least"] > 0
    assert "batch_norm_group=4" in result.stdout and "least effort" in result.stdout
