"""Recorded runs: the numbers of an epoch, its files, and their way through a run."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp.analysis.evolution_numbers import evenly_spaced, read_evolution
from gnp.training.evolution import (
    FIELDS,
    EvolutionWriter,
    cells,
    epoch_files,
    summarize,
)
from gnp.training.files import FileFormatError
from gnp.training.gradient_files import FOLDER, read_index
from gnp.training.state import leaf_names
from optimizer import GradientEvolution
from tests.marks import quick_first

RECORD = {"record__gradients": "true", "record__steps": "true"}


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for folder in ("evolution", FOLDER)
        for path in sorted((directory / folder).iterdir())
    }


@pytest.fixture(scope="module")
def recorded(small_run, tmp_path_factory):
    """Return the directory of an uninterrupted run, and what came of it."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, small_run(directory, **RECORD)


@pytest.fixture(scope="module")
def whole(recorded):
    return recorded[0]


@pytest.mark.parametrize("shape", [(), (5,), (33,), (3, 3, 7, 40), (100, 2), (2304, 65)])
def test_cells_keep_the_largest_values(shape):
    values = np.abs(np.random.default_rng(0).normal(size=shape)).astype(np.float32)
    found = cells(values)
    rows, columns = values.reshape(-1, shape[-1] if shape else 1).shape
    assert found.shape[0] <= 32 and found.shape[1] <= 32
    assert found.max() == values.max() and np.isin(found, values).all()
    if rows <= 32 and columns <= 32:
        np.testing.assert_array_equal(found, values.reshape(rows, columns))
    np.testing.assert_array_equal(cells(jnp.asarray(values)), found)
    # The first cell is that of the first elements.
    height, width = -(-rows // 32), -(-columns // 32)
    assert found[0, 0] == values.reshape(rows, columns)[:height, :width].max()


def test_an_epochs_numbers():
    draw = np.random.default_rng(0)
    g, a = draw.normal(size=(2, 50, 7)).astype(np.float32)
    s = np.abs(a) + draw.uniform(0, 1, (50, 7)).astype(np.float32)
    s[0] = np.abs(a[0]) - 1e-3  # rounding, exaggerated
    found = summarize(GradientEvolution({"w": g}, {"w": a}, {"w": s}, jnp.int32(3)))
    for field, values in zip(FIELDS, (g, a, np.maximum(s - np.abs(a), 0)), strict=True):
        np.testing.assert_allclose(found[f"mean/{field}"], [np.abs(values).mean()], 1e-6)
        np.testing.assert_array_equal(found[f"max/{field}"], [np.abs(values).max()])
        np.testing.assert_array_equal(found[f"map/{field}"][0], np.abs(values))


@pytest.mark.parametrize(("rows", "shape"), [(1024, (1024, 64)), (1025, (32, 32))])
def test_pictures_of_a_small_network_have_all_elements(rows, shape):
    tree = {"w": jnp.ones((rows, 64))}  # 65,536 elements, and more
    found = summarize(GradientEvolution(tree, tree, tree, jnp.int32(3)))
    assert {found[f"map/{field}"][0].shape for field in FIELDS} == {shape}


def assert_sums(found, steps):
    """Check that the epochs' files hold the sums of their steps' gradients."""
    for layer, values in enumerate(steps):
        sums = np.nansum(values.reshape(3, 5, *values.shape[1:]), axis=1)
        for field, value in (("gradient", sums), ("accumulated", sums.cumsum(0))):
            rows = np.abs(value).reshape(3, -1)
            np.testing.assert_allclose(found[f"mean/{field}"][:, layer], rows.mean(1), 1e-5)
            np.testing.assert_allclose(found[f"max/{field}"][:, layer], rows.max(1), 1e-5)
            assert found[f"map/{field}"][layer].size == value.size


def test_a_file_an_epoch_with_the_sums_of_its_gradients(recorded):
    directory, run = recorded
    found = read_evolution(directory)
    assert tuple(found["names"]) == leaf_names(run.state.params)
    assert list(found["sizes"]) == [leaf.size for leaf in jax.tree.leaves(run.state.params)]
    assert list(found["epochs"]) == [1, 2, 3] and list(found["steps"]) == [5, 5, 5]
    assert_sums(found, [np.load(file) for file in read_index(directory).files])


def test_the_training_set_is_evaluated_after_each_epoch(recorded):
    directory, run = recorded
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert all({"train_set_loss", "train_set_error_rate"} <= row.keys() for row in rows)
    train = run.experiment.dataset.train
    batch = train.batch(np.arange(len(train)))
    outputs, _ = run.experiment.model.apply(run.state.params, {}, batch["input"], False, None)
    losses = run.experiment.objective.loss(outputs, jnp.asarray(batch["label"]))
    np.testing.assert_allclose(rows[-1]["train_set_loss"], losses.mean(), 1e-6)


@pytest.mark.slow
def test_the_gradients_of_the_steps_are_those_that_were_taken(recorded):
    """Not the penalized ones."""
    directory, run = recorded
    state, batch = (
        run.experiment.initialize()[0],
        next(run.experiment.train_batches(0)),
    )

    def loss(params):
        outputs, _ = run.experiment.model.apply(params, {}, batch["input"], True, jax.random.key(0))
        return run.experiment.objective.loss(outputs, batch["label"]).mean()

    first = jax.grad(loss)(state.params)
    for file, leaf in zip(read_index(directory).files, jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(np.load(file)[0], leaf, 1e-5, 1e-6)


@pytest.mark.parametrize("stops", [(4, 5), *quick_first([((7,),), ((0, 3, 9, 12),)], 0)], ids=str)
def test_an_interrupted_run_writes_the_same_files(whole, small_run, tmp_path, stops):
    for step in stops:
        assert small_run(tmp_path, stop=step, **RECORD).steps[-1] < 15
    assert small_run(tmp_path, **RECORD).steps[-1] == 15
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_what_a_killed_run_wrote_too_much_is_written_again(whole, small_run, tmp_path):
    small_run(tmp_path, stop=9, **RECORD)  # a checkpoint of step 10: two epochs
    assert small_run(tmp_path, stop=12, **RECORD).steps[-1] == 13
    shutil.rmtree(tmp_path / "checkpoints" / "13")  # as if killed before it was written
    (tmp_path / "evolution" / "epoch_00003.npz").write_bytes(b"of the killed run")
    (tmp_path / "evolution" / ".epoch_00003.npz.x").write_bytes(b"half")
    small_run(tmp_path, stop=10, **RECORD)
    assert list(epoch_files(tmp_path)) == [1, 2]
    assert small_run(tmp_path, **RECORD).steps[-1] == 15
    assert contents(tmp_path) == contents(whole)


def test_a_lost_file_is_missed_when_the_run_goes_on(small_run, tmp_path):
    small_run(tmp_path, stop=9, **RECORD)
    (tmp_path / "evolution" / "epoch_00001.npz").unlink()
    with pytest.raises(FileFormatError, match="lacks epoch 1, .*config.retrain=True"):
        small_run(tmp_path, **RECORD)


def overflowing(train_step):
    """Give the eighth step an input with which the gradient is finite, and its norm is not."""

    def step_with_overflow(state, batch, key, step):
        if step == 7:
            batch = {**batch, "input": batch["input"].at[0, 0].set(1e30)}
        return train_step(state, batch, key, step)

    return step_with_overflow


@pytest.mark.parametrize(
    "groups", quick_first([{}, {"gnp__sync_perturbations": "false", "gnp__m": "8"}], 0)
)
def test_a_step_that_was_skipped_adds_nothing(small_run, tmp_path, groups):
    small_run(tmp_path, wrap=overflowing, on_nonfinite="skip", **RECORD, **groups)
    found = read_evolution(tmp_path)
    assert list(found["steps"]) == [5, 5, 5]  # it counts all the same
    steps = [np.load(file) for file in read_index(tmp_path).files]
    for values in steps:
        dropped = np.isnan(values.reshape(15, -1))
        assert dropped[7].all() and dropped.sum() == dropped[7].size
    assert_sums(found, steps)


def test_another_process_reads_the_recorder_and_writes_nothing(recorded, tmp_path):
    experiment = recorded[1].experiment
    (state, _), batch = experiment.initialize(), next(experiment.train_batches(0))
    state, _ = experiment.train_step(state, batch, jax.random.key(0), 0)
    assert state.opt_state[0].steps == 1
    state = EvolutionWriter(tmp_path, experiment.abstract_state, active=False)(state, 1)
    assert not list(tmp_path.iterdir())
    for leaf in jax.tree.leaves(state.opt_state[0].epoch):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("epochs", [1, 2, 39, 40, 41, 1000])
def test_pictures_are_of_at_most_forty_epochs(epochs):
    shown = evenly_spaced(epochs)
    assert len(shown) == min(epochs, 40) == len(set(shown))
    assert shown[0] == 0 and shown[-1] == epochs - 1


def damaged(change):
    def damage(folder):
        path = folder / "epoch_00002.npz"
        path.write_bytes(change(path.read_bytes()))

    return damage


def of_another_model(folder):
    path = folder / "epoch_00002.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "names": np.char.add(arrays["names"], "x")})


def without_a_number(folder):
    path = folder / "epoch_00002.npz"
    with np.load(path) as file:
        arrays = dict(file)
    del arrays["max/gradient"]
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged(lambda data: b""), "epoch_00002.npz is damaged: "),
        (damaged(lambda data: b"words"), "epoch_00002.npz is damaged: "),
        (damaged(lambda data: data[:-100]), "epoch_00002.npz is damaged: "),
        (damaged(lambda data: data[:300] + bytes(50) + data[350:]), "epoch_00002.npz is damaged: "),
        (without_a_number, "epoch_00002.npz is damaged: "),
        (of_another_model, "epoch_00002.npz is of another model than .*epoch_00001.npz"),
        (lambda folder: (folder / "epoch_00002.npz").unlink(), "lacks epoch 2: put"),
        (lambda folder: [p.unlink() for p in folder.iterdir()], "has no recorded gradients: train"),
    ],
)
def test_damaged_files_are_named(whole, tmp_path, damage, message):
    (tmp_path / "evolution").mkdir()
    for path in epoch_files(whole).values():
        (tmp_path / "evolution" / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "evolution")
    with pytest.raises(FileFormatError, match=message) as caught:
        read_evolution(tmp_path)
    assert re.search(re.escape(str(tmp_path)), str(caught.value))
    assert "\n" not in str(caught.value)
