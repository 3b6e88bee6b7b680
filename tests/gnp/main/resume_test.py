"""A run that is stopped in whatever way ends as if it had not been."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from tests.trees import assert_trees_equal

ROOT = Path(__file__).resolve().parents[3]
EPOCHS = 10


@pytest.fixture(scope="module")
def start(gnp_environment, tmp_path_factory) -> Callable[..., subprocess.Popen[str]]:
    """Start a digits run in a directory; all share compiled steps."""
    folder = gnp_environment["JAX_COMPILATION_CACHE_DIR"] or str(tmp_path_factory.mktemp("cache"))
    cache = {"JAX_COMPILATION_CACHE_DIR": folder,
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip

    def start(directory: Path, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable, "-P", "-m", "gnp.main.main",
                f"--config={ROOT / 'config' / 'digits.py'}", f"--working_dir={directory}",
                f"--config.total_epochs={EPOCHS}", *overrides,
            ],
            env={**gnp_environment, **cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    return start


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory) -> Path:
    """Return the directory of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    code, _, err = finish(start(directory))
    assert code == 0, err
    return directory


def steps_of(directory: Path) -> list[int]:
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


def arrays_of(directory: Path) -> Any:
    newest = directory / "checkpoints" / str(steps_of(directory)[-1])
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(newest / "state")


def rows_of(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            k: v
            for k, v in row.items()
            if k not in ("epoch_seconds", "data_seconds", "examples_per_second")
        }
        for row in rows
    ]


def assert_same_run(first: Path, second: Path) -> None:
    assert_trees_equal(arrays_of(first), arrays_of(second))
    assert rows_of(first) == rows_of(second)
    assert steps_of(first) == steps_of(second)


@pytest.mark.slow
def test_the_same_command_gives_the_same_run_and_another_seed_another(start, whole, tmp_path):
    assert finish(start(tmp_path / "again"))[0] == 0
    assert_same_run(whole, tmp_path / "again")
    assert finish(start(tmp_path / "other", "--config.seeds=1"))[0] == 0
    assert rows_of(tmp_path / "other")[0]["train_loss"] != rows_of(whole)[0]["train_loss"]


def _kill_and_go_on(start, directory: Path, times: int, seed: int) -> int:
    """Kill with -9 up to `times` times, then let the run end; return how often it had a checkpoint.

    A kill comes a moment after a process has written its rows one to four times: while it trains,
    evaluates or saves, however fast it is.
    """
    draw = random.Random(seed)
    rows = directory / "metrics.jsonl"
    hits = 0
    for _ in range(times):
        process = start(directory)
        for _ in range(draw.randint(1, 4)):
            wait_for_change(process, rows)
        time.sleep(draw.uniform(0.0, 0.2))
        ended = process.poll() is not None
        process.kill()
        process.communicate()
        if ended:
            break
        hits += bool(steps_of(directory))
    code, _, err = finish(start(directory))
    assert code == 0, err
    return hits


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(start, whole, tmp_path):
    killed = 0
    attempt = 0
    while killed < 10:
        directory = tmp_path / str(attempt)
        killed += _kill_and_go_on(start, directory, 10 - killed, seed=attempt)
        assert_same_run(whole, directory)
        attempt += 1


def wait_for_change(process: subprocess.Popen[str], path: Path) -> None:
    """Return when the file is written once more, or the process has ended."""

    def written() -> int:
        return path.stat().st_mtime_ns if path.exists() else 0

    before = written()
    while process.poll() is None and written() == before:
        time.sleep(0.005)


def wait_for_row(process: subprocess.Popen[str], directory: Path) -> None:
    """Return when the first epoch is written."""
    path = directory / "metrics.jsonl"
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_once(start, whole, tmp_path):
    process = start(tmp_path)
    wait_for_row(process, tmp_path)
    process.kill()
    process.communicate()
    assert len(rows_of(tmp_path)) < EPOCHS
    assert finish(start(tmp_path))[0] == 0
    assert_same_run(whole, tmp_path)


@pytest.mark.slow  # train_test.py has SIGTERM in a process that goes on
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=str)
def test_a_signal_saves_and_ends(start, whole, tmp_path, number, code):
    process = start(tmp_path)
    wait_for_row(process, tmp_path)
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == code, err
    assert f"stopped by {number.name} after step" in err
    assert "Traceback" not in err
    step = int(err.split("after step ")[1].split()[0])
    assert steps_of(tmp_path)[-1] == step
    assert finish(start(tmp_path))[0] == 0
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_newest_checkpoint_falls_back(start, whole, tmp_path, harm):
    process = start(tmp_path, "--config.total_epochs=10")
    assert finish(process)[0] == 0
    newest = tmp_path / "checkpoints" / str(steps_of(tmp_path)[-1]) / "state" / "d"
    file = max(newest.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if harm == "truncate":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, out, err = finish(start(tmp_path))
    assert code == 0
    assert "is damaged" in err
    assert f"going on in {tmp_path} after step {steps_of(tmp_path)[-2]}" in err
    assert_same_run(whole, tmp_path)
