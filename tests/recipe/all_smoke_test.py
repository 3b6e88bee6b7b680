"""Every experiment's recipe on generated data; slow: the two steps of each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import load_config
from ds_pipeline import build_dataset
from recipe import all_smoke

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = all_smoke.experiments(ROOT / "recipe")


def overrides(flags: list[str]) -> list[tuple[str, str]]:
    pairs = [flag.removeprefix("--config.").partition("=") for flag in flags]
    return [(key, value) for key, _, value in pairs]


def test_a_new_recipe_is_found(tmp_path):
    new = f'{all_smoke.SHARED}\n\nexperiment new_one.py:a "$@"\n'
    (tmp_path / "new-one.sh").write_text(new)
    (tmp_path / "riemannian-x.sh").write_text(new.replace("new_one.py:a", "r.py:x,OPTIMIZER"))
    (tmp_path / "odd.sh").write_text(f'{all_smoke.SHARED}\nfor x in y; do experiment "$x"; done\n')
    (tmp_path / "sweep.sh").write_text(new)
    (tmp_path / "other.sh").write_text("experiment old\n")
    found = [(each.name, each.config) for each in all_smoke.experiments(tmp_path)]
    assert found == [
        ("new-one", "new_one.py:a"),
        ("odd", ""),
        ("riemannian-x-SGD", "r.py:x,sgd"),
        ("riemannian-x-SGDG", "r.py:x,sgdg"),
        ("riemannian-x-AdamG", "r.py:x,adamg"),
    ]


def test_the_data_are_as_each_config_asks(tmp_path):
    kinds = {}
    for experiment in EXPERIMENTS:
        file = str(ROOT / "config" / experiment.config)
        keys = load_config(file).dataset
        kinds[keys.dataset_name, keys.train_split] = file
    assert len(kinds) > 5
    for number, file in enumerate(kinds.values()):
        config = load_config(file)
        data = all_smoke.write_data(config, tmp_path / str(number))
        flags = all_smoke.flags(config, data)
        tiny = load_config(file, overrides(flags))
        assert len(build_dataset(tiny).train) == all_smoke.STEPS * tiny.batch_size, file


def test_what_is_changed_is_allowed_and_not_the_network_but_for_one():
    for experiment in EXPERIMENTS:
        file = str(ROOT / "config" / experiment.config)
        config = load_config(file)
        changed = dict(overrides(all_smoke.flags(config, None)))
        tiny = load_config(file, list(changed.items()))
        assert (tiny.warmup_epochs > 0) == (config.warmup_epochs > 0)
        other = {"model.model_name": "PyramidNet_20_200_ShakeDrop"}
        expected = other if experiment.name == "pyramidnet-sd-cifar" else {}
        assert {key: value for key, value in changed.items() if "model" in key} == expected
        kept = dict(overrides(all_smoke.flags(config, None, published=True)))
        assert "model.model_name" not in kept


def test_data_that_cannot_be_generated(tmp_path):
    config = load_config(str(ROOT / "config/digits.py"), [("dataset.dataset_name", "npz")])
    with pytest.raises(ValueError, match="cannot generate 'npz' yet"):
        all_smoke.write_data(config, tmp_path / "data")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ('{"epoch": 1, "step": 2, "train_loss": 1.0, "test_loss": 2.0}', ""),
        ('{"epoch": 1, "step": 2, "train_loss": NaN, "test_loss": 2.0}', "train_loss = nan"),
        ('{"epoch": 1, "step": 2, "train_loss": 1.0}', "only train_loss in "),
        (
            '{"epoch": 1, "step": 1, "train_loss": 1.0, "test_loss": 2.0}',
            ".*has not one row, of step 2",
        ),
        ("", ".*has not one row, of step 2"),
        ("?", ".*line 1: not JSON"),
    ],
)
def test_what_counts_as_passed(tmp_path, rows, problem):
    (tmp_path / "metrics.jsonl").write_text(rows)
    found = all_smoke.problem(tmp_path)
    assert re.match(problem, found) and bool(problem) == bool(found)


def test_one_that_fails_ends_no_other(monkeypatch, capsys, tmp_path):
    def call(experiment, arguments, log):
        log.write_text("well\ngnp: no good\n")
        if experiment.name == "evolution-boston":
            return 1
        directory = Path(arguments[-1].removeprefix("--working_dir=")) / "seed-0"
        directory.mkdir(parents=True)
        row = '{"epoch": 1, "step": 2, "train_loss": 1.0, "test_loss": 2.0}'
        (directory / "metrics.jsonl").write_text(row)
        return 0

    monkeypatch.setattr(all_smoke, "_call", call)
    monkeypatch.setattr(all_smoke.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(all_smoke.signal, "signal", lambda *_: None)
    assert all_smoke.main(["evolution-boston", "evolution-iris"]) == 1
    out, err = capsys.readouterr()
    assert err == "gnp: failed: evolution-boston\n"
    table = [line.split() for line in out.splitlines()[-4:-1]]
    assert [(line[0], line[-1]) for line in table] == [
        ("recipe", "passed"),
        ("evolution-boston", "no"),
        ("evolution-iris", "yes"),
    ]
    assert out.splitlines()[-1] == f"logs in {tmp_path}/logs"
    assert "failed: exit code 1: no good" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evolution-boston", "logs"]


def test_an_unknown_recipe(capsys):
    assert all_smoke.main(["quickstart"]) == 2
    assert capsys.readouterr().err.startswith("gnp: quickstart is no experiment's recipe; allowed")


@pytest.mark.slow
def test_every_recipe_takes_two_steps(tmp_path, gnp_environment):
    environment = dict(gnp_environment, VIRTUAL_ENV=sys.prefix, TMPDIR=str(tmp_path))
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "recipe/all-smoke.sh")],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout.count(" yes\n") == len(EXPERIMENTS)
