"""Every experiment's recipe, as it is, for two steps and an evaluation on tiny generated data.

bash recipe/all-smoke.sh runs the slow ones, with GNP_SMOKE_PUBLISHED=1 with PyramidNet 272 too.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import load_config
from ds_pipeline import build_dataset
from tests.recipe import experiments
from tests.recipe.experiments import ROOT, Experiment

EXPERIMENTS = experiments.experiments()


def config_file(experiment: Experiment) -> str:
    return str(ROOT / "config" / experiment.config)


def test_a_new_recipe_is_found(tmp_path):
    new = f'{experiments.SHARED}\n\nexperiment new_one.py:a "$@"\n'
    (tmp_path / "new-one.sh").write_text(new)
    (tmp_path / "riemannian-x.sh").write_text(new.replace("new_one.py:a", "r.py:x,OPTIMIZER"))
    (tmp_path / "odd.sh").write_text(
        f'{experiments.SHARED}\nfor x in y; do experiment "$x"; done\n'
    )
    (tmp_path / "sweep.sh").write_text(new)
    (tmp_path / "other.sh").write_text("experiment old\n")
    found = [(each.name, each.config) for each in experiments.experiments(tmp_path)]
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
        keys = load_config(config_file(experiment)).dataset
        kinds[keys.dataset_name, keys.train_split] = config_file(experiment)
    assert len(kinds) > 5
    for number, file in enumerate(kinds.values()):
        config = load_config(file)
        data = experiments.write_data(config, tmp_path / str(number))
        changed = {k: str(v) for k, v in experiments.overrides(config, data).items()}
        tiny = load_config(file, list(changed.items()))
        assert len(build_dataset(tiny).train) == experiments.STEPS * tiny.batch_size, file


def test_what_is_changed_is_allowed_and_not_the_network_but_for_one():
    for experiment in EXPERIMENTS:
        config = load_config(config_file(experiment))
        changed = experiments.overrides(config, None)
        tiny = load_config(config_file(experiment), [(k, str(v)) for k, v in changed.items()])
        assert (tiny.warmup_epochs > 0) == (config.warmup_epochs > 0)
        other = {"model.model_name": "PyramidNet_20_200_ShakeDrop"}
        expected = other if experiment.name == "pyramidnet-sd-cifar" else {}
        assert {key: value for key, value in changed.items() if "model" in key} == expected
        assert "model.model_name" not in experiments.overrides(config, None, published=True)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=[each.name for each in EXPERIMENTS])
def test_a_recipe_takes_two_steps(experiment: Experiment, tmp_path: Path, gnp_environment):
    config = load_config(config_file(experiment))
    data = experiments.write_data(config, tmp_path / "data")
    published = os.environ.get("GNP_SMOKE_PUBLISHED") == "1"
    values = experiments.overrides(config, data, published)
    environment = {
        **gnp_environment,
        **experiment.environment,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # they take longer than the two steps
        "SEEDS": "0",
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    done = subprocess.run(
        ["bash", str(experiment.script), *flags, f"--working_dir={tmp_path / 'run'}"],
        capture_output=True,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    [line] = (tmp_path / "run/seed-0/metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["step"] == experiments.STEPS
    losses = [row[key] for key in ("train_loss", "test_loss", "validation_loss") if key in row]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
