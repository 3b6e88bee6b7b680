"""The methods that a config names: how each is made, and what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimizer
from optimizer import OptimizerError, build_optimizer, build_penalized_gradient, build_schedules
from tests.trees import assert_trees_close, differ

STEPS_PER_EPOCH = 4
MakeConfig = Callable[..., Any]
PARAMS = {
    "conv": {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "bias": jnp.array([1.0, -2.0])},
    "norm": {"scale": jnp.array([1.5, 0.5])},
}
GRAD_FN = jax.jit(
    jax.grad(lambda params: 0.25 * sum(jnp.sum(p**4) for p in jax.tree.leaves(params)))
)


def configured(make_config: MakeConfig, method: str, **changes: Any) -> Any:
    params = changes.pop("params", {})
    base = {"gnp.method": method, "gnp.alpha": 0.0, "lr_schedule_type": "constant"}
    config = make_config(**base, **{name.replace("__", "."): v for name, v in changes.items()})
    config.gnp.method_params = params
    return config


def trajectory(opt: Any, steps: int = 3, penalize: Any = lambda step: True) -> Any:
    params, state = PARAMS, opt.init(PARAMS)
    for step in range(steps):
        point = optimizer.perturbed_params(state, params) if penalize(step) else params
        updates, state = opt.update(
            GRAD_FN(point), state, params, grad_fn=GRAD_FN, penalize=penalize(step)
        )
        params = optax.apply_updates(params, updates)
    return params


WITHOUT_BIASES = {"conv": {"kernel": True, "bias": False}, "norm": {"scale": True}}
CASES = {
    "sam": ({}, optimizer.sam(0.1)),
    "asam": (
        {"eta": 0.01, "but_biases": True}, optimizer.asam(0.1, 0.01, lambda params: WITHOUT_BIASES)
    ),
    "sam_on": ({}, optimizer.sam_on(0.1)),
    "wsam": ({"gamma": 0.8}, optimizer.wsam(0.1, 0.8)),
    "gsam": ({"alpha": 0.7}, optimizer.gsam(0.1, 0.7)),
    "stable_sam": ({}, optimizer.stable_sam(0.1)),
    "friendly_sam": ({"sigma": 0.5, "lmbda": 0.6}, optimizer.friendly_sam(0.1, 0.5, 0.6)),
    "vasso": ({"theta": 0.3}, optimizer.vasso(0.1, 0.3)),
    "unnormalized_sam": ({}, optimizer.unnormalized_sam(0.1)),
    "momentum_sam": ({"momentum": 0.5}, optimizer.momentum_sam(0.1, 0.5)),
    "cr_sam": ({"gamma": 0.2, "beta": 0.3}, optimizer.cr_sam(0.1, 0.2, 0.3)),
    "gam": ({"norm_rho": 0.1}, optimizer.gam(0.1, 0.1)),
    "random_weight_perturbation": (
        {"lmbda": 0.5, "seed": 3}, optimizer.random_weight_perturbation(0.1, 0.5, 3)
    ),
    "functional_sam": ({}, optimizer.sam(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("method", CASES)
def test_a_config_makes_the_alias(make_config: MakeConfig, method: str) -> None:
    params, alias = CASES[method]
    built = build_optimizer(configured(make_config, method, params=params), STEPS_PER_EPOCH)
    expected = trajectory(optax.chain(alias, optax.sgd(0.1)))
    assert_trees_close(trajectory(built), expected, 1e-6, 0)
    assert differ(trajectory(built), trajectory(optax.with_extra_args_support(optax.sgd(0.1))))


def test_all_are_here() -> None:
    assert set(optimizer.GNP_METHODS) == {*optimizer.METHODS, *CASES}


STATELESS = {
    name: case for name, case in CASES.items()
    if name not in ("friendly_sam", "vasso", "momentum_sam", "functional_sam")
}  # fmt: skip


@pytest.mark.parametrize("method", STATELESS)
def test_the_pure_function_is_the_transformation(make_config: MakeConfig, method: str) -> None:
    params, _ = CASES[method]
    changes = {"gr_warmup_strategy": "r", "gnp__warmup_epochs": 1.0}
    config = configured(make_config, method, params=params, **changes)
    penalty = optimizer.build_penalty(config, STEPS_PER_EPOCH)
    gradient_at = build_penalized_gradient(config, STEPS_PER_EPOCH)
    state, grads = penalty.init(PARAMS), GRAD_FN(PARAMS)
    for _ in range(3):
        expected, state = penalty.update(grads, state, PARAMS, grad_fn=GRAD_FN)
    assert_trees_close(gradient_at(GRAD_FN, PARAMS, grads, 2), expected, 1e-6, 0)
    assert differ(gradient_at(GRAD_FN, PARAMS, grads, 1), expected)


@pytest.mark.parametrize("method", ["friendly_sam", "vasso"])
def test_a_memory_needs_the_chain(make_config: MakeConfig, method: str) -> None:
    with pytest.raises(OptimizerError, match="remembers gradients") as caught:
        build_penalized_gradient(configured(make_config, method), STEPS_PER_EPOCH)
    assert "\n" not in str(caught.value) and "gnp.sync_perturbations=True" in str(caught.value)


def test_gradients_of_a_penalized_step(make_config: MakeConfig) -> None:
    def count(method: str, **params: Any) -> int:
        return optimizer.gnp_gradients(configured(make_config, method, params=params).gnp)

    assert [count(name) for name in ("cr_sam", "gam", "momentum_sam", "hvp")] == [3, 4, 1, 2]
    assert count("random_weight_perturbation") == 1
    assert count("random_weight_perturbation", lmbda=0.5) == 2


def test_wsam_beside_the_optimizer(make_config: MakeConfig) -> None:
    changes = {"params": {"decouple": True}, "gradient_clipping": 0.5}
    config = configured(make_config, "wsam", **changes)
    base = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    expected = trajectory(optimizer.decouple(optimizer.wsam(0.1), base, 0.1))
    assert_trees_close(trajectory(build_optimizer(config, STEPS_PER_EPOCH)), expected, 1e-6, 0)


def test_the_radius_of_gsam_follows_the_learning_rate(make_config: MakeConfig) -> None:
    changes = {"lr_schedule_type": "cosine", "total_epochs": 4}
    config = configured(make_config, "gsam", params={"rho_min": 0.02})
    for name, value in changes.items():
        setattr(config, name, value)
    schedules = build_schedules(config, STEPS_PER_EPOCH)
    rates = np.array([schedules.learning_rate(step) for step in range(17)])
    radii = np.array([schedules.r(step) for step in range(17)])
    np.testing.assert_allclose(radii, 0.02 + 0.08 * rates / 0.1, rtol=1e-6)
    config.gr_warmup_strategy, config.gnp.warmup_epochs = "r", 2.0
    warm = [float(build_schedules(config, STEPS_PER_EPOCH).r(step)) for step in (4, 8)]
    np.testing.assert_allclose(warm, radii[[4, 8]] * [0.5, 1.0], rtol=1e-6)


def test_alpha_grows_with_every(make_config: MakeConfig) -> None:
    config = make_config(**{"gnp.every": 5})
    config.gnp.every_scales_alpha = True
    assert float(build_schedules(config, STEPS_PER_EPOCH).alpha(0)) == pytest.approx(4.0)


@pytest.mark.parametrize("method", ["finite_difference", "sam", "friendly_sam"])
def test_the_direction_of_the_perturbation_is_centralized(
    make_config: MakeConfig, method: str
) -> None:
    """And the gradient itself is not; a method's own direction comes after it."""
    changes = {"gnp__alpha": 1.0} if method == "finite_difference" else {}
    config = make_config(**{"gnp.method": method, "gnp.alpha": changes.get("gnp__alpha", 0.0)})
    config.opt.centralize, config.opt.centralize_at = "all", "perturbation"
    make = optimizer.sam if method != "friendly_sam" else optimizer.friendly_sam
    expected = make(0.1, direction=optimizer.centralize())
    built = optimizer.build_penalty(config, STEPS_PER_EPOCH)
    points: list[Any] = []
    states = [each.init(PARAMS) for each in (built, expected)]
    for scale in (1.0, -3.0):  # what friendly_sam remembers has its part in the second
        grads = jax.tree.map(lambda g, s=scale: s * g + g**2, GRAD_FN(PARAMS))
        for i, each in enumerate((built, expected)):
            keep = lambda p: points.append(p) or p  # noqa: E731
            _, states[i] = each.update(grads, states[i], PARAMS, grad_fn=keep)
        assert_trees_close(points[-2], points[-1], 1e-6, 0)
    moved = points[-1]["conv"]["kernel"] - PARAMS["conv"]["kernel"]
    np.testing.assert_allclose(moved.sum(0), 0.0, atol=1e-6)
    assert float(jnp.abs(moved).max()) > 1e-3


