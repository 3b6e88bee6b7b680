"""Several members in one loop: what belongs to one of them stays with it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.checkpoint import Checkpoints
from gnp.training.distributed import Interrupt
from gnp.training.loop import Member, NonFiniteError, Plan, Progress, Steps, train
from gnp.training.metrics import Log
from gnp.training.objective import build_objective
from gnp.training.seeds import apart, stacked, steps_at_once
from gnp.training.state import TrainState
from gnp.training.step import build_train_step

PLAN = Plan(
    batch_size=4, steps_per_epoch=3, total_epochs=1, evaluate_every=1, save_every=1, log_every=2
)
OPTIMIZER = optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))


def apply(params, model_state, inputs, train, key):
    return inputs @ params["w"], model_state


def step_of_all(skip):
    step = build_train_step(
        apply, build_objective("softmax_cross_entropy"), OPTIMIZER, penalize=False,
        skip_nonfinite=skip,
    )  # fmt: skip
    return jax.jit(steps_at_once(step, [jnp.asarray] * 2), donate_argnums=0)


def run(directory, skip):
    """Two seeds, of which the second one's second batch is not finite."""
    rng = np.random.default_rng(0)
    state = TrainState(params := {"w": jnp.zeros((3, 2))}, {}, OPTIMIZER.init(params))
    batches = [
        {"input": rng.normal(size=(2, 4, 3)).astype(np.float32), "label": np.ones((2, 4), int)}
        for _ in range(PLAN.total_steps)
    ]
    batches[1]["input"][1] = np.nan
    places = [directory / "a", directory / "b"]
    members = [
        Member(
            Progress(),
            lambda state: {},
            Log(place, name=place.name),
            Checkpoints(place),
            place.name,
        )
        for place in places
    ]
    step = step_of_all(skip)
    try:
        train(
            stacked([state, state]),
            members,
            plan=PLAN,
            steps=Steps(step, step, lambda number: False),
            key=stacked([jax.random.key(0), jax.random.key(1)]),
            batches=iter(batches),
            scalars=lambda number: {"learning_rate": 0.1},
            interrupt=Interrupt(),
            skip_nonfinite=skip,
        )
    finally:
        for member in members:
            member.log.close()
            member.checkpoints.close()
    return [json.loads((place / "metrics.jsonl").read_text()) for place in places]


@pytest.fixture(autouse=True)
def folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()


def test_a_skipped_step_is_that_of_one_seed(tmp_path, capsys):
    first, second = run(tmp_path, skip=True)
    assert "skipped_steps" not in first
    assert second["skipped_steps"] == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["a", "b"]
    assert "1 steps skipped" in lines[1]


def test_an_error_names_the_seed(tmp_path):
    with pytest.raises(NonFiniteError, match=r"^b, step 2 \(epoch 1\): loss nan"):
        run(tmp_path, skip=False)


def test_each_seed_has_its_own_normalization():
    halved, negative = (lambda x: x / 2), jnp.negative
    step = steps_at_once(lambda state, batch, key, number: (state, batch), [halved, negative])
    batch = {"input": jnp.ones((2, 4)), "label": jnp.ones((2, 4))}
    _, seen = step(jnp.ones(2), batch, jax.random.split(jax.random.key(0)), 0)
    np.testing.assert_array_equal(seen["input"], [[0.5] * 4, [-1.0] * 4])
    np.testing.assert_array_equal(seen["label"], batch["label"])


def test_apart_undoes_stacked():
    tree = {"w": np.arange(6.0).reshape(2, 3)}
    first, second = apart(tree, 2)
    np.testing.assert_array_equal(first["w"], [0, 1, 2])
    np.testing.assert_array_equal(stacked([first, second])["w"], tree["w"])
    assert apart(tree, 1) == [tree]
    assert stacked([tree]) is tree
