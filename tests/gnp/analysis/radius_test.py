"""The choice of r: the small runs, what is chosen of them, and the command line."""

import json
import math
from pathlib import Path

import pytest

import ds_pipeline
from config import load_config
from gnp.analysis.radius import Trial, advise, choose, in_small, main
from gnp.training.metrics import NonFiniteError

IRIS, DIGITS = (
    str(Path(__file__).parents[3] / "config" / name) for name in ("iris.py", "digits.py")
)


def test_a_small_run_has_its_schedules_in_small():
    keys = {"warmup_epochs": 10, "gnp.warmup_epochs": 4, "gnp.tail_epochs": 20, "gnp.r": 0.1}
    given = [(key, str(value)) for key, value in keys.items()]
    given.append(("lr_schedule_params.boundaries", "(15, 30)"))
    dataset = ds_pipeline.build_dataset(load_config(DIGITS, given))
    config = in_small(DIGITS, given, dataset, steps=130)  # of 22 an epoch
    assert (config.total_epochs, config.warmup_epochs, config.gnp.r) == (6, 2.0, 0.1)
    assert (config.gnp.warmup_epochs, config.gnp.tail_epochs) == (0.8, 4.0)
    assert tuple(config.lr_schedule_params.boundaries) == (3.0, 6.0)
    assert in_small(DIGITS, given, dataset, steps=1).total_epochs == 1
    assert in_small(DIGITS, given, dataset, steps=10**6).total_epochs == 30


def test_the_smallest_mean_error_is_chosen():
    assert choose({0.1: [1.0, 1.4], 0.2: [1.3, 1.0], 0.4: [1.2, 1.2]}) == 0.2
    assert choose({0.0: [1.0, 1.0], 0.1: [1.0, 1.0]}) == 0.0
    assert choose({0.0: [1.0, 1.0], 0.1: [math.inf, 0.0]}) == 0.0
    with pytest.raises(NonFiniteError, match="no radius"):
        choose({0.0: [math.inf, 1.0], 0.1: [math.inf, 1.0]})


def test_advice_says_when_nothing_is_gained():
    assert advise(0.0, [0.1]) == "no gain: plain training is the best"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: --config"),
        ([f"--config={IRIS}", "--radii=0.1,0"], "--radii: 0.1,0: numbers > 0 are needed"),
        ([f"--config={IRIS}", "--seeds=1"], "--seeds: 1: a whole number >= 2 is needed"),
        ([f"--config={IRIS}", "--config.gnp.r=-1"], "gnp.r"),
    ],
)
def test_a_wrong_command_line_is_a_line(arguments, expected, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


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
    assert main([*line, "--radii=0.3", "--config.batch_size=40"]) == 0
    again = json.loads((tmp_path / "new/radius.json").read_text())
    assert again["trials"]["0"] == values["trials"]["0"]
