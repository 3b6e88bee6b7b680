"""The builders: the optimizer, the schedules and the step rule of a config."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optimizer
from optimizer import (
    SCHEDULES,
    STRATEGIES,
    OptimizerError,
    build_optimizer,
    build_penalized_gradient,
    build_penalty,
    build_schedules,
    build_step_rule,
    decay_mask,
    end_epoch,
    opt_param_names,
)
from optimizer.geometry import unit
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal, differ

STEPS_PER_EPOCH = 4
MakeConfig = Callable[..., Any]


def quartic(params: Any) -> jax.Array:
    return 0.25 * sum(jnp.sum(p**4) for p in jax.tree.leaves(params))


def trajectory(opt: optax.GradientTransformationExtraArgs, penalize: Any = None) -> Any:
    """Take three steps on the quartic; `penalize` is a step rule."""
    grad_fn = jax.grad(quartic)
    params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "bias": jnp.array([1.0, -2.0])}
    state = opt.init(params)
    for step in range(3):
        chosen = True if penalize is None else penalize(step)
        updates, state = opt.update(
            grad_fn(params), state, params, grad_fn=grad_fn, penalize=chosen
        )
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "opt_type, opt_params, expected",
    [
        ("SGD", {}, optax.sgd(0.1)),
        ("SGD", {"momentum": 0.5}, optax.sgd(0.1, momentum=0.5)),
        ("Momentum", {}, optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ("Momentum", {"nesterov": False}, optax.sgd(0.1, momentum=0.9)),
        ("Adam", {}, optax.adam(0.1)),
        ("Adam", {"weight_decay": 0.3, "b2": 0.9}, optax.adamw(0.1, b2=0.9, weight_decay=0.3)),
        ("RMSProp", {}, optax.rmsprop(0.1)),
        ("RMSProp", {"decay": 0.5, "momentum": 0.1}, optax.rmsprop(0.1, decay=0.5, momentum=0.1)),
    ],
)
def test_base_optimizers(
    make_config: MakeConfig, opt_type: str, opt_params: Any, expected: Any
) -> None:
    config = make_config(
        **{"lr_schedule_type": "constant", "gnp.r": 0.0},
        **{"opt.opt_type": opt_type, "opt.opt_params": opt_params},
    )
    built = build_optimizer(config, STEPS_PER_EPOCH)
    plain = optax.with_extra_args_support(expected)
    assert_trees_close(trajectory(built), trajectory(plain), atol=0)


def test_adam_with_the_epsilon_of_keras(make_config: MakeConfig) -> None:
    """Step by step by the formula of Keras' Adam, with gradients about as small as its epsilon."""
    config = make_config(
        **{"lr_schedule_type": "constant", "gnp.r": 0.0, "opt.opt_type": "Adam"},
        **{"opt.opt_params": {"eps": 1e-3, "eps_uncorrected": True}},
    )
    built = build_optimizer(config, STEPS_PER_EPOCH)
    params = jnp.zeros(3)
    state = built.init(params)
    m = v = expected = np.zeros(3)
    for step in range(1, 6):
        gradient = np.array([1e-3, -2e-2, 1.0]) * step
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 0.1 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        expected = expected - rate * m / (np.sqrt(v) + 1e-3)
        updates, state = built.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, rtol=1e-4)


def test_chain_is_penalty_clipping_base(make_config: MakeConfig) -> None:
    config = make_config(lr_schedule_type="constant", gradient_clipping=0.5)
    expected = optax.chain(
        optimizer.gradient_norm_penalty(0.1, 0.8), optax.clip_by_global_norm(0.5), optax.sgd(0.1)
    )
    assert_trees_equal(trajectory(build_optimizer(config, STEPS_PER_EPOCH)), trajectory(expected))


