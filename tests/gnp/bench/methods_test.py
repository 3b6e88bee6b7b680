"""The table of methods: its configs, what is read again, and the page; slow: the whole command."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import config as configs
import optimizer
from gnp.bench import methods
from tests.data_sets import write_tfds_set


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_method_is_a_config_that_can_be_built(method):
    config = methods.config_of(method, seed=3, data_dir="here")
    assert (config.seeds, config.init_seeds, config.dataset.data_dir) == (3, 3, "here")
    optimizer.build_optimizer(config, steps_per_epoch=31)


def test_how_many_steps_are_penalized():
    shares = {method: methods.penalized_share(method, seeds=2) for method in methods.METHODS}
    assert shares["SGD"] == shares["SGD + GC"] == shares["SGD-G"] == 0
    assert shares["SAM"] == shares["ASAM"] == shares["SGD + GNP"] == 1
    assert shares["GNP every 5th step"] == shares["LookSAM k = 5"] == 0.2
    assert shares["GNP hybrid p = 0.5"] == pytest.approx(0.5, abs=0.05)
    assert shares["GNP hybrid p = 0.5"] != methods.penalized_share("GNP hybrid p = 0.5", seeds=1)
    assert shares["Adam + GNP, zero warmup"] == 0.75


FAILING = "import sys; print('a line', 'no space left', sep=chr(10), file=sys.stderr); sys.exit(1)"


@pytest.mark.parametrize(
    ("epoch", "changes", "retrain"),
    [
        (20, {}, None),
        (20, {"dataset.data_dir": "moved"}, None),
        (19, {}, False),
        (20, {"base_lr": 9.0}, True),
        (20, None, True),
    ],
)
def test_a_run_is_read_again_only_if_it_is_the_same_and_whole(
    tmp_path, monkeypatch, epoch, changes, retrain
):
    commands = []

    class Popen(subprocess.Popen):
        def __init__(self, command, **options):
            commands.append(command)
            super().__init__([sys.executable, "-c", FAILING], **options)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    values = configs.as_json(methods.config_of("SAM", 0, "data"))
    directory = tmp_path / "SAM" / "seed_0"
    directory.mkdir(parents=True)
    stored = "{" if changes is None else json.dumps(values | changes)
    (directory / "config.json").write_text(stored)
    row = {"epoch": epoch, "step": 1, "test_error_rate": 0.25}
    (directory / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    errors, failures = methods.train_all(["SAM"], 1, "data", tmp_path, jobs=1)
    if retrain is None:
        assert (errors, failures, commands) == ({"SAM": (0.25,)}, [], [])
    else:
        assert (errors, failures) == ({"SAM": (None,)}, ["SAM, seed 0: no space left"])
        assert f"--config.retrain={retrain}" in commands[0]


def test_failed_runs_are_in_the_table():
    row = methods.Row("SAM", 2.0, 1.9, 0.1, (0.02, None, 0.04))
    assert methods.table([row]).endswith("| 1.90 ± 0.10 | 3.00 ± 1.41% (1 of 3 failed) |")
    assert methods.table([row._replace(errors=(None,))]).endswith("| (1 of 1 failed) |")


def test_a_wrong_page_is_refused_before_anything_is_trained(tmp_path):
    words = ["--data_dir=x", f"--out={tmp_path / 'out'}", f"--page={tmp_path / 'none.md'}"]
    with pytest.raises(SystemExit, match=r"none\.md: No such file"):
        methods.main(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [["--seeds=0"], ["--methods", "SAMM"], ["--methods", "SAM", "--page=README.md"]],
)
def test_bad_arguments(words, tmp_path):
    with pytest.raises(SystemExit) as stop:
        methods.main(["--data_dir=x", f"--out={tmp_path / 'out'}", *words])
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_stopped(tmp_path, gnp_environment, number):
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
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("stopped; the same command goes on in")
    # No child is left to write there.
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_the_whole_command(tmp_path, monkeypatch):
    write_tfds_set(tmp_path / "data", "mnist", n_train=2000, n_test=20, shape=(28, 28, 1))
    page = tmp_path / "page.md"
    page.write_text("{}\n{}\n".format(*methods.MARKS))
    words = [f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", f"--page={page}",
             "--seeds=2", "--runs=2"]  # fmt: skip
    monkeypatch.setattr(methods, "METHODS", {
        name: methods.METHODS[name] for name in ("SGD", "GNP every 5th step")
    })  # fmt: skip
    with pytest.raises(SystemExit) as end:
        methods.main(words)
    assert end.value.code == 0
    table = (tmp_path / "out" / "methods.md").read_text()
    assert table.strip() in page.read_text()
    assert table.startswith("| method | gradients a step |")
    rows = json.loads((tmp_path / "out" / "methods.json").read_text())["rows"]
    assert [row["gradients"] for row in rows] == [1.0, 1.2]
    assert rows[0]["ratio"] == 1.0 and rows[1]["ratio"] > 1.0
    assert all(len(row["errors"]) == 2 for row in rows)
