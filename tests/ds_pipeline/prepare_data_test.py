"""recipe/prepare_data.sh, with a stub for the environment that it makes, and its Python part."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ds_pipeline.testing import write_tfds_set

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipe" / "prepare_data.sh"

# Stands in for `python3`: makes an "environment" whose python writes down how it was called.
MAKE_ENVIRONMENT = """#!/bin/bash
echo "venv $3" >> "$LOG"
mkdir -p "$3/bin"
printf '#!/bin/bash\\necho "$PWD: $*" >> "$LOG"\\n[[ "$2" != pip || -z "${FAIL:-}" ]]\\n' \\
    > "$3/bin/python"
chmod +x "$3/bin/python"
"""


def run_script(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    stub = folder / "stub-python"
    stub.write_text(MAKE_ENVIRONMENT)
    stub.chmod(0o755)
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "PYTHON": str(stub),
            "GNP_TF_VENV": str(folder / "environment"),
            "LOG": str(folder / "log"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_environment_is_made_once_and_paths_are_the_callers(tmp_path: Path) -> None:
    assert run_script(tmp_path, "mnist", "some data").returncode == 0
    calls = (tmp_path / "log").read_text().splitlines()
    assert calls[0] == f"venv {tmp_path / 'environment'}"
    assert "pip install" in calls[1] and "tensorflow-cpu" in calls[1]
    assert calls[2:] == [f"{tmp_path}: {ROOT}/recipe/prepare_data.py mnist some data"]
    assert run_script(tmp_path, "cifar10").returncode == 0
    calls = (tmp_path / "log").read_text().splitlines()[3:]
    default = tmp_path / "home" / "tensorflow_datasets"
    assert calls == [f"{tmp_path}: {ROOT}/recipe/prepare_data.py cifar10 {default}"]


def test_a_failed_installation_is_one_line_and_is_tried_again(tmp_path: Path) -> None:
    failed = run_script(tmp_path, "mnist", FAIL="1")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1 and "could not be installed" in failed.stderr
    assert run_script(tmp_path, "mnist").returncode == 0


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c")])
def test_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run_script(tmp_path, *arguments)
    assert result.returncode == 2 and "usage: bash recipe/prepare_data.sh" in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnsit", "unknown TFDS data set 'mnsit'; did you mean 'mnist'?"),
        ("digits", "needs no preparation"),
    ],
)
def test_names_that_cannot_be_prepared(tmp_path: Path, name: str, message: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipe" / "prepare_data.py"), name, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_place_that_cannot_hold_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipe" / "prepare_data.py"), "mnist", str(tmp_path / "file")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "cannot be created" in result.stderr and result.stderr.count("\n") == 1


def test_a_set_in_another_format_is_left_alone(tmp_path: Path) -> None:
    file = write_tfds_set(tmp_path, "mnist", version="3.0.1") / "dataset_info.json"
    file.write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipe" / "prepare_data.py"), "mnist", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "in a format other than array_record; give another DATA_DIR" in result.stderr
