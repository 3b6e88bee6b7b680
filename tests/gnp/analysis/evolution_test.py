"""The evolution of a run: the article's numbers by both paths, pictures, verdicts, the command."""

import contextlib
import csv
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from gnp.analysis import evolution, evolution_numbers, evolution_pictures
from gnp.analysis.evolution import load_evolution, load_from_steps, verdicts, write_evolution
from gnp.analysis.evolution_pictures import animated_layers, spread_out
from gnp.analysis.results import show_results
from gnp.training.evolution import FIELDS, EvolutionWriter, cells
from gnp.training.gradient_files import GradientFiles
from gnp.training.mesh import build_mesh, replicate
from gnp.training.run_directory import remove_run
from gnp.training.state import TrainState
from optimizer import record_gradient_evolution
from tests import published
from tests.marks import quick_first

ROOT = Path(__file__).parents[3]
with np.load(ROOT / "tests" / "reference" / "evolution.npz", allow_pickle=False) as archive:
    GOLDEN = dict(archive)
LAYERS = sorted(json.loads(str(GOLDEN["meta"]))["layers"])
STEPS = [GOLDEN[f"in/individual/{layer}"] for layer in LAYERS]
EPOCHS, STEPS_PER_EPOCH = STEPS[0].shape[:2]


def record(directory, steps=STEPS, names=LAYERS, every_step=True):
    """Make a run directory with these gradients [epochs, steps, ...] of each layer."""
    epochs, count = steps[0].shape[:2]
    recorder = record_gradient_evolution()
    params = {name: jnp.zeros(x.shape[2:]) for name, x in zip(names, steps, strict=True)}
    state = replicate(TrainState(params, {}, recorder.init(params)), build_mesh())
    write = EvolutionWriter(directory, state)
    files = GradientFiles(directory, params, count, epochs * count) if every_step else None
    update = jax.jit(recorder.update)
    for epoch in range(epochs):
        for step in range(count):
            gradients = {
                name: jnp.asarray(x[epoch, step], jnp.float32)
                for name, x in zip(names, steps, strict=True)
            }
            _, recorded = update(gradients, state.opt_state)
            state = state._replace(opt_state=recorded)
            if files:
                files(epoch * count + step + 1, gradients)
        state = write(state, epoch + 1)
    if files:
        files.close()
    rows = [
        {"epoch": e + 1, "step": count * (e + 1), "train_loss": 2.0**-e, "train_error_rate": 0.5,
         "train_set_loss": 2.0**-e, "test_loss": 1.0, "test_error_rate": 0.25, "epoch_seconds": 1.0}
        for e in range(epochs)
    ]  # fmt: skip
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return record(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("bits", ["f32", "f64"])
@pytest.mark.parametrize("load", [load_evolution, load_from_steps])
def test_the_articles_numbers(golden, load, bits):
    found = load(golden)

    def meets(key, actual, largest=None):
        expected = GOLDEN[f"{bits}/{key}"]
        assert np.shape(actual) == expected.shape, key
        scale = np.max(np.abs(expected if largest is None else largest))
        np.testing.assert_allclose(actual, expected, 0, 1e-6 * scale, err_msg=key)

    assert found.names == tuple(LAYERS)
    assert list(found.steps) == [STEPS_PER_EPOCH] * EPOCHS
    meets("l1_norm_standardized", found.gradient_norm)
    meets("l1_norm_acc_standardized", found.accumulated_norm)
    meets("acc_l1_norm_standardized", found.summed_norm)
    meets("l1_dissolving_norm_standardized", found.dissolving_norm)
    meets("accgrad_layer_scaling", found.scale)
    meets("accgrad_scaling", found.scale.max())
    meets("grad_layer_highest_elements", found.highest_gradient)
    meets("accgrad_layer_highest_elements", found.highest_accumulated)
    meets("grad_highest_elements", found.highest_gradient.max(1))
    meets("accgrad_highest_elements", found.highest_accumulated.max(1))
    for key, highest in (("grad", found.highest_gradient), ("dissgrad", found.highest_dissolving)):
        scaling = (highest * found.scale[:, None]).max(1)
        scaling[scaling == 0] = 1
        meets(f"{key}_layer_scaling", scaling)
        meets(f"{key}_scaling", scaling.max())
    # The layers are small: a cell is an element.
    keys = ("gradients", "accumulated_gradients", "dissolving_gradients")
    for field, key in zip(FIELDS, keys, strict=True):
        for layer, picture in zip(LAYERS, found.maps[field], strict=True):
            expected = np.abs(GOLDEN[f"{bits}/{key}/{layer}"]).reshape(EPOCHS, *picture.shape[1:])
            total = np.abs(GOLDEN[f"{bits}/gradients/{layer}"]).sum(0).max()
            np.testing.assert_allclose(picture, expected, 0, 1e-6 * total, err_msg=key)


def test_the_articles_numbers_of_single_steps(golden):
    found = load_from_steps(golden, every=1)
    for key, actual in (
        ("l1_norm_standardized", found.gradient_norm),
        ("l1_norm_acc_standardized", found.accumulated_norm),
        ("acc_l1_norm_standardized", found.summed_norm),
        ("l1_dissolving_norm_standardized", found.dissolving_norm),
    ):
        expected = GOLDEN[f"f64/individual/{key}"]
        np.testing.assert_allclose(actual, expected, 0, 1e-6 * expected.max(), err_msg=key)


@pytest.fixture
def figures(monkeypatch):
    """Return the list of figures that are drawn from here on, in place of their files."""
    drawn = []

    @contextlib.contextmanager
    def picture(*_, **__):
        drawn.append(Figure(layout="constrained"))
        yield drawn[-1]

    monkeypatch.setattr(evolution_pictures, "picture", picture)
    return drawn


def test_the_lines_of_the_published_plots(golden, figures):
    """Of each number that the last version of the published code draws, at its place."""
    arrays, _ = published.load("evolution_models")
    found, steps = load_evolution(golden), load_from_steps(golden, every=1)

    def meets(key, actual):
        expected = arrays[f"plotted/f5e3123/{key}"]
        np.testing.assert_allclose(actual, expected, 0, 1e-6 * expected.max() + 1e-12, err_msg=key)

    meets("L1_Norm_Individual_Std.", steps.gradient_norm)
    evolution_pictures.plot_norms(found, None)
    drawn = {line.get_label(): line.get_ydata() for line in figures[0].axes[0].lines}
    for key, label in (
        ("Norm_of_Gradient", "‖G‖: an epoch's gradients, summed"),
        ("Norm_of_Accumulated_Gradient", "‖A‖: all gradients so far, summed"),
        ("Accumulated_Norm_of_Gradient", "running sum of ‖G‖"),
    ):
        meets(key, drawn[label])

    evolution_pictures.plot_highest_elements(found, None)
    axis = figures[1].axes[0]
    assert len(figures[1].axes) == 1 and axis.get_yscale() == "linear"
    # The last layer has no gradients, so no lines.
    pairs = zip(axis.lines[::2], axis.lines[1::2], strict=True)
    for i, (gradient, accumulated) in enumerate(pairs):
        meets(f"Grad_Layer_{i}", gradient.get_ydata())
        meets(f"Accgrad_Layer_{i}", accumulated.get_ydata())
        assert (gradient.get_linestyle(), accumulated.get_linestyle()) == ("-", "--")
        assert gradient.get_color() == accumulated.get_color()
    assert len({line.get_color() for line in axis.lines}) == i + 1 == 5


def test_metrics_of_the_training_set_are_drawn_as_shares_of_their_largest(figures):
    rows = [
        {"epoch": e, "train_loss": 9.0, "train_set_loss": loss, "train_set_error_rate": error}
        for e, loss, error in ((1, 2.0, 0.6), (2, 1.0, 0.5), (3, 0.5, 0.2))
    ]
    rows.append({"epoch": 4, "train_loss": 9.0})  # its value was not finite
    evolution_pictures.plot_loss(rows, None)
    drawn = {line.get_label(): line for line in figures[0].axes[0].lines}
    assert list(drawn) == ["loss", "accuracy"]
    assert drawn["loss"].get_xdata().tolist() == [1, 2, 3]
    np.testing.assert_allclose(drawn["loss"].get_ydata(), [1, 0.5, 0.25])
    np.testing.assert_allclose(drawn["accuracy"].get_ydata(), [0.5, 0.625, 1])


@pytest.mark.slow
def test_both_paths_agree_on_long_epochs_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(evolution_numbers, "_CHUNK", 8 * 60 * 40 * 7)  # seven steps at once
    draw = np.random.default_rng(0)
    steps = [draw.normal(0.1, 1, (3, 100, *shape)).astype(np.float32) for shape in ((60, 40), (5,))]
    record(tmp_path, steps, ["a", "b"])
    for x, y in zip(load_evolution(tmp_path)[1:-1], load_from_steps(tmp_path)[1:-1], strict=True):
        np.testing.assert_allclose(x, y, 0, 1e-6 * np.max(np.abs(y)))
    for field in FIELDS:
        pairs = zip(
            load_evolution(tmp_path).maps[field], load_from_steps(tmp_path).maps[field], strict=True
        )
        for x, y in pairs:
            np.testing.assert_allclose(x, y, 0, 2e-6 * np.max(y))


def test_dropped_steps_count_for_nothing(tmp_path):
    steps = [x.copy() for x in STEPS]
    for x in steps:
        x[2, 1] = np.nan
    (tmp_path / "nan").mkdir()
    (tmp_path / "zero").mkdir()
    found = load_from_steps(record(tmp_path / "nan", steps))
    expected = load_from_steps(record(tmp_path / "zero", [np.nan_to_num(x) for x in steps]))
    np.testing.assert_array_equal(found.accumulated_norm, expected.accumulated_norm)


def test_an_epoch_in_progress_is_left_out(tmp_path):
    gradients = {name: x.reshape(-1, *x.shape[2:]) for name, x in zip(LAYERS, STEPS, strict=True)}
    params = {name: x[0] for name, x in gradients.items()}
    files = GradientFiles(tmp_path, params, STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH)
    for step in range(1, 6):
        files(step, {name: x[step - 1] for name, x in gradients.items()})
        if step == 2:
            files.flush()
            with pytest.raises(evolution.FileFormatError, match="holds 2 steps, and an epoch has"):
                load_from_steps(tmp_path)
    files.close()
    found = load_from_steps(tmp_path)
    assert list(found.epochs) == [1]
    norm = GOLDEN["f64/l1_norm_standardized"][:1]
    np.testing.assert_allclose(found.gradient_norm, norm, 1e-6)


@pytest.mark.slow
def test_numbers_in_files(golden, tmp_path):
    found = load_evolution(golden)
    write_evolution(found, [], tmp_path)
    with np.load(tmp_path / "evolution.npz") as file:
        for name in ("names", "epochs", "gradient_norm", "dissolving_norm", "highest_accumulated"):
            np.testing.assert_array_equal(file[name], getattr(found, name))
        np.testing.assert_array_equal(file["maps/dissolving/l0"], found.maps["dissolving"][0])
    rows = list(csv.DictReader((tmp_path / "evolution.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == [str(e + 1) for e in range(EPOCHS)]
    assert {row["steps"] for row in rows} == {"3"}
    for name in ("gradient_norm", "accumulated_norm", "summed_norm", "dissolving_norm"):
        values = [float(row[name]) for row in rows]
        np.testing.assert_allclose(values, getattr(found, name), 1e-8, 1e-8)
    values = [float(row["highest_gradient/l2"]) for row in rows]
    np.testing.assert_allclose(values, found.highest_gradient[2], 1e-8)
    assert len(rows[0]) == 6 + 2 * len(LAYERS)
    assert not (tmp_path / "loss_and_metrics.png").exists()


@pytest.mark.slow
def test_pictures_of_gradients_that_are_all_zero(tmp_path):
    zeros = [np.zeros((2, 3, 4, 2)), np.zeros((2, 3, 2))]
    record(tmp_path, zeros, ("a", "b"), every_step=False)
    found = load_evolution(tmp_path)
    assert found.scale.tolist() == [1, 1]
    assert found.highest_gradient.max() == found.dissolving_norm.max() == 0
    assert [verdict.holds for verdict in verdicts(found)] == [None] * 3
    assert "highest_elements.png" in write_evolution(found, [], tmp_path)


@pytest.mark.parametrize(("layers", "epochs"), quick_first([(8, 3), (1, 1), (60, 45)], 0), ids=str)
def test_pictures_of_any_number_of_layers_and_epochs(golden, tmp_path, layers, epochs):
    """Draw as many layers and epochs as asked for, of a small run; one has no gradient."""
    small = load_evolution(golden)
    names = tuple(f"block_{i}/kernel" for i in range(layers))
    pick, when = [i % 6 for i in range(layers)], np.arange(epochs) % EPOCHS
    shown = np.linspace(0, epochs - 1, min(epochs, 40)).astype(int)
    found = small._replace(
        names=names,
        sizes=small.sizes[pick],
        epochs=np.arange(1, epochs + 1),
        steps=small.steps[when],
        **{name: getattr(small, name)[when] for name in small._fields if name.endswith("_norm")},
        scale=small.scale[pick],
        **{
            name: getattr(small, name)[pick][:, when]
            for name in small._fields
            if name.startswith("highest")
        },
        map_epochs=shown + 1,
        maps={k: [v[i][when[shown]] for i in pick] for k, v in small.maps.items()},
    )
    rows = [{"epoch": 1, "step": 1, "train_loss": 0.0, "train_mean_absolute_error": 3.0}]
    written = write_evolution(found, rows, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(written)
    for name in ("gradient_norms", "highest_elements", "loss_and_metrics"):
        with PIL.Image.open(tmp_path / f"{name}.png") as image:
            assert image.size[0] > 1000
            assert len(image.convert("L").getcolors()) > 10
    with PIL.Image.open(tmp_path / "animation.gif") as image:
        assert image.size[0] <= 1400
        if epochs > 1:  # frames that are alike become one
            assert 1 < image.n_frames <= len(shown)
    assert len(animated_layers(found)) == (8 if layers == 60 else layers)


def test_shown_layers_are_in_natural_order(golden):
    found = load_evolution(golden)._replace(
        names=("b_10", "b_2", "b_1", "head", "b_3", "b_9"),
    )
    assert [found.names[i] for i in animated_layers(found)][:4] == ["b_1", "b_2", "b_3", "b_9"]


@pytest.mark.parametrize(("most", "shown", "shade"), [(6, 6, 0.25), (5, 2, 0.5)])
def test_shades_are_linear_but_for_many_layers(golden, monkeypatch, most, shown, shade):
    """All layers and all of their elements; of a large network, a few, with more contrast."""
    monkeypatch.setattr(evolution_pictures, "ALL_LAYERS", most)
    monkeypatch.setattr(evolution_pictures, "FEW_LAYERS", 2)
    found = load_evolution(golden)
    figure, images = evolution_pictures._heatmaps(found, animated_layers(found))
    assert len(images) == 3 * shown
    for (field, layer), image in images.items():
        values, largest = found.maps[field][layer][0], found.maps[field][layer].max()
        np.testing.assert_allclose(image.get_array().ravel(), values.ravel() / (largest or 1))
        assert image.norm(0.25) == shade
    assert images["gradient", 0].get_array().shape == (8, 12)  # of 12 x 8
    texts = [text.get_text() for text in figure.axes[-1].get_yticklabels()]
    assert texts == ["low", "medium", "high"]


def test_labels_do_not_lie_over_one_another():
    for heights in ([0.0] * 8, [1.0] * 8, [0.1, 0.5, 0.51, 0.99, 1.0]):
        moved = spread_out(heights, 0.04)
        assert min(np.diff(moved)) > 0.0399 and moved[-1] <= 1


def test_verdicts_are_said_from_the_numbers(golden):
    found = load_evolution(golden)
    epochs = np.arange(1.0, 9.0)
    nothing = np.zeros(8)
    grows, falls, separate = verdicts(
        found._replace(
            accumulated_norm=3 * epochs**0.5,
            gradient_norm=1 / epochs,
            highest_gradient=np.stack([1 / epochs, 1 / epochs**2, nothing]),
            highest_accumulated=np.stack([epochs / 8, 1 - 0.5 / epochs, nothing]),
        )
    )
    assert (grows.holds, grows.numbers) == (True, "fitted exponent 0.50 (1: linear)")
    assert (falls.holds, falls.numbers) == (True, "last over first 0.125")
    words = "at the end, gradients at most 0.125, accumulated at least 0.938"
    assert (separate.holds, separate.numbers) == (True, words)
    others = verdicts(
        found._replace(
            accumulated_norm=epochs**1.5,
            gradient_norm=epochs,
            # Each layer's own two lines separate, and the groups do not.
            highest_gradient=np.stack([1 / epochs, np.full(8, 0.9)]),
            highest_accumulated=np.stack([0.5 + 0.2 / epochs, np.ones(8)]),
        )
    )
    assert [verdict.holds for verdict in others] == [False, False, False]


def test_what_an_earlier_version_recorded_is_read(tmp_path):
    """Files with cells; and those of a run that this version has gone on with."""
    folder, draw = tmp_path / "evolution", np.random.default_rng(0)
    record(tmp_path, [draw.normal(size=(2, 3, 40, 50))], ["w"], every_step=False)
    whole = load_evolution(tmp_path)
    assert whole.maps["gradient"][0].shape == (2, 40, 50)  # every element
    for file in [folder / "epoch_00001.npz", folder / "epoch_00002.npz"]:
        with np.load(file) as arrays:
            kept = dict(arrays)
        kept |= {name: cells(x) for name, x in kept.items() if name.startswith("map/")}
        np.savez(file, **kept)
        found = load_evolution(tmp_path)
        assert found.maps["accumulated"][0].shape == (2, 20, 25)
        for name in ("highest_gradient", "highest_accumulated", "gradient_norm"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        assert verdicts(found) == verdicts(whole)


def test_a_short_run_has_no_verdicts(tmp_path):
    record(tmp_path, [x[:1] for x in STEPS[:1]], LAYERS[:1])
    assert [verdict.holds for verdict in verdicts(load_evolution(tmp_path))] == [None] * 3


@pytest.mark.slow
def test_the_command(golden, tmp_path, capsys):
    before = sorted(p.name for p in golden.iterdir())
    assert evolution.main([str(golden), f"--out={tmp_path / 'new' / 'folder'}"]) == 0
    out = capsys.readouterr().out
    assert "fitted exponent" in out and f"in {tmp_path / 'new' / 'folder'}: evolution.npz" in out
    assert (tmp_path / "new" / "folder" / "loss_and_metrics.png").exists()
    assert sorted(p.name for p in golden.iterdir()) == before
    assert evolution.main([str(golden), f"--out={tmp_path}", "--every=6"]) == 0
    assert len((tmp_path / "evolution.csv").read_text().splitlines()) == 1 + 24 // 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{empty}"], 1, "{empty} has no recorded gradients: train it with --config.record"),
        (["{empty}/x"], 1, "{empty}/x is not a run directory"),
        (["{epochs}", "--every=2"], 1, "--every=2 needs every step's gradient"),
        (["{golden}", "--every=99"], 1, "holds 24 steps, and an epoch has 99"),
        (["{golden}", "--out=/dev/null/x"], 1, "Not a directory"),
        (["{golden}", "--out=/dev/null"], 2, "--out=/dev/null is a file; a directory is needed"),
        (["{golden}", "--every=0"], 2, "--every: 0: a whole number >= 1 is needed"),
        ([], 2, "the following arguments are required: DIR"),
        (["{golden}", "--outt=x"], 2, "unrecognized arguments: --outt=x"),
    ],
)
def test_bad_inputs_end_with_one_line(golden, tmp_path, capsys, arguments, code, message):
    for name in ("empty", "epochs"):
        (tmp_path / name).mkdir()
    record(tmp_path / "epochs", [x[:1] for x in STEPS], every_step=False)
    folders = {"golden": golden, "empty": tmp_path / "empty", "epochs": tmp_path / "epochs"}
    status = evolution.main([word.format(**folders) for word in arguments])
    printed = capsys.readouterr()
    assert status == code
    assert re.fullmatch(r"gnp: [^\n]*\n", printed.err) and message.format(**folders) in printed.err
    assert not printed.out


def test_a_run_records_and_draws(run_gnp_here, tmp_path):
    line = [
        f"--config={ROOT / 'config' / 'digits.py'}", f"--working_dir={tmp_path / 'run'}",
        "--config.dataset.subset=256", "--config.total_epochs=2", "--config.gnp.r=0",
        "--config.gnp.alpha=0", "--config.model.model_name=MLP", "--config.record.gradients=True",
        "--config.model.model_params={'widths': (8, 8)}",
    ]  # fmt: skip
    done = run_gnp_here(*line, "--config.record.steps=True")
    assert done.returncode == 0, done.stderr
    size = re.search(r"written: ([\d,]+) parameters x 8 steps x 4 bytes = ", done.stderr)
    assert size
    assert "accumulated gradients separate" in done.stdout and "animation.gif" in done.stdout
    directory = tmp_path / "run"
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [sorted(row).count("train_set_error_rate") for row in rows] == [1, 1]
    assert (directory / "loss.png").exists()
    recorded, computed = load_evolution(directory), load_from_steps(directory)
    assert sum(recorded.sizes) == int(size[1].replace(",", ""))
    for x, y in zip(recorded[1:-1], computed[1:-1], strict=True):
        np.testing.assert_allclose(x, y, 0, 1e-6 * np.max(np.abs(y)))
    remove_run(directory)  # as --config.retrain=True does
    assert not list(directory.iterdir())


def test_a_damaged_evolution_does_not_end_a_run_that_has_trained(tmp_path, capsys):
    record(tmp_path, [x[:2] for x in STEPS], every_step=False)
    (tmp_path / "evolution" / "epoch_00002.npz").write_bytes(b"x")
    show_results(tmp_path, has_evolution=True)
    assert re.fullmatch(r"warning: no evolution .*epoch_00002.npz is damaged.*\n",
                        capsys.readouterr().err)  # fmt: skip


def test_steps_need_gradients(run_gnp_here, tmp_path):
    config = f"--config={ROOT / 'config' / 'digits.py'}"
    done = run_gnp_here(config, f"--working_dir={tmp_path / 'run'}", "--config.record.steps=True")
    assert done.returncode == 2
    assert "record.steps = True with record.gradients = False: set" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("groups", [[], ["--config.gnp.sync_perturbations=False",
                                         "--config.gnp.m=16"]])  # fmt: skip
def test_two_devices_record_what_one_does(run_gnp, tmp_path, groups):
    line = [
        f"--config={ROOT / 'config' / 'digits.py'}", "--config.dataset.subset=256",
        "--config.total_epochs=2", "--config.model.model_name=MLP",
        "--config.model.model_params={'widths': (16,)}",
        "--config.record.gradients=True", "--config.record.steps=True", *groups,
    ]  # fmt: skip
    flag = {"JAX_NUM_CPU_DEVICES": "2"}
    for name, environment in (("one", {}), ("two", flag)):
        done = run_gnp(*line, f"--working_dir={tmp_path / name}", environment=environment)
        assert done.returncode == 0, done.stderr
    one, two = (load_evolution(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(one.gradient_norm, two.gradient_norm, 1e-3)
    offline = load_from_steps(tmp_path / "two")
    for x, y in zip(two[1:-1], offline[1:-1], strict=True):
        np.testing.assert_allclose(x, y, 0, 1e-6 * np.max(np.abs(y)))
