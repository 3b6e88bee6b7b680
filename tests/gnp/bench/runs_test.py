"""Runs of a benchmark: what is read again, what a failure says, how a signal ends them."""

import json
import signal
import subprocess
import sys

import pytest

import config as configs
from gnp.bench import runs
from gnp.bench.measure import ROOT

CONFIG = str(ROOT / "config" / "digits.py")


def make(out, seeds=1, file=CONFIG, **keys):
    return [
        runs.Run(f"seed {n}", file, keys | {"seeds": n}, out / "a" / f"seed_{n}", out)
        for n in range(seeds)
    ]


def write(run, **row):
    run.directory.mkdir(parents=True)
    (run.directory / "config.json").write_text(json.dumps(configs.as_json(run.config)))
    (run.directory / "metrics.jsonl").write_text(json.dumps({"step": 1, **row}) + "\n")


@pytest.mark.parametrize("data_dir", ["data", "moved"])
def test_a_finished_run_is_read_only(tmp_path, monkeypatch, data_dir):
    [run] = make(tmp_path)
    assert run.read() is run.error() is None
    write(run, epoch=30, test_error_rate=0.25)
    monkeypatch.setattr(runs.Run, "start", None)
    found = make(tmp_path, **{"dataset.data_dir": data_dir})
    assert runs.train(found, jobs=1) == [] and found[0].error() == 0.25


def test_the_error_is_the_metric_of_the_data_and_the_split(tmp_path):
    keys = {"use_test_set": False, "early_stopping.metric": "validation_loss"}
    [run] = make(tmp_path, file=str(ROOT / "config" / "samformer.py"), **keys)
    write(run, epoch=100, validation_loss=0.5, test_loss=0.25)
    assert run.error() == 0.5


@pytest.fixture
def children(monkeypatch):
    """Return a function that says what the processes run; the list of them."""
    started, popen = [], subprocess.Popen

    def run(program):
        def start(command, **options):
            started.append(popen([sys.executable, "-c", program], **options))
            return started[-1]

        monkeypatch.setattr(runs.subprocess, "Popen", start)
        return started

    return run


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, children):
    found = make(tmp_path, seeds=2)
    write(found[0], epoch=29, test_error_rate=0.25)
    children("import sys; print('a line', 'no space left', sep=chr(10), file=sys.stderr)")
    assert runs.train(found, jobs=1) == ["seed 0: no space left", "seed 1: no space left"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_ends_all_processes_and_starts_no_more(tmp_path, children, number, capsys):
    before = signal.getsignal(number)
    started = children(f"import os, time; os.kill(os.getppid(), {int(number)}); time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        runs.train(make(tmp_path, seeds=3), jobs=1)
    assert [child.returncode for child in started] == [-signal.SIGTERM]
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.endswith(f"the same command goes on in {tmp_path}\n")
