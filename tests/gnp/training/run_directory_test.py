"""A run directory: whose it is, and what is said where it is not this run's."""

import errno
import json
import signal
import subprocess
import sys

import pytest

from gnp.training import run_directory
from gnp.training.run_directory import RunDirectoryError


def test_each_process_needs_the_config_of_process_0():
    first = {"base_lr": 0.1, "gnp.r": 0.0, "dataset.data_dir": "/a", "lr": [1.0]}
    run_directory.check_same({**first, "dataset.data_dir": "/b", "lr": (1.0,)}, first)
    with pytest.raises(RunDirectoryError, match="than process 0: base_lr, gnp.r; start all"):
        run_directory.check_same({**first, "base_lr": 0.2, "gnp.r": 0.1}, first)


def test_a_directory_that_is_not_seen_is_waited_for(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(run_directory.time, "sleep", waited.append)
    with pytest.raises(RunDirectoryError, match="is not seen here"):
        run_directory.wait_for_claim(tmp_path)
    assert sum(waited) > 30
    run_directory.claim(tmp_path, {"gnp.r": 0.0}, retrain=False)
    run_directory.wait_for_claim(tmp_path)


def test_a_folder_of_several_seeds_is_no_run(tmp_path):
    for seed in ("seed-0", "seed-1"):
        (tmp_path / seed).mkdir()
        run_directory.claim(tmp_path / seed, {}, retrain=False)
    with pytest.raises(RunDirectoryError, match=r"several seeds \(seed-0, seed-1\): go on"):
        run_directory.check(tmp_path, {}, retrain=False)
    with pytest.raises(RunDirectoryError, match="several seeds, name one: seed-0, seed-1"):
        run_directory.read_config(tmp_path)
    assert not (tmp_path / "config.json").exists()


def tree(path):
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


@pytest.mark.parametrize("retrain", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        '{"architectures": ["ViT"], "hidden_size": 192}', '{"total_epochs": 3, "loss": "mse"}',
        '{"program": "other"}', "[1]", "{}", "not JSON", "\udcff", "[" * 99999,
        '{"a": %s}' % ("9" * 5000),
    ],
)  # fmt: skip
def test_a_folder_without_the_mark_is_no_run_and_stays_as_it_is(tmp_path, config, retrain):
    (tmp_path / "config.json").write_bytes(config.encode(errors="surrogateescape"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.bin").write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(RunDirectoryError) as raised:
        run_directory.check(tmp_path, {}, retrain=retrain)
    assert "retrain" not in str(raised.value) and "\n" not in str(raised.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("retrain", [False, True])
@pytest.mark.parametrize(
    "name", ["checkpoints/7/state", "metrics.jsonl", "curves.png", "profile/a"]
)
def test_results_of_nobody_knows_whom_are_neither_taken_nor_removed(tmp_path, name, retrain):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(RunDirectoryError, match="no config.json of a run"):
        run_directory.check(tmp_path, {}, retrain=retrain)
    assert (tmp_path / name).read_text() == "precious"


def test_runs_have_the_mark_and_older_ones_are_known_by_their_keys(tmp_path):
    run_directory.claim(tmp_path, {"gnp.r": 0.0}, retrain=False)
    assert json.loads((tmp_path / "config.json").read_text())["program"] == "gnp"
    assert run_directory.read_config(tmp_path) == {"gnp.r": 0.0}
    older = {"dataset.dataset_name": "iris", "loss": "a", "model.model_name": "b",
             "opt.opt_type": "c", "total_epochs": 3}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert run_directory.read_config(tmp_path) == older


def epochs_done(path, epochs):
    rows = [{"epoch": e, "step": 5 * e, "epoch_seconds": 0.1} for e in range(1, epochs + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("folder", "epochs", "every", "refused"),
    [
        (False, 1, 1, True), (False, 30, 1, True), (True, 30, 1, True), (True, 3, 1, True),
        (True, 2, 1, False), (True, 9, 5, False), (True, 11, 5, True), (False, 0, 1, False),
    ],
)  # fmt: skip
def test_results_are_not_written_over_where_their_checkpoints_are_gone(
    tmp_path, folder, epochs, every, refused
):
    config = {"save_ckpt_every_n_epochs": every}
    run_directory.claim(tmp_path, config, retrain=False)
    epochs_done(tmp_path, epochs)
    if folder:  # a run that was killed before its first checkpoint was complete
        (tmp_path / "checkpoints").mkdir()
    if refused:
        with pytest.raises(RunDirectoryError, match=f"results of {epochs} epochs"):
            run_directory.check(tmp_path, config, retrain=False)
    else:
        run_directory.check(tmp_path, config, retrain=False)
    # How often it is saved from now on does not matter.
    if refused:
        with pytest.raises(RunDirectoryError, match="results of"):
            run_directory.check(tmp_path, {"save_ckpt_every_n_epochs": 99},
                                retrain=False, free=["save_ckpt_every_n_epochs"])  # fmt: skip
    run_directory.check(tmp_path, config, retrain=True)


def test_a_folder_with_a_number_for_a_name_is_no_checkpoint(tmp_path):
    for name in ("7/.DS_Store", "007/state", "8/a", "\u00b2/state"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert not run_directory.has_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "8" / "state").mkdir()
    assert run_directory.has_checkpoints(tmp_path)


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_run_that_lost_what_its_data_were_is_refused(tmp_path, content):
    run_directory.claim(tmp_path, {}, data={"classes": ["a"]}, retrain=False)
    assert run_directory.read_data(tmp_path) == {"classes": ["a"]}
    (tmp_path / "dataset.json").unlink()
    if content:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(RunDirectoryError, match="dataset.json is missing"):
        run_directory.read_data(tmp_path)
    (tmp_path / "config.json").write_text('{"gnp.r": 0.0}')  # of a version without either
    assert run_directory.read_data(tmp_path) == {}


def test_a_directory_that_is_refused_stays_as_it_was(tmp_path):
    (tmp_path / "lock").write_text("precious")
    for path in (tmp_path, tmp_path / "new"):
        with pytest.raises(RunDirectoryError), run_directory.locked(path):
            raise RunDirectoryError
    assert tree(tmp_path) == ["lock"]
    assert (tmp_path / "lock").read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "curves.png"])
def test_a_link_is_found_before_the_first_file_is_removed(tmp_path, name):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    run_directory.claim(run, {}, retrain=False)
    epochs_done(run, 1)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(other)
    before = tree(run)
    with pytest.raises(RunDirectoryError, match=f"{name} is a link"):
        run_directory.check(run, {}, retrain=True)
    assert tree(run) == before


HOLD = """
import sys
from pathlib import Path
from gnp.training.run_directory import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_process_trains_in_a_directory_until_it_ends_however_it_does(tmp_path, gnp_environment):
    holder = [sys.executable, "-P", "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(
        holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=gnp_environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        refused = pytest.raises(RunDirectoryError, match=f"another .* \\(process {process.pid} on ")
        with refused, run_directory.locked(tmp_path / "run"):
            pass
        process.send_signal(signal.SIGKILL)
    with run_directory.locked(tmp_path / "run"):
        assert tree(tmp_path / "run") == [".gnp-lock"]
    assert tree(tmp_path / "run") == []


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_directory.fcntl, "lockf", lockf)
    with run_directory.locked(tmp_path):
        assert "cannot be locked (No locks available): make sure" in capsys.readouterr().err


def test_other_data_are_refused_with_all_differences(tmp_path):
    run_directory.check_data(tmp_path, [])
    with pytest.raises(RunDirectoryError, match="examples: 3, 4; classes: a, b; put"):
        run_directory.check_data(tmp_path, ["examples: 3, 4", "classes: a, b"])


def test_files_that_a_killed_process_left_half_written_are_removed(tmp_path):
    (tmp_path / ".curves.png.0123abcd").touch()
    (tmp_path / ".hidden").touch()
    run_directory.claim(tmp_path, {}, retrain=False)
    assert tree(tmp_path) == [".hidden", "config.json", "dataset.json"]
