"""recipe/setup.sh, with real virtual environments and small packages made on the spot."""

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import packaging
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ["bash", "cat", "cmp", "dirname", "find", "id", "ls", "mkdir", "rm", "sed"]


def _wheel(folder: Path, name: str, version: str, metadata: str = "", source: Path | None = None):
    """Writes a wheel with one empty module, or with the package in the folder `source`."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if source is None:
        files[f"{name}.py"] = ""
    else:
        for path in source.rglob("*.py"):
            files[f"{name}/{path.relative_to(source)}"] = path.read_text(encoding="utf-8")
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels: two versions of a `jax`, its plugin, and packaging."""
    folder = tmp_path_factory.mktemp("wheels")
    extra = 'Provides-Extra: cuda13\nRequires-Dist: jax_cuda13_plugin; extra == "cuda13"\n'
    _wheel(folder, "jax", "100.0", extra)
    _wheel(folder, "jax", "101.0", extra)
    _wheel(folder, "jax_cuda13_plugin", "1.0")
    _wheel(folder, "packaging", packaging.__version__, source=Path(packaging.__file__).parent)
    return folder


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


class Checkout:
    """A checkout with nothing but setup.sh and a small requirements.txt, and a PATH of its own."""

    def __init__(self, folder: Path, wheels: Path):
        self.root = folder / "check out"
        self.bin = folder / "bin"
        self.caller = folder / "caller"
        for each in (self.root / "recipe", self.bin, self.caller):
            each.mkdir(parents=True)
        shutil.copy(ROOT / "recipe/setup.sh", self.root / "recipe")
        self.require("jax>=100,<101")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        _script(self.bin / "python3.12", f'exec "{sys.executable}" "$@"')
        self.environment = {
            "HOME": str(folder),
            "PATH": str(self.bin),
            "PIP_FIND_LINKS": str(wheels),
            "PIP_NO_INDEX": "1",
        }

    def require(self, *lines: str) -> None:
        """Writes requirements.txt."""
        (self.root / "requirements.txt").write_text(
            "# small\n" + "\n".join(lines) + "\npackaging\n"
        )

    def command(self, **environment: str) -> dict:
        """Arguments of subprocess.run or Popen for setup.sh, from another folder."""
        return {
            "args": ["bash", str(self.root / "recipe/setup.sh")],
            "cwd": self.caller,
            "env": self.environment | environment,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    def set_up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs setup.sh."""
        return subprocess.run(**self.command(**environment), check=False, timeout=300)


@pytest.fixture
def checkout(tmp_path: Path, wheels: Path) -> Checkout:
    """A checkout of its own for every test."""
    return Checkout(tmp_path, wheels)


def _version(python: str, name: str = "jax") -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout[
        :-1
    ]


@pytest.mark.slow  # recipe/test.sh itself begins with it
def test_installs_once(checkout: Checkout):
    first = checkout.set_up()
    python = str(checkout.root / ".venv/bin/python")
    assert (first.returncode, first.stdout) == (0, f"{python}\n"), first.stderr
    assert [line.split()[1] for line in first.stderr.splitlines()] == ["making", "done"]
    assert _version(python) == "100.0"
    assert list(checkout.caller.iterdir()) == []

    second = checkout.set_up(PIP_FIND_LINKS="/nowhere")
    assert (second.returncode, second.stdout, second.stderr) == (0, f"{python}\n", "")


@pytest.mark.slow
def test_uv_installs_where_there_is_one(checkout: Checkout):
    _script(checkout.bin / "uv", 'echo "$*" >"$HOME/asked"; exec "$4" -m "$1" "$2" "${@:5}"')
    done = checkout.set_up()
    assert done.returncode == 0, done.stderr
    asked = (checkout.bin.parent / "asked").read_text()
    assert asked.startswith(f"pip install --python {done.stdout[:-1]} ")
    assert _version(done.stdout[:-1]) == "100.0"


def test_the_newest_python_is_taken(checkout: Checkout):
    for version in ("3.11", "3.13"):
        _script(
            checkout.bin / f"python{version}",
            f'[[ "$1 $2" == "-m venv" ]] && exit 1; exec "{sys.executable}" "$@"',
        )
    done = checkout.set_up()
    assert done.returncode == 1
    assert f"{checkout.bin}/python3.13 could not make" in done.stderr


@pytest.mark.slow
def test_installs_again_when_the_requirements_change(checkout: Checkout):
    python = checkout.set_up().stdout[:-1]
    checkout.require("jax>=101,<102")
    third = checkout.set_up()
    assert third.stdout == f"{python}\n", third.stderr
    assert [line.split()[1] for line in third.stderr.splitlines()] == ["updating", "done"]
    assert _version(python) == "101.0"

    checkout.require("jax>=102")
    failed = checkout.set_up()
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "No matching distribution found for jax>=102" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("setup: could not install")
    checkout.require("jax>=101,<102")
    repaired = checkout.set_up()
    assert repaired.returncode == 0
    assert "setup: making" in repaired.stderr


@pytest.mark.slow
def test_a_package_that_vanished_is_installed_again(checkout: Checkout):
    python = checkout.set_up().stdout[:-1]
    subprocess.run([python, "-m", "pip", "uninstall", "-qy", "jax"], check=True)
    assert checkout.set_up().stdout == f"{python}\n"
    assert _version(python) == "100.0"


@pytest.mark.slow
def test_accelerator_build_and_place(checkout: Checkout):
    plain = checkout.set_up(GNP_VENV="env", GNP_JAX="cpu")
    python = plain.stdout[:-1]
    assert python == str(checkout.caller / "env/bin/python")
    with pytest.raises(subprocess.CalledProcessError):
        _version(python, "jax_cuda13_plugin")

    cuda = checkout.set_up(GNP_VENV="env", GNP_JAX="cuda13")
    assert cuda.stdout == plain.stdout, cuda.stderr
    assert "jax for cuda13" in cuda.stderr
    assert _version(python, "jax_cuda13_plugin") == "1.0"
    assert _version(python) == "100.0"
    # Unset: the build that is there stays.
    assert checkout.set_up(GNP_VENV="env").stderr == ""
    assert not (checkout.root / ".venv").exists()


def test_an_unknown_build_is_one_line(checkout: Checkout):
    done = checkout.set_up(GNP_JAX="rocm")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "setup: GNP_JAX=rocm: use cpu, cuda13 or tpu\n"


@pytest.mark.slow
def test_two_at_once(checkout: Checkout):
    both = [subprocess.Popen(**checkout.command()) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    lines = "".join(error for _, error in outputs).splitlines()
    assert sum("making" in line for line in lines) == 1, lines


@pytest.mark.slow
def test_killed_on_the_way(checkout: Checkout, tmp_path: Path):
    pipe = tmp_path / "constraints"
    os.mkfifo(pipe)
    command = checkout.command(PIP_CONSTRAINT=str(pipe))
    process = subprocess.Popen(**command, start_new_session=True)
    while True:  # until pip waits for what the pipe will never say
        assert process.poll() is None, process.communicate()
        try:
            held = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:
            time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    os.close(held)
    process.communicate()
    done = checkout.set_up()
    assert done.returncode == 0, done.stderr
    assert "making" in done.stderr
    assert _version(done.stdout[:-1]) == "100.0"


def test_leaves_the_folders_of_others_alone(checkout: Checkout):
    (checkout.caller / "mine").write_text("kept")
    done = checkout.set_up(GNP_VENV=".")
    assert done.returncode == 2
    assert "was not made by this script" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (checkout.caller / "mine").read_text() == "kept"
    done = checkout.set_up(GNP_VENV="mine")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    done = checkout.set_up(GNP_VENV="/proc/nowhere")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "cannot write in /proc/nowhere" in done.stderr


@pytest.fixture
def active(checkout: Checkout) -> dict[str, str]:
    """Variables of an active environment: the one that runs the tests."""
    _script(checkout.bin / "python", f'exec "{sys.executable}" "$@"')
    return {"VIRTUAL_ENV": sys.prefix}


def test_an_active_environment_that_satisfies_is_used(checkout: Checkout, active: dict[str, str]):
    checkout.require("jax<100  # any", "nowhere>=1; python_version < '3'")
    done = checkout.set_up(**active)
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n")
    assert done.stderr == f"setup: using the active environment: {sys.executable}\n"
    assert not (checkout.root / ".venv").exists()


def test_without_an_environment_a_python_that_satisfies_is_used(checkout: Checkout):
    _script(checkout.bin / "python3", f'exec "{sys.executable}" "$@"')
    checkout.require("jax<100")
    assert checkout.set_up().stdout == f"{sys.executable}\n"


@pytest.mark.parametrize(
    ("build", "lacks"), [("", "jax<101,>=100 (it has "), ("tpu", "jax<101,>=100 (it has ")]
)
def test_what_an_active_environment_lacks_is_said(
    checkout: Checkout, active: dict[str, str], build: str, lacks: str
):
    (checkout.bin / "python3.12").unlink()
    _script(
        checkout.bin / "python", f'[[ "$*" != *version_info* ]] && exec "{sys.executable}" "$@"'
    )
    done = checkout.set_up(**active, GNP_JAX=build)
    assert done.returncode == 1
    said, stopped = done.stderr.splitlines()
    assert f"lacks {lacks}" in said
    assert ("libtpu" in said) == (build == "tpu")
    assert "Python 3.11" in stopped


def test_no_python(checkout: Checkout):
    (checkout.bin / "python3.12").unlink()
    (checkout.bin / "id").unlink()
    _script(checkout.bin / "id", "echo 1000")
    done = checkout.set_up()
    assert done.returncode == 1
    assert done.stderr == (
        "setup: no Python 3.11 or newer on PATH: install one, such as python3.13\n"
    )


def test_python_without_ensurepip(checkout: Checkout, tmp_path: Path):
    installed = tmp_path / "installed"
    _script(
        checkout.bin / "python3.12",
        f'if [[ "$*" == *ensurepip* && ! -e "{installed}" ]]; then exit 1; fi\n'
        f'if [[ "$1 $2" == "-m venv" ]]; then echo broken >&2; exit 1; fi\n'
        f'exec "{sys.executable}" "$@"',
    )
    (checkout.bin / "id").unlink()
    _script(checkout.bin / "id", "echo 1000")
    package = f"python3.{sys.version_info.minor}-venv"
    done = checkout.set_up()
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"install {package}" in done.stderr

    _script(checkout.bin / "id", "echo 0")
    _script(
        checkout.bin / "apt-get",
        f'echo "$*" >>"{installed}.log"; echo chatter\n[[ $1 == update ]] || : >"{installed}"',
    )
    done = checkout.set_up()
    assert (done.returncode, done.stdout) == (1, "")
    assert [line for line in done.stderr.splitlines() if "making" not in line] == [
        f"setup: installing {package} with apt-get",
        "broken",
        f"setup: {checkout.bin}/python3.12 could not make a virtual environment "
        f"in {checkout.root}/.venv",
    ]
    assert Path(f"{installed}.log").read_text() == f"update -qq\ninstall -y -qq {package}\n"

    installed.unlink()
    _script(checkout.bin / "apt-get", "echo no network; exit 100")
    done = checkout.set_up()
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "no network",
        f"setup: apt-get could not install {package}",
    ]


@pytest.fixture
def shell(checkout: Checkout, active: dict[str, str]) -> Callable[[str], str]:
    """Runs lines of bash in which $SETUP is setup.sh, beside a satisfying environment."""
    checkout.require("jax<100")
    variables = checkout.environment | active | {"SETUP": str(checkout.root / "recipe/setup.sh")}

    def run(lines: str) -> str:
        done = subprocess.run(
            ["bash", "-c", lines],
            capture_output=True,
            check=True,
            cwd=checkout.caller,
            env=variables,
            text=True,
        )
        return done.stdout

    return run


def test_sourced_it_sets_variables_and_nothing_else(
    shell: Callable[[str], str], checkout: Checkout
):
    lines = """
    before="$-$(shopt)$PWD"; source "$SETUP" 2>/dev/null
    [[ "$before" == "$-$(shopt)$PWD" ]] && echo same
    source "$SETUP" 2>/dev/null; printf '%s\\n' "$ROOT" "$PYTHON" "$PYTHONPATH"
    """
    root = str(checkout.root)
    assert shell(lines).splitlines() == ["same", root, sys.executable, root]
    kept = shell('set -euo pipefail; PYTHONPATH=/x; source "$SETUP"; echo "$PYTHONPATH"')
    assert kept == f"{root}:/x\n"


def test_sourced_it_returns_its_error(shell: Callable[[str], str]):
    assert shell('GNP_JAX=a source "$SETUP" 2>/dev/null || echo "status $?"') == "status 2\n"
