"""Train and eval as a user sees them: what is printed, what is written, on one and two devices."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).resolve().parents[3]
DIGITS = f"--config={ROOT / 'config' / 'digits.py'}"
IRIS = f"--config={ROOT / 'config' / 'iris.py'}"


def rows_of(directory, times=True):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return rows if times else [{k: v for k, v in r.items() if "second" not in k} for r in rows]


def test_training_prints_epochs_a_table_and_where_things_are(digits_run):
    directory, result = digits_run.directory, digits_run
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert any("test error rate" in line and "\u2502" in line for line in lines)
    assert lines[-2].startswith("3 epochs, 66 steps, ")
    assert lines[-1] == (f"in {directory}: curves.png, metrics.jsonl, tensorboard, checkpoints")
    assert result.stderr == ""


@pytest.mark.slow
def test_what_few_runs_need_is_imported_late(gnp_environment):
    program = "import gnp.main.main, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True, check=True, env=gnp_environment, text=True,
    )  # fmt: skip
    there = {".".join(name.split(".")[:3]) for name in done.stdout.split()}
    assert "gnp.analysis.results" in there
    late = {"plotly", "matplotlib", "gnp.analysis.sharpness", "gnp.analysis.evolution"}
    assert not late & there


def test_the_run_directory(digits_run):
    directory = digits_run.directory
    assert json.loads((directory / "config.json").read_text())["total_epochs"] == 3
    assert len(rows_of(directory)) == 3
    assert list((directory / "tensorboard").glob("events*"))
    assert (directory / "curves.png").stat().st_size > 10_000


def test_digits_learn(digits_run):
    """Three epochs of the thirty; the quickstart's error is in the README."""
    assert rows_of(digits_run.directory)[-1]["test_error_rate"] < 0.06


@pytest.mark.parametrize("step", [None, 44])
def test_eval_gives_the_metrics_of_training(digits_run, run_gnp_here, step):
    directory = digits_run.directory
    # Without --config, keys that results do not depend on may be given anew.
    chosen = [] if step is None else [f"--checkpoint={step}", "--config.dataset.data_dir=moved"]
    result = run_gnp_here("--mode=eval", f"--working_dir={directory}", *chosen)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout.splitlines()[-1])
    row = next(row for row in rows_of(directory) if row["step"] == (step or 66))
    assert printed == {
        "step": step or 66,
        "examples": 359,
        "test_loss": row["test_loss"],
        "test_error_rate": row["test_error_rate"],
    }
    assert "test error rate" in result.stdout


def test_eval_of_a_checkpoint_in_another_directory(digits_run, run_gnp_here, tmp_path):
    """Its run is the default; another one's config and data are taken where that is named."""
    checkpoint = f"--checkpoint={digits_run.directory / 'checkpoints' / '44'}"
    alone = run_gnp_here("--mode=eval", checkpoint)
    assert alone.returncode == 0, alone.stderr
    printed = json.loads(alone.stdout.splitlines()[-1])
    assert (printed["step"], printed["examples"]) == (44, 359)
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "dataset.json"):
        shutil.copy(digits_run.directory / name, tmp_path / "bare")
    both = run_gnp_here("--mode=eval", f"--working_dir={tmp_path / 'bare'}", checkpoint)
    assert both.stdout.splitlines()[-1] == alone.stdout.splitlines()[-1]
    # Other data would have another mean; those of training hold.
    data = json.loads((tmp_path / "bare" / "dataset.json").read_text())
    (tmp_path / "bare" / "dataset.json").write_text(json.dumps(data | {"mean": [9.0]}))
    newest = run_gnp_here(
        "--mode=eval", f"--working_dir={tmp_path / 'bare'}", f"--checkpoint={digits_run.directory}"
    )
    found, last = json.loads(newest.stdout.splitlines()[-1]), rows_of(digits_run.directory)[-1]
    assert found["step"] == 66
    assert found["test_loss"] > 1.2 * last["test_loss"]


