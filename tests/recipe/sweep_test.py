"""Grids of runs: what they are made of, how they end; a program only acts as a run."""

import doctest
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from config import as_json
from recipe import sweep

ROOT = Path(__file__).resolve().parents[2]

# Two epochs. base_lr=9: it fails until a file `mended` is there, without a word where `silent` is;
# 8: it waits for a signal after the first epoch, and saves, seed 1 later than seed 0.
RUN = """
import json, os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
place = pathlib.Path(words["working_dir"])
with open(here / "called", "a") as called:
    called.write(place.name + "\\n")
place.mkdir(exist_ok=True)
config = json.loads((here / "configs.json").read_text())[place.name]
(place / "config.json").write_text(json.dumps(config))
if config["base_lr"] == 9 and (here / "silent").exists():
    os.kill(os.getpid(), signal.SIGKILL)
print("on standard output")
if config["base_lr"] == 9 and not (here / "mended").exists():
    print("gnp: step 3: the loss is not finite", file=sys.stderr)
    sys.exit(1)
metrics = place / "metrics.jsonl"
rows = metrics.read_text().splitlines() if metrics.exists() else []
stopped = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *noted: stopped.append(noted[0]))
while len(rows) < 2 and not stopped:
    row = {"epoch": len(rows) + 1, "step": 22 * len(rows) + 22, "test_error_rate": 0.5}
    rows.append(json.dumps(row))
    (place / "checkpoints" / str(row["step"])).mkdir(parents=True)
    metrics.write_text("\\n".join(rows))
    while config["base_lr"] == 8 and len(rows) == 1 and not stopped:
        time.sleep(0.01)
time.sleep(0.5 * config["seeds"] if stopped else 0)
sys.exit(130 if signal.SIGINT in stopped else 0)
"""


@pytest.fixture
def run_sweep(tmp_path: Path, monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess]:
    """Sweeps digits in tmp_path/sweep; `stdout` has the runs that were called instead."""
    program = tmp_path / "program.py"
    program.write_text(RUN)
    monkeypatch.setattr(sweep, "PROGRAM", (sys.executable, "-S", str(program)))
    monkeypatch.delenv("JOBS", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    configs = {}
    checked = sweep._checked

    def remember(run):
        config = checked(run)
        configs[run.name] = as_json(config)
        (tmp_path / "configs.json").write_text(json.dumps(configs))
        return config

    monkeypatch.setattr(sweep, "_checked", remember)

    def call(*words: str):
        (tmp_path / "called").write_text("")
        line = ["digits", *words, f"--working_dir={tmp_path / 'sweep'}"]
        line += ["--config.total_epochs=2"]
        capfd.readouterr()
        status = sweep.main(line)
        output = capfd.readouterr()
        called = (tmp_path / "called").read_text()
        return subprocess.CompletedProcess(output.out.splitlines(), status, called, output.err)

    return call


@pytest.fixture
def without_report(monkeypatch):
    """A sweep that ends without a report, which takes a second."""
    monkeypatch.setattr(sweep, "_report", lambda runs, directory: 0)


@pytest.mark.parametrize(
    ("word", "keys", "values"),
    [
        ("gnp.r=0,0.05", ["gnp.r"], [["0"], ["0.05"]]),
        ("base_lr=-1, 1e-3", ["base_lr"], [["-1"], ["1e-3"]]),
        ("b=(60,120),(30,60)", ["b"], [["(60,120)"], ["(30,60)"]]),
        ("p={'a': [1,2], 'b': ')'},{}", ["p"], [["{'a': [1,2], 'b': ')'}"], ["{}"]]),
        ("d='a,b',c", ["d"], [["a,b"], ["c"]]),
        ("d=\"it's, [\",''", ["d"], [["it's, ["], [""]]),
        ("d=x=y", ["d"], [["x=y"]]),
        ("a,b=(0,1),(2,'3,4')", ["a", "b"], [["0", "1"], ["2", "3,4"]]),
        ("a,b=[(1,2),x]", ["a", "b"], [["(1,2)", "x"]]),
    ],
)
def test_what_varies(word, keys, values):
    [axis] = sweep.read_axes([word])
    assert [list(axis.keys), [list(value) for value in axis.values]] == [keys, values]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gnp.r", "'gnp.r' is neither KEY=VALUE,VALUE nor an option"),
        ("=1", "'=1' is neither"),
        ("a,=1", "'a,=1' is neither"),
        ("a=", "a=: no value"),
        ("a=1,,2", "a=1,,2: a value is empty"),
        ("a=(1,2", "a=(1,2: a bracket or a quote has no partner"),
        ("a=1)", "a=1): a bracket or a quote has no partner"),
        ("a=(1]", "a=(1]: a bracket or a quote has no partner"),
        ("a='1", "a='1: a bracket or a quote has no partner"),
        ("a,b=1,2", "a,b=1,2: 1 is no value for 2 keys"),
        ("a,b=(1,2),(3)", "a,b=(1,2),(3): (3) is no value for 2 keys"),
        ("c=1", "c is given 2 times"),
        ("a,a=(1,2)", "a is given 2 times"),
    ],
)
def test_what_cannot_vary(word, message):
    with pytest.raises(sweep.UsageError) as error:
        sweep.read_axes([word, "d=1"], ["c"])
    [line] = str(error.value).splitlines()
    assert line.startswith(message)


