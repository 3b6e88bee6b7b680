"""curves.png is drawn from whatever a run has measured."""

import contextlib
import json
import subprocess
import sys

import matplotlib
import PIL.Image
import pytest

from gnp.analysis import figure_files, results
from gnp.analysis.curves import plot_curves
from tests.marks import quick_first

ROW = {"train_loss": 1.0, "learning_rate": 0.1, "gradient_norm": 2.0, "alpha": 0.8, "r": 0.05}


@pytest.mark.parametrize(
    "extra",
    quick_first(
        [
            {"train_error_rate": 0.5, "validation_loss": 1.1, "validation_error_rate": 0.4},
            {"train_error_rate": 0.5, "test_loss": 1.1, "test_error_rate": 0.4},
            {"train_mean_absolute_error": 2.0},
            {
                "test_loss": 1.1,
                "test_ema_loss": 1.0,
                "test_error_rate": 0.4,
                "test_ema_error_rate": 0.3,
            },
        ]
    ),
)
def test_draws(tmp_path, extra):
    rows = [ROW | extra | {"step": 10 * (epoch + 1)} for epoch in range(3)]
    rows[0].pop("test_loss", None)  # measured only now and then
    path = tmp_path / "curves.png"
    plot_curves(rows, path)
    with PIL.Image.open(path) as image:
        assert image.size[0] > 1000
        assert len(image.convert("L").getcolors()) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """Draw a row; return title -> label -> (color, style) of each line."""

    def draw(row):
        drawn = {}

        @contextlib.contextmanager
        def keep(path, figsize, **options):
            with figure_files.picture(path, figsize, **options) as figure:
                yield figure
            for axis in figure.axes:
                drawn[axis.get_title(loc="left")] = {
                    line.get_label(): (line.get_color(), line.get_linestyle())
                    for line in axis.lines
                }

        monkeypatch.setattr("gnp.analysis.curves.picture", keep)
        monkeypatch.setattr(figure_files.Figure, "savefig", lambda *_, **__: None)
        plot_curves([ROW | row | {"step": 1}], tmp_path / "curves.png")
        return drawn

    return draw


def test_every_metric_has_a_panel(lines):
    errors = {"train_error_rate": 0.5, "test_top_5_error_rate": 0.4}
    assert list(lines(errors))[:3] == ["loss", "error rate", "top 5 error rate"]
    assert "mean absolute error" in lines({"train_mean_absolute_error": 2.0})
    assert "top 3 error rate" in lines({"test_top_3_error_rate": 0.4})


def test_the_average_has_a_line_of_its_own(lines):
    errors = {"train_error_rate": 0.5, "test_error_rate": 0.4, "test_ema_error_rate": 0.3}
    drawn = lines(errors)
    assert list(drawn["error rate"]) == ["train", "test", "test ema"]
    assert len(set(drawn["error rate"].values())) == 3


DRAW = """
import sys, pathlib
from gnp.analysis.curves import plot_curves
from gnp.analysis.figure_files import drawn
row = {"step": 1, "train_loss": 1.0, "learning_rate": 0.1}
drawn(plot_curves, [row, row | {"step": 2, "train_loss": 90.0}], pathlib.Path(sys.argv[1]))
"""
NONSENSE = b"text.usetex: True\nfont.family: none\nlines.linewidth: x\nno colon\nno.key: 1\n"
SURROUNDINGS = {
    "a notebook's backend, a file of nonsense": {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": NONSENSE,
    },
    "no backend, a file of bytes": {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": b"\xff\xfe\x00"},
    "no file, a file of nonsense here": {"MATPLOTLIBRC": "/none", "matplotlibrc": NONSENSE},
    "a file of bytes here, nowhere for the fonts": {
        "matplotlibrc": b"\xff\xfe\x00", "MPLCONFIGDIR": "/proc/none",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def draw(tmp_path_factory, gnp_environment):
    """Draw a picture in a process of its own; return it, and what was said."""

    def run(**surroundings):
        folder = tmp_path_factory.mktemp("draw")
        for name, value in surroundings.items():
            if isinstance(value, bytes):
                (folder / name).write_bytes(value)
                surroundings[name] = str(folder / name)
        clean = {k: v for k, v in gnp_environment.items() if not k.startswith("MPL")}
        done = subprocess.run(
            [sys.executable, "-c", DRAW, "curves.png"],
            cwd=folder, env=clean | surroundings, capture_output=True, check=False, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return (folder / "curves.png").read_bytes(), done.stderr

    return run


@pytest.fixture(scope="module")
def usual(draw):
    return draw()[0]


@pytest.mark.parametrize("name", quick_first(tuple(SURROUNDINGS), 0))
def test_the_users_matplotlib_changes_nothing(draw, usual, name):
    assert draw(**SURROUNDINGS[name]) == (usual, "")


@pytest.mark.slow
def test_a_style_that_is_set_by_the_program_changes_nothing(tmp_path):
    rows = [ROW | {"step": 1}, ROW | {"step": 2, "train_loss": 90.0}]
    plot_curves(rows, tmp_path / "usual.png")
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "red", "font.size": 30}):
        plot_curves(rows, tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "usual.png").read_bytes()


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("latex could not be\nfound"),
     ValueError("no such font"), OverflowError("Exceeded cell block limit")],
)  # fmt: skip
def test_a_picture_that_fails_is_a_warning(tmp_path, capsys, monkeypatch, error):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps(ROW | {"epoch": 1, "step": 1, "epoch_seconds": 1.0}) + "\n"
    )

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(figure_files.Figure, "savefig", fail)
    results.show_results(tmp_path, has_evolution=False)
    printed = capsys.readouterr()
    assert printed.err.startswith("warning: curves.png was not drawn: ")
    assert printed.err.count("\n") == 1 and "1 epoch, 1 steps" in printed.out
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.slow
def test_what_an_interrupted_picture_left_is_removed(tmp_path):
    for name in (".curves.png.ab_1x2yz", ".curves.png", ".other.png.ab_1x2yz"):
        (tmp_path / name).write_text("")
    plot_curves([ROW | {"step": 1}], tmp_path / "curves.png")
    left = {".curves.png", ".other.png.ab_1x2yz", "curves.png"}
    assert {file.name for file in tmp_path.iterdir()} == left


@pytest.mark.slow
def test_numbers_of_any_size_are_drawn(tmp_path, capsys):
    losses = (3e38, -3e38, 1e-45, 0.0, float("inf"), float("nan"), 1.0)
    rows = [ROW | {"step": 10**18 * i, "train_loss": loss} for i, loss in enumerate(losses)]
    assert figure_files.drawn(plot_curves, rows, tmp_path / "curves.png")
    assert capsys.readouterr().err == ""


def test_the_table_has_the_first_the_smallest_and_the_last_value(tmp_path, capsys):
    rows = [
        {"epoch": i, "step": i, "epoch_seconds": 1.0, "test_loss": loss}
        for i, loss in enumerate((3.0, 1.0, 2.0), 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results.show_results(tmp_path, False)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "test loss" in line)
    assert [word for word in line.split() if word[0].isdigit()] == ["3.0000", "1.0000", "2.0000"]
