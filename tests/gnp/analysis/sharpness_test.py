"""Sharpness: against dense Hessians, closed forms, ARPACK, batch splits; and the command line."""

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

import model
from config import load_config
from ds_pipeline import InMemorySource, build_dataset, evaluation_batches
from gnp.analysis.sharpness import __main__ as command
from gnp.analysis.sharpness.directions import contour, curve, filter_normalized, sam_sharpness
from gnp.analysis.sharpness.measure import Settings, measure_flatness, measure_sharpness
from gnp.analysis.sharpness.run import surfaces
from gnp.analysis.sharpness.spectrum import extremes, lanczos, smooth, spectrum, trace
from gnp.analysis.sharpness.surface import SharpnessError, Surface, build_products, flatten
from gnp.experiment import build_experiment
from gnp.training.regularizer import build_regularizer
from gnp.training.state import from_linen
from gnp.training.tasks import classification
from tests.data_sets import write_image_folder

EXAMPLES = 60
DEFAULT = str(Path(__file__).parents[3] / "config" / "default.py")


def regularizer():
    return build_regularizer(
        l2=lambda params: jax.tree.map(lambda leaf: 0.01 if leaf.ndim > 1 else 0.0, params),
        labels=lambda params: jax.tree.map(lambda _: "euclidean", params),
    )


@functools.cache
def network():
    """Build a network with dropout, 460 parameters, and 60 examples."""
    return parts_of("MLP", {"widths": (6,), "dropout_rate": 0.5})


def convolutional():
    return parts_of("DigitsCNN", {"features": (2, 2), "dense": 4, "dropout_rate": 0.5})


