"""A run directory: whose it is, and what is said where it is not this run's."""

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
