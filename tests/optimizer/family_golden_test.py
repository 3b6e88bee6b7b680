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
    h = jnp.tanh(x @ params["weight0"] + params["bias0"][None])
    h = jnp.tanh(h @ params["weight1"] + params["bias1"][None])
    logits = h @ params["weight2"] + params["bias2"][None]
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


def table(values: np.ndarray) -> optax.Schedule:
    """Return a schedule in float64, which those of Optax, of a step in int32, are not."""
    return lambda step: jnp.asarray(values)[step]


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
    rho, kind = run.get("rho"), name.split("_")[0]
    if name.startswith("asam_samsung"):
        return chain(optimizer.asam(rho, run["eta"], is_weight), run)
    if kind == "asam":
        return chain(optimizer.asam(rho), run)
    if name == "sam_gc_kozistr":
        return chain(sam(rho, metric=centralized_direction), run)
    if kind == "sam":
        return chain(sam(rho), run)
    if name == "gsam_rho_schedule":
        rates = table(ARCHIVE[f"run/{name}/lr_rho_used"][:, 0])
        bounds = (run["rho_min"], run["rho_max"], run["lr_min"], run["lr_max"])
        return chain(gsam(proportional_radius(rates, *bounds), run["alpha"]), run, rate=rates)
    if name.startswith("gsam_bigvision"):
        given = table(run["lr_max"] * (1.0 - np.arange(STEPS) / 12))
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
    raise KeyError(name)


# A run of each method is quick.
QUICK = (
    "asam_samsung_eta0.2", "gsam_adaptive", "wsam",
    "fsam_sigma0.5", "vasso_theta0.4", "crsam_gamma0.4_beta0.2", "factor_sam_k3_alpha0.5",
)  # fmt: skip


def runs(chosen: Callable[[str], bool]) -> Any:
    """Parametrize a test by the runs whose names are chosen."""
    return pytest.mark.parametrize(
        "name",
        [
            name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
            for name in RUNS
            if chosen(name)
        ],
    )


# Those that have a test of their own below.
SPECIAL = ("looksam", "msam", "esam", "bsam", "sam_bayes", "wsam_adaptive_clip")


@runs(lambda name: not name.startswith(SPECIAL))
def test_trajectory(name: str) -> None:
    with jax.enable_x64(True):
        run = RUNS[name]
        every = run.get("k", 1)
        follow(name, make(name, run), lambda step: step % every == 0)


@runs(lambda name: name.startswith("looksam"))
def test_looksam(name: str) -> None:
    with jax.enable_x64(True):
        run = RUNS[name]
        per_layer, eps = ("msam" not in name), (0.0 if "msam" in name else 1e-8)
        penalty = sam(run["rho"], metric=euclidean(eps or 1e-12))
        method = looksam(penalty, run["alpha"], per_layer=per_layer, eps=eps)

        def twice(grads: Params, penalize: bool) -> Params:
            # That loop does not clear the gradient between the two passes of a plain step.
            return grads if penalize else jax.tree.map(lambda g: 2 * g, grads)

        follow(
            name,
            chain(method, run),
            lambda step: step % run["k"] == 0,
            twice if "kozistr" in name else None,
        )


@pytest.mark.slow
def test_wsam_of_clipped_gradients() -> None:
    with jax.enable_x64(True):
        name = "wsam_adaptive_clip"
        run = RUNS[name]
        method = decouple(wsam(run["rho"], run["gamma"], metric=relative()), base(run), run["lr"])
        params = read("in/params")
        state, clipped = method.init(params), clip(run["max_norm"])
        for step in range(STEPS):
            x, y = ARCHIVE["in/x"][step], ARCHIVE["in/y"][step]
            grad_fn = jax.jit(functools.partial(gradient, x=x, y=y))
            updates, state = method.update(
                grad_fn(params), state, params, grad_fn=lambda p, f=grad_fn: clipped(f(p))
            )
            params = optax.apply_updates(params, updates)
            assert_trees_close(params, {k: v[step] for k, v in read(f"run/{name}").items()})


@runs(lambda name: name.startswith("msam"))
def test_momentum_sam(name: str) -> None:
    with jax.enable_x64(True):
        run = RUNS[name]
        # Its weight decay is part of the momentum, or, for Adam, comes after the step.
        is_adam = "AdamW" in run["base"]
        rate, decay = run["lr"], run["weight_decay"]
        opt = optax.chain(
            optax.identity() if is_adam else optax.add_decayed_weights(decay),
            momentum_sam(run["rho"], momentum=0.9),
            optax.adam(rate) if is_adam else optax.sgd(rate, 0.9),
        )
        params = read("in/params")
        state = opt.init(params)
        for step in range(STEPS):
            x, y = ARCHIVE["in/x"][step], ARCHIVE["in/y"][step]
            at = perturbed_params(state, params)
            updates, state = opt.update(gradient(at, x, y), state, at)
            params = optax.apply_updates(params, updates)
            if is_adam:
                params = jax.tree.map(lambda p: p * (1 - rate * decay), params)
            expected = {k: v[step] for k, v in read(f"run/{name}").items()}
            assert_trees_close(perturbed_params(state, params), expected)
            whole = read(f"run/{name}/unperturbed")
            assert_trees_close(params, {k: v[step] for k, v in whole.items()})