GC = optimizer.centralize()


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ({"opt.centralize": "all"}, optax.chain(GC, optax.sgd(0.1))),
        (
            {"opt.centralize": "all", "opt.centralize_at": "update", "opt.opt_type": "Adam"},
            optax.chain(optax.adam(0.1), GC),
        ),
        (
            # As the authors have it: the decoupled decay is centralized with the step.
            {
                "opt.centralize": "all",
                "opt.centralize_at": "update",
                "opt.opt_type": "Adam",
                "opt.opt_params": {"weight_decay": 0.3},
            },
            optax.chain(
                optax.scale_by_adam(), optax.add_decayed_weights(0.3), GC, optax.scale(-0.1)
            ),
        ),
        (
            # Before it: the decay is not centralized.
            {
                "opt.centralize": "all",
                "opt.opt_type": "Adam",
                "opt.opt_params": {"weight_decay": 0.3},
            },
            optax.chain(GC, optax.adamw(0.1, weight_decay=0.3)),
        ),
        ({"opt.centralize": "conv"}, optax.sgd(0.1)),  # there is no convolution in the tree
        (
            {"opt.centralize": "all", "gradient_clipping": 0.5},
            optax.chain(optax.clip_by_global_norm(0.5), GC, optax.sgd(0.1)),
        ),
    ],
)
def test_centralization(make_config: MakeConfig, overrides: Any, expected: Any) -> None:
    config = make_config(**{"lr_schedule_type": "constant", "gnp.r": 0.0}, **overrides)
    built = trajectory(build_optimizer(config, STEPS_PER_EPOCH))
    plain = trajectory(optax.with_extra_args_support(expected))
    assert_trees_close(built, plain, 1e-5, 0)


# A tall kernel that is a point of the manifold, a wide one that is none, and the rest.
CONVOLUTIONS = {
    "tall": {"kernel": jnp.arange(36.0).reshape(3, 3, 2, 2) - 15.0, "bias": jnp.ones(2)},
    "wide": {"kernel": jnp.arange(8.0).reshape(1, 1, 2, 4) - 3.0},
    "norm": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.5, -1.0])},
}


@pytest.mark.parametrize(
    "opt_type, opt_params, grassmann",
    [
        ("SGDG", {}, optimizer.sgdg(0.2, 0.9, 0.1)),
        ("SGDG", {"momentum": 0.5, "grad_clip": None}, optimizer.sgdg(0.2, 0.5)),
        ("AdamG", {}, optimizer.adamg(0.2, grad_clip=0.1)),
        ("AdamG", {"b1": 0.5, "eps": 1e-4}, optimizer.adamg(0.2, 0.5, eps=1e-4, grad_clip=0.1)),
    ],
)
def test_grassmann_groups(
    make_config: MakeConfig, opt_type: str, opt_params: Any, grassmann: Any
) -> None:
    config = make_config(
        **{"lr_schedule_type": "constant", "gnp.r": 0.0},
        **{"opt.opt_type": opt_type, "opt.opt_params": opt_params},
    )
    built = build_optimizer(config, STEPS_PER_EPOCH)
    euclidean = optax.sgd(0.1, 0.9, nesterov=True)
    params = CONVOLUTIONS
    state = built.init(params)
    tall = {"x": params["tall"]["kernel"]}
    rest = {**params, "tall": {"bias": params["tall"]["bias"]}}
    tall_state, rest_state = grassmann.init(tall), euclidean.init(rest)
    for _ in range(2):
        updates, state = built.update(params, state, params)
        tall_updates, tall_state = grassmann.update(tall, tall_state, tall)
        rest_updates, rest_state = euclidean.update(rest, rest_state, rest)
        np.testing.assert_allclose(updates["tall"]["kernel"], tall_updates["x"], rtol=1e-6)
        updates["tall"].pop("kernel")
        assert_trees_close(updates, rest_updates, atol=0)