def test_looksam_is_over_any_of_them(make_config: MakeConfig) -> None:
    config = configured(make_config, "vasso", gnp__reuse=0.5)
    expected = optax.chain(optimizer.looksam(optimizer.vasso(0.1), 0.5), optax.sgd(0.1))
    every = lambda step: step % 2 == 0  # noqa: E731
    built = build_optimizer(config, STEPS_PER_EPOCH)
    assert_trees_close(trajectory(built, 4, every), trajectory(expected, 4, every), 1e-6, 0)


@pytest.mark.parametrize(
    "method, params, keys, message",
    [
        ("sma", {}, {}, "did you mean 'sam'?"),
        ("wsam", {"gama": 0.5}, {}, "did you mean 'gamma'?"),
        ("sam", {"gamma": 0.5}, {}, "unknown gnp.method_params.gamma; allowed: none"),
        ("hvp", {"gamma": 0.5}, {}, "unknown gnp.method_params.gamma; allowed: none"),
        ("momentum_sam", {"axis_name": 1}, {}, "unknown gnp.method_params.axis_name; allowed: mom"),
        ("random_weight_perturbation", {"axes": 1}, {}, "axes; allowed: lmbda, seed ("),
        ("wsam", {"gamma": 1.0}, {}, "gnp.method_params: gamma=1.0 must"),
        ("wsam", {"gamma": "0.5"}, {}, "gnp.method_params.gamma='0.5' must"),
        ("wsam", {"decouple": 1}, {}, "gnp.method_params.decouple=1 must be True or False"),
        ("wsam", {"decouple": True}, {"opt__opt_type": "SGDG"}, "would leave the manifold"),
        ("gsam", {"rho_min": 0.2}, {}, "rho_min=0.2 must be at most gnp.r=0.1"),
        ("gam", {"betas": (0.5, 0.5)}, {}, "gnp.method_params.betas=(0.5, 0.5) must be 3 numbers"),
        ("random_weight_perturbation", {"seed": 1.5}, {}, "seed=1.5 must be a whole number"),
        ("asam", {}, {"gnp__adaptive": True}, "gnp.adaptive=True does not go with"),
        ("momentum_sam", {}, {"gnp__where": "others"}, "gnp.where does not go with"),
        ("momentum_sam", {}, {"gnp__reuse": 0.5}, "gnp.reuse=0.5 needs a second gradient"),
    ],
)
def test_wrong_methods(
    make_config: MakeConfig, method: str, params: Any, keys: Any, message: str
) -> None:
    with pytest.raises(OptimizerError) as caught:
        build_optimizer(configured(make_config, method, params=params, **keys), STEPS_PER_EPOCH)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_share_of_the_batch_needs_a_second_gradient(make_config: MakeConfig) -> None:
    config = configured(make_config, "momentum_sam")
    config.gnp.ascent_share = 0.5
    with pytest.raises(OptimizerError, match=r"gnp\.ascent_share=0\.5 needs a second gradient"):
        build_optimizer(config, STEPS_PER_EPOCH)


def test_a_model_without_normalization_has_no_sam_on(make_config: MakeConfig) -> None:
    built = build_optimizer(configured(make_config, "sam_on"), STEPS_PER_EPOCH)
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(OptimizerError, match="and this model has none"):
        built.update(params, built.init(params), params, grad_fn=lambda p: p)
