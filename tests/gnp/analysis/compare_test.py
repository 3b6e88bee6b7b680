"""Runs side by side: the numbers, the bars and the picture."""

import contextlib
import json

import PIL.Image
import pytest

from config import default
from gnp.analysis import compare, figure_files
from gnp.analysis.command_line import UsageError
from gnp.analysis.report.runs import Run

CONFIG = {key.name: key.default for key in default.KEYS} | {"dataset.dataset_name": "digits"}
PLAIN = {"test_error_rate": (0.5, 0.125, 0.25), "mislabeled_error_rate": (0.9, 0.5, 0.2)}
PENALIZED = {"test_error_rate": (0.75, 0.1, 0.0625), "mislabeled_error_rate": (1.0, 0.95, 0.9)}


def write_run(path, numbers, **changes):
    """Write a run directory that was never trained."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    rows = [
        {"epoch": i + 1, "step": 10 * i, "epoch_seconds": 2.0}
        | {name: values[i] for name, values in numbers.items()}
        for i in range(min(map(len, numbers.values()), default=0))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def two(tmp_path):
    """Return the directories of two runs with wrong labels."""
    return [
        str(write_run(tmp_path / name, numbers))
        for name, numbers in (("plain", PLAIN), ("penalized", PENALIZED))
    ]


def test_the_table_has_the_last_error_and_the_wrong_labels_learned(two, tmp_path, capsys):
    assert compare.main([*two, f"--out={tmp_path}/new/a.png"]) == 0
    printed, errors = capsys.readouterr()
    lines = {words[1]: words for line in printed.splitlines() if (words := line.split())[1:]}
    bars = ["█" * count for count in (16, 4, 2)]
    assert lines["plain"][3:6] + lines["plain"][6:8] == [
        "25.00%", bars[0], "│", "80.00%", bars[0]
    ]  # fmt: skip
    assert lines["penalized"][3:8] == ["6.25%", bars[1], "│", "10.00%", bars[2]]
    assert "3 epochs" in printed and f"{tmp_path}/new/a.png" in printed and not errors
    with PIL.Image.open(tmp_path / "new/a.png") as image:
        assert image.width > 800 and image.convert("L").getpixel((0, 0)) == 255
    assert (tmp_path / "new/a.png").stat().st_size < 150_000


def test_a_line_a_run_over_its_epochs(two, tmp_path, monkeypatch):
    drawn = {}

    @contextlib.contextmanager
    def keep(*arguments, **options):
        with figure_files.picture(*arguments, **options) as figure:
            yield figure
        for axis in figure.axes:
            drawn[axis.get_title(loc="left")] = {
                line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axis.lines
            }

    monkeypatch.setattr(compare, "picture", keep)
    assert compare.main([*two, f"--out={tmp_path}/a.png"]) == 0
    learned = drawn.pop("wrong labels learned by heart")
    assert learned["plain: 80.00%"] == pytest.approx({1: 0.1, 2: 0.5, 3: 0.8})
    assert learned["penalized: 10.00%"] == pytest.approx({1: 0.0, 2: 0.05, 3: 0.1})
    assert drawn == {
        "test error rate": {
            "plain: 25.00%": {1: 0.5, 2: 0.125, 3: 0.25},
            "penalized: 6.25%": {1: 0.75, 2: 0.1, 3: 0.0625},
        }
    }


def test_without_wrong_labels_the_error_alone_is_compared(tmp_path):
    runs = [Run(tmp_path, CONFIG, [{"epoch": 1, "step": 1, "test_error_rate": 0.5}])]
    assert [panel.title for panel in compare.panels_of(runs)] == ["test error rate"]


def test_what_cannot_be_compared_is_said(two, tmp_path, capsys):
    loss = write_run(tmp_path / "loss", {"test_loss": (1.0,)}, **{"use_test_set": False})
    new = write_run(tmp_path / "new", {})
    for other, words in ((loss, "its test_error_rate"), (new, "has no test_error_rate yet")):
        assert compare.main([*two, str(other), f"--out={tmp_path}/a.png"]) == 2
        assert words in capsys.readouterr().err
    (new / "metrics.jsonl").write_text("{")
    assert compare.main([*two, str(new), f"--out={tmp_path}/a.png"]) == 1
    assert str(new) in capsys.readouterr().err and not (tmp_path / "a.png").exists()
    with pytest.raises(UsageError, match="no more than 8"):
        compare.panels_of([Run(tmp_path, CONFIG, [])] * 9)
