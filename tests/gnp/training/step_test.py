"""The train step: what the penalty sees, what is kept, what is reported."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training.gradients import build_functional_gradient, build_gradient, build_loss
from gnp.training.regularizer import build_regularizer
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_eval_step, build_train_step
from gnp.training.tasks import classification
from optimizer import (
    functional_gradients,
    gradient_norm_penalty,
    perturbed_params,
    random_weight_perturbation,
    sam,
)
from tests.trees import assert_trees_close, assert_trees_equal, differ

assert_trees_close = functools.partial(assert_trees_close, rtol=1e-5)

OBJECTIVE = classification.objective("softmax_cross_entropy")


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
def setup():
    initialize, apply = from_linen(Net(), lambda x: x.astype(jnp.float32), (4,))
    params, model_state = jax.jit(initialize)(jax.random.key(0))
    batch = {
        "input": jax.random.normal(jax.random.key(1), (16, 4)),
        "label": jnp.arange(16) % 3,
    }
    return apply, params, model_state, batch


@functools.cache
def build_step(apply, optimizer, **options):
    gradient = build_gradient(build_loss(apply, OBJECTIVE, options.pop("regularize", None)))
    return jax.jit(build_train_step(lambda _: gradient, optimizer, **options))


def take_step(setup, optimizer, *, step=3, **options):
    apply, params, model_state, batch = setup
    state = TrainState(params, model_state, optimizer.init(params))
    take = build_step(apply, optimizer, **options)
    return take(state, batch, jax.random.key(7), np.uint32(step))


@pytest.fixture(scope="module")
def loss_and_gradient(setup):
    """The loss and its gradient as `take_step` sees them, of the parameters alone."""
    apply, _, model_state, batch = setup
    key = jax.random.fold_in(jax.random.key(7), 3)

    def loss(params):
        outputs, _ = apply(params, model_state, batch["input"], True, key)
        return OBJECTIVE.loss(outputs, batch["label"]).mean()

    return jax.jit(jax.value_and_grad(loss))


@functools.cache
def penalized_sgd(alpha=0.8, r=0.1):
    return optax.chain(gradient_norm_penalty(r, alpha), optax.sgd(1.0))


def test_alpha_zero_is_plain_training_to_the_bit(setup):
    plain, plain_metrics = take_step(setup, optax.with_extra_args_support(optax.sgd(1.0)),
                                     penalize=False)  # fmt: skip
    zero, zero_metrics = take_step(setup, penalized_sgd(alpha=0.0), penalize=True)
    off, _ = take_step(setup, penalized_sgd(), penalize=False)
    assert_trees_equal(plain.params, zero.params)
    assert_trees_equal(plain.params, off.params)
    assert_trees_equal(plain_metrics, zero_metrics)
    assert set(plain_metrics) == {"loss", "error_rate", "gradient_norm", "param_norm", "finite"}


@pytest.mark.slow
def test_alpha_one_is_sam(setup, loss_and_gradient):
    """Against Optax's SAM in opaque mode, which takes no second batch statistics either."""
    params = setup[1]
    sam = optax.contrib.sam(
        optax.sgd(1.0),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
        opaque_mode=True,
        sync_period=2,
    )

    @jax.jit
    def expected(params):
        def gradient(params, _=None):
            return loss_and_gradient(params)[1]

        updates, _ = sam.update(gradient(params), sam.init(params), params, grad_fn=gradient)
        return optax.apply_updates(params, updates)

    ours, _ = take_step(setup, penalized_sgd(alpha=1.0), penalize=True)
    assert_trees_close(ours.params, expected(params))


def test_penalized_gradient_is_the_formula_with_the_same_masks(setup, loss_and_gradient):
    params = jax.device_get(setup[1])
    loss, g = jax.device_get(loss_and_gradient(params))
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(g)))
    _, there = loss_and_gradient(jax.tree.map(lambda p, d: p + 0.1 * d / norm, params, g))
    expected = jax.tree.map(lambda p, a, b: p - (0.2 * a + 0.8 * np.array(b)), params, g, there)
    ours, metrics = take_step(setup, penalized_sgd(), penalize=True)
    assert_trees_close(ours.params, expected)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    squares = sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(ours.params))
    np.testing.assert_allclose(metrics["param_norm"], np.sqrt(squares), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)


@pytest.mark.slow
def test_a_method_of_one_gradient_takes_it_at_a_point_of_its_own(setup, loss_and_gradient):
    """And a plain step takes it at the parameters; either is applied to the parameters."""
    params = setup[1]
    chain = optax.chain(random_weight_perturbation(0.1), optax.sgd(1.0))
    moved = perturbed_params(chain.init(params), params)
    for penalize, point in ((True, moved), (False, params)):
        ours, metrics = take_step(setup, chain, penalize=penalize)
        loss, gradient = loss_and_gradient(point)
        assert_trees_close(ours.params, jax.tree.map(lambda p, g: p - g, params, gradient))
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)