def parts_of(name, keywords):
    keys = SimpleNamespace(model_name=name, model_params=keywords)
    module = model.build_model(SimpleNamespace(model=keys, precision="float32"), 10)
    initialize, apply = from_linen(module, lambda x: x.astype(jnp.float32) / 16, (8, 8, 1))
    params, model_state = jax.jit(initialize)(jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    random = np.random.default_rng(0)
    inputs = random.integers(0, 17, (EXAMPLES, 8, 8, 1)).astype(np.float32)
    return apply, params, model_state, InMemorySource(inputs, random.integers(0, 10, EXAMPLES))


def surface_of(apply, params, model_state, source, batch_size=30, regularize=None):
    objective = classification.objective("softmax_cross_entropy", label_smoothing=0.1)
    products = build_products(apply, objective, regularize, params)
    batches = list(evaluation_batches(source, batch_size))
    return Surface(products, flatten(params), model_state, lambda: batches, len(source))


@pytest.fixture(scope="module")
def small():
    return surface_of(*network(), regularize=regularizer())


@pytest.fixture(scope="module")
def dense():
    """Return loss, gradient and eigenvalues by other means: one batch, jax.hessian, numpy."""
    apply, params, model_state, source = network()
    flat, unravel = ravel_pytree(params)
    assert 400 < flat.size < 600
    batch = source.batch(np.arange(EXAMPLES))
    smooth_labels = 0.9 * np.eye(10)[batch["label"]] + 0.01

    def loss(flat):
        params = unravel(flat)
        logits = apply(params, model_state, batch["input"], False, None)[0]
        weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
        data = -(smooth_labels * jax.nn.log_softmax(logits)).sum(-1).mean()
        return data + 0.005 * sum(jnp.sum(weight**2) for weight in weights)

    hessian = np.asarray(jax.jit(jax.hessian(loss))(flat), np.float64)
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    gradient = np.asarray(jax.grad(loss)(flat))
    return SimpleNamespace(
        loss=float(loss(flat)), gradient=gradient, values=values, vectors=vectors
    )


@pytest.mark.slow
def test_equal_to_a_dense_hessian(small, dense):
    settings = Settings(eigenvalues=8, eigenvalue_steps=120, trace_samples=30)
    values, ends, gradient = measure_flatness(small, settings)
    assert values["parameters"] == len(dense.values)
    assert values["loss"] == pytest.approx(dense.loss, rel=1e-6)
    np.testing.assert_allclose(gradient, dense.gradient, atol=1e-6)
    np.testing.assert_allclose(ends.largest, dense.values[::-1][:8], rtol=1e-4)
    assert ends.converged
    assert len(ends.ritz.values) < 120
    vector = ends.ritz.vector(-1)
    residual = np.linalg.norm(small.hessian(vector) - ends.largest[0] * vector)
    assert ends.residuals[0] == pytest.approx(residual)
    assert ends.smallest == pytest.approx(dense.values[0], rel=1e-4)
    error = values["hessian_trace_error"]
    assert 0 < error < 0.05 * dense.values.sum()
    assert abs(values["hessian_trace"] - dense.values.sum()) < 3 * error


@pytest.mark.slow
def test_density_equals_a_dense_hessians(small, dense):
    size = len(dense.values)
    few = extremes(small.hessian, size, 3, 40, seed=0).ritz
    values, weights = spectrum(small.hessian, few, probes=4, steps=120, seed=0)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    width = 0.02 * (dense.values[-1] - dense.values[0])
    points = np.linspace(dense.values[0] - width, dense.values[-1] + width, 200)
    density, error = smooth(values, weights, width, points)
    bells = np.exp(-0.5 * ((points[:, None] - dense.values[None]) / width) ** 2)
    true = bells.mean(1) / (width * np.sqrt(2 * np.pi))
    # Four probes: the 99.9% quantile of Student's t with three degrees of freedom is 10.
    assert (np.abs(density - true) <= 10 * error + 1e-4 * true.max()).all()
    # Where the largest eigenvalues are, nothing is left to chance.
    top = points > dense.values[-2]
    np.testing.assert_allclose(density[top], true[top], rtol=0.01)


@pytest.mark.slow
def test_density_of_one_probe_equals_its_own(dense):
    """Test the quadrature itself: weights are squares of the probe along the eigenvectors."""
    size = len(dense.values)
    matrix = (dense.vectors * dense.values) @ dense.vectors.T
    start = np.random.default_rng(0).standard_normal(size)
    part = lanczos(lambda v: matrix @ v, start, size, np.random.default_rng(0))
    width = 0.02 * (dense.values[-1] - dense.values[0])
    points = np.linspace(dense.values[0], dense.values[-1], 100)[:, None]

    def density(values, weights):
        return (np.exp(-0.5 * ((points - values[None]) / width) ** 2) * weights[None]).sum(1)

    true = density(dense.values, (dense.vectors.T @ start) ** 2 / (start @ start))
    np.testing.assert_allclose(density(part.values, part.vectors[0] ** 2), true, rtol=1e-4)


def test_equal_to_arpack(small):
    """Compare with scipy's eigsh, which asks for the same products, one at a time."""
    size = small.flat.size
    operator = LinearOperator((size, size), matvec=small.hessian, dtype=np.float64)
    largest = eigsh(operator, 5, which="LA", return_eigenvectors=False)
    smallest = eigsh(operator, 1, which="SA", return_eigenvectors=False)
    ours = extremes(small.hessian, size, 5, 80, seed=0)
    np.testing.assert_allclose(ours.largest, largest[::-1], rtol=1e-4)
    assert ours.smallest == pytest.approx(smallest[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [7, 100])
def test_batch_splits_agree(small, batch_size):
    batches = list(evaluation_batches(network()[3], batch_size))
    other = small._replace(batches=lambda: batches)
    direction = np.random.default_rng(0).standard_normal(small.flat.size)
    assert other.loss() == pytest.approx(small.loss(), rel=1e-6)
    np.testing.assert_allclose(other.gradient(), small.gradient(), atol=1e-6)
    np.testing.assert_allclose(
        other.hessian(direction), small.hessian(direction), atol=2e-6 * np.linalg.norm(direction)
    )
    settings = Settings(eigenvalues=2, eigenvalue_steps=60, trace_samples=2)
    if batch_size == 7:
        ours, theirs = (measure_flatness(each, settings)[0] for each in (small, other))
        for name in ("hessian_eigenvalues", "hessian_trace", "sam_sharpness", "gradient_norm"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)


@pytest.mark.slow
def test_evaluation_mode():
    """Use the running statistics of batch norm, no dropout, whatever else is in the batch."""
    apply, params, model_state, source = convolutional()
    model_state = jax.tree.map(lambda leaf: leaf + 0.3, model_state)
    batch = source.batch(np.arange(EXAMPLES))
    logits = apply(params, model_state, batch["input"], False, None)[0]
    objective = classification.objective("softmax_cross_entropy", label_smoothing=0.1)
    true = float(objective.loss(logits, batch["label"]).mean())
    surface = surface_of(apply, params, model_state, source, batch_size=32)
    assert surface.loss() == pytest.approx(true, rel=1e-6)
    direction = np.random.default_rng(0).standard_normal(surface.flat.size)
    flat, unravel = ravel_pytree(params)

    def slope(flat):
        def loss(flat):
            logits = apply(unravel(flat), model_state, batch["input"], False, None)[0]
            return objective.loss(logits, batch["label"]).mean()

        return jax.jvp(loss, (flat,), (jnp.asarray(direction, jnp.float32),))[1]

    true = np.asarray(jax.jit(jax.grad(slope))(flat))
    np.testing.assert_allclose(surface.hessian(direction), true, atol=1e-4)


def test_without_regularization_is_the_datas_loss_alone(small):
    alone = surface_of(*network())
    assert alone.loss() == pytest.approx(small.data_loss(), rel=1e-7)
    assert alone.loss() < small.loss()
    assert np.linalg.norm(alone.gradient() - small.gradient()) > 1e-3


def quadratic(eigenvalues, center):
    """Return L = mean over examples of h/2 |theta - c_i|^2: everything about it is known."""
    eigenvalues = np.asarray(eigenvalues, np.float32)
    spread = np.array([[-1.0], [1.0]]) * np.ones(len(center))

    def apply(params, model_state, inputs, train, key):
        shifted = params["theta"][None] - inputs
        return shifted, model_state

    objective = SimpleNamespace(
        loss=lambda outputs, labels: 0.5 * (eigenvalues[None] * outputs**2).sum(-1)
    )
    source = InMemorySource((center + spread).astype(np.float32), np.zeros(2, int))
    params = {"theta": np.zeros(len(center), np.float32)}
    products = build_products(apply, objective, None, params)
    batches = list(evaluation_batches(source, 1))
    return Surface(products, flatten(params), {}, lambda: batches, 2)


def largest_rise(eigenvalues, gradient, radius):
    """Return max g'd + d'Hd/2 over |d| <= r, by |(m - H)^-1 g| = r with m >= max h."""
    low, high = max(eigenvalues.max(), 0.0), 1e6
    for _ in range(200):
        middle = (low + high) / 2
        far = np.linalg.norm(gradient / (middle - eigenvalues)) > radius
        low, high = (middle, high) if far else (low, middle)
    d = gradient / (high - eigenvalues)
    return gradient @ d + 0.5 * (eigenvalues * d) @ d


def test_a_quadratic_has_its_closed_form():
    size, radius = 40, 0.3
    random = np.random.default_rng(3)
    eigenvalues = np.concatenate([[30.0, 20.0, -8.0], random.uniform(-1, 2, size - 3)])
    center = random.standard_normal(size)
    surface = quadratic(eigenvalues, center)
    settings = Settings(eigenvalues=2, eigenvalue_steps=size, trace_samples=4, radius=radius,
                        density_steps=size, curve_points=5, contour_points=3)  # fmt: skip
    values, arrays = measure_sharpness(surface, settings)
    gradient = -eigenvalues * center
    length = np.linalg.norm(gradient)
    loss = 0.5 * eigenvalues @ (center**2 + 1)
    assert values["loss"] == pytest.approx(loss, rel=1e-5)
    assert values["gradient_norm"] == pytest.approx(length, rel=1e-5)
    np.testing.assert_allclose(values["hessian_eigenvalues"], [30, 20], rtol=1e-4)
    assert values["hessian_smallest_eigenvalue"] == pytest.approx(-8, rel=1e-4)
    # The Hessian is diagonal: v'Hv is the trace for every vector of signs.
    assert abs(values["hessian_trace"] - eigenvalues.sum()) <= max(
        3 * values["hessian_trace_error"], 1e-4 * eigenvalues.sum()
    )
    first = radius * length + 0.5 * radius**2 * eigenvalues @ (gradient / length) ** 2
    assert values["sam_sharpness_first_order"] == pytest.approx(first, rel=1e-4)
    largest = largest_rise(eigenvalues, gradient, radius)
    assert values["sam_sharpness"] == pytest.approx(largest, rel=1e-3)
    assert first < largest
    for t, found in zip(arrays["gradient_distances"], arrays["gradient_losses"], strict=True):
        true = loss + t * length + 0.5 * t**2 * eigenvalues @ (gradient / length) ** 2
        assert found == pytest.approx(true, rel=1e-4)
    mean = (arrays["density_values"] * arrays["density_weights"].mean(0)).sum()
    assert mean == pytest.approx(eigenvalues.mean(), rel=0.3)
    area = np.trapezoid(arrays["density"], arrays["density_points"])
    assert area == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(arrays["random_losses"][:, 2], loss, rtol=1e-5)
    assert arrays["contour_losses"][1, 1] == pytest.approx(loss, rel=1e-5)


def test_eigenvalues_of_several_dimensions():
    multiple = np.array([5.0, 5.0, 5.0, 1.0, -2.0, -2.0])
    ends = extremes(lambda v: multiple * v, 6, count=3, steps=6, seed=0)
    np.testing.assert_allclose(ends.largest, [5, 5, 5], rtol=1e-5)
    zero = extremes(lambda v: 0 * v, 6, count=3, steps=6, seed=0)
    assert not zero.largest.any() and zero.converged
    mean, error = trace(lambda v: 0 * v, zero.ritz, 3, seed=0)
    assert mean == error == 0


def test_few_parameters():
    ends = extremes(lambda v: np.array([3.0]) * v, 1, count=5, steps=80, seed=0)
    assert ends.largest.tolist() == pytest.approx([3])
    _, weights = spectrum(lambda v: 3 * v, ends.ritz, probes=2, steps=5, seed=0)
    assert weights.sum(1).tolist() == pytest.approx([1, 1])


def test_unfinished_eigenvalues_are_said_to_be(small):
    ends = extremes(small.hessian, small.flat.size, 5, 7, seed=0)
    assert not ends.converged
    assert len(ends.ritz.values) == 7
    assert ends.residuals.max() > 0.01 * ends.largest[-1]


def test_directions():
    params = {"bias": np.ones(3), "kernel": np.arange(24.0).reshape(2, 4, 3)}
    one, two = (filter_normalized(params, 0, number) for number in (0, 1))
    assert not one[:3].any()
    lengths = np.linalg.norm(one[3:].reshape(8, 3), axis=0)
    np.testing.assert_allclose(lengths, np.linalg.norm(params["kernel"].reshape(8, 3), axis=0))
    assert abs(one @ two) < 0.9 * (one @ one)
    assert not np.array_equal(one, filter_normalized(params, 1, 0))


def test_curves_are_the_loss(small):
    first, second = np.random.default_rng(0).standard_normal((2, small.flat.size)) / 10
    grid = contour(small, first, second, np.array([-1.0, 0.0, 0.5]))
    assert grid[2, 0] == small.loss(0.5 * second - first)
    np.testing.assert_allclose(grid[1], curve(small, first, np.array([-1.0, 0.0, 0.5])))


def test_ascent_finds_more_than_the_first_order_step(small):
    loss, gradient = small.loss(), small.gradient()
    ends = extremes(small.hessian, small.flat.size, 1, 60, seed=0)
    most, first_order = sam_sharpness(small, loss, gradient, ends.ritz.vector(-1), 0.2)
    assert most > first_order > 0


def test_nan_parameters():
    apply, params, model_state, source = network()
    params = params | {"head": {"bias": params["head"]["bias"].at[3].set(jnp.nan)}}
    with pytest.raises(SharpnessError, match="1 of 10 values of head/bias are NaN or infinite"):
        surface_of(apply, params, model_state, source)


def test_infinite_loss(small):
    source = network()[3]
    inputs = source.inputs.copy()
    inputs[5] = np.inf
    batches = list(evaluation_batches(InMemorySource(inputs, source.labels()), 30))
    with pytest.raises(SharpnessError, match="the loss is NaN or infinite: nothing can be"):
        measure_flatness(small._replace(batches=lambda: batches), Settings())


def write_table(folder):
    file = folder / "table.csv"  # of seconds that float32 does not hold
    rows = [f"{1_700_000_000 + i},{i % 7},{i % 5}" for i in range(40)]
    file.write_text("\n".join(["time,rooms,price", *rows]))
    return {"dataset_name": "csv", "data_dir": file, "target": "price", "task": "regression"}


def write_images(folder):
    write_image_folder(folder)
    return {"dataset_name": "image_folder", "data_dir": folder, "image_size": 8,
            "image_level_augmentations": "inception"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "name", "loss"),
    [
        (write_table, "EvolutionBostonMLP", "squared_error"),
        pytest.param(write_images, "DigitsCNN", "softmax_cross_entropy", marks=pytest.mark.slow),
    ],
)
def test_any_kind_of_data_without_augmentation(tmp_path, write, name, loss):
    keys = {f"dataset.{key}": value for key, value in write(tmp_path).items()}
    keys |= {"model.model_name": name, "loss": loss, "batch_size": 4}
    config = load_config(DEFAULT, [(key, str(value)) for key, value in keys.items()])
    dataset = build_dataset(config, tmp_path)
    experiment = build_experiment(config, dataset)
    state, _ = experiment.initialize()
    surface = surfaces(experiment, batch_size=3, regularized=False)(state)
    source = dataset.train_as_evaluated
    batch = source.batch(np.arange(len(source)))
    outputs, _ = experiment.model.apply(
        state.params, state.model_state, batch["input"], False, None
    )
    expected = float(experiment.objective.loss(outputs, batch["label"]).mean())
    assert surface.examples == len(dataset.train)
    assert surface.loss() == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(surface.hessian(surface.gradient())).all()


# The command line.

RUN = ("--config.model.model_params={'features': (2, 2), 'dense': 4}", "--config.batch_size=256",
       "--config.total_epochs=2", "--config.record.sharpness_every_n_epochs=2")  # fmt: skip
QUICK = ("--examples=100", "--eigenvalues=2", "--steps=10", "--trace_samples=2")


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sharpness") / "run[/x]"  # brackets are no markup
    small_run(directory)
    return directory


@pytest.fixture
def run_copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.mark.slow
def test_during_training(digits_command, tmp_path):
    trained = tmp_path / "run"
    assert digits_command(trained, *RUN).returncode == 0
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    found = {name for name in rows[1] if name.startswith("sharpness/")}
    names = ("hessian_eigenvalue", "hessian_trace", "sam_sharpness", "gradient_norm")
    assert found == {f"sharpness/{name}" for name in names}
    assert not any(name.startswith("sharpness/") for name in rows[0])
    assert b"sharpness/hessian_trace" in next((trained / "tensorboard").iterdir()).read_bytes()


@pytest.mark.slow
def test_the_command(run_copy, monkeypatch, capfd):
    few = functools.partial(Settings, density_steps=3, curve_points=5, contour_points=3)
    monkeypatch.setattr(command, "Settings", few)
    steps = sorted(int(path.name) for path in (run_copy / "checkpoints").iterdir())
    words = [str(run_copy), *QUICK]
    assert command.main([*words, f"--checkpoint={steps[0]}", "--no_curves"]) == 0
    assert not (run_copy / "sharpness.npz").exists()
    assert command.main(words) == 0
    assert command.main([*words, "--no_curves", "--seed=1"]) == 0
    found = json.loads((run_copy / "sharpness.json").read_text())
    assert [each["step"] for each in found] == [steps[0], steps[-1]]
    last = found[-1]
    assert (last["seed"], last["examples"], len(last["hessian_eigenvalues"])) == (1, 100, 2)
    arrays = np.load(run_copy / "sharpness.npz")
    assert arrays["step"] == steps[-1]
    assert arrays["contour_losses"].shape == (3, 3)
    for name in ("spectrum", "curves", "contour"):
        with PIL.Image.open(run_copy / f"sharpness_{name}.png") as image:
            assert image.size[0] > 700
            assert len(image.convert("L").getcolors()) > 50
    output = capfd.readouterr()
    assert "eigenvalue 1" in output.out
    assert "not all eigenvalues have converged after 10 products" in output.err


def damage(run):
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    file = next(path for path in (newest / "state").rglob("*") if path.is_file())
    file.write_bytes(b"x")


def drop_checkpoints(run):
    shutil.rmtree(run / "checkpoints")


def damage_results(run):
    (run / "sharpness.json").write_text("{")


def lose_data(run):
    config = json.loads((run / "config.json").read_text())
    config |= {"dataset.dataset_name": "mnist", "dataset.data_dir": "nowhere",
               "dataset.image_size": None}  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))


