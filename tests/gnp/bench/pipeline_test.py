"""The pipeline benchmark end to end at a tiny size, with a stand-in for TensorFlow's process."""

import dataclasses
import json
import sys

import numpy as np
import PIL.Image
import pytest

from gnp.bench import pipeline
from gnp.bench.loop import random_data

_STAND_IN = """
import json, sys
spec = json.load(open(sys.argv[1]))
assert len(spec["subpolicies"]) > 20 and spec["batch_size"] == 64
print("2.0", flush=True)
for line in sys.stdin:
    print(len(line.split()[0]), flush=True)
"""


@pytest.fixture
def tiny(monkeypatch):
    """Return a small data set, and nothing skipped."""
    data = random_data((32, 32, 3), 128)
    monkeypatch.setattr(pipeline, "cifar10", lambda data_dir: data)
    monkeypatch.setattr(pipeline, "memory_ratio", lambda data_dir: 1.25)
    monkeypatch.setattr(pipeline, "_SKIPPED_IMAGES", 0)
    return data


@pytest.fixture
def folder(tmp_path):
    for split, name in (("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog")):
        place = tmp_path / "photographs" / split / name
        place.mkdir(parents=True)
        pixels = np.full((40, 60, 3), 90, np.uint8)
        for i in range(10):
            PIL.Image.fromarray(pixels).save(place / f"{i}.JPEG")
    return tmp_path / "photographs"


def test_measures_and_writes(tiny, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "tensorflow_pipeline.py").write_text(_STAND_IN)
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "pipeline.py"))
    out = tmp_path / "pipeline.json"
    pipeline.main(
        ["--runs=2", "--seconds=0.01", f"--images={folder}", f"--json={out}",
         f"--tensorflow_python={sys.executable}"]
    )  # fmt: skip
    result = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "none",
        "none, normalized on the device",
        "basic",
        "basic, normalized on the device",
        "basic, on the device",
        "autoaugment+cutout",
        "autoaugment+cutout (tf.switch_case)",
        "autoaugment+cutout, normalized on the device",
        "autoaugment+cutout, normalized on the device (tf.switch_case)",
        "basic+mixup",
        "basic+mixup, normalized on the device",
        "jpeg 224",
    ]
    assert all(row["rate"] > 0 for row in rows.values())
    assert rows["none"]["tensorflow"] == len("none")
    for name in ("basic", "basic, normalized on the device"):
        assert rows[name]["tensorflow"] == len("basic") and rows[name]["ratio"] > 1
    assert rows["basic, on the device"]["tensorflow"] is None
    assert (result["tensorflow"], result["runs"], result["memory_over_uint8"]) == ("2.0", 2, 1.25)
    printed = capsys.readouterr().out
    assert "jpeg 224 a core" in printed and "CIFAR-10 in memory: 1.25 times" in printed


def test_without_tensorflow_and_photographs(tiny, monkeypatch, capsys):
    monkeypatch.delenv("GNP_TF_VENV", raising=False)
    pipeline.main(["--runs=1", "--seconds=0.01"])
    printed = capsys.readouterr().out
    assert "TensorFlow was not measured" in printed and "jpeg" not in printed


def test_every_name_is_the_work_that_it_says(tiny):
    batches = {
        name: next(pipeline.endless(data))
        for name, data in pipeline.cifar10_pipelines(tiny).items()
    }
    images, labels = batches["none"]["input"], batches["none"]["label"]
    assert images.shape == (64, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(batches["basic"]["label"], labels)
    assert (batches["basic"]["input"] != images).any()
    fill = np.rint(tiny.mean).astype(np.uint8)
    erased = (batches["autoaugment+cutout"]["input"] == fill[None, None, None]).all(axis=-1)
    assert (erased.sum(axis=(1, 2)) >= 64).all()
    assert batches["basic+mixup"]["label"].shape == (64, 10)


def test_the_device_makes_windows_of_the_images():
    data = random_data((32, 32, 3), 2)
    whole = data.train.batch(np.arange(2))["input"]
    data = dataclasses.replace(data, shape=(32, 32, 3))
    batch = next(pipeline.device_basic(data))
    assert batch["input"].shape == (64, 32, 32, 3) and batch["input"].dtype == np.uint8
    # Each pixel in the middle comes from the image with its label, mirrored or not.
    for image, label in zip(np.asarray(batch["input"]), np.asarray(batch["label"]), strict=True):
        pixels = {tuple(pixel) for pixel in whole[label].reshape(-1, 3).tolist()}
        assert tuple(image[16, 16].tolist()) in pixels


def test_what_is_sent_to_the_device_is_normalized(tiny):
    host, device = (next(make(tiny)) for make in (pipeline.endless, pipeline.on_the_device))
    wanted = (host["input"] - tiny.mean[None, None, None]) / tiny.std[None, None, None]
    np.testing.assert_allclose(device["input"], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(device["label"], host["label"])


def test_a_stream_counts_images_and_skips_the_first():
    taken = []

    def batches():
        while True:
            taken.append(0)
            yield {"label": np.zeros(3)}

    stream = pipeline.Stream(batches(), skipped=5)
    assert stream(0.0) == 0.0 and len(taken) == 5
    assert stream(0.001) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs=0"], "--runs must be at least 1"),
        (["--seconds=0"], "--seconds above 0"),
        (["--images=/nonexistent/photographs"], "/nonexistent/photographs"),
    ],
)
def test_wrong_arguments(tiny, arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        pipeline.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_the_pixels_and_little_more():
    assert 0.9 < pipeline.memory_ratio(None) < 1.5