@runs(lambda name: name.startswith("esam"))
def test_efficient_sam(name: str) -> None:
    # Masks of its draws and the choice of examples are the loop's: the rest is SAM with `where`.
    with jax.enable_x64(True):
        run = RUNS[name]
        params, momentum = read("in/params"), base(run)
        state = momentum.init(params)
        mask = dict.fromkeys(NAMES, True)
        for step in range(STEPS):
            x, y = ARCHIVE["in/x"][step], ARCHIVE["in/y"][step]
            before = losses(params, x, y)

            def grad_fn(moved: Params, x: Any = x, y: Any = y, before: Any = before) -> Params:
                rise = losses(moved, x, y) - before
                kept = int(len(y) * run["gamma"])
                chosen = jnp.ones(len(y), bool)
                if run["gamma"] < 0.99:
                    chosen = rise > jnp.sort(rise)[::-1][kept - 1]
                return gradient(moved, x[chosen], y[chosen])

            radius, to_length = run["rho"] / run["beta"], euclidean(eps=1e-7)
            method = sam(radius, where=dict(mask), metric=to_length)
            grads = gradient(params, x, y)
            grads, _ = method.update(grads, method.init(params), params, grad_fn=grad_fn)
            updates, state = momentum.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            assert_trees_close(params, {k: v[step] for k, v in read(f"run/{name}").items()})
            flags = ARCHIVE[f"run/{name}/requires_grad"][step]
            mask = {key: bool(flag) for key, flag in zip(NAMES, flags, strict=True)}


@pytest.mark.slow
def test_groups_with_a_perturbation_of_their_own() -> None:
    with jax.enable_x64(True):
        name = "sam_bayes_m2"
        run = RUNS[name]
        opt = optax.chain(
            per_group(sam(run["rho"])),
            optax.add_decayed_weights(run["wdecay"]),
            optax.sgd(run["learningrate"], run["momentum"]),
        )
        params = read("in/params")
        state = opt.init(params)
        for step in range(STEPS):
            x, y = (
                np.reshape(ARCHIVE[f"in/{key}"][step], (2, -1, *ARCHIVE[f"in/{key}"].shape[2:]))
                for key in ("x", "y")
            )

            def grad_fn(params: Params, group: int, x: Any = x, y: Any = y) -> Params:
                return gradient(params, x[group], y[group])

            grads = map_groups(functools.partial(grad_fn, params), 2)
            updates, state = opt.update(grads, state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
            assert_trees_close(params, {k: v[step] for k, v in read(f"run/{name}").items()})


@runs(lambda name: name.startswith("bsam"))
def test_bayesian_sam(name: str) -> None:
    # The optimizer around it is the test's: the perturbation's metric is that of the precision s.
    with jax.enable_x64(True):
        run = RUNS[name]
        count, data = run["msharpness"], run["Ndata"]
        b1, b2, decay = run["beta1"], run["beta2"], run["wdecay"]
        params = read("in/params")
        s = jax.tree.map(lambda p: np.full_like(p, run["s_init"]), params)
        momentum = jax.tree.map(np.zeros_like, params)

        def metric(d: Params, params: Params, axis_name: Any) -> Params:
            return jax.tree.map(jnp.divide, d, s)

        for step in range(STEPS):
            x, y = (np.split(ARCHIVE[f"in/{key}"][step], count) for key in ("x", "y"))
            clean, there = [], []
            for part in range(count):
                noise = {key: ARCHIVE[f"run/{name}/noise{part}/{key}"][step] for key in NAMES}
                noisy = jax.tree.map(lambda p, z, s: p + z / np.sqrt(data * s), params, noise, s)
                grad_fn = functools.partial(gradient, x=x[part], y=y[part])
                clean.append(jax.tree.map(lambda g, s: np.sqrt(s * g**2), grad_fn(noisy), s))
                there.append(
                    combined_gradient(
                        grad_fn, params, grad_fn(noisy), run["rho"], mix(1.0), metric=metric
                    )
                )
            mean = functools.partial(jax.tree.map, lambda *parts: np.mean(parts, axis=0))
            momentum = jax.tree.map(
                lambda m, g, p: b1 * m + (1 - b1) * (g + decay * p), momentum, mean(*there), params
            )
            params = jax.tree.map(
                lambda p, m, s: p - run["learningrate"] * m / s, params, momentum, s
            )
            s = jax.tree.map(
                lambda s, g: b2 * s + (1 - b2) * (g + run["damping"] + decay), s, mean(*clean)
            )
            assert_trees_close(params, {k: v[step] for k, v in read(f"run/{name}").items()})
