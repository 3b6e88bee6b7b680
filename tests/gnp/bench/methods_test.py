"""The table of methods: its configs, shares and times; slow: the whole command, and stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import config as configs
import optimizer
from gnp.bench import methods
from gnp.training import run_directory
from tests.data_sets import write_tfds_set


def runs(method, seeds, out):
    return [methods.method_run(method, seed, "data", out) for seed in range(seeds)]


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_method_is_a_config_that_can_be_built(method):
    config = methods.method_run(method, 3, "here", Path("out")).config
    assert (config.seeds, config.init_seeds, config.dataset.data_dir) == (3, 3, "here")
    optimizer.build_optimizer(config, steps_per_epoch=31)


def test_how_many_steps_are_penalized():
    def share(method, seed=0):
        run = methods.method_run(method, seed, "data", Path("out"))
        return methods.penalized_share(run.config, methods.STEPS_PER_EPOCH)

    assert share("SGD") == share("SGD + GC") == share("SGD-G") == 0
    assert share("SAM") == share("ASAM") == share("SGD + GNP") == 1
    assert share("GNP every 5th step") == share("LookSAM k = 5") == 0.2
    assert share("GNP hybrid p = 0.5") == pytest.approx(0.5, abs=0.05)
    assert share("GNP hybrid p = 0.5") != share("GNP hybrid p = 0.5", seed=1)
    assert share("Adam + GNP, zero warmup") == 0.75


def test_gradients_a_step():
    def gradients(method):
        config = methods.method_run(method, 0, "data", Path("out")).config
        return methods.gradients(config, methods.penalized_share(config, methods.STEPS_PER_EPOCH))

    assert [gradients(name) for name in ("SGD", "MSAM", "RWP", "SAM", "CR-SAM", "GAM")] == [
        1, 1, 1, 2, 3, 4,
    ]  # fmt: skip
    assert gradients("RWP, mixed") == 2 and gradients("SAM from half of the batch") == 1.5
    assert gradients("SAM in the last quarter") == 1.25
    assert gradients("GNP every 5th step, 5 α") == pytest.approx(1.2)


def test_a_share_that_the_runs_decide_is_read(tmp_path):
    write_run(tmp_path / "SAM" / "seed_0")
    found = runs("SAM", seeds=2, out=tmp_path)
    assert methods.logged_share(found) is None
    rows = [{"epoch": 1, "train_penalized": 0.25}, {"epoch": 2, "train_penalized": 0.75}]
    lines = "".join(json.dumps({"step": 1, **row}) + "\n" for row in rows)
    (found[0].directory / "metrics.jsonl").write_text(lines)
    assert methods.logged_share(found) == 0.5


def test_all_methods_are_in_the_table():
    used = {changes.get("gnp.method") for changes in methods.METHODS.values()}
    assert {"sam", "asam"} | used >= set(optimizer.GNP_METHODS) - {"finite_difference", "hvp"}


def test_times_are_weighted_and_over_those_of_sgd(monkeypatch):
    built = SimpleNamespace(cycle=lambda penalize: lambda steps: 3.0 if penalize else 2.0)
    monkeypatch.setattr(methods, "build_steps", lambda config: built)
    times = methods.step_times({"SAM": 1.0, "GNP every 5th step": 0.2}, runs=2)
    assert times == {"SAM": [1.5, 1.5], "GNP every 5th step": [pytest.approx(1.1)] * 2}


def write_run(directory, **changes):
    directory.mkdir(parents=True)
    values = configs.as_json(methods.method_run("SAM", 0, "data", Path("out")).config)
    (directory / "config.json").write_text(json.dumps(values | changes))


def test_another_run_is_neither_read_nor_removed(tmp_path, capsys):
    write_run(tmp_path / "SAM" / "seed_0", base_lr=9.0)
    words = ["--data_dir=data", f"--out={tmp_path}", "--seeds=1", "--methods", "SAM"]
    assert methods.main(words) == 2
    assert "base_lr (there 9.0, here 0.05)" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--seeds=0"], ["--methods", "SAMM"]])
def test_bad_arguments(words, tmp_path):
    assert methods.main(["--data_dir=x", f"--out={tmp_path / 'out'}", *words]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_stopped(tmp_path, gnp_environment):
    write_tfds_set(tmp_path / "data", "mnist", n_train=2000, n_test=20, shape=(28, 28, 1))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gnp.bench.methods", f"--data_dir={tmp_path / 'data'}",
         f"--out={tmp_path / 'out'}", "--methods", "SGD"],
        env=gnp_environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    config = tmp_path / "out" / "SGD" / "seed_0" / "config.json"
    try:
        while not config.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 130
    assert "Traceback" not in stderr
    said = [f"the same command goes on in {tmp_path / 'out'}", "gnp: interrupted"]
    assert stderr.splitlines()[-2:] == said
    # No child is left to write there: it would hold the lock.
    with run_directory.locked(config.parent):
        pass


@pytest.mark.slow
def test_the_whole_command(tmp_path, capsys, monkeypatch):
    write_tfds_set(tmp_path / "data", "mnist", n_train=2400, n_test=20, shape=(28, 28, 1))
    short = {"total_epochs": 1, "evaluate_every_n_epochs": 1, "save_ckpt_every_n_epochs": 1,
             "model.model_name": "MLP"}  # fmt: skip
    names = ["SGD", "GNP every 5th step"]
    for name in names:
        monkeypatch.setitem(methods.METHODS, name, methods.METHODS[name] | short)
    monkeypatch.setattr(methods, "STEP", methods.STEP | {"model.model_name": "MLP"})
    words = [f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", "--seeds=1",
             "--runs=2", "--methods", *names]  # fmt: skip
    assert methods.main(words) == 0
    assert capsys.readouterr().out.startswith("| method             | gradients a step |")
    rows = json.loads((tmp_path / "out" / "methods.json").read_text())["rows"]
    assert [row["gradients a step"] for row in rows] == [1.0, pytest.approx(1 + 7 / 31)]
    assert rows[0]["times"] == [1.0, 1.0] and min(rows[1]["times"]) > 0
    assert all(0 <= row["errors"][0] <= 1 for row in rows)