def test_both_groups_follow_one_schedule(make_config: MakeConfig) -> None:
    config = make_config(
        **{"opt.opt_type": "SGDG", "opt.opt_params": {"momentum": 0.0}, "gnp.r": 0.0}
    )
    last = 3 * STEPS_PER_EPOCH  # the cosine's end
    built = build_optimizer(config, STEPS_PER_EPOCH)
    params = {"tall": {"kernel": unit(CONVOLUTIONS["tall"]["kernel"])}}
    state = built.init(params)
    for step in range(last + 1):
        grads = {"tall": {"kernel": CONVOLUTIONS["tall"]["kernel"] ** 2}}
        updates, state = built.update(grads, state, params)
        moved = float(jnp.abs(updates["tall"]["kernel"]).max())
        assert (moved > 1e-5) == (step < last)


def test_centralized_updates_leave_the_manifold_alone(make_config: MakeConfig) -> None:
    config = make_config(
        **{"opt.opt_type": "SGDG", "opt.centralize": "all", "opt.centralize_at": "update"},
        **{"gnp.r": 0.0},
    )
    built = build_optimizer(config, STEPS_PER_EPOCH)
    updates, _ = built.update(CONVOLUTIONS, built.init(CONVOLUTIONS), CONVOLUTIONS)
    new = optax.apply_updates(CONVOLUTIONS, updates)
    lengths = jnp.linalg.norm(new["tall"]["kernel"].reshape(-1, 2), axis=0)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-6)
    means = updates["wide"]["kernel"].mean((0, 1, 2))
    np.testing.assert_allclose(means, 0.0, atol=1e-6)