def test_eval_falls_back_and_removes_nothing(digits_run, run_gnp_here, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(digits_run.directory, directory)
    (directory / "checkpoints" / "66" / "sha256.json").write_text("{}")
    result = run_gnp_here("--mode=eval", f"--working_dir={directory}")
    assert result.returncode == 0
    assert json.loads(result.stdout.splitlines()[-1])["step"] == 44
    assert result.stderr.startswith("warning: checkpoint 66 is damaged")
    assert (directory / "checkpoints" / "66").exists()


@pytest.mark.slow
def test_a_finished_run_is_shown_again(digits_run, run_gnp_here, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(digits_run.directory, directory)
    result = run_gnp_here(DIGITS, f"--working_dir={directory}", "--config.total_epochs=3")
    assert result.returncode == 0
    table = digits_run.stdout.replace(str(digits_run.directory), str(directory)).splitlines()[-8:]
    assert result.stdout.splitlines()[-8:] == table
    assert rows_of(directory)[-1]["step"] == 66


@pytest.mark.slow
def test_two_devices_train_the_same_run(digits_command, tmp_path):
    """The state split over them; then, after a checkpoint was lost, whole on each."""
    # Compiled as a user's run is: which pixels tie for a maximum is then the same on two devices.
    one = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    two = one | {"JAX_NUM_CPU_DEVICES": "2"}
    alone = digits_command(tmp_path / "one", "--config.total_epochs=3", environment=one)
    assert alone.returncode == 0, alone.stderr
    words = (tmp_path / "two", "--config.total_epochs=3")
    result = digits_command(*words, "--config.mesh.fsdp=2", environment=two)
    assert result.returncode == 0, result.stderr
    split = rows_of(tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "66")
    result = digits_command(*words, environment=two)
    assert result.returncode == 0, result.stderr
    assert "going on" in result.stderr
    for rows in (split, rows_of(tmp_path / "two")):
        for one_row, two_row in zip(rows_of(tmp_path / "one"), rows, strict=True):
            assert two_row["train_loss"] == pytest.approx(one_row["train_loss"], rel=0.02)
    odd = digits_command(tmp_path / "odd", "--config.batch_size=63", environment=two)
    assert odd.returncode == 2
    assert "cannot be split over 2 devices" in odd.stderr


@pytest.mark.slow
def test_eval_on_devices_that_the_run_did_not_know(digits_run, run_gnp, tmp_path):
    """Three do not divide its batches, and its mesh is of eight."""
    shutil.copytree(digits_run.directory, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mesh.fsdp": 8}))
    three = {"JAX_NUM_CPU_DEVICES": "3"}
    line = ("--mode=eval", f"--working_dir={tmp_path / 'run'}")
    shown = run_gnp(*line, environment=three)
    assert shown.returncode == 0, shown.stderr
    printed = json.loads(shown.stdout.splitlines()[-1])
    assert printed["examples"] == 359
    last = rows_of(digits_run.directory)[-1]
    assert printed["test_loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    wrong = run_gnp(*line, "--config.mesh.fsdp=2", environment=three)
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "gnp: mesh.data = -1 and mesh.fsdp = 2: 2 does not divide the number of devices, 3: "
        "allowed is 1, 3\n"
    )


@pytest.mark.slow  # tests/gnp/training/devices_test.py has groups on several devices
def test_groups_train_the_same_run_on_two_devices(digits_command, tmp_path):
    # At a small rate rounding grows too little in an epoch to hide what groups change.
    words = ["--config.total_epochs=1", "--config.base_lr=0.002", "--config.warmup_epochs=0",
             "--config.lr_schedule_type=constant", "--config.gnp.r=0.5",
             "--config.model.model_params.dropout_rate=0.0",
             "--config.gnp.sync_perturbations=False"]  # fmt: skip
    # Compiled as a user's run is: which pixels tie for a maximum is then the same on two devices.
    one = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    two = one | {"JAX_NUM_CPU_DEVICES": "2"}
    runs = {
        "one": digits_command(tmp_path / "one", *words, "--config.gnp.m=32", environment=one),
        "two": digits_command(tmp_path / "two", *words, environment=two),  # 32 each
        "whole": digits_command(tmp_path / "whole", *words, environment=one),
    }
    for result in runs.values():
        assert result.returncode == 0, result.stderr
    one, halves, whole = (rows_of(tmp_path / name)[0]["test_loss"] for name in runs)
    assert halves == pytest.approx(one, rel=1e-4)
    assert whole != pytest.approx(one, rel=1e-3)
    sizes = [json.loads((tmp_path / name / "config.json").read_text())["gnp.m"] for name in runs]
    assert sizes == [32, 32, 64]


@pytest.mark.slow
def test_a_run_keeps_its_groups_on_other_devices(digits_command, run_gnp, tmp_path):
    words = ["--config.total_epochs=2", "--config.gnp.sync_perturbations=False"]
    devices = {n: {"JAX_NUM_CPU_DEVICES": str(n)} for n in (2, 4, 8)}
    first = digits_command(tmp_path, *words, environment=devices[4])
    assert first.returncode == 0, first.stderr
    again = digits_command(tmp_path, *words, environment=devices[2])  # m = 16 goes on
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "config.json").read_text())["gnp.m"] == 16
    # Evaluation knows no groups.
    shown = run_gnp("--mode=eval", f"--working_dir={tmp_path}", environment=devices[8])
    assert shown.returncode == 0, shown.stderr


@pytest.mark.slow
def test_groups_that_devices_cannot_split(digits_command, tmp_path):
    four = {"JAX_NUM_CPU_DEVICES": "4"}
    uneven = digits_command(
        tmp_path / "uneven", "--config.gnp.sync_perturbations=False", "--config.gnp.m=20",
        "--config.batch_size=40", environment=four,
    )  # fmt: skip
    assert uneven.returncode == 2
    assert "gnp.m = 20 does not divide a device's share of the batch, 10 of 40" in uneven.stderr
    assert "allowed is 1, 2, 5, 10, 40" in uneven.stderr


@pytest.mark.slow
def test_penalties_that_cost_less_resume_as_they_were(digits_command, tmp_path):
    words = ["--config.total_epochs=2", "--config.gnp.every=3", "--config.gnp.reuse=0.5",
             "--config.gnp.where=others"]  # fmt: skip
    assert digits_command(tmp_path, *words).returncode == 0
    before = rows_of(tmp_path, times=False)
    shutil.rmtree(tmp_path / "checkpoints" / "44")  # as if it had been killed in the second epoch
    assert digits_command(tmp_path, *words).returncode == 0
    assert rows_of(tmp_path, times=False) == before


@pytest.mark.slow
def test_an_average_and_micro_batches_resume_as_they_were(run_gnp_here, tmp_path):
    words = [IRIS, f"--working_dir={tmp_path}", "--config.total_epochs=2",
             "--config.batch_size=24", "--config.evaluate_every_n_epochs=1",
             "--config.save_ckpt_every_n_epochs=1", "--config.gnp.r=0.1", "--config.gnp.alpha=0.5",
             "--config.ema_decay=0.9", "--config.accumulate_steps=2",
             "--config.accumulate_penalty=micro", "--config.on_nonfinite=skip"]  # fmt: skip
    first = run_gnp_here(*words)
    assert first.returncode == 0, first.stderr
    assert "test ema error rate" in first.stdout.splitlines()[0]
    assert any("test ema error rate" in line and "\u2502" in line for line in
               first.stdout.splitlines())  # fmt: skip
    before = rows_of(tmp_path, times=False)
    assert before[-1]["test_ema_loss"] != before[-1]["test_loss"]
    shutil.rmtree(tmp_path / "checkpoints" / "5")  # as if it had been killed in the second epoch
    assert run_gnp_here(*words).returncode == 0
    assert rows_of(tmp_path, times=False) == before
    shown = run_gnp_here("--mode=eval", f"--working_dir={tmp_path}")
    assert shown.returncode == 0, shown.stderr
    printed = json.loads(shown.stdout.splitlines()[-1])
    for name in ("test_loss", "test_error_rate", "test_ema_loss", "test_ema_error_rate"):
        assert printed[name] == before[-1][name]


@pytest.mark.slow
def test_a_profile_is_written_and_changes_nothing(digits_run, run_gnp_here, tmp_path):
    words = (DIGITS, f"--working_dir={tmp_path}", "--config.total_epochs=3",
             "--profile=21:24")  # from one epoch into the next  # fmt: skip
    result = run_gnp_here(*words)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith(f"a trace of steps 21 to 24: {tmp_path / 'profile'}")
    assert result.stdout.splitlines()[-1].endswith("checkpoints, profile")
    rows = [
        [row["test_loss"] for row in rows_of(each)] for each in (digits_run.directory, tmp_path)
    ]
    assert rows[0] == rows[1]
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    found = {
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    }
    assert found == {21, 22, 23, 24}
    again = run_gnp_here(*words)
    assert again.returncode == 0
    assert "warning: --profile=21:24: no trace, the run is at 66" in again.stderr


@pytest.mark.slow
def test_the_grassmann_group_and_its_costs(digits_command, run_gnp, tmp_path):
    result = digits_command(
        tmp_path / "run", "--config.total_epochs=2", "--config.opt.opt_type=SGDG",
        "--config.base_lr=0.01", "--config.l2_regularization=0.001",
        "--config.opt.centralize=all", "--config.log_costs_per_layer=True",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    row = rows_of(tmp_path / "run")[-1]
    assert row["train_loss"] < 1.0
    assert "train orthogonality" in result.stdout
    assert "Conv" not in result.stdout  # single parameters are in metrics.jsonl alone
    for cost, layers in {"weight_cost": 9, "orthogonality": 1}.items():
        costs = [v for k, v in row.items() if k.startswith(f"train_{cost}/")]
        assert len(costs) == layers
        assert sum(costs) == pytest.approx(row[f"train_{cost}"], rel=1e-5)
    assert row["train_orthogonality/Conv_1/kernel"] > 0
    assert row["learning_rate_grassmann"] == pytest.approx(20 * row["learning_rate"])
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(tmp_path / "run" / "checkpoints" / "44" / "state")
    columns = np.asarray(state["params"]["Conv_1"]["kernel"]).reshape(-1, 64)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, rtol=1e-5)
