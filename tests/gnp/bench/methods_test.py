"""The table of methods: its configs, what is read again, and the page; slow: the whole command."""

import json
import subprocess

import pytest

import optimizer
from config import default
from config.schema import flatten
from ds_pipeline.testing import write_tfds_set
from gnp.bench import methods


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_method_is_a_config_that_can_be_built(method):
    config = methods.config_of(method, seed=3, data_dir="here")
    assert (config.seeds, config.init_seeds, config.dataset.data_dir) == (3, 3, "here")
    optimizer.build_optimizer(config, methods.STEPS_PER_EPOCH)


def test_how_many_steps_are_penalised():
    shares = {method: methods.penalised_share(method) for method in methods.METHODS}
    assert shares["SGD"] == shares["SGD + GC"] == shares["SGD-G"] == 0
    assert shares["SAM"] == shares["ASAM"] == shares["SGD + GNP"] == 1
    assert shares["GNP every 5th step"] == shares["LookSAM k = 5"] == 0.2
    assert shares["GNP hybrid p = 0.5"] == pytest.approx(0.5, abs=0.05)
    assert shares["Adam + GNP, zero warmup"] == 0.75


@pytest.mark.parametrize(
    ("epoch", "changes", "finished"),
    [
        (20, {}, True),
        (20, {"dataset.data_dir": "moved"}, True),
        (19, {}, False),
        (20, {"base_lr": 9.0}, False),
    ],
)
def test_a_run_is_read_again_only_if_it_is_the_same_and_whole(
    tmp_path, monkeypatch, epoch, changes, finished
):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "a line\nno space left\n")

    monkeypatch.setattr(subprocess, "run", fail)
    values = json.loads(json.dumps(flatten(methods.config_of("SAM", 0, "data"), default.KEYS)))
    directory = tmp_path / "SAM" / "seed_0"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(values | changes))
    row = {"epoch": epoch, "step": 1, "test_error_rate": 0.25}
    (directory / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    if finished:
        assert methods.train_all(["SAM"], 1, "data", tmp_path, jobs=1) == {"SAM": (0.25,)}
    else:
        with pytest.raises(methods.RunError, match="SAM, seed 0: no space left"):
            methods.train_all(["SAM"], 1, "data", tmp_path, jobs=1)


def test_the_page_keeps_what_is_around_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{methods.START}\nold\n{methods.END}\nafter\n")
    methods.write_page(page, "new")
    assert page.read_text() == f"before\n{methods.START}\n\nnew\n\n{methods.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="it needs the lines"):
        methods.write_page(page, "new")


@pytest.mark.parametrize("words", [["--seeds=0"], ["--methods", "SAMM"]])
def test_bad_arguments(words, tmp_path):
    with pytest.raises(SystemExit) as stop:
        methods.main(["--data_dir=x", f"--out={tmp_path / 'out'}", *words])
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_named(tmp_path):
    with pytest.raises(SystemExit, match="SGD, seed 0: gnp: .*nowhere"):
        methods.main(["--data_dir=/nowhere", f"--out={tmp_path}", "--methods", "SGD", "--seeds=1"])


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    write_tfds_set(tmp_path / "data", "mnist", n_train=2000, n_test=20, shape=(28, 28, 1))
    page = tmp_path / "page.md"
    page.write_text(f"{methods.START}\n{methods.END}\n")
    words = [f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", f"--page={page}",
             "--seeds=2", "--runs=2", "--methods", "SGD", "GNP every 5th step"]  # fmt: skip
    methods.main(words)
    table = (tmp_path / "out" / "methods.md").read_text()
    assert table.strip() in page.read_text()
    assert table.startswith("| method | gradients a step |")
    rows = json.loads((tmp_path / "out" / "methods.json").read_text())["rows"]
    assert [row["gradients"] for row in rows] == [1.0, 1.2]
    assert rows[0]["ratio"] == 1.0 and rows[1]["ratio"] > 1.0
    assert all(len(row["errors"]) == 2 for row in rows)
