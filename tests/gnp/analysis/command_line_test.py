"""What the commands of gnp.analysis share: paths, terminals, and readers that go away."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from config import default
from gnp.analysis.results import print_table
from tests.marks import quick_first

ROOT = Path(__file__).resolve().parents[3]
DIGITS = f"--config={ROOT / 'config' / 'digits.py'}"
# Each command's words before its path flags; {run}: a run directory, {out}: a folder.
COMMANDS = {
    "gnp.analysis.report": ["{run}", "--out={out}"],
    "gnp.analysis.compare": ["{run}", "--out={out}"],
    "gnp.analysis.data": [DIGITS, "--seconds=0", "--out={out}"],
    "gnp.analysis.evolution": ["{run}", "--out={out}"],
    "gnp.analysis.sharpness": ["{run}", "--out={out}"],
    "gnp.analysis.augmentations": ["--out={out}"],
}
URLS = ("gs://bucket/x", "s3://bucket/x", "file:///x", "hdfs://host/x")


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    """Call a command's own main in an empty folder; return exit code, output and errors."""

    def run(name, *words):
        main = "__main__" if name.endswith(("report", "sharpness")) else ""
        module = importlib.import_module(f"{name}.{main}".rstrip("."))
        (tmp_path / "here").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "here")
        return module.main(list(words)), *capfd.readouterr()

    return run


def write_run(folder, name="run"):
    run = folder / name
    run.mkdir(parents=True)
    config = {key.name: key.default for key in default.KEYS} | {"dataset.dataset_name": "digits"}
    (run / "config.json").write_text(json.dumps(config))
    row = {"epoch": 1, "step": 10, "epoch_seconds": 1.0, "test_error_rate": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return run


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    ("name", "place"),
    [(n, p) for n, words in COMMANDS.items() for p in ("run", "out") if f"{{{p}}}" in str(words)],
)
def test_urls_are_refused_and_nothing_is_made(call, tmp_path, name, place, url):
    paths = {"run": str(write_run(tmp_path)), "out": str(tmp_path / "out")} | {place: url}
    code, out, err = call(name, *(word.format(**paths) for word in COMMANDS[name]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gnp: ") and f"{url} is a URL" in err
    assert not list((tmp_path / "here").iterdir()) and not (tmp_path / "out").exists()


def test_a_baseline_that_is_a_url_is_refused(call, tmp_path):
    words = [str(write_run(tmp_path)), "--out=out", "--baseline=gs://x/y"]
    code, _, err = call("gnp.analysis.report", *words)
    assert (code, err.count("\n")) == (2, 1) and "--baseline=gs://x/y" in err
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("name", quick_first(["gnp.analysis.report", "gnp.analysis.data"]))
def test_a_tilde_is_the_users_home(call, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path)
    words = [word.format(run="~/run", out="~/out") for word in COMMANDS[name]]
    code, _, err = call(name, *words, *["--baseline=~/run"] * ("{run}" in COMMANDS[name]))
    assert (code, err) == (0, "")
    assert (tmp_path / "out").is_dir() and not list((tmp_path / "here").iterdir())


def in_a_process(name, words, environment, **keywords):
    return subprocess.run(
        [sys.executable, "-P", "-m", name, *words],
        env=environment, stderr=subprocess.PIPE, check=False, text=True, **keywords,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", quick_first(["gnp.analysis.report", "gnp.analysis.data"]))
@pytest.mark.parametrize("device", quick_first(["/dev/full", "a pipe without a reader"]))
def test_an_output_that_takes_nothing_is_one_line(gnp_environment, tmp_path, name, device):
    run = write_run(tmp_path)
    words = [word.format(run=run, out=tmp_path / "out") for word in COMMANDS[name]]
    if device == "/dev/full":
        with open(device, "w") as full:
            done = in_a_process(name, words, gnp_environment, stdout=full)
        assert done.stderr == "gnp: standard output or error: No space left on device\n"
    else:
        reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
        reader.wait()
        done = in_a_process(name, words, gnp_environment, stdout=reader.stdin)
        reader.stdin.close()
        assert done.stderr == "gnp: standard output or error: Broken pipe\n"
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", quick_first([{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C"}])
)
@pytest.mark.parametrize("name", quick_first(["gnp.analysis.report", "gnp.analysis.data"]))
def test_a_terminal_of_ascii_takes_all_that_is_said(gnp_environment, tmp_path, settings, name):
    run = write_run(tmp_path / "ö", "\udcff ±")
    words = [word.format(run=run, out=tmp_path / "ö" / "out ±") for word in COMMANDS[name]]
    environment = gnp_environment | settings
    done = in_a_process(name, words, environment, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")


def test_tables_show_what_is_in_data_and_do_not_obey_it(capsys):
    evil = "a\x1b[2J\nb\r[bold]:cat:\udcff"
    print_table(evil, [(evil, "1")], (evil, "n"), ("n",))
    printed = capsys.readouterr().out
    assert printed.count(r"a\x1b[2J\nb\r[bold]:cat:\udcff") == 3
    assert all(line.isprintable() for line in printed.splitlines())
