"""Each model takes a penalized step as a whole: XLA compiles both gradients as one program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.gradients import build_gradient, build_loss
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_train_step
from gnp.training.tasks import classification
from model import get_model
from optimizer import gradient_norm_penalty
from tests.marks import quick_first

# Every family once, as small as it can be with everything in it: name, parameters, input.
MODELS = [
    ("DigitsCNN", {}, (8, 8, 1)),
    ("MnistTutorialCNN", {}, (28, 28, 1)),
    ("DeepOBS2c2d", {"features": (4, 4), "dense": 8}, (8, 8, 1)),
    ("WideResNet_10_1", {}, (8, 8, 3)),
    ("WideResNet_2_4_ShakeShake", {"depth": 8}, (8, 8, 3)),
    ("PyramidNet_11_5", {}, (8, 8, 3)),
    ("PyramidNet_11_5_ShakeDrop", {}, (8, 8, 3)),
    ("ResNet18", {"stages": (1, 1), "widths": (4, 8), "stem": "imagenet"}, (16, 16, 3)),
    ("ResNet50", {"stages": (1, 1), "widths": (4, 8), "stem_features": 4}, (8, 8, 3)),
    ("CifarResNet8", {}, (8, 8, 3)),
    ("VGG11", {"widths": (4,) * 5, "head": "imagenet", "dense": 8}, (32, 32, 3)),
    ("VGG11BN", {"widths": (4,) * 5}, (32, 32, 3)),
    ("VGG11Riemannian", {"widths": (4,) * 5, "dense": 8, "dropout_rate": 0.3}, (32, 32, 3)),
    ("HorsesOrHumansCNN", {"features": (4, 4, 4), "dense": 8}, (24, 24, 3)),
    ("EvolutionMnistCNN", {"features": (4, 4)}, (12, 12, 1)),
    ("EvolutionCifarCNN", {"features": (4, 4), "dense": 8}, (12, 12, 3)),
    ("EvolutionCifar10CNN", {"features": ((4,), ()), "dense": (8,)}, (8, 8, 3)),
    ("EvolutionCifar100CNN", {"features": ((4,), (4,)), "dense": (8, 8)}, (8, 8, 3)),
    ("EvolutionFordACNN", {"features": (4, 4)}, (16, 1)),
    ("EvolutionIrisMLP", {}, (4,)),
    ("EvolutionBostonMLP", {}, (13,)),
    ("MLP", {"widths": (8,)}, (4,)),
]
# tests/model/transformer_test.py and forecasting_test.py take their step.
ELSEWHERE = ("ViT_", "Swin_", "CaiT_", "SAMformer", "TSMixer", "LinearForecaster")


OBJECTIVE = classification.objective("softmax_cross_entropy")


def penalized_step(apply, optimizer):
    gradient = build_gradient(build_loss(apply, OBJECTIVE))
    return jax.jit(build_train_step(lambda _: gradient, optimizer, penalize=True))


def batch_of(size, shape):
    return {
        "input": np.random.default_rng(0).normal(size=(size, *shape)).astype(np.float32),
        "label": (np.arange(size) % 10).astype(np.int32),
    }


def test_every_family_is_here(registered_models):
    tested = {type(get_model(name, num_classes=10, **params)) for name, params, _ in MODELS}
    registered = {
        type(get_model(name, num_classes=10))
        for name in registered_models
        if not name.startswith(ELSEWHERE)
    }
    assert registered == tested


@pytest.mark.parametrize(
    ("name", "params", "shape"), quick_first(MODELS, 0), ids=[each[0] for each in MODELS]
)
def test_a_penalized_step_is_finite_and_changes_everything(name, params, shape):
    initialize, apply = from_linen(get_model(name, num_classes=10, **params), lambda x: x, shape)
    optimizer = optax.chain(gradient_norm_penalty(0.05, 0.8), optax.adam(1e-3))
    params, model_state = jax.jit(initialize)(jax.random.key(0))
    before = TrainState(params, model_state, optimizer.init(params))
    key, batch = jax.random.key(1), batch_of(64, shape)
    after, metrics = penalized_step(apply, optimizer)(before, batch, key, np.uint32(1))
    assert metrics["finite"] == 1
    # The batch statistics are those of one pass, the clean one, with the step's masks.
    _, clean = jax.jit(lambda p, s: apply(p, s, batch["input"], True, jax.random.fold_in(key, 1)))(
        params, model_state
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.model_state, clean)
    old_leaves = jax.tree_util.tree_leaves_with_path((before.params, before.model_state))
    new_leaves = jax.tree.leaves((after.params, after.model_state))
    for (path, old), new in zip(old_leaves, new_leaves, strict=True):
        assert new.dtype == old.dtype
        assert jnp.isfinite(new).all(), path
        assert not np.array_equal(new, old), path


RANDOM = [
    ("ViT_TI4", {"embed_dim": 8, "num_heads": 2, "depth": 2, "dropout_rate": 0.3,
                 "stochastic_depth_rate": 0.5, "remat": True}, (8, 8, 3)),
    ("WideResNet_2_4_ShakeShake", {"depth": 8}, (8, 8, 3)),
    ("PyramidNet_11_5_ShakeDrop", {}, (8, 8, 3)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "params", "shape"), quick_first(RANDOM, 0), ids=[each[0] for each in RANDOM]
)
def test_both_passes_draw_the_same_masks(name, params, shape):
    """The step is g(theta + r g / |g|) of one function, whose masks are fixed by the step's key."""
    r, key = 0.1, jax.random.key(1)
    initialize, apply = from_linen(get_model(name, num_classes=10, **params), lambda x: x, shape)
    params, model_state = jax.jit(initialize)(jax.random.key(0))
    batch = batch_of(8, shape)

    @jax.jit
    def gradient(params):
        def loss(params):
            outputs, _ = apply(
                params, model_state, batch["input"], True, jax.random.fold_in(key, 3)
            )
            return OBJECTIVE.loss(outputs, batch["label"]).mean()

        return jax.grad(loss)(params)

    optimizer = optax.chain(gradient_norm_penalty(r, 1.0), optax.sgd(1.0))
    state = TrainState(params, model_state, optimizer.init(params))
    after, _ = penalized_step(apply, optimizer)(state, batch, key, np.uint32(3))
    here = gradient(params)
    norm = optax.tree.norm(here)
    there = gradient(jax.tree.map(lambda p, g: p + r * g / norm, params, here))
    taken = jax.tree.map(lambda p, new: p - new, params, after.params)
    error = optax.tree.norm(jax.tree.map(lambda a, e: a - e, taken, there))
    assert error < 1e-3 * optax.tree.norm(there)
    # The perturbation shows: without it the step would be another.
    plain = optax.tree.norm(jax.tree.map(lambda a, e: a - e, taken, here))
    assert plain > 1e-2 * norm
