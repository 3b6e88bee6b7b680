"""Two processes train one model: the same numbers, one voice, and an end together.

What jax says of a process that is gone is its own, and not looked at.
"""

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gnp.main.command_line import UsageError, parse
from tests.marks import quick_first
from tests.trees import assert_trees_close

ROOT = Path(__file__).resolve().parents[3]
CONFIG = f"--config={ROOT / 'config' / 'digits.py'}"
# Five steps an epoch, all penalized.
CNN = ("--config.batch_size=284", "--config.total_epochs=2", "--config.keep_checkpoints=9")
# The same without pixels that tie for a maximum, whose gradient is a matter of rounding.
SHORT = (
    *CNN, "--config.model.model_name=MLP", "--config.model.model_params={'widths': (256,)}",
)  # fmt: skip
# The same with what compiles quickly.
QUICK = (
    f"--config={ROOT / 'config' / 'iris.py'}", "--config.batch_size=24", "--config.total_epochs=1",
    "--config.gnp.r=0.05", "--config.gnp.alpha=0.8",
)  # fmt: skip
# The state split over the devices of both processes.
FSDP = ("--config.mesh.data=1", "--config.mesh.fsdp=4")
GROUPS = ("--config.gnp.sync_perturbations=False", "--config.gnp.m=71")
# Long enough to be stopped in the middle.
LONG = ("--config.total_epochs=12",)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def said(text: str) -> str:
    """Return what gnp printed; gloo, which connects CPUs, says so on standard output."""
    # In pieces: two of its threads may begin a line together and end it one after the other.
    is_gloo = re.compile(r"\[Gloo\]|.*is connected to \d+ peer ranks")
    return "".join(line for line in text.splitlines(True) if not is_gloo.match(line))