def be_foreign(run):
    (run / "config.json").write_text('{"color": "blue"}')


def mistype(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"gnp.r": "x"}))


@pytest.mark.parametrize(
    ("words", "before", "code", "message"),
    [
        ([], mistype, 2, "gnp.r = 'x': allowed is a number"),
        ([], drop_checkpoints, 1, "no checkpoint in"),
        (["--checkpoint=15"], damage, 1, "is damaged"),
        (["--checkpoint=7"], None, 1, "no checkpoint of step 7 in"),
        ([], be_foreign, 2, "not the config of a gnp run"),
        ([], lose_data, 1, "nowhere"),
        ([], damage_results, 1, "sharpness.json is damaged"),
        (["--examples=99999"], None, 1, "'iris' has 120 training examples here"),
        (["--examples=0"], None, 2, "a whole number >= 1 is needed"),
        (["--checkpoint=x"], None, 2, "argument --checkpoint: x: best or a step is needed"),
        (["--checkpoint=best"], None, 2, "was trained without early_stopping.metric"),
        (["--radius=-1"], None, 2, "a number > 0 is needed"),
        (["--eigenvalues=9", "--steps=5"], None, 2, "--eigenvalues=9 needs as many --steps"),
        (["--bogus"], None, 2, "--bogus"),
        (["--out=config.json/x"], None, 1, "Not a directory"),
    ],
)
def test_errors(run_copy, monkeypatch, capfd, words, before, code, message):
    if before:
        before(run_copy)
    monkeypatch.chdir(run_copy)
    status = command.main([str(run_copy), *words])
    lines = capfd.readouterr().err.splitlines()
    assert status == code, lines
    assert len(lines) == 1
    assert lines[0].startswith("gnp: ")
    assert message in lines[0]


def test_no_run(tmp_path, capfd):
    assert command.main([str(tmp_path)]) == 2
    assert capfd.readouterr().err == f"gnp: {tmp_path} holds no run (no config.json in it)\n"


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over_and_out_takes_the_results(
    run_copy, tmp_path, capfd
):
    damage(run_copy)
    before = {path.name for path in run_copy.iterdir()}
    assert command.main([str(run_copy), *QUICK, "--no_curves", f"--out={tmp_path / 'o'}"]) == 0
    steps = sorted(int(path.name) for path in (run_copy / "checkpoints").iterdir())
    assert f"warning: checkpoint {steps[-1]} is damaged" in capfd.readouterr().err
    assert {path.name for path in run_copy.iterdir()} == before
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["sharpness.json"]
    (found,) = json.loads((tmp_path / "o" / "sharpness.json").read_text())
    assert found["step"] == steps[-2]


def test_a_run_in_bfloat16_is_measured_in_float32():
    from config import default
    from gnp.analysis.sharpness.run import exact

    config = default.get_config()
    config.precision = "bfloat16"
    assert (exact(config).precision, config.precision) == ("float32", "bfloat16")
