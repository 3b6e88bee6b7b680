"""The family against its authors' implementations: ten steps each, in float64.

tests/reference/sam_family.npz holds the trajectories, its `meta` says what each run is.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimizer
from optimizer import (
    combined_gradient,
    cr_sam,
    decouple,
    euclidean,
    friendly_sam,
    gam,
    gradient_norm_penalty,
    gsam,
    looksam,
    map_groups,
    mix,
    momentum_sam,
    per_group,
    perturbed_params,
    proportional_radius,
    relative,
    sam,
    sharpness_aware,
    vasso,
    wsam,
)
from tests.trees import assert_trees_close

assert_trees_close = functools.partial(assert_trees_close, rtol=1e-9, atol=1e-9)

ARCHIVE = np.load(Path(__file__).parents[1] / "reference" / "sam_family.npz", allow_pickle=False)
META = json.loads(str(ARCHIVE["meta"]))
RUNS = META["runs"]
NAMES = [f"{kind}{layer}" for layer in range(3) for kind in ("weight", "bias")]
STEPS = 10

Params = dict[str, Any]


def read(folder: str) -> Params:
    return {name: ARCHIVE[f"{folder}/{name}"] for name in NAMES}


def losses(params: Params, x: Any, y: Any) -> jax.Array:
    """Return the loss of each example."""
    h = jnp.tanh(x @ params["weight0"] + params["bias0"])
    h = jnp.tanh(h @ params["weight1"] + params["bias1"])
    logits = h @ params["weight2"] + params["bias2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def gradient(params: Params, x: Any, y: Any) -> Params:
    return jax.grad(lambda p: losses(p, x, y).mean())(params)


def clip(max_norm: float | None) -> Callable[[Params], Params]:
    """Return Torch's clipping by the global norm, which adds 1e-6."""
    if max_norm is None:
        return lambda tree: tree
    return lambda tree: jax.tree.map(
        lambda g: g * jnp.minimum(1.0, max_norm / (optax.tree.norm(tree) + 1e-6)), tree
    )


def clipping(max_norm: float | None) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: clip(max_norm)(updates))


def base(run: dict[str, Any], rate: Any = None) -> optax.GradientTransformation:
    """Return the optimizer of a run."""
    rate = run["lr"] if rate is None else rate
    if "AdamW" in run["base"]:
        return optax.adamw(rate, weight_decay=run["weight_decay"])
    return optax.chain(
        optax.add_decayed_weights(run.get("weight_decay", 0.0)),
        optax.sgd(rate, run["momentum"], nesterov=run.get("nesterov", False)),
    )


def metric(run: dict[str, Any]) -> Any:
    return relative() if run.get("adaptive") else euclidean()


def chain(method: Any, run: dict[str, Any], **more: Any) -> Any:
    return optax.chain(method, clipping(run.get("grad_clip")), base(run, **more))


def follow(name: str, opt: Any, penalized: Any = lambda step: True, scale: Any = None) -> None:
    """Take the ten steps of a run, and compare the parameters after each.

    Args:
        name: Of the run.
        opt: The optimizer.
        penalized: Step -> whether it is penalized.
        scale: (gradient, penalized) -> what the optimizer is given; None: the gradient.
    """

    @functools.partial(jax.jit, static_argnums=4)
    def take(params: Params, state: Any, x: Any, y: Any, penalize: bool) -> Any:
        grads = gradient(params, x, y)
        if scale:
            grads = scale(grads, penalize)
        updates, state = opt.update(
            grads, state, params, grad_fn=lambda p: gradient(p, x, y), penalize=penalize
        )
        return optax.apply_updates(params, updates), state

    params = read("in/params")
    state, path = opt.init(params), []
    for step in range(STEPS):
        x, y = ARCHIVE["in/x"][step], ARCHIVE["in/y"][step]
        params, state = take(params, state, x, y, penalized(step))
        path.append(params)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *path)
    assert_trees_close(stacked, read(f"run/{name}"))


def is_weight(params: Params) -> Any:
    return {name: name.startswith("weight") for name in params}


def big_vision_metric(d: Any, params: Any, axis_name: Any) -> Any:
    """Return |θ|·g/‖g‖, which is not ASAM's."""
    return jax.tree.map(lambda d, p: jnp.abs(p) * d, euclidean()(d, params, axis_name), params)


