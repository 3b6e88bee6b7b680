"""python -m gnp.analysis.data: numbers and pictures of every kind of data set."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import ds_pipeline
from config import load_config
from gnp.analysis import data, data_numbers
from gnp.analysis.data_examples import as_pixels, augmented, choose
from gnp.analysis.data_numbers import measure
from gnp.analysis.data_pictures import (
    plot_class_counts,
    plot_columns,
    plot_series,
    plot_targets,
)
from gnp.analysis.figure_files import drawn
from tests.marks import quick_first

ROOT = Path(__file__).parents[3]
DIGITS = f"--config={ROOT / 'config' / 'digits.py'}"
ANY = f"--config={ROOT / 'config' / 'default.py'}"
REGRESSION = ["--config.loss=squared_error", "--config.dataset.task=regression"]


@pytest.fixture
def look(tmp_path, capfd):
    """Look at a data set and return data.json; `look.output` is what was printed."""

    def run(*arguments):
        words = [DIGITS if arguments[0] == "digits" else ANY, *arguments[1:]]
        status = data.main([*words, f"--out={tmp_path / 'out'}"])
        run.output = capfd.readouterr()
        assert status == 0, run.output.err
        assert run.output.err == ""
        return json.loads((tmp_path / "out" / "data.json").read_text())

    return run


@pytest.fixture
def refused(tmp_path, capfd):
    """Return the one line of a command that fails, without the prefix."""

    def run(code, *words):
        assert data.main([*map(str, words)]) == code
        errors = capfd.readouterr().err
        assert errors.startswith("gnp: ") and errors.count("\n") == 1
        assert "Traceback" not in errors
        return errors.removeprefix("gnp: ")

    return run


def picture(path):
    with PIL.Image.open(path) as image:
        assert min(image.size) > 150 and max(image.size) < 4000
        assert len(image.convert("L").getcolors()) > 10
        return image.size


def written(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(folder, sizes, names=("cat", "dog")):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for i, (height, width) in enumerate(sizes):
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8) // (label + 1)
                PIL.Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


# What is measured.


@pytest.mark.slow
def test_digits(tmp_path, look):
    facts = look("digits", "--seconds=0.05")
    assert written(tmp_path / "out") == ["class_counts.png", "data.json", "examples.png"]
    for name in ("class_counts.png", "examples.png"):
        picture(tmp_path / "out" / name)
    source = ds_pipeline.build_dataset(load_config(str(ROOT / "config" / "digits.py"))).train
    inputs = source.batch(np.arange(len(source)))["input"]
    (values,) = facts["statistics"]["each"]
    assert values["mean"] == pytest.approx(inputs.mean())
    assert values["std"] == pytest.approx(inputs.std(dtype=np.float64))
    assert (values["min"], values["max"]) == (0, 16)
    assert values["normalizing_mean"] == pytest.approx(values["mean"], rel=1e-5)
    assert [each["name"] for each in facts["classes"]] == list("0123456789")
    counts = np.bincount(source.labels()).tolist()
    assert [each["examples"] for each in facts["classes"]] == counts
    assert facts["speed"]["examples_per_second"] > 0 and facts["speed"]["batch_size"] == 64
    assert "10 classes" in look.output.out and "images/s" in look.output.out


@pytest.mark.slow
def test_the_evaluation_split(look):
    iris = "--config.dataset.dataset_name=iris"
    facts = look("", iris, "--split=evaluation", "--seconds=0.05")
    assert facts["split"] == "test" and facts["examples"] == 30
    assert facts["speed"]["batch_size"] == 30


def test_a_table_of_classes(tmp_path, look):
    facts = look("", "--config.dataset.dataset_name=iris", "--seconds=0")
    assert facts["input"] == "vectors" and "speed" not in facts
    names = [each["name"] for each in facts["statistics"]["each"]]
    assert names[0] == "sepal length (cm)" and "sepal length (cm)" in look.output.out
    picture(tmp_path / "out" / "examples.png")


def test_a_table_of_numbers_to_predict(tmp_path, look):
    table = tmp_path / "houses.csv"
    rows = [f"{i}, {i % 7}, {2 * i}" for i in range(40)]
    table.write_text("\n".join([" ", '"size", price, rooms', *rows]))
    words = [f"--config.dataset.data_dir={table}", "--config.dataset.target=price", *REGRESSION]
    facts = look("", "--config.dataset.dataset_name=csv", *words, "--seconds=0")
    assert facts["task"] == "regression" and facts["target"]["max"] == 6
    assert [each["name"] for each in facts["statistics"]["each"]] == ["size", "rooms"]
    assert written(tmp_path / "out") == ["data.json", "examples.png", "targets.png"]
    for name in ("targets.png", "examples.png"):
        picture(tmp_path / "out" / name)


@pytest.mark.slow
def test_series(tmp_path, look):
    lines = ["\t".join(map(str, [i % 3, *np.sin(np.arange(50) * i / 9)])) for i in range(1, 31)]
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Waves_{part}.tsv").write_text("\n".join(lines))
    facts = look(
        "", "--config.dataset.dataset_name=ucr/Waves", f"--config.dataset.data_dir={tmp_path}",
        "--seconds=0",
    )  # fmt: skip
    assert facts["input"] == "series" and facts["shape"] == [50, 1]
    picture(tmp_path / "out" / "examples.png")


@pytest.mark.slow
@pytest.mark.parametrize("level", quick_first(["inception", "none"]))
def test_a_folder_of_images(tmp_path, look, level):
    write_folder(tmp_path / "photos", [(20, 30), (20, 30), (40, 25)])
    words = [
        "--config.dataset.dataset_name=image_folder",
        f"--config.dataset.data_dir={tmp_path / 'photos'}",
        "--config.dataset.image_size=16",
        f"--config.dataset.image_level_augmentations={level}",
    ]
    facts = look("", *words, "--seconds=0.05", "--config.dataset.workers=0")
    assert facts["input"] == "encoded images"
    assert facts["sizes"]["counts"] == [
        {"height": 20, "width": 30, "examples": 4},
        {"height": 40, "width": 25, "examples": 2},
    ]
    assert facts["sizes"]["width"] == {"min": 25, "median": 30, "max": 30}
    assert facts["speed"]["batch_size"] == 6
    assert len(facts["statistics"]["each"]) == 3 and facts["statistics"]["examined"] == 6
    for name in ("sizes.png", "examples.png"):
        picture(tmp_path / "out" / name)


def test_images_of_one_size_need_no_picture_of_sizes(tmp_path, look):
    write_folder(tmp_path / "photos", [(20, 30)], names=("a $x_{ b$ :cat:", "[red]猫"))
    words = ["--config.dataset.dataset_name=image_folder", "--seconds=0"]
    words += [f"--config.dataset.data_dir={tmp_path / 'photos'}", "--config.dataset.image_size=16"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sizes.png").write_text("of an earlier look at other data")
    facts = look("", *words)
    assert [each["name"] for each in facts["classes"]] == ["[red]猫", "a $x_{ b$ :cat:"]
    assert "[red]猫" in look.output.out and "a $x_{ b$ :cat:" in look.output.out
    assert "sizes.png" not in written(tmp_path / "out")


@pytest.mark.slow
def test_many_classes(tmp_path, look):
    x = np.random.default_rng(0).normal(size=(180, 4, 4, 2))
    np.savez(tmp_path / "many.npz", x=x, y=np.arange(180) % 60)
    words = [f"--config.dataset.data_dir={tmp_path / 'many.npz'}", "--seconds=0"]
    facts = look("", "--config.dataset.dataset_name=npz", *words)
    assert len(facts["classes"]) == 60
    assert "and 30 more, in data.json" in look.output.out
    picture(tmp_path / "out" / "class_counts.png")
    picture(tmp_path / "out" / "examples.png")


COLUMNS = {
    "zeros": np.zeros(60),
    "a large constant": np.full(60, 3e38),
    "two neighbors": np.where(np.arange(60) % 2, np.float32(1), np.nextafter(np.float32(1), 2)),
    "large": np.linspace(-3e38, 3e38, 60),
    "small": np.linspace(0, 1e-45, 60),
    "one large": np.r_[3e38, np.zeros(59)],
}


@pytest.mark.parametrize("name", quick_first(tuple(COLUMNS), 0))
def test_values_of_any_kind_are_drawn(tmp_path, capsys, name):
    column = COLUMNS[name]
    classes = {"zeros": 12, "two neighbors": 0, "large": 0}.get(name, 2)
    inputs = np.stack([column, column], axis=1).astype(np.float32)
    several = np.arange(60) % classes if classes else inputs[:, 0]
    names = [f"_{i}\udcff $x$ \x1b\n" for i in range(classes)]
    for labels in (several, several * 0):  # then one class has all, or the target is constant
        assert drawn(
            plot_columns, inputs, labels, names, ["$a", "b\udcff"], "of", tmp_path / "1.png"
        )
        if not classes:
            assert drawn(plot_targets, labels, "of", tmp_path / "2.png")
        else:
            series = inputs.reshape(2, 60, 1)
            assert drawn(plot_series, series, names, [0, 1], "of", tmp_path / "3.png")
            counts = np.bincount(labels.astype(int), minlength=classes).tolist()
            assert drawn(plot_class_counts, names, counts, "of", tmp_path / "4.png")
    assert drawn(plot_columns, inputs[:1], labels[:1], names, ["a", "b"], "", tmp_path / "5.png")
    assert capsys.readouterr().err == ""


def test_class_names_that_are_no_text(tmp_path, look):
    names = ("\udcff", "b\x1b[2J")
    write_folder(tmp_path / "photos", [(20, 30)], names)
    words = ["--config.dataset.dataset_name=image_folder", "--seconds=0"]
    words += [f"--config.dataset.data_dir={tmp_path / 'photos'}", "--config.dataset.image_size=16"]
    facts = look("", *words)
    assert sorted(each["name"] for each in facts["classes"]) == ["\\udcff", "b\\x1b[2J"]
    assert "b\\x1b[2J" in look.output.out and "\\udcff" in look.output.out
    assert {"class_counts.png", "examples.png"} <= set(written(tmp_path / "out"))


def test_statistics_in_parts_and_of_a_part(monkeypatch):
    inputs = np.random.default_rng(0).normal(1e6, 1, (100, 3, 2)).astype(np.float32)
    source = ds_pipeline.InMemorySource(inputs, np.zeros(100, int))
    monkeypatch.setattr(data_numbers, "_CHUNK_BYTES", 7 * 8 * 6)
    found = measure(source)
    flat = inputs.reshape(-1, 2).astype(np.float64)
    assert found.examples == 100
    np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, flat.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(found.low, flat.min(axis=0))
    np.testing.assert_array_equal(found.high, flat.max(axis=0))
    monkeypatch.setattr(data_numbers, "_STATISTICS_BYTES", 10 * 24)
    part = measure(source)
    assert part.examples == 10
    np.testing.assert_allclose(
        part.mean, inputs[5::10].reshape(-1, 2).astype(np.float64).mean(axis=0), rtol=1e-12
    )


# What is shown.


@pytest.mark.parametrize("level", quick_first(["cutout", "mixup"], 0))
def test_augmented_images(tmp_path, look, level):
    words = [
        "--config.dataset.image_level_augmentations=basic",
        f"--config.dataset.batch_level_augmentations={level}",
        "--config.dataset.cutout_size=4",
    ]
    facts = look("digits", *words, "--seconds=0")
    assert facts["augmentation"] == {"image_level": "basic", "batch_level": level}
    picture(tmp_path / "out" / "examples.png")


def test_the_picture_shows_what_training_sees():
    words = [
        ("dataset.image_level_augmentations", "basic"),
        ("dataset.batch_level_augmentations", "cutout"),
        ("dataset.cutout_size", "3"),
        ("dataset.workers", "0"),
    ]
    config = load_config(str(ROOT / "config" / "digits.py"), words)
    dataset = ds_pipeline.build_dataset(config)
    seen = {}
    for batch in ds_pipeline.train_batches(dataset, 64, config.seeds, 0, 22):
        for image in batch["input"]:
            seen[image.tobytes()] = True
    shown = augmented(dataset, dataset.train, np.arange(64), config.seeds, 0)["input"]
    # 30 of 1,438 examples rest in an epoch of 22 steps.
    assert sum(image.tobytes() in seen for image in shown) > 55


def test_examples_of_as_many_classes_as_there_are():
    labels = np.array([3] * 90 + [1] * 5 + [0, 2] * 2)
    chosen = choose(labels, 8, seed=1)
    assert len(set(chosen.tolist())) == 8
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(choose(labels, 200, seed=1)) == 99
    many = np.arange(50)
    assert set(choose(many, 8, seed=0)) != set(choose(many, 8, seed=1))


def test_pixels():
    assert as_pixels(np.full((1, 1, 1), 300.0)).tolist() == [[[255, 255, 255]]]
    assert as_pixels(np.zeros((2, 2, 4), np.uint8)).shape == (2, 2, 3)
    assert as_pixels(np.array([[[0.0, 100.0]]]), 0, 100).tolist() == [[[127, 127, 127]]]


# What goes wrong.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([DIGITS], "--out=DIR is missing"),
        (["--out=x"], "--config=FILE is missing"),
        (["--config=none.py", "--out=x"], "none.py: no such file"),
        ([DIGITS, "--out=x", "--split=test"], "evaluation"),
        ([DIGITS, "--out=x", "--seconds=-1"], "seconds"),
        ([DIGITS, "--out=x", "stray"], "'stray' is not a flag"),
        ([DIGITS, "--out=x", "--config.dataset.subst=3"], "dataset.subset"),
        ([DIGITS, "--out=x", "--config.batch_size=0"], "batch_size = 0"),
    ],
)
def test_command_lines_that_are_wrong(refused, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(2, *words)
    assert written(tmp_path) == []


def test_data_that_are_not_there(refused, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    name = "--config.dataset.dataset_name"
    place = f"--config.dataset.data_dir={tmp_path}"
    assert "mnist" in refused(1, ANY, out, f"{name}=mnist", place)
    assert "train" in refused(1, ANY, out, f"{name}=image_folder", place)
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_named(refused, tmp_path):
    write_folder(tmp_path / "photos", [(20, 30)])
    (tmp_path / "photos" / "train" / "cat" / "0.png").write_bytes(b"no image")
    line = refused(
        1, ANY, f"--out={tmp_path / 'out'}", "--config.dataset.dataset_name=image_folder",
        f"--config.dataset.data_dir={tmp_path / 'photos'}",
    )  # fmt: skip
    assert str(tmp_path / "photos" / "train" / "cat" / "0.png") in line


def test_a_place_that_cannot_hold_the_pictures(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused(2, DIGITS, f"--out={tmp_path / 'file'}", "--seconds=0")


def test_help(capfd):
    assert data.main(["--help"]) == 0
    assert "--split=evaluation" in capfd.readouterr().out
