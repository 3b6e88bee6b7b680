"""Trackers: what they are handed; by the packages themselves where these are installed."""

import json
import sys

import pytest

from gnp.training.trackers import TRACKERS, TrackerError, installed_trackers, opened_writers

POINTS = [(1, {"train/loss": 2.0}), (2, {"train/loss": 1.0, "epoch/test_loss": 1.5})]


def write(directory, *names):
    directory.mkdir(exist_ok=True)
    with opened_writers(directory, 0, names, {"batch_size": 8}) as writers:
        for step, values in POINTS:
            for writer in writers:
                writer.points(step, values)
                writer.flush()


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrackerError, match="wandb is not installed; pip install wandb"):
        installed_trackers("wandb,mlflow")


def test_writers_are_closed_whatever_happens(tmp_path, monkeypatch):
    closed = []

    class Fails:
        def __init__(self, directory, config):
            self.config = config

        def close(self, failed):
            closed.append((self.config, failed))

    monkeypatch.setitem(TRACKERS, "wandb", Fails)
    with pytest.raises(KeyError, match="a bug"), opened_writers(tmp_path, 0, ["wandb"], {"a": 1}):
        raise KeyError("a bug")
    with opened_writers(tmp_path, 0, ["wandb"], {"a": 2}):
        pass
    assert closed == [({"a": 1}, True), ({"a": 2}, False)]


def test_only_one_process_writes(tmp_path):
    with opened_writers(tmp_path, 0, ["wandb"], {}, active=False) as writers:
        assert writers == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_mlflow_in_a_local_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    write(tmp_path / "run", "mlflow")
    (run,) = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params == {"batch_size": "8"}
    assert run.data.metrics == {"train/loss": 1.0, "epoch/test_loss": 1.5}


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path / "run", "wandb")
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    assert file.stat().st_size and json.dumps("train/loss").encode()[1:-1] in file.read_bytes()
