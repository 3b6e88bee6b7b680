"""A forecast from the command line to its pictures: as every task, on a series of a few rows."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from config import load_config
from gnp.analysis import forecast
from gnp.analysis.data import look
from gnp.analysis.sharpness import __main__ as sharpness
from gnp.main.main import main
from gnp.training.checkpoint import read_checkpoint
from tests.ds_pipeline.forecast_test import write_series
from tests.trees import assert_trees_equal

ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    "dataset.lookback": 12, "dataset.horizon": 4, "batch_size": 16, "eval_batch_size": 32,
    "model.model_params.key_size": 4, "model.model_params.value_size": 4, "total_epochs": 3,
}  # fmt: skip


def arguments(tmp_path, name, **more):
    keys = {**KEYS, "dataset.data_dir": tmp_path / "series.csv", **more}
    return [
        f"--config={ROOT / 'config' / 'samformer.py'}",
        f"--working_dir={tmp_path / name}",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a series and of a run on it, and what the run printed."""
    folder = tmp_path_factory.mktemp("forecast")
    write_series(folder / "series.csv", rows=120)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(arguments(folder, "run")) == 0
    return folder, printed.getvalue()


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_run_says_its_errors_and_its_best_epoch(trained):
    folder, printed = trained
    rows = rows_of(folder / "run")
    names = {f"{part}_{name}" for part in ("train", "test", "validation")
             for name in ("loss", "mean_absolute_error")}  # fmt: skip
    assert names < set(rows[0]) and "best epoch, " in printed
    best = min(rows, key=lambda row: row["validation_loss"])
    assert (folder / "run" / "checkpoints" / str(best["step"])).is_dir()


def test_eval_takes_the_best_checkpoint(trained, run_gnp_here):
    folder, _ = trained
    result = run_gnp_here("--mode=eval", f"--working_dir={folder / 'run'}")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    best = min(rows_of(folder / "run"), key=lambda row: row["validation_loss"])
    assert (found["step"], found["test_loss"]) == (best["step"], best["test_loss"])
    assert found["examples"] == 24 - 4 + 1


@pytest.mark.slow
def test_the_same_run_after_a_stop(trained, run_gnp_here):
    """Stopped by its length after an epoch, and gone on with from that checkpoint."""
    folder, _ = trained
    first = run_gnp_here(*arguments(folder, "first", total_epochs=1))
    assert first.returncode == 0, first.stderr
    (step,) = [path.name for path in (folder / "first" / "checkpoints").iterdir()]
    result = run_gnp_here(*arguments(folder, "second", start_from=folder / "first"))
    assert result.returncode == 0, result.stderr
    states = [read_checkpoint(folder / name, None, "best").state for name in ("run", "second")]
    assert_trees_equal(*states)
    assert rows_of(folder / "second")[0]["step"] == 2 * int(step)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "softmax_cross_entropy"}, "does not go with forecasting, the task of 'forecast'"),
        (
            {"model.model_name": "MLP"},
            "MLP gives outputs of 4 an example, and the task needs 4 x 3",
        ),
        ({"dataset.horizon": 50}, "12 of them for validation, which needs 50"),
        ({"dataset.label_noise": 0.1}, "label_noise replaces a class"),
        ({"dataset.target": "wnd"}, "has no column 'wnd'; allowed: load, wind, sun; did you mean"),
    ],
)
def test_what_does_not_go_with_a_forecast_is_one_line(trained, run_gnp_here, keys, message):
    folder, _ = trained
    given = arguments(folder, "wrong", **keys)
    if "model.model_name" in keys:
        given = [each for each in given if "model_params" not in each]
    result = run_gnp_here(*given)
    assert result.returncode in (1, 2) and message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (folder / "wrong" / "config.json").exists()