def test_labels_and_what_is_decayed(make_config: MakeConfig) -> None:
    config = make_config(
        l2_regularization=1e-3,
        **{"opt.opt_type": "SGDG", "l2_by_kind.scale": 0.0, "l2_by_kind.bias": 2e-3},
    )
    assert optimizer.build_labels(config)(CONVOLUTIONS) == {
        "tall": {"kernel": "grassmann", "bias": "euclidean"},
        "wide": {"kernel": "euclidean"},
        "norm": {"scale": "euclidean", "bias": "euclidean"},
    }
    assert optimizer.l2_coefficients(config, CONVOLUTIONS) == {
        "tall": {"kernel": 0.0, "bias": 2e-3},
        "wide": {"kernel": 1e-3},
        "norm": {"scale": 0.0, "bias": 1e-3},
    }
    config.no_weight_decay_on_bn = True
    config.l2_by_kind.bias = None
    assert optimizer.l2_coefficients(config, CONVOLUTIONS) == {
        "tall": {"kernel": 0.0, "bias": 0.0},
        "wide": {"kernel": 1e-3},
        "norm": {"scale": 0.0, "bias": 0.0},
    }


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("(", "opt.grassmann_where='(' is no regular expression"),
        ("head", "opt.grassmann_where='head' finds no parameter for the Grassmann group"),
        ("norm", "opt.grassmann_where='norm' finds no parameter for the Grassmann group"),
        ("wide|tall", "finds wide/kernel of shape (1, 1, 2, 4), which has not more inputs"),
    ],
)
def test_wrong_grassmann_patterns(make_config: MakeConfig, pattern: str, message: str) -> None:
    config = make_config(**{"opt.opt_type": "SGDG", "opt.grassmann_where": pattern})
    with pytest.raises(OptimizerError) as caught:
        optimizer.build_labels(config)(CONVOLUTIONS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_grassmann_pattern_chooses(make_config: MakeConfig) -> None:
    config = make_config(**{"opt.opt_type": "AdamG", "opt.grassmann_where": "^(a|c)/"})
    tall, wide = CONVOLUTIONS["tall"], CONVOLUTIONS["wide"]
    labels = optimizer.build_labels(config)({"a": tall, "b": tall, "d": wide})
    assert labels == {
        "a": {"kernel": "grassmann", "bias": "euclidean"},
        "b": {"kernel": "euclidean", "bias": "euclidean"},
        "d": {"kernel": "euclidean"},
    }
    dense = {"a": {"kernel": jnp.ones((4, 2))}}
    assert optimizer.build_labels(config)(dense) == {"a": {"kernel": "grassmann"}}


@pytest.mark.parametrize("where", ["normalization", "others"])
def test_where_chooses_what_is_perturbed(make_config: MakeConfig, where: str) -> None:
    built = build_optimizer(make_config(**{"gnp.where": where, "gnp.alpha": 1.0}), STEPS_PER_EPOCH)
    seen = {}

    def grad_fn(params: Any) -> Any:
        seen.update(params)
        return params

    built.update(CONVOLUTIONS, built.init(CONVOLUTIONS), CONVOLUTIONS, grad_fn=grad_fn)
    moved = {layer: differ(seen[layer], CONVOLUTIONS[layer]) for layer in CONVOLUTIONS}
    is_norm = where == "normalization"
    assert moved == {"tall": not is_norm, "wide": not is_norm, "norm": is_norm}


@pytest.mark.parametrize("method", ["finite_difference", "sam"])
def test_kinds_of_parameters_have_values_of_their_own(make_config: MakeConfig, method: str) -> None:
    config = make_config(
        gr_warmup_strategy="r",
        **{"gnp.method": method, "gnp.r_by_kind.bias": 0.0, "gnp.r_by_kind.scale": 0.3},
        **{"gnp.alpha_by_kind.offset": 0.4, "gnp.warmup_epochs": 0.5},
    )
    penalize = build_penalized_gradient(config, STEPS_PER_EPOCH)
    grad_fn = jax.grad(quartic)
    gradient = grad_fn(CONVOLUTIONS)
    actual = penalize(grad_fn, CONVOLUTIONS, gradient, 1)  # half of the warmup
    kinds = optimizer.parameter_kinds(CONVOLUTIONS)
    radius = {"weight": 0.05, "bias": 0.0, "scale": 0.15, "offset": 0.05}
    weight = {"weight": 0.8, "bias": 0.8, "scale": 0.8, "offset": 0.4}
    if method == "sam":
        weight = dict.fromkeys(weight, 1.0)

    def expected(p: Any, d: Any, kind: str) -> Any:
        return (1 - weight[kind]) * p**3 + weight[kind] * (p + radius[kind] * d) ** 3

    direction = jax.tree.map(lambda g: g / optax.tree.norm(gradient), gradient)
    assert_trees_close(actual, jax.tree.map(expected, CONVOLUTIONS, direction, kinds), rtol=1e-5)


@pytest.mark.parametrize("where", ["normalization", "others"])
def test_where_that_selects_nothing_is_named(make_config: MakeConfig, where: str) -> None:
    layers = ("norm",) if where == "others" else ("tall", "wide")
    params = {layer: CONVOLUTIONS[layer] for layer in layers}
    built = build_optimizer(make_config(**{"gnp.where": where}), STEPS_PER_EPOCH)
    with pytest.raises(OptimizerError) as caught:
        built.update(params, built.init(params), params, grad_fn=lambda p: p)
    assert str(caught.value) == f"gnp.where='{where}' selects no parameter of this model"


@pytest.mark.parametrize("reuse", [0.0, 0.5])
def test_groups_that_are_penalized_outside_of_the_chain(
    make_config: MakeConfig, reuse: float
) -> None:
    config = make_config(**{"gnp.reuse": reuse, "gnp.every": 2})
    params = jnp.array([3.0, -4.0])
    grads = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # of two groups
    built = build_optimizer(config, STEPS_PER_EPOCH)
    penalize = build_penalized_gradient(config, STEPS_PER_EPOCH)
    own = [penalize(lambda p, g=g: g * p[0] / 3, params, g, 0) for g in grads]
    updates, state = built.update(
        grads.mean(0), built.init(params), params, penalized=sum(own) / len(own)
    )
    # The first group's point is (3.1, -4), the second's (3, -3.9).
    expected = -0.1 * (0.2 * grads.mean(0) + 0.8 * jnp.array([3.1 / 3, 1.0]) / 2)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    if reuse:
        np.testing.assert_allclose(jnp.linalg.norm(state[0].direction), 1.0, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", quick_first([np.uint32, np.int32, int]))
def test_the_penalized_gradient_of_a_config_is_that_of_its_chain(
    make_config: MakeConfig, strategy: str, count: Any
) -> None:
    config = make_config(
        **{"gr_warmup_strategy": strategy, "gnp.warmup_epochs": 0.5, "gnp.where": "others"},
        **{"gnp.norm_perturbations": True, "gnp.adaptive": True, "gnp.method": "hvp"},
    )
    grad_fn, params = jax.grad(quartic), CONVOLUTIONS
    penalty = build_penalty(config, STEPS_PER_EPOCH)
    gradient_at = build_penalized_gradient(config, STEPS_PER_EPOCH)

    @jax.jit
    def both(params: Any, state: Any, step: Any) -> Any:
        expected, state = penalty.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return gradient_at(grad_fn, params, grad_fn(params), step), expected, state

    state = penalty.init(params)
    for step in range(4):
        actual, expected, state = both(params, state, count(step))
        assert_trees_equal(actual, expected)


@pytest.mark.slow
def test_the_recorder_is_first_in_the_chain(make_config: MakeConfig) -> None:
    options = {"gradient_clipping": 0.5, "opt.opt_type": "Momentum"}
    plain = build_optimizer(make_config(**options), STEPS_PER_EPOCH)
    recording = build_optimizer(
        make_config(**options, **{"record.gradients": True}), STEPS_PER_EPOCH
    )
    grad_fn, params = jax.grad(quartic), CONVOLUTIONS
    results = []
    for opt in (plain, recording):
        results.append(opt.update(grad_fn(params), opt.init(params), params, grad_fn=grad_fn))
    (updates, state), (recorded_updates, recorded_state) = results
    assert_trees_equal(recorded_updates, updates)
    # The clean gradient, neither penalized nor clipped; one more element in front of the state.
    assert_trees_equal(end_epoch(recorded_state)[0].epoch, grad_fn(params))
    assert isinstance(recorded_state[0], optimizer.GradientEvolutionState)
    assert jax.tree.structure(recorded_state[1:]) == jax.tree.structure(state)


def test_states_of_older_checkpoints_fit(make_config: MakeConfig) -> None:
    # Without a recorder the state is that of the chain by hand, as it has always been.
    config = make_config(
        **{"lr_schedule_type": "constant", "gradient_clipping": 0.5},
        **{"gnp.reuse": 0.5, "gnp.every": 2},
    )
    penalty = optimizer.looksam(optimizer.gradient_norm_penalty(0.1, 0.8), 0.5)
    base = optax.sgd(lambda count: 0.1)
    by_hand = optax.chain(penalty, optax.clip_by_global_norm(0.5), base)
    built = build_optimizer(config, STEPS_PER_EPOCH)
    states = [opt.init(CONVOLUTIONS) for opt in (built, by_hand)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize("option", ["method", "where"])
def test_wrong_options_of_the_penalized_gradient(make_config: MakeConfig, option: str) -> None:
    config = make_config(**{f"gnp.{option}": "none"})
    with pytest.raises(OptimizerError, match=f"gnp.{option}='none' is not one of"):
        build_penalized_gradient(config, STEPS_PER_EPOCH)


@pytest.mark.parametrize(
    "option, value",
    quick_first([("adaptive", True), ("norm_perturbations", True), ("method", "hvp")], 2),
)
def test_options_reach_the_penalty(make_config: MakeConfig, option: str, value: Any) -> None:
    plain = trajectory(build_optimizer(make_config(), STEPS_PER_EPOCH))
    changed = make_config(**{f"gnp.{option}": value})
    assert differ(plain, trajectory(build_optimizer(changed, STEPS_PER_EPOCH)))


def test_alpha_zero_is_plain_training_to_the_bit(make_config: MakeConfig) -> None:
    without = build_optimizer(make_config(**{"gnp.r": 0.0}), STEPS_PER_EPOCH)
    zero = build_optimizer(make_config(**{"gnp.alpha": 0.0}), STEPS_PER_EPOCH)
    assert_trees_equal(trajectory(zero), trajectory(without))


@pytest.mark.slow
@pytest.mark.parametrize(
    "opt_type, schedule, strategy",
    quick_first(
        [
            ("Momentum", "cosine", "r"),
            ("SGD", "constant", "lambda"),
            ("Adam", "stepped", "zero"),
            ("RMSProp", "exponential", "none"),
            ("SGD", "inverse_time", "lambda"),
        ]
    ),
)
def test_types_are_not_mixed(
    make_config: MakeConfig, opt_type: str, schedule: str, strategy: str
) -> None:
    """Of 32 bits or 64; Optax mixes an integer's and a float's."""
    config = make_config(
        **{"opt.opt_type": opt_type, "lr_schedule_type": schedule, "warmup_epochs": 1},
        **{"lr_schedule_params.boundaries": (1, 2), "gr_warmup_strategy": strategy},
        **{"gnp.reuse": 0.5, "opt.centralize": "all", "gradient_clipping": 1.0},
    )
    opt = build_optimizer(config, STEPS_PER_EPOCH)
    expected = trajectory(opt)
    with jax.numpy_dtype_promotion("strict"):
        assert_trees_equal(trajectory(opt), expected)
        schedules = build_schedules(config, STEPS_PER_EPOCH)
        assert all(schedule is None or float(schedule(2)) >= 0 for schedule in schedules)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_step_rule_changes_no_result(
    make_config: MakeConfig, strategy: str, normalize: bool
) -> None:
    # The rule only spares a second gradient where the penalty would not use it.
    config = make_config(
        **{"gr_warmup_strategy": strategy, "gnp.warmup_epochs": 0.5},
        **{"gnp.norm_perturbations": normalize},
    )
    rule = build_step_rule(config, STEPS_PER_EPOCH)
    opt = build_optimizer(config, STEPS_PER_EPOCH)
    assert_trees_equal(trajectory(opt, rule), trajectory(opt))


@pytest.mark.parametrize(
    "strategy, penalized",
    [("none", [0, 1, 2, 3]), ("lambda", [1, 2, 3]), ("r", [1, 2, 3]), ("zero", [2, 3])],
)
def test_step_rule_of_the_warmups(
    make_config: MakeConfig, strategy: str, penalized: list[int]
) -> None:
    config = make_config(gr_warmup_strategy=strategy, warmup_epochs=0.5)
    rule = build_step_rule(config, STEPS_PER_EPOCH)
    assert [t for t in range(4) if rule(t)] == penalized
    config.gnp.warmup_epochs = 0.0
    assert build_step_rule(config, STEPS_PER_EPOCH)(0)


@pytest.mark.parametrize("off", [{"gnp.r": 0.0}, {"gnp.alpha": 0.0}])
def test_step_rule_without_a_penalty(make_config: MakeConfig, off: Any) -> None:
    rule = build_step_rule(make_config(**off), STEPS_PER_EPOCH)
    assert not any(rule(t) for t in range(20))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(every=st.integers(1, 7))
def test_every_kth_step(make_config: MakeConfig, every: int) -> None:
    rule = build_step_rule(make_config(**{"gnp.every": every}), STEPS_PER_EPOCH)
    assert [t for t in range(30) if rule(t)] == list(range(0, 30, every))


@pytest.mark.parametrize("p, low, high", [(0.0, 0, 0), (0.5, 430, 570), (1.0, 1000, 1000)])
def test_hybrid_training_penalizes_a_share(
    make_config: MakeConfig, p: float, low: int, high: int
) -> None:
    config = make_config(**{"use_hybrid_training": True, "hybrid_config.p": p})
    rule = build_step_rule(config, STEPS_PER_EPOCH)
    assert low <= sum(rule(t) for t in range(1000)) <= high


def test_hybrid_draw_depends_on_seed_and_step_only(make_config: MakeConfig) -> None:
    def draws(seed: int, order: range) -> dict[int, bool]:
        config = make_config(**{"seeds": seed, "use_hybrid_training": True, "hybrid_config.p": 0.5})
        rule = build_step_rule(config, STEPS_PER_EPOCH)
        return {t: rule(t) for t in order}

    forward = draws(3, range(50))
    assert forward == draws(3, range(49, -1, -1))
    assert forward != draws(4, range(50))
    assert draws(-1, range(50)) == draws(-1, range(50))


def test_schedules_of_a_config(make_config: MakeConfig) -> None:
    config = make_config(
        **{"warmup_epochs": 1.0, "gnp.warmup_epochs": 2.0, "gr_warmup_strategy": "r"}
    )
    schedules = build_schedules(config, STEPS_PER_EPOCH)
    np.testing.assert_allclose(schedules.learning_rate(2), 0.05)
    np.testing.assert_allclose(schedules.r(2), 0.1 * 2 / 8, rtol=1e-6)
    assert schedules.alpha(2) == 0.8
    config.gnp.warmup_epochs = None
    np.testing.assert_allclose(build_schedules(config, STEPS_PER_EPOCH).r(2), 0.05, rtol=1e-6)
    config.gnp.r = 0.0
    assert float(build_schedules(config, STEPS_PER_EPOCH).r(100)) == 0.0


def test_lr_schedule_params_reach_the_schedule(make_config: MakeConfig) -> None:
    for name, key, value in (
        ("stepped", "boundaries", (1,)),
        ("exponential", "rate", 0.5),
        ("inverse_time", "decay", 0.5),
        ("cosine_restarts", "period", 3),
    ):
        config = make_config(**{"lr_schedule_type": name, f"lr_schedule_params.{key}": value})
        rate = build_schedules(config, STEPS_PER_EPOCH).learning_rate
        step = 5 if key != "period" else 2 * STEPS_PER_EPOCH
        assert float(rate(step)) < 0.06, name  # at a boundary the old rate holds


def test_decay_mask_and_adamw_agree(make_config: MakeConfig) -> None:
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "none": None}
    assert decay_mask(params, True) == {"kernel": True, "scale": False, "none": None}
    assert decay_mask(params, False) == {"kernel": True, "scale": True, "none": None}
    shapes = jax.eval_shape(lambda: params)
    assert decay_mask(shapes, True) == decay_mask(params, True)
    for only_kernels in (False, True):
        config = make_config(
            **{"no_weight_decay_on_bn": only_kernels, "gnp.r": 0.0, "opt.opt_type": "Adam"},
            **{"opt.opt_params": {"weight_decay": 0.3}, "lr_schedule_type": "constant"},
        )
        opt = build_optimizer(config, STEPS_PER_EPOCH)
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = opt.update(zero, opt.init(params), params)
        np.testing.assert_allclose(updates["kernel"], jnp.full((2, 2), -0.03), rtol=1e-6)
        expected = 0.0 if only_kernels else -0.03
        np.testing.assert_allclose(updates["scale"], jnp.full(2, expected), rtol=1e-6)


def test_builders_leave_the_config_alone(make_config: MakeConfig) -> None:
    config = make_config(**{"opt.opt_type": "Adam", "opt.opt_params": {"b1": 0.8}})
    before = copy.deepcopy(config)
    build_optimizer(config, STEPS_PER_EPOCH)
    build_step_rule(config, STEPS_PER_EPOCH)
    assert config == before


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"opt.opt_type": "Adem"}, "opt.opt_type='Adem' is not one of SGD, Momentum, Adam, RMSPro"),
        ({"opt.opt_type": "Adem"}, "did you mean 'Adam'?"),
        ({"opt.opt_params": {"momentun": 0.9}}, "did you mean 'momentum'?"),
        ({"opt.opt_params": {"weight_decay": 0.3}}, "for weight decay set l2_regularization"),
        ({"opt.opt_params": {"momentum": 1.0}}, "opt.opt_params.momentum=1.0 must"),
        ({"opt.opt_params": {"momentum": "0.9"}}, "opt.opt_params.momentum='0.9' must"),
        ({"opt.opt_params": {"nesterov": 1}}, "opt.opt_params.nesterov=1 must be True or False"),
        ({"gradient_clipping": -1.0}, "gradient_clipping=-1.0 must"),
        ({"base_lr": -0.1}, "base_lr=-0.1 must"),
        ({"lr_schedule_type": "steped"}, "did you mean 'stepped'?"),
        ({"gr_warmup_strategy": "zeros"}, "gr_warmup_strategy='zeros' is not one of"),
        ({"gnp.r": -0.1}, "gnp.r=-0.1 must"),
        ({"gnp.alpha": -0.1}, "gnp.alpha=-0.1 must"),
        ({"gnp.warmup_epochs": -1.0}, "gnp.warmup_epochs=-1.0 must"),
        ({"gnp.warmup_epochs": 1e10}, "gnp.warmup_epochs=10000000000.0 of"),
        ({"total_epochs": 2**31}, "are more steps than the 2147483647 that can be counted"),
        ({"gnp.method": "exact"}, "gnp.method='exact' is not one of"),
        ({"gnp.r_by_kind.bias": -0.1}, "gnp.r_by_kind.bias=-0.1 must be a finite number >= 0"),
        (
            {"gnp.alpha": 0.0, "gnp.alpha_by_kind.bias": 0.1},
            "gnp.alpha_by_kind needs gnp.alpha > 0",
        ),
        ({"gnp.where": "norms"}, "gnp.where='norms' is not one of all, normalization, others"),
        ({"gnp.reuse": -1.0}, "gnp.reuse=-1.0 must"),
        ({"opt.centralize": "convs"}, "opt.centralize='convs' is not one of none, all, conv"),
        ({"opt.centralize": "all", "opt.centralize_at": "grad"}, "opt.centralize_at='grad' is not"),
        ({"opt.opt_type": "SGDG", "opt.opt_params": {"b1": 0.9}}, "unknown opt.opt_params.b1"),
        ({"opt.opt_type": "AdamG", "opt.learning_rate_grassmann": -1.0}, "must"),
    ],
)
def test_wrong_configs(make_config: MakeConfig, overrides: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        build_optimizer(make_config(**overrides), STEPS_PER_EPOCH)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"gnp.every": 0}, "gnp.every=0 must be a finite number >= 1"),
        ({"gnp.every": 2.5}, "gnp.every=2.5 must be a whole number"),
        ({"hybrid_config.p": 1.5}, "hybrid_config.p=1.5 must be a finite number in [0, 1]"),
    ],
)
def test_wrong_step_rules(make_config: MakeConfig, overrides: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        build_step_rule(make_config(**overrides), STEPS_PER_EPOCH)
    assert message in str(caught.value)


def test_unknown_type_has_no_param_names() -> None:
    with pytest.raises(OptimizerError, match="did you mean 'RMSProp'"):
        opt_param_names("rmsprop")


def test_names() -> None:
    assert SCHEDULES == (
        "constant", "stepped", "cosine", "cosine_restarts", "exponential", "inverse_time",
    )  # fmt: skip
    assert STRATEGIES == ("none", "lambda", "r", "zero")


@pytest.mark.slow
def test_works_alone_under_another_name(tmp_path: Path) -> None:
    # As installed: a folder gnp_optimizer with jax and optax around it, and nothing else.
    (tmp_path / "gnp_optimizer").symlink_to(Path(optimizer.__file__).parent)
    program = (
        "import sys; import jax, numpy, optax; theirs = set(sys.modules)"
        "; import gnp_optimizer; ours = {m.split('.')[0] for m in set(sys.modules) - theirs}"
        "; assert callable(gnp_optimizer.gradient_norm_penalty)"
        "; print(sorted(ours - set(sys.stdlib_module_names)))"
    )
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "]
    command[-1] += program
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['gnp_optimizer']"
