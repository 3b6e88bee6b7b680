"""The scripts of recipe/cluster under a real SLURM and a real Open MPI, on this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"--config={ROOT / 'config' / 'digits.py'}"
EPOCHS = 15

pytestmark = pytest.mark.slow


def free_ports(count: int) -> int:
    """The first of some free ports in a row."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture
def environment(gnp_environment, tmp_path) -> dict[str, str]:
    return gnp_environment | {
        "GNP_PYTHON": sys.executable,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
    }


@pytest.fixture
def slurm(environment, tmp_path_factory) -> Iterator[dict[str, str]]:
    """A cluster of this machine; the environment in which its commands work."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch")
               if not shutil.which(name, path=environment["PATH"])]  # fmt: skip
    if missing:
        pytest.skip(f"needs Debian's package slurm-wlm: {', '.join(missing)} not found")
    directory = tmp_path_factory.mktemp("s")
    script = ["bash", str(ROOT / "tests" / "cluster" / "slurm.sh")]
    begun = subprocess.run(
        [*script, "start", str(directory), str(free_ports(2))],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        assert begun.returncode == 0, begun.stdout + begun.stderr
        yield environment | {"SLURM_CONF": str(directory / "slurm.conf")}
    finally:
        subprocess.run([*script, "stop", str(directory)], env=environment, check=True)


def call(environment: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(what: Callable[[], bool], seconds: float, say: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, say()
        time.sleep(0.1)


def epochs_of(directory: Path) -> list[int]:
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["epoch"] for line in lines]


@pytest.mark.parametrize("how", ["preempted", "requeued"])
def test_slurm_runs_requeues_and_resumes(slurm, tmp_path, how):
    """A job of a partition of more priority preempts it, or somebody queues it again."""
    run, log = tmp_path / "run", tmp_path / "log"
    job = call(
        slurm, "sbatch", "--parsable", "--partition=low", "--nodes=1", "--ntasks-per-node=2",
        "--cpus-per-task=1", "--time=10", f"--output={log}", "recipe/cluster/slurm.sbatch",
        CONFIG, f"--working_dir={run}", f"--config.total_epochs={EPOCHS}",
    ).strip()  # fmt: skip

    def text() -> str:
        queue = subprocess.run(["scontrol", "show", "job", job], env=slurm, capture_output=True,
                               text=True, check=False).stdout  # fmt: skip
        return queue + (log.read_text() if log.exists() else "no log")

    wait_for(lambda: len(epochs_of(run)) > 1, 120, text)
    if how == "preempted":
        call(slurm, "sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null",
             "--wrap=sleep 1")  # fmt: skip
    else:
        call(slurm, "scontrol", "requeue", job)
    wait_for(lambda: "stopped by SIGTERM after step" in text(), 60, text)
    wait_for(lambda: "JobState=PENDING" in text() and "Restarts=1" in text(), 60, text)
    # SLURM lets a job that was queued again rest for two minutes.
    call(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: "JobState=COMPLETED" in text(), 300, text)
    step = re.search(r"stopped by SIGTERM after step (\d+) of", text())
    assert step is not None
    assert f"going on in {run} after step {step[1]}" in text()
    assert "Restarts=1" in text()
    assert epochs_of(run) == list(range(1, EPOCHS + 1))
    assert "Traceback" not in text()


def test_mpirun_runs_stops_and_resumes(environment, tmp_path):
    if not shutil.which("mpirun"):
        pytest.skip("needs Debian's package openmpi-bin: mpirun not found")
    run = tmp_path / "run"
    command = ["bash", "recipe/cluster/openmpi.sh", CONFIG, f"--working_dir={run}",
               f"--config.total_epochs={EPOCHS}"]  # fmt: skip
    environment |= {"NP": "2", "PORT": str(free_ports(1))}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True)  # fmt: skip

    first = start()
    try:
        wait_for(lambda: len(epochs_of(run)) > 1, 120, lambda: str(first.poll()))
        first.send_signal(signal.SIGTERM)
        out, _ = first.communicate(timeout=60)
        assert first.returncode == 0, out
        assert "stopped by SIGTERM after step" in out, out
        second = start()
        out, _ = second.communicate(timeout=200)
        assert second.returncode == 0, out
        assert "going on in" in out
        assert epochs_of(run) == list(range(1, EPOCHS + 1))
        assert "Traceback" not in out
    finally:
        for process in (first, second) if "second" in locals() else (first,):
            process.kill()


def test_mpirun_alone_is_seen_by_jax(environment, tmp_path):
    """Open MPI 4 says enough for the plain command."""
    if not shutil.which("mpirun"):
        pytest.skip("needs Debian's package openmpi-bin: mpirun not found")
    version = call(environment, "mpirun", "--version")
    if not re.search(r"Open MPI\) 4\.", version):
        pytest.skip(f"needs Open MPI 4: {version.splitlines()[0]}")
    done = subprocess.run(
        ["mpirun", "-n", "2", "--oversubscribe", sys.executable, "-P", "-m", "gnp.main.main",
         CONFIG, f"--working_dir={tmp_path / 'run'}", "--config.total_epochs=2"],
        env=environment, capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 epochs, 44 steps") == 1
