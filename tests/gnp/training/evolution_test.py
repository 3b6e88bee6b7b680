"""What a recorded run writes: the numbers of an epoch, its files, and their way through a run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gnp.training.accumulation import given_penalty
from gnp.training.loop import Member, Plan, Progress, Steps, train

from gnp.training.checkpoint import Checkpoints
from gnp.training.distributed import Interrupt
from gnp.training.evolution import (
    FIELDS,
    EvolutionWriter,
    cells,
    epoch_files,
    layer_names,
    map_epochs,
    read_evolution,
    summarize,
)
from gnp.training.files import FileFormatError
from gnp.training.gradient_files import FOLDER, GradientFiles, read_index
from gnp.training.mesh import AXES, build_mesh
from gnp.training.metrics import Log
from gnp.training.objective import build_objective
from gnp.training.state import TrainState
from gnp.training.step import Groups, build_train_step
from optimizer import GradientEvolution, gradient_norm_penalty, per_group, record_gradient_evolution

OBJECTIVE = build_objective("softmax_cross_entropy")
PARAMS = {"b": jnp.zeros(2), "w": jnp.zeros((3, 2))}
NAMES, SHAPES = layer_names(PARAMS), [x.shape for x in jax.tree.leaves(PARAMS)]
SIZES = tuple(x.size for x in jax.tree.leaves(PARAMS))
PLAN = Plan(
    batch_size=4, steps_per_epoch=5, total_epochs=3, evaluate_every=1, save_every=1, log_every=2
)


def apply(params, model_state, inputs, train, key):
    return inputs @ params["w"] + params["b"][None], model_state


def make_step(optimizer=None, groups=None, skip=False):
    optimizer = optimizer or optax.with_extra_args_support(optax.adam(0.1))
    return optimizer, jax.jit(
        build_train_step(
            apply, OBJECTIVE, optimizer, penalize=True, skip_nonfinite=skip, groups=groups,
            mesh=build_mesh(), record=True, record_steps=True,
        ),
        donate_argnums=0,
    )  # fmt: skip


OPTIMIZER, STEP = make_step()


def initial_state(optimizer=OPTIMIZER):
    params = jax.tree.map(jnp.copy, PARAMS)
    recorded = record_gradient_evolution().init(params)
    return TrainState(params, {}, (optimizer.init(params), recorded))


def batch_of(step):
    rng = np.random.default_rng(step)
    return {
        "input": rng.normal(size=(4, 3)).astype(np.float32),
        "label": rng.integers(0, 2, 4).astype(np.int32),
    }


def run(directory, interrupt=None, plan=PLAN):
    """Trains in `directory`, or goes on there, recording all; `interrupt`: at which step."""
    checkpoints, signal = Checkpoints(directory), Interrupt()
    restored = checkpoints.restore(initial_state())
    state = restored.state if restored else initial_state()
    progress = Progress(restored.progress if restored else None)

    def batches():
        for step in range(progress.step, plan.total_steps):
            if step == interrupt:
                signal.signal = "SIGTERM"
            yield batch_of(step)

    log = Log(directory, from_step=progress.step)
    files = GradientFiles(
        directory, NAMES, SHAPES, plan.steps_per_epoch, plan.total_steps, progress.step
    )
    write = EvolutionWriter(
        directory, NAMES, SIZES, from_epoch=progress.step // plan.steps_per_epoch
    )
    try:
        train(
            state,
            [Member(progress, lambda state: {}, log, checkpoints, end_epoch=write, record=files)],
            plan=plan,
            steps=Steps(STEP, STEP, lambda step: True),
            key=jax.random.key(0),
            batches=batches(),
            scalars=lambda step: {},
            interrupt=signal,
        )
    finally:
        log.close()
        checkpoints.close()
        files.close()
    return progress.step


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for folder in ("evolution", FOLDER)
        for path in sorted((directory / folder).iterdir())
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    assert run(directory) == 15
    return directory


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
        np.testing.assert_array_equal(found[f"map/{field}"][0], cells(np.abs(values)))


def test_a_file_an_epoch_with_the_sums_of_its_gradients(whole):
    found = read_evolution(whole)
    assert list(found["names"]) == ["b", "w"] and list(found["sizes"]) == [2, 6]
    assert list(found["epochs"]) == [1, 2, 3] and list(found["steps"]) == [5, 5, 5]
    steps = [np.load(file) for file in read_index(whole).files]
    for layer, values in enumerate(steps):
        sums = values.reshape(3, 5, *values.shape[1:]).sum(1)
        for field, value in (("gradient", sums), ("accumulated", sums.cumsum(0))):
            rows = np.abs(value).reshape(3, -1)
            np.testing.assert_allclose(found[f"mean/{field}"][:, layer], rows.mean(1), 1e-5)
            np.testing.assert_allclose(found[f"max/{field}"][:, layer], rows.max(1), 1e-5)
            assert found[f"map/{field}"][layer].shape == (3, *cells(value[0]).shape)


def test_the_gradients_of_the_steps_are_those_that_were_taken(whole):
    def loss(params, batch):
        outputs, _ = apply(params, {}, batch["input"], True, None)
        return OBJECTIVE.loss(outputs, batch["label"]).mean()

    first = jax.grad(loss)(PARAMS, batch_of(0))
    for file, leaf in zip(read_index(whole).files, jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(np.load(file)[0], leaf, 1e-6, 1e-7)


@pytest.mark.parametrize("stops", [(7,), (0, 3, 9, 12), (4, 5)], ids=str)
def test_an_interrupted_run_writes_the_same_files(whole, tmp_path, stops):
    for step in stops:
        assert run(tmp_path, interrupt=step) < 15
    assert run(tmp_path) == 15
    assert contents(tmp_path) == contents(whole)


def test_what_a_killed_run_wrote_too_much_is_written_again(whole, tmp_path):
    run(tmp_path, interrupt=9)  # a checkpoint of step 10: two epochs
    run(tmp_path, interrupt=12)
    for step in (15, 13):  # as if killed before this checkpoint was written
        if (tmp_path / "checkpoints" / str(step)).exists():
            for path in sorted((tmp_path / "checkpoints" / str(step)).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (tmp_path / "checkpoints" / str(step)).rmdir()
    (tmp_path / "evolution" / "epoch_00003.npz").write_bytes(b"of the killed run")
    (tmp_path / "evolution" / ".epoch_00003.npz.x").write_bytes(b"half")
    run(tmp_path, interrupt=10)
    assert list(epoch_files(tmp_path)) == [1, 2]
    assert run(tmp_path) == 15
    assert contents(tmp_path) == contents(whole)


def test_a_lost_file_is_missed_when_the_run_goes_on(tmp_path):
    run(tmp_path, interrupt=9)
    (tmp_path / "evolution" / "epoch_00001.npz").unlink()
    with pytest.raises(FileFormatError, match="lacks epoch 1, .*config.retrain=True"):
        run(tmp_path)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_step_that_was_skipped_adds_nothing(grouped):
    penalty = gradient_norm_penalty(0.1, 0.5)
    groups = Groups(2, per_group(penalty, AXES)) if grouped else None
    chain = optax.chain(given_penalty(penalty) if grouped else penalty, optax.adam(0.1))
    optimizer, step = make_step(chain, groups, skip=True)
    state, total = initial_state(optimizer), 0.0
    for number in range(4):
        batch = batch_of(number)
        if number == 2:
            batch["input"][:] = 1e30  # the gradient is finite, its norm is not
        state, metrics = step(state, batch, jax.random.key(0), number)
        gradient = np.asarray(metrics["gradients"]["w"])
        assert np.isnan(gradient).all() == (number == 2)
        total = total + np.nan_to_num(gradient)
    recorded = state.opt_state[1]
    np.testing.assert_allclose(recorded.epoch["w"], total, 1e-6, 1e-6)
    assert recorded.steps == 4


def test_without_recording_the_step_knows_nothing_of_it():
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    step = build_train_step(apply, OBJECTIVE, optimizer, penalize=False)
    state = TrainState(PARAMS, {}, optimizer.init(PARAMS))
    new, metrics = jax.eval_shape(step, state, batch_of(0), jax.random.key(0), 0)
    assert "gradients" not in metrics
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_another_process_reads_the_recorder_and_writes_nothing(tmp_path):
    state, _ = STEP(initial_state(), batch_of(0), jax.random.key(0), 0)
    state = EvolutionWriter(tmp_path, NAMES, SIZES, active=False)(state, 1)
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(state.opt_state[1].epoch["w"], 0)


@pytest.mark.parametrize("epochs", [1, 2, 39, 40, 41, 1000])
def test_pictures_are_of_at_most_forty_epochs(epochs):
    places = map_epochs(epochs)
    assert len(places) == min(epochs, 40) == len(set(places))
    assert places[0] == 0 and places[-1] == epochs - 1


def damaged(change):
    def damage(folder):
        path = folder / "epoch_00002.npz"
        path.write_bytes(change(path.read_bytes()))

    return damage


def of_another_model(folder):
    path = folder / "epoch_00002.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "names": np.array(["b", "v"])})


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
