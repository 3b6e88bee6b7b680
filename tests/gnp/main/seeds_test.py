"""Several seeds at once: each ends as it would on its own."""

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from config import ConfigError, load_config
from gnp import build
from gnp.training import processes
from gnp.training.seeds import stacked

ROOT = Path(__file__).resolve().parents[3]
IRIS = str(ROOT / "config" / "iris.py")
DIGITS = str(ROOT / "config" / "digits.py")
SMALL = [
    ("model.model_params.features", "(2, 4)"),
    ("model.model_params.dense", "8"),
    ("model.model_params.dropout_rate", "0.3"),
    ("batch_size", "32"),
]
SEEDS = [("num_seeds", "2"), ("seeds", "3"), ("init_seeds", "5")]
NUMBERS = 5


def states_after(config, directory, steps):
    """Each seed's state, after some steps that are taken at once."""
    members, directories = build.members_of(config, directory)
    runs = build.build_runs(members, directories)
    state = stacked(
        [
            build.initial_state(run, member.init_seeds).state
            for run, member in zip(runs, members, strict=True)
        ]
    )
    key = stacked([jax.random.key(member.seeds) for member in members])
    batches = build.training_batches(runs, 0)
    for number in range(steps):
        state, metrics = runs[0].steps(state, next(batches), key, number)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        # Batch norm, dropout, the penalty; normalised by the numbers of each seed's own part.
        (DIGITS, [*SMALL, ("ema_decay", "0.9"), ("record.gradients", "True")]),
        pytest.param(
            DIGITS,
            [*SMALL, ("opt.opt_type", "SGDG"), ("gnp.r", "0"), ("gnp.alpha", "0")],
            marks=pytest.mark.slow,
        ),
        (IRIS, [("opt.opt_type", "Adam"), ("gnp.r", "0.1"), ("gnp.alpha", "0.8"),
                ("accumulate_steps", "2"), ("dataset.label_noise", "0.2")]),
    ],
    ids=["penalty", "SGDG", "accumulated"],
)  # fmt: skip
def test_states_equal_those_of_their_own_runs(file, words, tmp_path):
    together, metrics = states_after(load_config(file, [*words, *SEEDS]), tmp_path, NUMBERS)
    for number in range(2):
        own = [("seeds", str(3 + number)), ("init_seeds", str(5 + number))]
        alone, own_metrics = states_after(load_config(file, [*words, *own]), tmp_path, NUMBERS)
        part, part_metrics = jax.tree.map(lambda x, i=number: x[i], (together, metrics))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            (part, part_metrics),
            (alone, own_metrics),
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two seeds of iris at once in `both`; each on its own in `alone-N`."""
    from gnp.main.main import main

    folder = tmp_path_factory.mktemp("seeds")
    assert main(line(folder / "both", "num_seeds=2")) == 0
    for seed in range(2):
        words = (f"seeds={seed}", f"init_seeds={seed}")
        assert main(line(folder / f"alone-{seed}", *words)) == 0
    return folder


def line(directory, *words, epochs=4):
    keys = (*words, f"total_epochs={epochs}", "evaluate_every_n_epochs=1")
    keys = (*keys, "save_ckpt_every_n_epochs=1", "record.gradients=True")
    return [f"--config={IRIS}", f"--working_dir={directory}", *(f"--config.{k}" for k in keys)]


def numbers_of(directory):
    rows = [json.loads(each) for each in (directory / "metrics.jsonl").read_text().splitlines()]
    times = ("epoch_seconds", "data_seconds", "examples_per_second")
    return [[value for name, value in row.items() if name not in times] for row in rows]


@pytest.mark.parametrize("seed", range(2))
def test_directories_equal_those_of_their_own_runs(trained, seed):
    here, alone = trained / "both" / f"seed-{seed}", trained / f"alone-{seed}"
    assert (here / "config.json").read_text() == (alone / "config.json").read_text()
    np.testing.assert_allclose(numbers_of(here), numbers_of(alone), rtol=1e-5, atol=1e-5)
    assert {path.name for path in here.iterdir()} == {path.name for path in alone.iterdir()}
    first, second = (np.load(path / "evolution.npz") for path in (here, alone))
    np.testing.assert_allclose(first["gradient_norm"], second["gradient_norm"], rtol=1e-5)


@pytest.fixture
def both(trained, tmp_path) -> Path:
    """A copy of the two seeds' directory."""
    return shutil.copytree(trained / "both", tmp_path / "both")