def minimize_f(alpha: float) -> Any:
    """Return the combination g + α·(the part of g⁺ that is orthogonal to g)."""

    def combine(probe: Any) -> Any:
        there = probe.perturbed()
        along = probe.inner(probe.gradient, there) / probe.inner(probe.gradient, probe.gradient)
        return jax.tree.map(lambda g, up: g + alpha * (up - along * g), probe.gradient, there)

    return combine


def centralized_direction(d: Any, params: Any, axis_name: Any) -> Any:
    """Return GC(g)/‖g‖, the norm of g before it is centralized, over the archive's second axis."""
    _, inverse = optimizer._tree.norm_and_inverse(d)
    return jax.tree.map(lambda g: (g - g.mean(1, keepdims=True) if g.ndim > 1 else g) * inverse, d)


def momentum_of_differences(sigma: float, lmbda: float) -> optax.GradientTransformation:
    """Make the direction d = g - σ·m, with m the mean of the d (the first: of g)."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        first, m = state

        def leaf(g: Any, m: Any) -> Any:
            return jnp.where(first, g, g - sigma * m)

        d = jax.tree.map(leaf, updates, m)
        m = jax.tree.map(lambda d, m: jnp.where(first, d, lmbda * m + (1 - lmbda) * d), d, m)
        return d, (jnp.array(False), m)

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return optax.GradientTransformation(lambda p: (jnp.array(True), zeros(p)), update)


def make(name: str, run: dict[str, Any]) -> Any:
    """Return the optimizer of a run that takes plain steps of gradient and update."""
    rho, decay = run.get("rho"), run.get("weight_decay")
    kind = name.split("_")[0]
    if name.startswith("asam_samsung"):
        return chain(optimizer.asam(rho, run["eta"], is_weight), run)
    if kind == "asam":
        return chain(optimizer.asam(rho), run)
    if name == "sam_gc_kozistr":
        return chain(sam(rho, metric=centralized_direction), run)
    if kind == "sam":
        return chain(sam(rho), run)
    if name == "gsam_rho_schedule":
        rates = jnp.asarray(ARCHIVE[f"run/{name}/lr_rho_used"][:, 0])
        bounds = (run["rho_min"], run["rho_max"], run["lr_min"], run["lr_max"])
        schedule = lambda step: rates[step]  # noqa: E731
        return chain(gsam(proportional_radius(schedule, *bounds), run["alpha"]), run, rate=schedule)
    if name.startswith("gsam_bigvision"):
        given = optax.linear_schedule(run["lr_max"], 0.0, 12)
        bounds = (run["rho_min"], run["rho_max"], run["lr_min"], run["lr_max"])
        radius = proportional_radius(given, *bounds)
        metric_ = big_vision_metric if run["adaptive_perturbation"] else euclidean()
        if not run["minimize_fp"]:
            return chain(sharpness_aware(radius, minimize_f(run["alpha"])), run)
        return chain(gsam(radius, run["alpha"], metric=metric_), run)
    if kind == "gsam":
        return chain(gsam(rho, run["alpha"], metric=metric(run)), run)
    if kind == "wsam":
        method = wsam(rho, run["gamma"], metric=metric(run))
        return decouple(method, base(run), run["lr"]) if run.get("decouple") else chain(method, run)
    if name == "fsam_kozistr":
        direction = momentum_of_differences(run["sigma"], run["lmbda"])
        return chain(sharpness_aware(rho, mix(1.0), direction=direction), run)
    if kind == "fsam":
        return chain(friendly_sam(rho, run["sigma"], run["lmbda"], metric=metric(run)), run)
    if kind == "vasso":
        return chain(vasso(rho, run["theta"], metric=euclidean(eps=1e-7)), run)
    if kind == "crsam":
        return chain(cr_sam(rho, run["gamma"], run["beta"]), run)
    if kind == "gam":
        betas = tuple(run[f"grad_beta_{i}"] for i in (1, 2, 3))
        radii = run["grad_norm_rho"], run["grad_rho"]
        return chain(gam(*radii, betas, run["grad_gamma"], metric=metric(run)), run)
    if kind == "factor":
        alpha = run["alpha"] * run["k"]
        return chain(gradient_norm_penalty(rho, alpha, normalize=True), run)
    if kind == "looksam":
        return None
    raise KeyError((name, decay))


SPECIAL = ("looksam", "msam", "esam", "bsam", "sam_bayes", "wsam_adaptive_clip")


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith(SPECIAL)])
def test_trajectory(name: str) -> None:
    with jax.enable_x64(True):
        run = RUNS[name]
        every = run.get("k", 1)
        follow(name, make(name, run), lambda step: step % every == 0)