class Job:
    """Processes of one run, each with two CPU devices."""

    def __init__(self, environment: dict[str, str], directory: Path, arguments: Any, program: Any):
        self.directory = directory
        address = f"--coordinator_address=127.0.0.1:{free_port()}"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-P", *program, CONFIG, f"--working_dir={directory}",
                 *arguments, address, "--num_processes=2", f"--process_id={index}"],
                env={**environment, "JAX_NUM_CPU_DEVICES": "2"},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for index in (0, 1)
        ]  # fmt: skip

    def finish(self, timeout: float = 200.0) -> list[Ended]:
        try:
            return [
                Ended(process.returncode, said(out), err)
                for process in self.processes
                for out, err in [process.communicate(timeout=timeout)]
            ]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def wait_for_row(self) -> None:
        """Returns when this job has written a row."""
        path = self.directory / "metrics.jsonl"
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before or not path.read_text():
            assert all(process.poll() is None for process in self.processes), self.finish()
            time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def start(gnp_environment, tmp_path_factory) -> Callable[..., Job]:
    """Starts the processes of a run; all share compiled steps."""
    jobs: list[Job] = []
    folder = gnp_environment["JAX_COMPILATION_CACHE_DIR"] or str(tmp_path_factory.mktemp("cache"))
    cache = {"JAX_COMPILATION_CACHE_DIR": folder,
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip

    def start(
        directory: Path,
        *arguments: str,
        stopped: str = "0",
        program: tuple[str, ...] = ("-m", "gnp.main.main"),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Job:
        environment = {**gnp_environment, **cache, "GNP_STOPPED": stopped, **environment}
        jobs.append(Job(environment, directory, arguments, program))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


def arrays_of(directory: Path, step: int) -> Any:
    """On this process' one device, whatever devices it was saved from."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    path = directory / "checkpoints" / str(step) / "state"
    with ocp.StandardCheckpointer() as reader:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            reader.metadata(path).item_metadata.tree,
        )
        return reader.restore(path, like)


def assert_close(first: Path, second: Path, step: int, tolerance: float = 1e-6) -> None:
    params = [arrays_of(directory, step)["params"] for directory in (first, second)]
    assert_trees_close(*params, rtol=0, atol=tolerance)


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "layout", "steps"),
    [
        pytest.param(QUICK, (), 5, marks=pytest.mark.slow),
        pytest.param(SHORT, FSDP, 10, marks=pytest.mark.slow),
        pytest.param((*SHORT, *GROUPS), FSDP, 10, marks=pytest.mark.slow),
    ],
)
def test_two_processes_of_two_devices_train_as_one_device_does(
    start, run_gnp_here, tmp_path, arguments, layout, steps
):
    both = start(tmp_path / "both", *arguments, *layout).finish()
    assert [ended.code for ended in both] == [0, 0], both
    alone = run_gnp_here(CONFIG, f"--working_dir={tmp_path / 'alone'}", *arguments)
    assert alone.returncode == 0, alone.stderr
    assert_close(tmp_path / "both", tmp_path / "alone", step=5)
    for here, there in zip(rows_of(tmp_path / "both"), rows_of(tmp_path / "alone"), strict=True):
        for name in ("train_loss", "test_loss", "test_error_rate", "gradient_norm"):
            assert here[name] == pytest.approx(there[name], rel=1e-4), name
    # One voice.
    assert f", {steps} steps" in both[0].out
    assert [both[1].out, both[0].err, both[1].err] == ["", "", ""]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(), FSDP])
def test_a_checkpoint_goes_on_with_other_processes_and_devices(
    start, run_gnp_here, tmp_path, layout, optimized
):
    """Convolutions, batch norm and dropout, compiled as a user's run is."""
    whole, small = tmp_path / "whole", tmp_path / "small"
    line, all_of_it = (*CNN, *layout), {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    ended = start(whole, *line, environment=all_of_it).finish()
    assert [each.code for each in ended] == [0, 0], ended
    assert run_gnp_here(CONFIG, f"--working_dir={small}", *CNN).returncode == 0
    for directory in (whole, small):
        again = tmp_path / f"from_{directory.name}"
        shutil.copytree(directory, again)
        shutil.rmtree(again / "checkpoints" / "10")
    result = run_gnp_here(CONFIG, f"--working_dir={tmp_path / 'from_whole'}", *CNN)
    assert result.returncode == 0, result.stderr
    assert "after step 5" in result.stderr
    ended = start(tmp_path / "from_small", *line, environment=all_of_it).finish()
    assert [each.code for each in ended] == [0, 0], ended
    assert "after step 5" in ended[0].err
    assert ended[1].err == ""
    for directory in ("whole", "from_whole", "from_small"):
        assert_close(tmp_path / directory, small, step=10, tolerance=3e-6)


@pytest.mark.slow
def test_all_that_is_recorded_is_as_one_device_records_it(start, run_gnp_here, tmp_path):
    everything = (
        *SHORT, "--config.record.gradients=True", "--config.record.steps=True",
        "--config.record.sharpness_every_n_epochs=1", "--profile=3:4",
    )  # fmt: skip
    both, alone = tmp_path / "both", tmp_path / "alone"
    ended = start(both, *everything).finish()
    assert [each.code for each in ended] == [0, 0], ended
    assert (ended[1].out, ended[1].err) == ("", "")
    assert run_gnp_here(CONFIG, f"--working_dir={alone}", *everything[:-1]).returncode == 0
    for here, there in zip(rows_of(both), rows_of(alone), strict=True):
        assert here.keys() == there.keys()
        for name in (name for name in here if name.startswith("sharpness/")):
            assert here[name] == pytest.approx(there[name], rel=1e-2), name
    files = sorted(path.name for path in (alone / "gradients").glob("*.npy"))
    assert files
    for name in files:
        here, there = (np.load(run / "gradients" / name) for run in (both, alone))
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)
    assert len(list((both / "evolution").iterdir())) == 2
    assert len(list((both / "profile").rglob("*.xplane.pb"))) == 1

    ended = start(both, "--mode=eval", *everything[:-1]).finish()
    assert [each.code for each in ended] == [0, 0], ended
    assert (ended[1].out, ended[1].err) == ("", "")
    found = json.loads(ended[0].out.splitlines()[-1])
    assert found["examples"] == 359
    assert found["test_loss"] == pytest.approx(rows_of(both)[-1]["test_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("who", "number", "code"), [((1,), signal.SIGTERM, 75),
                                                     ((0, 1), signal.SIGINT, 130)])  # fmt: skip
def test_a_signal_to_one_or_all_saves_and_ends_all(start, tmp_path, who, number, code):
    job = start(tmp_path, *LONG, stopped="75")
    job.wait_for_row()
    for index in who:
        job.processes[index].send_signal(number)
    ended = job.finish()
    assert [each.code for each in ended] == [code, code], ended
    assert f"stopped by {number.name} after step" in ended[0].err
    assert ended[1].err == ""
    step = int(ended[0].err.split("after step ")[1].split()[0])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_one_of_two_killed_at_random_three_times(start, tmp_path):
    """The other ends within a minute, and nothing is lost."""
    whole = tmp_path / "whole"
    assert [ended.code for ended in start(whole, *LONG).finish()] == [0, 0]
    draw = random.Random(0)
    seconds = []
    for number in range(3):
        job = start(tmp_path / "killed", *LONG)
        victim = number % 2
        job.wait_for_row()
        time.sleep(draw.uniform(0.0, 1.0))
        job.processes[victim].kill()
        killed = time.monotonic()
        job.processes[1 - victim].wait(timeout=60)
        seconds.append((victim, round(time.monotonic() - killed, 1)))
        ended = job.finish()[1 - victim]
        assert ended.code != 0, ended
    print(f"who was killed, and seconds until the other ended: {seconds}")
    assert [ended.code for ended in start(tmp_path / "killed", *LONG).finish()] == [0, 0]
    step = rows_of(whole)[-1]["step"]
    assert_close(whole, tmp_path / "killed", step, tolerance=0)
    assert [row["test_loss"] for row in rows_of(whole)] == [
        row["test_loss"] for row in rows_of(tmp_path / "killed")
    ]


FAIL = """
import sys
import ds_pipeline
from gnp.main import command_line, main, train
from gnp.training import distributed

who, error = sys.argv.pop(1).split()
def run(*_):
    if distributed.is_first() is (who == "0"):
        raise eval(error)("a typo")
    distributed.sync("step")
train.run = run
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "error", "code"),
    quick_first(
        [(1, "ds_pipeline.DataError", 1), (0, "command_line.UsageError", 2), (1, "KeyError", 1)]
    ),
)
def test_an_error_of_one_ends_all(start, tmp_path, who, error, code):
    started = time.monotonic()
    ended = start(tmp_path, program=("-c", FAIL, f"{who} {error}")).finish(timeout=60)
    assert time.monotonic() - started < 60
    assert ended[who].code == code, ended
    assert ended[1 - who].code != 0, ended
    if error == "KeyError":
        assert ended[who].err.startswith("Traceback (most recent call last):")
        assert ended[who].err.endswith("KeyError: 'a typo'\n")
    else:
        assert ended[who].err == "gnp: a typo\n"


LIMIT = """
import resource
import sys
from gnp.main import main

if sys.argv[-1] == "--process_id=1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_one_that_cannot_write_its_share_of_a_checkpoint_ends_all(start, tmp_path):
    job = start(tmp_path, *QUICK, program=("-c", LIMIT))
    job.wait_for_row()
    started = time.monotonic()
    ended = job.finish(timeout=60)
    print(f"seconds until all had ended: {time.monotonic() - started:.1f}")
    assert ended[1].code == 1, ended
    assert ended[0].code != 0, ended
    root = tmp_path / "checkpoints"
    line = ended[1].err.splitlines()[-1]  # libraries have warnings before it
    assert line.startswith(f"gnp: checkpoint 5 could not be written to {root}: "), ended
    assert not (root / "5").exists()


@pytest.mark.slow
def test_a_run_directory_that_cannot_be_used_ends_all(start, tmp_path):
    (tmp_path / "file").write_text("")
    ended = start(tmp_path / "file").finish()
    assert (ended[0].code, ended[1].code != 0) == (2, True), ended
    assert "is a file" in ended[0].err
    assert len(ended[0].err.splitlines()) == 1


@pytest.mark.slow
def test_an_error_of_the_first_ends_one_that_waits_for_it(start, tmp_path):
    ended = start(
        tmp_path, "--mode=inspect", *QUICK, "--config.model.model_name=DigitsCNN"
    ).finish()
    assert (ended[0].code, ended[1].code != 0) == (2, True), ended
    assert "DigitsCNN cannot take inputs of shape (4,)" in ended[0].err
    assert len(ended[0].err.splitlines()) == 1


def test_the_three_flags_go_together():
    line = [CONFIG, "--working_dir=d"]
    with pytest.raises(UsageError, match="--num_processes=2 needs --coordinator_address and"):
        parse([*line, "--num_processes=2"])
    with pytest.raises(UsageError, match="--process_id=2 is out of range.* has 0 to 1"):
        parse([*line, "--coordinator_address=h:1", "--num_processes=2", "--process_id=2"])
    whole = parse([*line, "--coordinator_address=h:1", "--num_processes=2", "--process_id=0"])
    assert whole.processes == ("h:1", 2, 0)
