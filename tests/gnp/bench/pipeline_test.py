"""The pipeline benchmark end to end at a tiny size."""

import json

import numpy as np
import PIL.Image
import pytest

from gnp.bench import pipeline
from gnp.bench.measure import noise


@pytest.fixture
def tiny(monkeypatch):
    """Return a small data set, which stands in for CIFAR-10, and take no batches ahead."""
    data = noise("any", 128)
    monkeypatch.setattr(pipeline, "cifar10", lambda data_dir: data)
    monkeypatch.setattr(pipeline, "_AHEAD", 0)
    return data


def test_measures_and_writes(tiny, tmp_path, capsys):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for i in range(10):
                PIL.Image.new("RGB", (60, 40)).save(folder / f"{i}.JPEG")
    out = tmp_path / "pipeline.json"
    words = ["--runs=2", "--seconds=0.01", f"--images={tmp_path / 'photographs'}", f"--out={out}"]
    assert pipeline.main(words) == 0
    rows = {row["pipeline"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == [
        "none", "basic", "autoaugment + cutout", "basic + mixup", "JPEG, crops at 224"
    ]  # fmt: skip
    assert all(row["images/s"] > 0 and len(row["each run's"]) == 2 for row in rows.values())
    assert "| JPEG, crops at 224" in capsys.readouterr().out


def test_every_name_is_the_work_that_it_says(tiny):
    batches = {name: next(pipeline.endless(x)) for name, x in pipeline.augmented(tiny).items()}
    images, labels = batches["none"]["input"], batches["none"]["label"]
    assert images.shape == (64, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(batches["basic"]["label"], labels)
    assert (batches["basic"]["input"] != images).any()
    fill = np.rint(tiny.mean).astype(np.uint8)
    erased = (batches["autoaugment + cutout"]["input"] == fill[None, None, None]).all(axis=-1)
    assert (erased.sum(axis=(1, 2)) >= 64).all()
    assert batches["basic + mixup"]["label"].shape == (64, 10)


def test_what_was_made_ahead_is_not_counted():
    taken = []

    def batches():
        while True:
            yield taken.append(0)

    rate = pipeline.images_per_second(batches(), 0.001, ahead=5)
    assert 0 < rate <= (len(taken) - 5) * pipeline.BATCH_SIZE / 0.001


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--runs=0"], 2, "--runs: 0: a whole number >= 1 is needed"),
        (["--seconds=0"], 2, "--seconds must be above 0"),
        (["--images=/nonexistent/photographs"], 1, "/nonexistent/photographs"),
    ],
)
def test_wrong_arguments(tiny, arguments, code, said, capsys):
    assert pipeline.main(arguments) == code
    assert said in capsys.readouterr().err
