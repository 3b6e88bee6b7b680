"""recipe/prepare_data.sh, with stubs for the environment that it makes and for TFDS."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_sets import write_tfds_set

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipe" / "prepare_data.sh"
PROGRAM = ROOT / "recipe" / "prepare_data.py"

# Stands in for `python3`: runs scripts, and makes an "environment" whose python writes down how it
# was called and runs what it is told to only where RUN is set.
MAKE_ENVIRONMENT = f"""#!/bin/bash
if [[ "$1" == *.py ]]; then exec {sys.executable} "$@"; fi
echo "venv $3" >> "$LOG"
mkdir -p "$3/bin"
printf '#!/bin/bash\\necho "$PWD: $*" >> "$LOG"\\n[[ "$2" != pip || -z "${{FAIL:-}}" ]]\\n' \\
    > "$3/bin/python"
chmod +x "$3/bin/python"
"""

# Stands in for TFDS: a set is a folder with its description; WHAT names what happens to which.
TFDS = """
import os, pathlib, types
import time
KNOWN = ["mnist", "cifar10", "cifar100", "svhn_cropped", "horses_or_humans", "iris",
         "imagenet2012", "emnist"]
WHAT = dict(pair.split("=") for pair in os.environ.get("WHAT", "").split())

def list_builders(with_community_datasets):
    return KNOWN

def disable_progress_bar():
    pass

class builder:
    def __init__(self, name, data_dir, file_format):
        self.name, self.data_dir = name, pathlib.Path(data_dir) / name / "1.0.0"
        self.builder_configs, self.url_infos = {}, {"url": types.SimpleNamespace(size=2**20)}
        self.info = types.SimpleNamespace(
            download_size=0, dataset_size=0, full_name=name + "/1.0.0", homepage="http://home",
            redistribution_info=None, splits={"train": types.SimpleNamespace(num_examples=7)})

    def download_and_prepare(self, download_config, file_format):
        incomplete = self.data_dir.parent / "incomplete.ABC_1.0.0"
        incomplete.mkdir(parents=True)
        what = WHAT.get(self.name)
        if what == "fails":
            raise ConnectionError("no network\\nand more")
        if what == "buggy":
            {}["key"]
        if what == "waits":
            print("waiting", flush=True)
            try:
                time.sleep(60)
            except KeyboardInterrupt as stop:
                raise RuntimeError("wrapped") from stop
        (incomplete / "dataset_info.json").write_text("{}")
        incomplete.rename(self.data_dir)

class Other(Exception):
    pass

download = types.SimpleNamespace(
    DownloadConfig=lambda try_download_gcs: None, DownloadError=Other,
    download_manager=types.SimpleNamespace(NonMatchingChecksumError=Other),
    extractor=types.SimpleNamespace(ExtractError=Other, UnsafeArchiveError=Other))
