"""The choice of r: the small runs, what is chosen of them, and the command line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import ds_pipeline
from config import as_json, load_config
from gnp.analysis import radius
from gnp.analysis.radius import advise, choose, main
from gnp.analysis.radius_trials import MOST_STEPS, Trial, in_small
from gnp.training.metrics import NonFiniteError

IRIS, DIGITS = (
    str(Path(__file__).parents[3] / "config" / name) for name in ("iris.py", "digits.py")
)
RADIUS_OF_BIASES = ("--config.gnp.r=0.1", "--config.gnp.r_by_kind.bias=0.1")


def test_a_small_run_has_its_schedules_in_small():
    keys = {"warmup_epochs": 10, "gnp.warmup_epochs": 4, "gnp.tail_epochs": 20, "gnp.r": 0.1}
    given = [(key, str(value)) for key, value in keys.items()]
    given += [("lr_schedule_params.boundaries", "(15, 30)"), ("lr_schedule_type", "stepped")]
    dataset = ds_pipeline.build_dataset(load_config(DIGITS, given))
    config = in_small(DIGITS, given, dataset, steps=130)  # of 22 an epoch
    assert (config.total_epochs, config.warmup_epochs, config.gnp.r) == (6, 2.0, 0.1)
    assert (config.gnp.warmup_epochs, config.gnp.tail_epochs) == (0.8, 4.0)
    assert tuple(config.lr_schedule_params.boundaries) == (3.0, 6.0)
    assert in_small(DIGITS, given, dataset, steps=1).total_epochs == 1
    assert in_small(DIGITS, given, dataset, steps=10**6).total_epochs == 30
    assert in_small(DIGITS, given, dataset, steps=None).total_epochs == 15
    long = [*given, ("total_epochs", "1000")]
    assert in_small(DIGITS, long, dataset, steps=None).total_epochs == round(MOST_STEPS / 22)
    # 6 epochs of 30 end where the whole run ends.
    for schedule, name, whole, small in (
        ("cosine_restarts", "period", 20, 4),
        ("cosine_restarts", "period", 2, 1),
        ("exponential", "rate", 0.9, 0.9**5),
        ("inverse_time", "decay", 0.01, 0.05),
    ):
        name = f"lr_schedule_params.{name}"
        keys = [("lr_schedule_type", schedule), (name, str(whole))]
        config = in_small(DIGITS, keys, dataset, steps=130)
        assert as_json(config)[name] == pytest.approx(small)
    # A factor of so many epochs has no number of its own.
    keys = [("lr_schedule_type", "exponential"), ("lr_schedule_params.rate", "1e-20")]
    assert in_small(DIGITS, keys, dataset, steps=1).lr_schedule_params.rate > 0


def test_the_smallest_mean_error_is_chosen():
    assert choose({0.1: [1.0, 1.4], 0.2: [1.3, 1.0], 0.4: [1.2, 1.2]}) == 0.2
    assert choose({0.0: [1.0, 1.0], 0.1: [1.0, 1.0]}) == 0.0
    plain, penalized = [10 / 144, 12 / 144, 11 / 144], [12 / 144, 12 / 144, 9 / 144]
    assert np.mean(penalized) < np.mean(plain)  # by rounding alone
    assert choose({0.0: plain, 0.1: penalized}) == 0.0
    assert choose({0.0: [1.0, 1.0], 0.1: [math.inf, 0.0]}) == 0.0
    assert choose({0.0: [math.nan, 1.0], 0.1: [2.0, 2.0], 0.2: [1.0, 1.0]}) == 0.2
    with pytest.raises(NonFiniteError, match="no radius, nor plain training"):
        choose({0.0: [math.inf, 1.0], 0.1: [math.nan, 1.0]})


def test_advice_says_when_nothing_is_gained():
    assert advise(0.0, [0.1], 300) == (
        "no gain in 300 steps: plain training has the smallest error; more --steps may say "
        "otherwise"
    )
    assert advise(0.1, [0.1], 300) == "take r = 0.1"
    assert advise(0.1, [0.1, 0.2], 300) == "take r = 0.1 (the end of the grid: try r = 0.05)"


@pytest.fixture
def searched(monkeypatch):
    """Put trials in the place of `search`; return the arguments that it is given."""
    calls = []
    losses = {0.0: 3.0, 0.1: 1.0, 0.2: 2.0}
    errors = {0.0: 0.3, 0.1: 0.2, 0.2: 0.1}

    def search(*arguments):
        calls.append(arguments)
        trials = {r: [Trial(losses[r], errors[r], 1.0, 1.0)] * 2 for r in losses}
        return trials, ["validation_loss", "validation_error_rate"], 8

    monkeypatch.setattr(radius, "search", search)
    monkeypatch.setattr(radius, "drawn", lambda *_: False)
    return calls


def test_the_error_is_what_counts(searched, tmp_path):
    line = [f"--config={IRIS}", f"--out={tmp_path}", "--radii=0.2,0.1", "--seeds=2"]
    assert main([*line, "--config.seeds=7"]) == 0
    found = json.loads((tmp_path / "radius.json").read_text())
    assert (found["r"], found["steps"], found["seeds"]) == (0.2, 8, 2)  # 0.1 has the smallest loss
    assert (found["config"]["seeds"], found["config"]["gnp.alpha"]) == (7, 0.8)


@pytest.mark.parametrize(
    ("keys", "radii", "expected"),
    [
        ((), [0.0125, 0.025, 0.05, 0.1, 0.2], {"gnp.alpha": 0.8}),
        (("gnp.r=0.1",), [0.025, 0.05, 0.1, 0.2, 0.4], {"gnp.alpha": 0.8}),
        (("gnp.alpha=1", "--radii"), [0.1, 0.2], {"gnp.alpha": 1.0}),
        (("gnp.lambda=0.05", "--radii"), [0.1, 0.2], {"gnp.alpha": 0.5}),
        (("gnp.method=gsam", "--radii"), [0.1, 0.2], {"gnp.alpha": 0.0, "gnp.method": "gsam"}),
    ],
)
def test_there_is_a_penalty_to_try(keys, radii, expected, searched, tmp_path):
    words = [f"--config.{key}" if key[0] != "-" else f"{key}=0.1,0.2" for key in keys]
    assert main([f"--config={IRIS}", f"--out={tmp_path}", *words]) == 0
    ((file, overrides, given, _, _),) = searched
    assert given == pytest.approx(radii)
    config = as_json(load_config(file, overrides))
    assert config | expected == config and config["use_test_set"] is False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: --config"),
        ([f"--config={IRIS}", "--radii=0.1,0"], "--radii: 0.1,0: numbers > 0 are needed"),
        ([f"--config={IRIS}", "--radii=0.1,nan,0.2"], "0.1,nan,0.2: numbers > 0 are needed"),
        ([f"--config={IRIS}", "--radii=a"], "--radii: a: numbers > 0 are needed"),
        ([f"--config={IRIS}", "--config.gnp.lambda=0", "--radii=0.1"], "gnp.lambda = 0 penalizes"),
        ([f"--config={IRIS}", "--config.start_from=a"], "start_from = 'a' does not go with this"),
        ([f"--config={IRIS}", *RADIUS_OF_BIASES], "gnp.r_by_kind.bias = 0.1 is no radius to try"),
        ([f"--config={IRIS}", "--seeds=1"], "--seeds: 1: a whole number >= 2 is needed"),
        ([f"--config={IRIS}", "--config.gnp.r=-1"], "gnp.r"),
    ],
)
def test_a_wrong_command_line_is_a_line(arguments, expected, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_missing_data_are_no_usage_error(tmp_path, capsys):
    line = [f"--config={Path(IRIS).parent}/imagenet_folder.py", f"--out={tmp_path}/out"]
    assert main([*line, f"--config.dataset.data_dir={tmp_path}/nowhere"]) == 1
    error = capsys.readouterr().err
    assert "nowhere" in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_table_the_file_and_the_picture(tmp_path, capsys):
    line = [f"--config={IRIS}", f"--out={tmp_path}/new", "--steps=8", "--seeds=2"]
    assert main([*line, "--radii=0.1,1e30", "--config.batch_size=40"]) == 0
    printed = capsys.readouterr().out
    values = json.loads((tmp_path / "new/radius.json").read_text())
    assert list(values["trials"]) == ["0", "0.1", "1e+30"]
    for trials in (values["trials"]["0"], values["trials"]["0.1"]):
        assert [set(each) for each in trials] == [set(Trial._fields)] * 2
        assert trials[0] != trials[1]  # of another seed
    assert values["trials"]["1e+30"] == [{}, {}]
    assert values["trials"]["0"] != values["trials"]["0.1"]
    assert values["advice"] in printed and "not finite" in printed and "8 steps" in printed
    assert f"in {tmp_path}/new: radius.json, radius.png" in printed
    # Plain training is that of the config without a penalty.
    assert main([*line, "--radii=0.3", "--config.batch_size=40", "--config.gnp.r=0.1"]) == 0
    again = json.loads((tmp_path / "new/radius.json").read_text())
    assert again["trials"]["0"] == values["trials"]["0"]
    assert again["trials"]["0"] != again["trials"]["0.3"]