@pytest.mark.slow
def test_functional_sam_keeps_the_slope_at_the_outputs(setup):
    """The weight cost is that of the perturbed parameters."""
    apply, params, model_state, batch = setup
    key = jax.random.fold_in(jax.random.key(7), 3)

    def outputs(params):
        return apply(params, model_state, batch["input"], True, key)[0]

    def loss(z):
        return OBJECTIVE.loss(z, batch["label"]).mean()

    def cost(params):
        return 0.01 * jnp.sum(params["Dense_0"]["kernel"] ** 2) / 2

    def l2(tree):
        mask = jax.tree.map(lambda _: 0.0, tree)
        mask["Dense_0"]["kernel"] = 0.01
        return mask

    costs = build_regularizer(l2=l2, labels=lambda tree: jax.tree.map(lambda _: "euclidean", tree))
    gradient, at = functional_gradients(outputs, loss)(params)
    chain = optax.chain(sam(0.5), optax.sgd(1.0))
    clean = jax.tree.map(jnp.add, gradient, jax.grad(cost)(params))
    updates, _ = chain.update(
        clean,
        chain.init(params),
        params,
        grad_fn=lambda p: jax.tree.map(jnp.add, at(p), jax.grad(cost)(p)),
    )
    functional = build_functional_gradient(apply, OBJECTIVE, costs)
    ours, metrics = take_step(
        setup,
        chain,
        penalize=True,
        regularize=costs,
        perturbed_of=lambda step, here: lambda moved, *rest: functional((moved, here), *rest),
    )
    assert_trees_close(ours.params, optax.apply_updates(params, updates))
    plain, _ = take_step(setup, chain, penalize=True, regularize=costs)
    assert differ(ours.params, plain.params)
    np.testing.assert_allclose(metrics["loss"], loss(outputs(params)), rtol=1e-6)


def test_statistics_and_metrics_come_from_the_clean_pass(setup):
    plain, plain_metrics = take_step(setup, penalized_sgd(), penalize=False)
    penalized, metrics = take_step(setup, penalized_sgd(r=10.0), penalize=True)
    assert_trees_equal(plain.model_state, penalized.model_state)
    del plain_metrics["param_norm"], metrics["param_norm"]  # after the step
    assert_trees_equal(plain_metrics, metrics)
    assert not np.allclose(
        plain.params["Dense_0"]["kernel"], penalized.params["Dense_0"]["kernel"], rtol=1e-3
    )


def test_random_masks_depend_on_step_and_key_only(setup):
    first, _ = take_step(setup, penalized_sgd(), penalize=True, step=3)
    again, _ = take_step(setup, penalized_sgd(), penalize=True, step=3)
    later, _ = take_step(setup, penalized_sgd(), penalize=True, step=4)
    assert_trees_equal(first.params, again.params)
    assert not np.array_equal(first.params["Dense_0"]["kernel"], later.params["Dense_0"]["kernel"])


def test_l2_is_in_the_gradient_but_not_in_the_logged_loss(setup):
    params = jax.device_get(setup[1])
    sgd = optax.with_extra_args_support(optax.sgd(1.0))
    plain, plain_metrics = take_step(setup, sgd, penalize=False)
    regularize = build_regularizer(
        l2=lambda tree: jax.tree.map(lambda x: 0.5 if x.ndim > 1 else 0.0, tree),
        labels=lambda tree: jax.tree.map(lambda _: "euclidean", tree),
    )
    decayed, metrics = take_step(setup, sgd, penalize=False, regularize=regularize)
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
def test_a_nonfinite_step_is_reported_and_can_be_dropped(setup, skip):
    apply, params, model_state, batch = setup
    broken = (apply, params, model_state, {**batch, "input": batch["input"].at[0, 0].set(jnp.nan)})
    state, metrics = take_step(broken, penalized_sgd(), penalize=True, skip_nonfinite=skip)
    assert metrics["finite"] == 0
    if skip:
        assert_trees_equal(state.params, params)
        assert state.opt_state[0].count == 1
        assert_trees_equal(state.model_state, model_state)
    _, metrics = take_step(setup, penalized_sgd(), penalize=True, skip_nonfinite=skip)
    assert metrics["finite"] == 1


@pytest.fixture(scope="module")
def eval_step(setup):
    return jax.jit(build_eval_step(setup[0], OBJECTIVE))


def test_evaluation_counts_each_unmasked_example(setup, eval_step):
    _, params, model_state, batch = setup
    whole = eval_step(params, model_state, {**batch, "mask": jnp.ones(16)})
    mask = (jnp.arange(16) < 9).astype(jnp.float32)
    first = eval_step(params, model_state, {**batch, "mask": mask})
    rest = eval_step(params, model_state, {**batch, "mask": 1 - mask})
    assert first["count"] == 9
    for name in ("loss", "error_rate"):
        np.testing.assert_allclose(first[name] + rest[name], whole[name], rtol=1e-6)


def test_padding_may_hold_anything(setup, eval_step):
    _, params, model_state, batch = setup
    mask = (np.arange(16) < 9).astype(np.float32)
    image = np.where(mask[:, None] == 1, batch["input"], np.float32("nan"))
    sums = eval_step(params, model_state, {**batch, "input": image, "mask": mask})
    assert np.isfinite(sums["loss"])


def test_an_update_that_is_not_finite_is_dropped_too(setup):
    """The loss and the clean gradient are finite: it is the second one, or what follows it."""
    optimizer = optax.with_extra_args_support(optax.scale(jnp.inf))
    state, metrics = take_step(setup, optimizer, penalize=False, skip_nonfinite=True)
    assert np.isfinite(metrics["loss"] + metrics["gradient_norm"])
    assert metrics["finite"] == 0
    assert_trees_equal(state.params, setup[1])