def test_the_runs_are_every_combination():
    axes = sweep.read_axes(["seeds=1,2", "gnp.r,gnp.alpha=(0,0),(0.1,1)"])
    runs = sweep.plan("c.py", Path("d"), axes, [("base_lr", "1")])
    assert [run.name for run in runs] == [
        f"gnp.alpha={alpha},gnp.r={r},seeds={seed}"
        for seed in (1, 2)
        for r, alpha in (("0", "0"), ("0.1", "1"))
    ]
    assert runs[-1].arguments == (
        "--config=c.py",
        *("--config.base_lr=1", "--config.seeds=2", "--config.gnp.r=0.1", "--config.gnp.alpha=1"),
        *("--config.init_seeds=2", "--working_dir=d/gnp.alpha=1,gnp.r=0.1,seeds=2"),
    )


@pytest.mark.parametrize("where", ["constant", "grid"])
def test_seeds_leave_an_init_seed_that_is_given(where):
    axes = sweep.read_axes(["seeds=1"] + ["init_seeds=5"] * (where == "grid"))
    constants = [("init_seeds", "5")] * (where == "constant")
    [run] = sweep.plan("c.py", Path("d"), axes, constants)
    assert [word for word in run.arguments if "init_seeds=" in word][0].endswith("init_seeds=5")
    assert sum("--config.init_seeds=" in word for word in run.arguments) == 1


def test_a_config_may_have_an_argument(tmp_path):
    root = sweep.ROOT
    assert sweep._locate("evolution:mnist", None) == (
        f"{root}/config/evolution.py:mnist",
        root / "runs" / "evolution-mnist-sweep",
    )
    assert sweep._locate("x/riemannian.py:svhn,sgd", None) == (
        "x/riemannian.py:svhn,sgd",
        root / "runs" / "riemannian-svhn-sgd-sweep",
    )


