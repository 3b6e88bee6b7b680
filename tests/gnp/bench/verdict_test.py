"""The verdict: grid, choice, statistics, what is left out; slow: the whole command."""

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import config as configs
import optimizer
from gnp.analysis.figure_files import picture
from gnp.analysis.report.runs import Run
from gnp.bench import verdict

SMALLEST = verdict.QUICK._replace(radii=(1.0,), seeds=1)


def error_of(run):
    """Least at twice the learning rate and half the radius; larger in each seed; GC fails."""
    keys = run.config
    if keys.opt.centralize == "all":
        return None
    return 0.1 + 0.01 * keys.seeds % 1 - 0.1 * keys.base_lr + 0.1 * keys.gnp.r


@pytest.fixture
def trained(monkeypatch):
    """Train nothing: write what a run would; return the runs that were asked for."""
    asked = []

    def train(runs, jobs):
        asked.extend(runs)
        for run in runs:
            error = error_of(run)
            if error is None or run.directory.exists():
                continue
            split = "test" if run.config.use_test_set else "validation"
            epochs = run.config.total_epochs
            values = {f"{split}_error_rate": error, f"{split}_loss": 1.0, "epoch_seconds": 2.0}
            rows = [{"epoch": n, "step": 20 * n, **values} for n in range(1, epochs + 1)]
            run.directory.mkdir(parents=True)
            (run.directory / "config.json").write_text(json.dumps(configs.as_json(run.config)))
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (run.directory / "metrics.jsonl").write_text(lines)
        return [f"{run.name}: it ended early" for run in runs if error_of(run) is None]

    monkeypatch.setattr(verdict, "train", train)
    return asked


def test_the_choice_is_by_held_out_data_and_the_cost_in_plain_gradients(tmp_path, trained):
    names = [name for name in verdict.methods(20) if name not in verdict.RELATIVES]
    size = verdict.QUICK._replace(rates=(1.0, 2.0), seeds=2)
    runs, failures = verdict.train_task("digits", names, size, 20, None, tmp_path, 1)
    held_out = [run for run in trained if not run.config.use_test_set]
    assert {run.config.seeds for run in held_out} == {10_000}
    assert len(held_out) == 3 * 2 + 9 * 4  # without a radius: the learning rates alone
    rows = {name: verdict.measured(name, runs[name], 20) for name in names}
    assert {row["learning rate"] for name, row in rows.items() if "GC" not in name} == {0.1}
    assert rows["GNP"]["radius"] == rows["SAM"]["radius"] == 0.05
    assert rows["MSAM"]["radius"] == pytest.approx(0.3) and rows["plain"]["radius"] is None
    assert rows["GNP"]["errors"] == pytest.approx([0.095, 0.105])
    assert (rows["GNP"]["error"], rows["GNP"]["seconds"]) == ("10.00% ± 0.71%", 40.0)
    assert {name: row.get("gradients") for name, row in rows.items()} == {
        "plain": 1.0, "plain, twice as long": 2.0, "GC": None, "GNP": 2.0, "GNP + GC": None,
        "GNP in the last quarter": 1.25, "GNP after the first quarter": 1.75,
        "GNP every 5th step, 5 α": pytest.approx(1.2), "SAM": 2.0,
        "LookSAM k = 5": pytest.approx(1.2), "MSAM": 1.0, "RWP": 1.0,
    }  # fmt: skip
    assert rows["GC"]["errors"] == [None, None] and rows["GC"]["error"] == "- (2 of 2 failed)"
    assert len(failures) == 2 + 4 + 2 * 2
    assert failures[0] == "digits, GC, base_lr=0.05, held_out: it ended early"
    chosen = [run.config for run in runs["LookSAM k = 5"]]
    assert [(keys.seeds, keys.init_seeds, keys.gnp.every) for keys in chosen] == [
        (0, 0, 5),
        (1, 1, 5),
    ]


def test_of_equal_errors_the_smaller_loss_is_chosen():
    def score(loss):
        config = dict.fromkeys(("use_test_set", "loss", "dataset.dataset_name"))
        row = {"epoch": 1, "validation_error_rate": 0.1, "validation_loss": loss}
        return verdict.score(SimpleNamespace(read=lambda: Run(Path(), config, [row])))

    assert score(0.5) == (0.1, 0.5) < score(0.7)
    assert score(math.nan) == (0.1, math.inf)


@pytest.mark.parametrize("name", verdict.TASKS)
def test_each_task_is_a_config_that_can_be_built_with_each_method(name, tmp_path, monkeypatch):
    monkeypatch.setattr(verdict, "train", lambda runs, jobs: [])
    names = list(verdict.methods(8))
    runs, _ = verdict.train_task(name, names, SMALLEST, 8, tmp_path, tmp_path, 1)
    for method, [run] in runs.items():
        optimizer.build_optimizer(run.config, steps_per_epoch=4)
        assert run.config.total_epochs == (16 if method == verdict.LONGER else 8)
        assert (run.config.gnp.r > 0) == ("gnp.r" in verdict.methods(8)[method])


def test_the_interval_is_that_of_a_normal_mean():
    """Of many seeds the mean is normal; over tasks the variances add up."""
    random = np.random.default_rng(1)
    one, other = random.normal(0.3, 1.0, 100), random.normal(-0.1, 2.0, 200)
    for differences in ([one], [one, other]):
        mean, low, high = verdict.bootstrap(differences)
        variance = sum(each.var() / len(each) for each in differences) / len(differences) ** 2
        assert mean == pytest.approx(np.mean([each.mean() for each in differences]))
        half = 1.96 * np.sqrt(variance)
        assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.05 * half)