def saved_of(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").glob("[0-9]*"))


def check_finished(both, trained):
    for name in ("seed-0", "seed-1"):
        expected = numbers_of(trained / "both" / name)
        np.testing.assert_allclose(numbers_of(both / name), expected, rtol=1e-5, atol=1e-5)
        assert saved_of(both / name) == [6, 9, 12]


def test_seeds_that_stand_at_different_steps_go_on_from_the_last_common_one(
    both, trained, run_gnp_here, monkeypatch
):
    shutil.rmtree(both / "seed-1" / "checkpoints" / "12")
    calls = iter([None, signal.SIGTERM])  # before the step and after it
    with monkeypatch.context() as patch:
        patch.setattr(processes, "stops_here", lambda: next(calls))
        result = run_gnp_here(*line(both, "num_seeds=2"))
    assert result.returncode == 0, result
    assert result.stderr.count("going on in") == result.stderr.count("after step 9") == 2
    assert "stopped by SIGTERM after step 10 of 12, saved" in result.stderr
    assert [saved_of(both / f"seed-{seed}") for seed in range(2)] == [[6, 9, 10], [6, 9, 10]]
    result = run_gnp_here(*line(both, "num_seeds=2"))
    assert result.returncode == 0, result
    assert result.stderr.count("after step 10") == 2
    for name in ("seed-0", "seed-1"):
        expected = numbers_of(trained / "both" / name)
        np.testing.assert_allclose(numbers_of(both / name), expected, rtol=1e-5, atol=1e-5)


def test_where_the_first_save_was_not_whole_all_begin(both, trained, run_gnp_here):
    shutil.rmtree(both / "seed-1")
    for step in ("9", "12"):
        shutil.rmtree(both / "seed-0" / "checkpoints" / step)
    result = run_gnp_here(*line(both, "num_seeds=2"))
    assert result.returncode == 0, result
    assert "going on" not in result.stderr
    check_finished(both, trained)


def test_a_seed_that_is_ahead_is_not_begun_again(both, trained, run_gnp_here):
    shutil.rmtree(both / "seed-1")
    result = run_gnp_here(*line(both, "num_seeds=2"))
    assert result.returncode == 1
    assert "(seed 0 at step 12, seed 1 at step 0): train them alone" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert numbers_of(both / "seed-0") == numbers_of(trained / "both" / "seed-0")
    assert saved_of(both / "seed-0") == [6, 9, 12]


@pytest.mark.parametrize("asked", [True, False], ids=["with its config", "without"])
def test_each_seed_is_evaluated(asked, trained, run_gnp_here):
    _, directory, *_ = words = line(trained / "both", "num_seeds=2")
    result = run_gnp_here("--mode=eval", *(words if asked else [directory]))
    found = [json.loads(text) for text in result.stdout.splitlines() if text.startswith("{")]
    assert [each["step"] for each in found] == [12, 12]
    for seed, each in enumerate(found):
        last = (trained / "both" / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()[-1]
        assert each["test_loss"] == pytest.approx(json.loads(last)["test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_seeds=0"], "num_seeds = 0: allowed is a whole number >= 1"),
        (
            ["num_seeds=2", "use_hybrid_training=True", "gnp.r=0.1", "gnp.alpha=1"],
            "each seed penalises other steps",
        ),
        (["num_seeds=2", f"seeds={2**32 - 1}"], "the last seed must be < 4294967296"),
        (["num_seeds=2", "base_lr=1e30"], "seed 0, step "),
    ],
)
def test_what_cannot_be_done_is_one_line(words, message, tmp_path, run_gnp_here):
    result = run_gnp_here(*line(tmp_path, *words, epochs=1))
    assert result.returncode == (1 if "base_lr" in words[-1] else 2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_state_that_is_split_is_of_one_seed(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"num_seeds = 2 does not go with 2 parts of the state"):
        build.check_devices(load_config(IRIS, [*SEEDS, ("mesh.fsdp", "2")]))


def test_the_directory_of_one_run_is_not_that_of_several(trained, run_gnp_here):
    result = run_gnp_here(*line(trained / "alone-0", "num_seeds=2"))
    assert result.returncode == 2
    assert "holds the run of one seed" in result.stderr
    result = run_gnp_here(*line(trained / "both"))
    assert result.returncode == 2
    assert "holds the runs of several seeds (seed-0, seed-1): train as many" in result.stderr
    assert not (trained / "both" / "config.json").exists()
