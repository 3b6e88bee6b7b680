"""Strict JAX, a random key, and ways to call the command line, for all tests."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
# Nothing goes into the user's own cache of compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
# jax 0.10.1 logs a false alarm for each entry that it reads from a compilation cache.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import fcntl
import gc
import importlib
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionfinish() -> None:
    """Take out what is called at each garbage collection.

    pytest-xdist ends its workers by an interrupt. One that comes inside of such a call, as of
    Hypothesis's clock, would be printed behind the results.
    """
    gc.callbacks.clear()


@pytest.fixture
def key() -> jax.Array:
    """Return the same random key in every test."""
    return jax.random.key(0)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compile with all of XLA's optimizations, for a test whose bound is of that rounding."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of prepared TFDS data sets that GNP_DATA_DIR names."""
    name = os.environ.get("GNP_DATA_DIR")
    if not name:
        pytest.skip("needs prepared data sets: set GNP_DATA_DIR to their folder")
    if not Path(name).is_dir():
        pytest.skip(f"needs prepared data sets: GNP_DATA_DIR={name} is not a folder")
    return Path(name)


@pytest.fixture(scope="session")
def weights_dir(data_dir: Path) -> Path:
    """Return the folder of published weights, `weights` beside that of the data sets."""
    folder = data_dir.parent / "weights"
    if not folder.is_dir():
        pytest.skip(f"needs published weights: {folder} is not a folder")
    return folder


@pytest.fixture(scope="session")
def gnp_environment() -> dict[str, str]:
    """Return environment variables of a process in which `python -P -m gnp.main.main` works."""
    return os.environ | {
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry",
    }


@pytest.fixture(scope="session")
def registered_models(gnp_environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that model registers, without those that tests and examples add."""
    program = "import model; print(*model.model_names())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True, check=True, env=dict(gnp_environment), text=True,
    )  # fmt: skip
    return tuple(done.stdout.split())


@pytest.fixture
def run_gnp(
    tmp_path: Path, gnp_environment: Mapping[str, str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line in a process of its own, in the folder tmp_path.

    Keyword arguments `environment` (added to gnp_environment), `cwd` and `timeout` (seconds).
    """

    def run(
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path = tmp_path,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "gnp.main.main", *map(str, arguments)],
            capture_output=True,
            check=False,
            cwd=cwd,
            env=gnp_environment | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def run_gnp_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line in this process, in the folder tmp_path: seconds faster.

    For tests of what is printed and returned; not of signals, exits or the environment.
    """

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        main = importlib.import_module("gnp.main.main")
        line = [str(argument) for argument in arguments]
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        try:
            status = main.main(line)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:  # as Python ends a program
            traceback.print_exc()
            status = 1
        output = capfd.readouterr()
        return subprocess.CompletedProcess(line, status, output.out, output.err)

    return run


@pytest.fixture(scope="session")
def digits_command(
    gnp_environment: Mapping[str, str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line with config/digits.py on a directory, in a process of its own."""

    def run(
        directory: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "gnp.main.main",
                f"--config={ROOT / 'config' / 'digits.py'}",
                f"--working_dir={directory}",
                *arguments,
            ],
            capture_output=True,
            check=False,
            env=gnp_environment | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=300.0,
        )

    return run


class DigitsRun(NamedTuple):
    """A finished run of three epochs, and what the command printed."""

    directory: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def digits_run(
    digits_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> DigitsRun:
    """Return a run of config/digits.py that all tests, in all test processes, share and leave."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    directory = shared / "digits" / "run[/x]"  # brackets are no markup
    printed = shared / "digits" / "printed.json"
    printed.parent.mkdir(exist_ok=True)
    with open(shared / "digits" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be training it
        if not printed.exists():
            done = digits_command(directory, "--config.total_epochs=3")
            assert done.returncode == 0, done.stderr
            printed.write_text(json.dumps([done.stdout, done.stderr]))
    return DigitsRun(directory, *json.loads(printed.read_text()))
