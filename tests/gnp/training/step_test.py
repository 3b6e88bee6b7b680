"""The training step: what the penalty sees, what is kept, what is reported."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.objective import build_objective
from gnp.training.regularizer import build_regularizer
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_evaluation_step, build_train_step
from optimizer import gradient_norm_penalty

OBJECTIVE = build_objective("softmax_cross_entropy")


class Net(nn.Module):
    """Dense, batch norm, dropout: everything that a step must treat with care."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def parts():
    initialise, apply = from_linen(Net(), lambda x: x.astype(jnp.float32), (4,))
    params, model_state = initialise(jax.random.key(0))
    batch = {
        "input": jax.random.normal(jax.random.key(1), (16, 4)),
        "label": jnp.arange(16) % 3,
    }
    return apply, params, model_state, batch


def take_step(parts, optimizer, *, penalize, number=3, **options):
    apply, params, model_state, batch = parts
    step = jax.jit(build_train_step(apply, OBJECTIVE, optimizer, penalize=penalize, **options))
    state = TrainState(params, model_state, optimizer.init(params))
    return step(state, batch, jax.random.key(7), np.uint32(number))


def clean_loss(parts):
    """The loss as `take_step` sees it, of the parameters alone."""
    apply, _, model_state, batch = parts
    key = jax.random.fold_in(jax.random.key(7), 3)

    def loss(params):
        outputs, _ = apply(params, model_state, batch["input"], True, key)
        return OBJECTIVE.loss(outputs, batch["label"]).mean()

    return loss


def penalised_sgd(alpha=0.8, r=0.1):
    return optax.chain(gradient_norm_penalty(r, alpha), optax.sgd(1.0))


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_alpha_zero_is_plain_training_to_the_bit(parts):
    plain, plain_metrics = take_step(parts, optax.with_extra_args_support(optax.sgd(1.0)),
                                     penalize=False)  # fmt: skip
    zero, zero_metrics = take_step(parts, penalised_sgd(alpha=0.0), penalize=True)
    off, _ = take_step(parts, penalised_sgd(), penalize=False)
    assert_equal(plain.params, zero.params)
    assert_equal(plain.params, off.params)
    assert_equal(plain_metrics, zero_metrics)


def test_alpha_one_is_sam(parts):
    """Against Optax's SAM in opaque mode, which takes no second batch statistics either."""
    params, loss = parts[1], clean_loss(parts)
    sam = optax.contrib.sam(
        optax.sgd(1.0),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
        opaque_mode=True,
        sync_period=2,
    )
    grad_fn = jax.grad(loss)
    updates, _ = sam.update(
        grad_fn(params), sam.init(params), params, grad_fn=lambda p, _: grad_fn(p)
    )
    ours, _ = take_step(parts, penalised_sgd(alpha=1.0), penalize=True)
    expected = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours.params, expected
    )


def test_penalised_gradient_is_the_formula_with_the_same_masks(parts):
    params, loss = parts[1], clean_loss(parts)
    g = jax.grad(loss)(params)
    norm = optax.tree.norm(g)
    there = jax.grad(loss)(jax.tree.map(lambda p, d: p + 0.1 * d / norm, params, g))
    expected = jax.tree.map(lambda p, a, b: p - (0.2 * a + 0.8 * b), params, g, there)
    ours, metrics = take_step(parts, penalised_sgd(), penalize=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours.params, expected
    )
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss(params), rtol=1e-6)


def test_statistics_and_metrics_come_from_the_clean_pass(parts):
    plain, plain_metrics = take_step(parts, penalised_sgd(), penalize=False)
    penalised, metrics = take_step(parts, penalised_sgd(r=10.0), penalize=True)
    assert_equal(plain.model_state, penalised.model_state)
    assert_equal(plain_metrics, metrics)
    assert not np.allclose(
        plain.params["Dense_0"]["kernel"], penalised.params["Dense_0"]["kernel"], rtol=1e-3
    )


def test_random_masks_depend_on_step_and_key_only(parts):
    first, _ = take_step(parts, penalised_sgd(), penalize=True, number=3)
    again, _ = take_step(parts, penalised_sgd(), penalize=True, number=3)
    later, _ = take_step(parts, penalised_sgd(), penalize=True, number=4)
    assert_equal(first.params, again.params)
    assert not np.array_equal(first.params["Dense_0"]["kernel"], later.params["Dense_0"]["kernel"])


def test_l2_is_in_the_gradient_but_not_in_the_logged_loss(parts):
    _, params, _, _ = parts
    sgd = optax.with_extra_args_support(optax.sgd(1.0))
    plain, plain_metrics = take_step(parts, sgd, penalize=False)
    regularize = build_regularizer(
        l2=lambda tree: jax.tree.map(lambda x: 0.5 if x.ndim > 1 else 0.0, tree),
        labels=lambda tree: jax.tree.map(lambda _: "euclidean", tree),
    )
    decayed, metrics = take_step(parts, sgd, penalize=False, regularize=regularize)
    np.testing.assert_array_equal(metrics["loss"], plain_metrics["loss"])
    kernels = [params[name]["kernel"] for name in ("Dense_0", "Dense_1")]
    expected = 0.25 * sum(float((k**2).sum()) for k in kernels)
    np.testing.assert_allclose(metrics["weight_cost"], expected, rtol=1e-6)
    kernel = kernels[0]
    np.testing.assert_allclose(
        decayed.params["Dense_0"]["kernel"],
        plain.params["Dense_0"]["kernel"] - 0.5 * kernel,
        atol=1e-6,
    )
    np.testing.assert_array_equal(
        decayed.params["Dense_1"]["bias"], plain.params["Dense_1"]["bias"]
    )


@pytest.mark.parametrize("skip", [True, False])
def test_a_nonfinite_step_is_reported_and_can_be_dropped(parts, skip):
    apply, params, model_state, batch = parts
    broken = (apply, params, model_state, {**batch, "input": batch["input"].at[0, 0].set(jnp.nan)})
    state, metrics = take_step(broken, penalised_sgd(), penalize=True, skip_nonfinite=skip)
    assert metrics["finite"] == 0
    if skip:
        assert_equal(state.params, params)
        assert state.opt_state[0].count == 1
        assert_equal(state.model_state, model_state)
    _, metrics = take_step(parts, penalised_sgd(), penalize=True, skip_nonfinite=skip)
    assert metrics["finite"] == 1


def test_evaluation_counts_each_unmasked_example(parts):
    apply, params, model_state, batch = parts
    step = jax.jit(build_evaluation_step(apply, OBJECTIVE))
    whole = step(params, model_state, {**batch, "mask": jnp.ones(16)})
    mask = (jnp.arange(16) < 9).astype(jnp.float32)
    first = step(params, model_state, {**batch, "mask": mask})
    rest = step(params, model_state, {**batch, "mask": 1 - mask})
    assert first["count"] == 9
    for name in ("loss", "error_rate"):
        np.testing.assert_allclose(first[name] + rest[name], whole[name], rtol=1e-6)


def test_padding_may_hold_anything(parts):
    apply, params, model_state, batch = parts
    step = build_evaluation_step(apply, OBJECTIVE)
    mask = (jnp.arange(16) < 9).astype(jnp.float32)
    image = batch["input"].at[9:].set(jnp.nan)
    sums = step(params, model_state, {**batch, "input": image, "mask": mask})
    assert np.isfinite(sums["loss"])
