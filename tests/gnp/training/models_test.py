"""Each model takes a penalised step as a whole: XLA compiles both gradients as one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.objective import build_objective
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_train_step
from model import get_model
from optimizer import gradient_norm_penalty

MODELS = [
    ("DigitsCNN", (8, 8, 1)),
    ("MnistTutorialCNN", (28, 28, 1)),
    ("WideResNet_10_1", (8, 8, 3)),
]


@pytest.mark.parametrize(("name", "shape"), MODELS, ids=[name for name, _ in MODELS])
def test_a_penalised_step_is_finite_and_changes_everything(name, shape):
    initialise, apply = from_linen(get_model(name, num_classes=10), lambda x: x, shape)
    optimizer = optax.chain(gradient_norm_penalty(0.05, 0.8), optax.adam(1e-3))
    objective = build_objective("softmax_cross_entropy")
    step = jax.jit(build_train_step(apply, objective, optimizer, penalize=True))
    params, model_state = jax.jit(initialise)(jax.random.key(0))
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.normal(size=(64, *shape)).astype(np.float32),
        "label": (np.arange(64) % 10).astype(np.int32),
    }
    before = TrainState(params, model_state, optimizer.init(params))
    after, metrics = step(before, batch, jax.random.key(1), np.uint32(1))
    assert metrics["finite"] == 1
    old_leaves = jax.tree_util.tree_leaves_with_path((before.params, before.model_state))
    new_leaves = jax.tree.leaves((after.params, after.model_state))
    for (path, old), new in zip(old_leaves, new_leaves, strict=True):
        assert new.dtype == old.dtype
        assert jnp.isfinite(new).all(), path
        assert not np.array_equal(new, old), path
