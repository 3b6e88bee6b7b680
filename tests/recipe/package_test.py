"""The package that pip builds from the checkout: optimizer/ alone, as gnp_optimizer."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = [path.name for path in (ROOT / "optimizer").glob("*.py")]
README = (ROOT / "optimizer/README.md").read_text(encoding="utf-8")


def build(kind: str, source: Path, target: Path) -> Path:
    """Build the sdist or the wheel of the folder `source` in `target`."""
    code = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        capture_output=True, check=True, cwd=source, text=True,
    )  # fmt: skip
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, and that from a copy since the build writes beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in ("config", "ds_pipeline", "gnp", "model", "optimizer", "recipe", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    sdist = build("sdist", source, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith("METADATA")]
    return message_from_bytes(archive.read(name))


def test_it_holds_the_optimizer_alone(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == {
        f"gnp_optimizer/{name}" for name in [*SOURCES, "py.typed"]
    }
    assert any(name.endswith("/LICENSE") for name in names)


def test_it_needs_jax_and_optax_alone(wheel: Path):
    needs = metadata(wheel).get_all("Requires-Dist")
    assert sorted(Requirement(need).name for need in needs) == ["jax", "optax"]


def test_it_says_what_an_index_shows(wheel: Path):
    shown = metadata(wheel)
    text = shown.get_payload(decode=True).decode()
    assert README in text and "## 0.1.0" in text  # and the changes
    assert shown["Version"] == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_it_imports_without_the_rest(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import sys
import gnp_optimizer
forbidden = "config ds_pipeline flax gnp grain ml_collections model optimizer orbax".split()
print([name for name in forbidden if name in sys.modules])
print(callable(gnp_optimizer.gradient_norm_penalty))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        text=True,
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


def test_the_bounds_are_those_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for need in map(Requirement, PROJECT["dependencies"]):
        [line] = [line for line in lines if line.startswith(f"{need.name}>")]
        whole = Requirement(line).specifier
        assert str(need.specifier).split(",")[0] == str(whole).split(",")[0]  # the upper one
        assert need.specifier.contains(lowest(line).split("==")[1])


def lowest(need: str) -> str:
    return re.sub(r">=([^,]*),.*", r"==\1", need)


# All comes from the wheel; the oldest jax has `enable_x64` elsewhere.
ALONE = """
import sys, jax, gnp_optimizer
sys.modules["optimizer"] = gnp_optimizer
if not hasattr(jax, "enable_x64"):
    import jax.experimental
    jax.enable_x64 = jax.experimental.enable_x64
"""


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["oldest", "newest"])
def test_it_works_alone(wheel: Path, tmp_path: Path, versions: str):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env/bin/python")
    needs = PROJECT["dependencies"]
    needs = list(map(lowest, needs)) if versions == "oldest" else needs
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", str(wheel), *needs]
    done = subprocess.run([*install, "pytest"], capture_output=True, check=False, text=True)
    if "(from versions: none)" in done.stderr:
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python, "-P", *arguments],
            capture_output=True, check=False, cwd=tmp_path, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    [(code, shown)] = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    cells = re.findall(r"^\| (`.*?`) \|", README, re.MULTILINE)
    family = ", ".join(re.findall(r"`(.*?)`", " ".join(cells)))
    assert "sgdg(0.2), adamg(0.05)" in family
    assert run("-c", f"{code}\nfrom gnp_optimizer import *\n{family}") == shown

    (tmp_path / "alone.py").write_text(ALONE)
    battery = str(ROOT / "tests/optimizer/battery_test.py")
    configuration = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    ended = run(
        "-m", "pytest", "-q", "-p", "alone", "-p", "no:cacheprovider", *configuration, battery
    )
    assert re.search(r"\d\d passed", ended)