core = types.SimpleNamespace(download=download)
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


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """The environment in which the program finds the stub of TFDS."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "tensorflow_datasets.py").write_text(TFDS)
    return {"PYTHONPATH": str(tmp_path / "stub"), "HOME": str(tmp_path / "home")}


def run_program(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The shell script: which Python runs, and when the environment is made.


def test_the_environment_is_made_once_and_paths_are_the_callers(tmp_path: Path) -> None:
    assert run_script(tmp_path, "mnist", "some data").returncode == 0
    calls = (tmp_path / "log").read_text().splitlines()
    assert calls[0] == f"venv {tmp_path / 'environment'}"
    assert "pip install" in calls[1] and "tensorflow-cpu" in calls[1]
    assert calls[2:] == [f"{tmp_path}: {PROGRAM} mnist some data"]
    assert run_script(tmp_path, "--data_dir=there", "cifar10", "iris").returncode == 0
    calls = (tmp_path / "log").read_text().splitlines()[3:]
    assert calls == [f"{tmp_path}: {PROGRAM} --data_dir=there cifar10 iris"]


def test_a_failed_installation_is_one_line_and_is_tried_again(tmp_path: Path) -> None:
    failed = run_script(tmp_path, "mnist", FAIL="1")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1 and "could not be installed" in failed.stderr
    assert run_script(tmp_path, "mnist").returncode == 0


@pytest.mark.parametrize("arguments", [(), ("--data_dir=x",), ("--dir=x", "mnist"), ("mnist", "")])
def test_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run_script(tmp_path, *arguments)
    assert result.returncode == 2 and "usage: bash recipe/prepare_data.sh" in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_says_what_a_name_can_be(tmp_path: Path) -> None:
    result = run_script(tmp_path, "--help")
    assert result.returncode == 0 and "svhn_cropped" in result.stdout
    assert "set -euo" not in result.stdout


def test_without_any_python(tmp_path: Path) -> None:
    result = run_script(tmp_path, "mnist", PYTHON="no-such-python")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "there is no no-such-python" in result.stderr


@pytest.mark.parametrize("name", ["FordA", "ucr/Coffee", "boston_housing", "digits"])
def test_tensorflow_is_not_installed_for_what_it_is_not_needed_for(
    tmp_path: Path, name: str
) -> None:
    assert run_script(tmp_path, name, "data").returncode == (2 if name == "digits" else 1)
    assert not (tmp_path / "log").exists()


# The program: names, folders, and TFDS sets.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mnsit"], "unknown TFDS data set 'mnsit'; did you mean 'mnist'?"),
        (["mnist", "cifra10"], "did you mean 'cifar10'? If it is to be the folder: --data_dir"),
        (["mnsit", "data"], "unknown TFDS data set 'mnsit'"),
        (["digits"], "needs no preparation"),
        (["mnist", "./file"], "cannot be created"),
        (["mnist", "gs://bucket/data"], "gs://bucket/data is a URL"),
        (["--data_dir=file:///data", "FordA"], "file:///data is a URL"),
        (["--data_dir=", "FordA"], "is empty"),
        (["mnist", "~nobody-here/data"], "the home of a user who does not exist here"),
    ],
)
def test_words_that_cannot_be_prepared(
    tmp_path: Path, stub: dict[str, str], words: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("x")
    result = run_program(tmp_path, *words, **stub)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "stub"]


@pytest.mark.parametrize(
    ("words", "prepared"),
    [
        (["mnist", "data"], ["data/mnist"]),
        (["mnist", "data/tfds"], ["data/tfds/mnist"]),
        (["tfds/iris", "mnist", "./emnist"], ["emnist/iris", "emnist/mnist"]),
        (["--data_dir=data", "mnist", "emnist"], ["data/mnist", "data/emnist"]),
        (["--data_dir=~/data", "mnist"], ["home/data/mnist"]),
        (["mnist"], ["home/tensorflow_datasets/mnist"]),
    ],
)
def test_where_data_go(
    tmp_path: Path, stub: dict[str, str], words: list[str], prepared: list[str]
) -> None:
    result = run_program(tmp_path, *words, **stub)
    assert result.returncode == 0, result.stderr
    name = "tfds/iris" if "tfds/iris" in words else "mnist"
    assert f"in gnp: --config.dataset.dataset_name={name} --config.dataset" in result.stdout
    found = {str(p.parents[1].relative_to(tmp_path)) for p in tmp_path.rglob("dataset_info.json")}
    assert found == set(prepared)


def test_all_goes_on_after_a_failure_and_skips_what_is_there(
    tmp_path: Path, stub: dict[str, str]
) -> None:
    first = run_program(tmp_path, "all", "data", **stub, WHAT="cifar100=fails iris=fails")
    assert first.returncode == 1
    assert first.stderr.splitlines() == [
        "prepare_data: 'cifar100' was not prepared: ConnectionError: no network",
        "prepare_data: 'iris' was not prepared: ConnectionError: no network",
    ]
    assert "total" in first.stdout and "6 to prepare" in first.stdout
    assert "132.4 MiB" in first.stdout and "CC BY-SA 3.0" in first.stdout
    assert "free in data" in first.stdout
    # What the failure left is in the way of nothing.
    assert (tmp_path / "data" / "iris" / "incomplete.ABC_1.0.0").is_dir()
    again = run_program(tmp_path, "all", "data", **stub)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("there, skipped") == 4 and "2 to prepare" in again.stdout
    assert not list(tmp_path.rglob("incomplete*"))
    nothing = run_program(tmp_path, "all", "data", **stub, WHAT="mnist=fails")
    assert nothing.returncode == 0 and nothing.stdout.count("there, skipped") == 6


def test_a_bug_in_a_set_shows_its_traceback(tmp_path: Path, stub: dict[str, str]) -> None:
    result = run_program(tmp_path, "mnist", "iris", "data", **stub, WHAT="mnist=buggy")
    assert result.returncode == 1
    assert "in download_and_prepare" in result.stderr and result.stderr.endswith(
        "KeyError: 'key'\n"
    )
    assert "was not prepared" not in result.stderr


def test_a_copy_that_is_not_whole_is_not_taken_for_a_set(
    tmp_path: Path, stub: dict[str, str]
) -> None:
    (tmp_path / "data" / "mnist" / "1.0.0").mkdir(parents=True)
    result = run_program(tmp_path, "mnist", "iris", "data", **stub)
    assert result.returncode == 1
    assert "'mnist' was not prepared" in result.stderr and "remove it" in result.stderr
    assert (tmp_path / "data" / "iris" / "1.0.0").is_dir()


@pytest.fixture
def waiting(tmp_path: Path, stub: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A preparation that hangs in its first of two sets."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "mnist", "iris", "data"],
        cwd=tmp_path,
        env=os.environ | stub | {"WHAT": "mnist=waits"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            break
    time.sleep(0.05)
    yield process
    process.kill()
    process.communicate()


def test_an_interrupt_ends_it_at_once_and_the_same_command_goes_on(
    tmp_path: Path, stub: dict[str, str], waiting: subprocess.Popen[str]
) -> None:
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert errors == "prepare_data: stopped; the same command goes on where it was\n"
    assert not (tmp_path / "data" / "iris").exists()
    assert run_program(tmp_path, "mnist", "iris", "data", **stub).returncode == 0


def test_two_do_not_prepare_in_one_folder(
    tmp_path: Path, stub: dict[str, str], waiting: subprocess.Popen[str]
) -> None:
    second = run_program(tmp_path, "iris", "data", **stub)
    assert second.returncode == 1 and "another prepare_data is at work in data" in second.stderr
    assert run_program(tmp_path, "iris", "elsewhere", **stub).returncode == 0


def test_a_set_in_another_format_is_left_alone(tmp_path: Path) -> None:
    file = write_tfds_set(tmp_path, "mnist", version="3.0.1") / "dataset_info.json"
    file.write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
    result = run_program(tmp_path, "mnist", str(tmp_path))
    assert result.returncode == 1
    assert "in a format other than array_record; give another DATA_DIR" in result.stderr


# What is put in place by hand.


@pytest.mark.parametrize(("place", "suffix"), [("data", ".ts"), ("data/Coffee", ".tsv")])
def test_series_that_are_in_place(tmp_path: Path, place: str, suffix: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / f"Coffee_TRAIN{suffix}").write_text("")
    half = run_program(tmp_path, "ucr/Coffee", "./data")
    assert half.returncode == 1 and "Coffee_TEST.tsv" in half.stdout
    (tmp_path / place / f"Coffee_TEST{suffix}").write_text("")
    result = run_program(tmp_path, "ucr/Coffee", "./data")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "--config.dataset.dataset_name=ucr/Coffee" in result.stdout


def test_forda_says_what_to_download_and_where_to_put_it(tmp_path: Path) -> None:
    result = run_program(tmp_path, "FordA", "--data_dir=data")
    assert result.returncode == 1 and "data/FordA/FordA_TRAIN.tsv" in result.stdout
    assert "timeseriesclassification.com" in result.stdout
    assert result.stderr == "prepare_data: to be downloaded by hand, as said above: FordA\n"


def test_the_table_of_houses(tmp_path: Path) -> None:
    missing = run_program(tmp_path, "boston_housing", "./data")
    assert missing.returncode == 1 and "ethical problem" in missing.stdout
    (tmp_path / "data").mkdir()
    table = tmp_path / "data" / "boston_housing.csv"
    table.write_text("crim,medv\n1,2\n")
    there = run_program(tmp_path, "boston_housing", "./data")
    assert there.returncode == 0 and f"--config.dataset.data_dir={table.relative_to(tmp_path)}" in (
        there.stdout
    )


def test_a_folder_of_images(tmp_path: Path) -> None:
    missing = run_program(tmp_path, "image_folder", "./data")
    assert missing.returncode == 1 and "data/train/CLASS/*.JPEG" in missing.stdout
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
    there = run_program(tmp_path, "image_folder", "./data")
    assert there.returncode == 0 and "--config=config/imagenet_folder.py" in there.stdout


def test_imagenet_is_prepared_once_its_files_are_there(
    tmp_path: Path, stub: dict[str, str]
) -> None:
    missing = run_program(tmp_path, "imagenet2012", "data", **stub)
    assert missing.returncode == 1 and "image-net.org/download-images" in missing.stdout
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    for name in ("train", "val"):
        (manual / f"ILSVRC2012_img_{name}.tar").write_bytes(b"")
    there = run_program(tmp_path, "imagenet2012", "data", **stub)
    assert there.returncode == 0, there.stderr
    assert "155.8 GiB" in there.stdout


def test_one_by_hand_does_not_stop_the_others(tmp_path: Path, stub: dict[str, str]) -> None:
    result = run_program(tmp_path, "FordA", "mnist", "data", **stub)
    assert result.returncode == 1 and "by hand, as said above: FordA" in result.stderr
    assert (tmp_path / "data" / "mnist" / "1.0.0").is_dir()