def test_names_are_files_and_differ():
    values = ["a/b", "a%2Fb", "a b", "(60,120)", "..", "x" * 300, "x" * 301, ""]
    names = [sweep.run_name({"seeds": "0", "key": value}) for value in values]
    assert len(set(names)) == len(values)
    assert all("/" not in name and len(f"{name}.log".encode()) < 255 for name in names)
    assert sweep.run_name({"key": "1", "seeds": "0"}) == sweep.run_name({"seeds": "0", "key": "1"})


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ["gnp.q=1", "base_lr=-1,0.1", "seeds=a,b"],
            [
                "unknown config key gnp.q (did you mean gnp.r?)",
                "seeds = 'a': ",
                "init_seeds = 'a': ",
                "base_lr = -1.0: allowed is a number >= 0",
                "seeds = 'b': ",
                "init_seeds = 'b': ",
            ],
        ),
        (["gnp.r=0,0.1"], ["gnp.alpha = 0.8 with gnp.r = 0: a penalty needs a radius"]),
        (
            ["model.model_name=DigitsCNN,Digits"],
            ["unknown model_name 'Digits'; did you mean 'DigitsCNN'?"],
        ),
        (["warmup_epochs=1,2"], ["warmup_epochs=2.0 leaves none of total_epochs=2"]),
        (["base_lr=0.1,0.10"], ["base_lr=0.1 and base_lr=0.10 are the same run"]),
        (["seeds=0", "--config.num_seeds=2"], ["config key num_seeds was removed: train one"]),
        (["seeds=0", "--config.retrain=True"], ["retrain=True does not go with a sweep"]),
        (["seeds=0", "--config.seeds=1"], ["seeds is given 2 times"]),
        (["seeds=0", "--jobs=0"], ["--jobs=0: allowed is a whole number >= 1"]),
        (["seeds=0", "--job=1"], ["unrecognized arguments: --job=1"]),
        (["seeds=0", "--config.x"], ["--config.x has no value"]),
        ([], ["nothing to sweep over"]),
    ],
)
def test_what_is_wrong_is_found_before_the_first_run(run_sweep, tmp_path, words, lines):
    try:
        done = run_sweep(*words)
        status, stderr = done.returncode, done.stderr
    except SystemExit as stop:  # argparse
        status, stderr = stop.code, None
    assert status == 2
    assert not (tmp_path / "sweep").exists()
    if stderr is not None:
        found = stderr.splitlines()
        assert len(found) == len(lines), stderr
        assert all(a.startswith(f"gnp: {b}") for a, b in zip(found, lines, strict=True)), stderr