def test_seeds_are_drawn_with_replacement():
    """Two values: each is the mean with probability 1/4, so both are in the middle 95%."""
    assert verdict.bootstrap([[0.0, 1.0]]) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-0.2, -0.1], "better"),
        ([-0.2, 0.1], "no worse"),
        ([-0.2, 0.11], "open"),
        ([0.0, 0.0], "no worse"),
        ([0.01, 0.02], "worse"),
    ],
)
def test_verdicts(differences, expected):
    assert verdict.compared([differences])["verdict"] == expected


def row(method, errors, cost=1.0):
    return {"method": method, "errors": errors, "gradients": cost, "seconds": 1.0}


def tables():
    full = [0.1, 0.3]
    return {
        "a": [row("plain", [0.2, 0.4]), row("GNP", full, 2.0), row("MSAM", [0.1, 0.3])],
        "b": [row("plain", [0.05, 0.15]), row("GNP", full, 2.0), row("MSAM", [0.1, None])],
    }


def test_pairs_are_of_one_seed_and_a_failure_is_no_success():
    found = tables()
    plain, full, momentum = verdict.compare(found)
    assert found["a"][0]["over GNP"] == "+50.0% [+50.0%, +50.0%]"  # 0.1 of 0.2 in both seeds
    assert found["a"][0]["verdict"] == "worse" and found["b"][0]["verdict"] == "better"
    assert plain["over GNP"].startswith("+0.0%") and plain["verdict"] == "open"
    assert found["a"][2]["verdict"] == "no worse" and found["b"][2]["verdict"] == "a run failed"
    assert momentum["verdict"] == "a run failed" and "verdict" not in full
    said = verdict.conclusions({**found, "all": [plain, full, momentum]})
    assert said == [
        "a: no worse than GNP at 1.3 gradients or fewer: MSAM",
        "b: no worse than GNP at 1.3 gradients or fewer: plain",
        "all: no worse than GNP at 1.3 gradients or fewer: none is shown to be",
    ]


def test_longer_training_is_judged():
    rows = [row("plain, twice as long", [0.1, 0.2], 2.0), row("GNP", [0.2, 0.3], 2.0)]
    verdict.compare({"a": rows})
    assert verdict.conclusions({"a": rows}) == [
        "a: no worse than GNP at 1.3 gradients or fewer: none is shown to be",
        "a: plain, twice as long, beside GNP: better",
    ]


@pytest.mark.parametrize(("smallest", "scale"), [(0.25, "log"), (0.0, "linear")])
def test_the_picture_has_every_method_that_finished(smallest, scale, tmp_path, monkeypatch):
    figures = []

    @contextlib.contextmanager
    def kept(*arguments, **options):
        with picture(*arguments, **options) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(verdict, "picture", kept)
    rows = [
        {"method": "plain", "errors": [smallest] * 2, "gradients": 1.0, "seconds": 2.0},
        {"method": "SAM", "errors": [90.0, None], "gradients": 2.0, "seconds": 4.0},
        {"method": "GC", "errors": [None, None]},
    ]
    verdict.plot({"digits": rows}, tmp_path / "verdict.png")
    for axis in figures[0].axes:
        assert axis.get_yscale() == scale
        centers = [float(bars[0].get_ydata()[0]) for bars in axis.containers]
        assert centers == [smallest, 90.0]
        assert axis.get_ylim()[0] < smallest


def test_bad_arguments(tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert verdict.main([out, "--seeds=1"]) == 2 and not (tmp_path / "out").exists()
    capsys.readouterr()
    assert verdict.main([out, f"--data_dir={tmp_path}", "--tasks", "mnist"]) == 2
    said = f"mnist is left out, as there is no {tmp_path / 'tfds' / 'mnist'}; --data_dir says where"
    assert said in capsys.readouterr().err


def test_failures_are_printed_and_what_is_there_is_not_trained_again(tmp_path, trained, capsys):
    words = ["--quick", f"--out={tmp_path}", "--tasks", "ucr", "digits", "--methods", "GC", "plain"]
    assert verdict.main(words) == 1
    said = capsys.readouterr()
    assert "| GC     | " in said.out and "- (3 of 3 failed)" in said.out
    assert "ucr is left out, as there is no ucr_ts" in said.out
    assert "digits, GC, base_lr=0.05, seed_0: it ended early" in said.err
    assert (tmp_path / "verdict.png").stat().st_size > 0
    saved = json.loads((tmp_path / "digits.json").read_text())
    assert [each["method"] for each in saved["rows"]] == ["plain", "GC", "GNP"]
    assert saved["seeds"] == 3


@pytest.mark.slow
def test_the_whole_command(tmp_path, capsys, monkeypatch):
    short = {"dataset.subset": 64, "warmup_epochs": 0, "batch_size": 32}
    task = verdict.TASKS["digits"]._replace(keys=short, epochs=4)
    monkeypatch.setitem(verdict.TASKS, "digits", task)
    words = ["--quick", f"--out={tmp_path}", "--seeds=2", "--methods", "plain"]
    assert verdict.main(words) == 0
    rows = json.loads((tmp_path / "digits.json").read_text())["rows"]
    assert [(each["method"], each["gradients"]) for each in rows] == [("plain", 1.0), ("GNP", 2.0)]
    assert rows[1]["radius"] in (0.05, 0.1) and all(0 <= e <= 1 for e in rows[1]["errors"])
    assert "digits: no worse than GNP at 1.3 gradients or fewer: " in capsys.readouterr().out
    monkeypatch.setattr(verdict.Run, "start", None)
    assert verdict.main(words) == 0