@pytest.mark.slow
def test_pictures_of_forecasts_and_attention(trained, capsys):
    folder, _ = trained
    out = folder / "pictures"
    run = str(folder / "run")
    assert forecast.main([run, run, f"--out={out}", "--windows=2", "--channels=2"]) == 0
    printed = capsys.readouterr().out
    best = min(rows_of(folder / "run"), key=lambda row: row["validation_loss"])
    assert f"{best['test_loss']:.4f}" in printed and "in " in printed
    for name in (forecast.FORECASTS, forecast.ATTENTION):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sharpness_of_the_best_checkpoint(trained, tmp_path):
    """Which is not the newest: the best epoch is made the first one."""
    folder, _ = trained
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    rows = rows_of(run)
    first = min(int(path.name) for path in (run / "checkpoints").iterdir())
    for row in rows:
        row["validation_loss"] = float(row["step"] != first)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--examples=20", "--steps=5", "--trace_samples=2", "--no_curves"]
    assert sharpness.main([str(run), "--checkpoint=best", *words]) == 0
    assert json.loads((run / "sharpness.json").read_text())[0]["step"] == first


def test_forecasts_are_in_the_units_of_the_file(trained):
    folder, _ = trained
    found = forecast.read_forecasts(folder / "run", windows=3)
    lines = (folder / "series.csv").read_text().splitlines()[1:]
    values = np.array([[float(x) for x in line.split(",")[1:]] for line in lines])
    begin = 120 - 24 - 12  # of the first window of the test part
    for window, start in enumerate((0, 10, 20)):
        past = values[begin + start : begin + start + 12]
        truth = values[begin + start + 12 : begin + start + 16]
        np.testing.assert_allclose(found.past[window], past, rtol=1e-5)
        np.testing.assert_allclose(found.truth[window], truth, rtol=1e-5)
    assert found.forecast.shape == (3, 4, 3) and np.isfinite(found.forecast).all()
    assert found.attention is not None
    np.testing.assert_allclose(found.attention.sum(1), 1, rtol=1e-5)


@pytest.mark.slow
def test_a_look_at_a_series(trained, tmp_path):
    folder, _ = trained
    keys = [
        ("dataset.data_dir", str(folder / "series.csv")),
        ("dataset.lookback", "12"),
        ("dataset.horizon", "4"),
    ]
    config = load_config(str(ROOT / "config" / "samformer.py"), keys)
    look(config, tmp_path, "train", seconds=0)
    facts = json.loads((tmp_path / "data.json").read_text())
    assert (facts["task"], facts["examples"]) == ("forecasting", 84 - 15)
    lines = (folder / "series.csv").read_text().splitlines()[1:85]
    values = np.array([[float(x) for x in line.split(",")[1:]] for line in lines])
    found = [[each["mean"], each["std"]] for each in facts["statistics"]["each"]]
    np.testing.assert_allclose(found, np.stack([values.mean(0), values.std(0)], 1), rtol=1e-5)
    assert (tmp_path / "examples.png").exists()


def test_a_run_of_another_task_has_no_forecasts(digits_run, capsys):
    assert forecast.main([str(digits_run.directory)]) == 2
    assert "is a run of classification, not of forecasting" in capsys.readouterr().err


@pytest.mark.slow
def test_two_devices_give_the_run_of_one(trained, run_gnp):
    folder, _ = trained
    result = run_gnp(
        *arguments(folder, "two"),
        environment={"JAX_NUM_CPU_DEVICES": "2"},
    )
    assert result.returncode == 0, result.stderr
    for one, two in zip(rows_of(folder / "run"), rows_of(folder / "two"), strict=True):
        for name in ("train_loss", "test_loss", "validation_loss"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4)


@pytest.mark.slow
def test_recorded_gradients_and_sharpness(trained, run_gnp_here):
    folder, _ = trained
    keys = {"record.gradients": True, "record.sharpness_every_n_epochs": 3}
    result = run_gnp_here(*arguments(folder, "recorded", **keys))
    assert result.returncode == 0, result.stderr
    row = rows_of(folder / "recorded")[-1]
    assert row["train_set_loss"] > 0 and any(name.startswith("sharpness/") for name in row)
    assert list((folder / "recorded").glob("evolution*"))