@pytest.mark.slow
def test_a_failing_run_is_named_at_the_end_and_tried_again(run_sweep, tmp_path):
    words = ("base_lr=0.1,9,0.2", "seeds=0", "--jobs=1")
    done = run_sweep(*words)
    names = [f"base_lr={rate},seeds=0" for rate in ("0.1", "9", "0.2")]
    assert (done.returncode, done.stdout.split()) == (1, names)
    folder = tmp_path / "sweep"
    log = folder / "logs" / f"{names[1]}.log"
    assert done.stderr.splitlines()[-2:] == [
        "gnp: 1 of 3 runs failed; the same command tries again:",
        f"gnp: {names[1]}: exit code 1: step 3: the loss is not finite; see {log}",
    ]
    assert log.read_text() == "on standard output\ngnp: step 3: the loss is not finite\n"
    assert done.args[0] == f"3 runs in {folder}"
    assert re.fullmatch(rf"\[1/3\] {names[0]}: \d+ s, done", done.args[1])
    assert re.fullmatch(rf"\[2/3\] {names[1]}: \d+ s, failed: exit code 1: step 3.*", done.args[2])
    assert done.args[-1] == f"in {folder}/report: report.html, report.md, report.csv"
    assert (folder / "report" / "report.html").is_file()

    (tmp_path / "silent").touch()
    done = run_sweep(*words)
    assert done.stderr.endswith(f"gnp: {names[1]}: killed by SIGKILL; see {log}\n")
    (tmp_path / "silent").unlink()
    (tmp_path / "mended").touch()
    done = run_sweep(*words, "gnp.r=0.05,0.1")  # other names: a new grid beside the old one
    assert done.stdout.count("\n") == 6
    done = run_sweep(*words)
    assert (done.returncode, done.stdout.split()) == (0, [names[1]])
    assert done.args[0] == f"3 runs in {folder}, 2 of them finished before"
    done = run_sweep(*words)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_the_runs_and_the_same_command_goes_on(
    run_sweep, without_report, tmp_path, number, code
):
    waits = tmp_path / "sweep" / "base_lr=8" / "metrics.jsonl"

    def send():
        while not (waits.exists() and waits.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    done = run_sweep("base_lr=0.1,8,0.2", "--jobs=1")
    sender.join()
    assert (done.returncode, done.stdout.split()) == (code, ["base_lr=0.1", "base_lr=8"])
    assert done.stderr == (
        f"stopped by {number.name}: 1 of 3 runs finished; the same command goes on\n"
    )
    done = run_sweep("base_lr=0.1,8,0.2", "--jobs=1")
    assert (done.returncode, done.stdout.split()) == (0, ["base_lr=8", "base_lr=0.2"])
    assert len(waits.read_text().splitlines()) == 2


def test_a_run_that_someone_else_stopped_is_named(run_sweep, without_report, tmp_path):
    waits = tmp_path / "sweep" / "base_lr=8" / "metrics.jsonl"

    def send():
        while not (waits.exists() and waits.read_text()):
            time.sleep(0.01)
        # Tests before this one may have left this process other children.
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        [child] = [n for n in children if b"base_lr=8" in Path(f"/proc/{n}/cmdline").read_bytes()]
        os.kill(int(child), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    done = run_sweep("base_lr=8,0.2", "--jobs=1")
    sender.join()
    assert (done.returncode, done.stdout.split()) == (1, ["base_lr=8", "base_lr=0.2"])
    assert "gnp: base_lr=8: it was stopped before its end; see " in done.stderr


def test_two_at_a_time(run_sweep, without_report, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_devices", lambda: ("cpu", ["0"]))
    waits = [tmp_path / "sweep" / f"base_lr=8,seeds={n}" / "metrics.jsonl" for n in (0, 1)]

    def send():
        while not all(path.exists() and path.read_text() for path in waits):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    done = run_sweep("base_lr=8", "seeds=0,1,2", "--jobs=2")
    sender.join()
    assert (done.returncode, sorted(done.stdout.split())) == (0, [p.parent.name for p in waits])
    assert done.args[0].endswith("2 at a time")


def test_a_run_is_finished_when_its_last_epoch_is_saved(run_sweep, without_report, tmp_path):
    assert run_sweep("seeds=0", "--jobs=1").stdout == "seeds=0\n"
    saved = tmp_path / "sweep" / "seeds=0" / "checkpoints" / "44"
    saved.rename(saved.with_name("44.tmp"))
    assert run_sweep("seeds=0", "--jobs=1").stdout == "seeds=0\n"


def test_a_directory_of_another_run_is_refused(run_sweep, without_report, tmp_path):
    assert run_sweep("seeds=0", "--jobs=1").returncode == 0
    done = run_sweep("seeds=0,1", "--config.gnp.r=0.1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"gnp: --working_dir={tmp_path}/sweep/seeds=0 holds a run with another config: "
        "gnp.r (there 0.05, here 0.1); choose another directory for the sweep, or remove this one\n"
    )
    assert run_sweep("seeds=0", "--config.dataset.workers=0").stdout == ""
    (tmp_path / "sweep" / "config.json").touch()
    assert "is a run directory; choose another" in run_sweep("seeds=0").stderr


def test_a_sweep_has_its_directory_for_itself(run_sweep, without_report, tmp_path):
    (tmp_path / "sweep").mkdir()
    with open(tmp_path / "sweep" / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run_sweep("seeds=0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "gnp: another sweep, or a run that one left behind, is at work in"
    )


MEMORY = "XLA_CLIENT_MEM_FRACTION"


@pytest.fixture
def free_memory(monkeypatch):
    for name in (MEMORY, "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("backend", "names", "jobs", "shares"),
    [
        ("cpu", ["0"], None, [None]),
        ("cpu", ["0"], 3, [None, None, None]),
        ("gpu", ["0"], None, [None]),
        ("gpu", ["2", "5"], None, ["2", "5"]),
        ("gpu", ["0", "1", "2", "3", "4"], 2, ["0,1", "2,3"]),
        ("gpu", ["0", "1"], 1, [None]),
        ("tpu", ["0", "1"], None, [None]),
    ],
)
def test_devices_are_shared_out(backend, names, jobs, shares):
    wanted = [{"CUDA_VISIBLE_DEVICES": share} if share else {} for share in shares]
    assert sweep.share_out(backend, names, jobs, runs=9) == wanted


@pytest.mark.parametrize(
    ("names", "jobs", "visible", "memory"),
    [
        (["3"], 2, ["3"] * 2, "0.400"),
        (["0"], 7, ["0"] * 7, "0.114"),
        (["0", "1", "2"], 8, ["0", "1", "2", "0", "1", "2", "0", "1"], "0.267"),
    ],
)
def test_more_jobs_than_gpus_share_their_memory(free_memory, names, jobs, visible, memory):
    wanted = [{"CUDA_VISIBLE_DEVICES": name, MEMORY: memory} for name in visible]
    assert sweep.share_out("gpu", names, jobs, runs=99) == wanted


@pytest.mark.parametrize(
    ("name", "value", "counts"),
    [
        (MEMORY, "0.2", True),
        (MEMORY, "", False),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2", True),
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "false", True),
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "true", False),
    ],
)
def test_what_the_user_says_of_the_memory_counts(free_memory, name, value, counts, monkeypatch):
    monkeypatch.setenv(name, value)
    given = {} if counts else {MEMORY: "0.400"}
    assert sweep.share_out("gpu", ["0"], 2, runs=9) == [{"CUDA_VISIBLE_DEVICES": "0"} | given] * 2


def test_the_last_runs_have_as_many_gpus_as_the_first(free_memory, monkeypatch):
    monkeypatch.setattr(sweep, "_devices", lambda: ("gpu", ["0", "1", "2", "3"]))
    assert sweep._shares(4, 1) == [{"CUDA_VISIBLE_DEVICES": "0"}]
    assert sweep._shares(2, 1) == [{"CUDA_VISIBLE_DEVICES": "0,1"}]
    assert sweep._shares(8, 1) == [{"CUDA_VISIBLE_DEVICES": "0"}]


def test_more_jobs_than_a_tpu_can_have():
    with pytest.raises(sweep.UsageError, match=r"^--jobs=3: allowed is 1, as a TPU belongs to"):
        sweep.share_out("tpu", ["0", "1"], 3, runs=9)


def test_a_process_has_its_share(tmp_path, monkeypatch):
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setattr(sweep, "PROGRAM", (sys.executable, "-c", program))
    with open(tmp_path / "lock", "wb") as lock:
        run = sweep.Run("r", tmp_path / "r", ())
        process = sweep.Process(run, {"CUDA_VISIBLE_DEVICES": "5"}, tmp_path, lock.fileno())
        process.wait()
    assert process.log.read_text() == "5\n"


def test_the_examples():
    done = doctest.testmod(sweep)
    assert done.attempted > 0 and done.failed == 0


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "recipe" / "sweep.py")
COMMANDS = re.findall(
    r"^ *bash recipe/sweep\.sh (.*)$",
    "\n".join(page.read_text() for page in PAGES).replace("\\\n", " "),
    flags=re.MULTILINE,
)


@pytest.mark.parametrize("command", [text for text in COMMANDS if "KEY=" not in text])
def test_a_command_on_the_pages_is_accepted(command, monkeypatch):
    planned = []
    monkeypatch.setattr(sweep, "_sweep", lambda runs, *_: planned.extend(runs) or 0)
    assert sweep.main(shlex.split(command)) == 0
    assert len(planned) >= 4


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_goes_on(tmp_path, gnp_environment):
    environment = dict(gnp_environment, VIRTUAL_ENV=sys.prefix)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = shlex.split(f"bash {ROOT}/recipe/sweep.sh digits seeds=0,1 'base_lr=1e30,0.05'")
    command += [f"--working_dir={tmp_path}/sweep", "--config.total_epochs=6"]
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    rows = tmp_path / "sweep" / "base_lr=0.05,seeds=0" / "metrics.jsonl"
    while not (rows.exists() and rows.read_text()):
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does
    assert first.wait() == 130
    done = subprocess.run(command, capture_output=True, check=False, env=environment, text=True)
    assert done.returncode == 1
    assert done.stderr.count("exit code 1: step 2 (epoch 1): loss") == 2
    assert "in 3 groups" not in done.stdout and "4 runs in 2 groups" in done.stdout
    log = tmp_path / "sweep" / "logs" / "base_lr=0.05,seeds=0.log"
    assert "going on in" in log.read_text()
