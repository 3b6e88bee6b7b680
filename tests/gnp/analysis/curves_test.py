"""curves.png is drawn from whatever a run has measured."""

import contextlib

import PIL.Image
import pytest

from gnp.analysis import figure_files
from gnp.analysis.curves import plot_curves

ROW = {"train_loss": 1.0, "learning_rate": 0.1, "gradient_norm": 2.0, "alpha": 0.8, "r": 0.05}


@pytest.mark.parametrize(
    "extra",
    [
        {"train_error_rate": 0.5, "test_loss": 1.1, "test_error_rate": 0.4},
        {"train_error_rate": 0.5, "validation_loss": 1.1, "validation_error_rate": 0.4},
        {"train_mean_absolute_error": 2.0},
        {
            "test_loss": 1.1,
            "test_ema_loss": 1.0,
            "test_error_rate": 0.4,
            "test_ema_error_rate": 0.3,
        },
    ],
)
@pytest.mark.parametrize("epochs", [1, 3])
def test_draws(tmp_path, extra, epochs):
    rows = [ROW | extra | {"step": 10 * (epoch + 1)} for epoch in range(epochs)]
    rows[0].pop("test_loss", None)  # measured only now and then
    path = tmp_path / "curves.png"
    plot_curves(rows, path)
    with PIL.Image.open(path) as image:
        assert image.size[0] > 1000
        assert len(image.convert("L").getcolors()) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_the_average_has_a_line_of_its_own(tmp_path, monkeypatch):
    drawn = {}

    @contextlib.contextmanager
    def keep(path, **options):
        with figure_files.picture(path, **options) as figure:
            yield figure
        for axis in figure.axes:
            drawn[axis.get_title(loc="left")] = {
                line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.lines
            }

    monkeypatch.setattr("gnp.analysis.curves.picture", keep)
    errors = {"train_error_rate": 0.5, "test_error_rate": 0.4, "test_ema_error_rate": 0.3}
    plot_curves([ROW | errors | {"step": 1}], tmp_path / "curves.png")
    assert list(drawn["error rate"]) == ["train", "test", "test ema"]
    assert len(set(drawn["error rate"].values())) == 3
