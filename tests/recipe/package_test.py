"""The package that pip builds from the checkout: optimizer/ alone, as gnp_optimizer."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path.name for path in (ROOT / "optimizer").glob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy since the build writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in ("config", "ds_pipeline", "gnp", "model", "optimizer", "recipe", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, check=True, cwd=source
    )
    return next(folder.glob("*.whl"))


def test_it_holds_the_optimizer_alone(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(name for name in names if ".dist-info/" not in name) == [
        f"gnp_optimizer/{name}" for name in SOURCES
    ]
    assert any(name.endswith("/LICENSE") for name in names)


def test_it_needs_jax_and_optax_alone(wheel: Path):
    [metadata] = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA")]
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]
    assert [need.split("<")[0] for need in sorted(needs)] == ["jax", "optax"]


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["dependencies"]) <= set(lines)
