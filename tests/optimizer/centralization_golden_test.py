"""Centralization against numbers that the authors' own optimizers have computed.

`meta` in tests/reference/centralization.npz explains the keys. Kernels lie there in torch's layout.
Elements are compared relative to the largest one of their array.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizer import centralize, is_convolution

ARCHIVE = Path(__file__).parents[1] / "reference" / "centralization.npz"
with np.load(ARCHIVE, allow_pickle=False) as archive:
    GOLDEN = dict(archive)
META = json.loads(str(GOLDEN["meta"]))

LEAVES = {"conv": ("conv", "kernel"), "linear": ("linear", "kernel"), "bias": ("linear", "bias")}
RUNS = [("f32", run) for run in META["runs"]] + [("f64", run) for run in META["f64_runs"]]
B1, B2, EPS = 0.9, 0.999, 1e-8


def to_flax(name: str, x: np.ndarray) -> np.ndarray:
    """Turn (..., out, in, h, w) into (..., h, w, in, out), (..., out, in) into (..., in, out)."""
    first = x.ndim - GOLDEN[f"in/{name}/w"].ndim
    order = {"conv": (2, 3, 1, 0), "linear": (1, 0), "bias": (0,)}[name]
    return np.transpose(x, (*range(first), *(first + axis for axis in order)))


def inputs(key: str, dtype: Any, pick: Any = ...) -> dict[str, dict[str, jax.Array]]:
    """Return the leaves `in/*/key` as the parameters of a Flax model."""
    tree: dict[str, dict[str, jax.Array]] = {"conv": {}, "linear": {}}
    for name, (layer, leaf) in LEAVES.items():
        x = to_flax(name, GOLDEN[f"in/{name}/{key}"])[pick]
        tree[layer][leaf] = jnp.asarray(x, dtype)
    return tree


def step_size(count: jax.Array) -> jax.Array:
    return jnp.sqrt(1 - B2 ** (count + 1)) / (1 - B1 ** (count + 1))


def scale_by_uncorrected_adam() -> optax.GradientTransformation:
    """Return m / (√v + ε): the published AdamW corrects the bias in its step size, ε not at all."""

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        m = optax.tree.update_moment(updates, state[0], B1, 1)
        v = optax.tree.update_moment_per_elem_norm(updates, state[1], B2, 2)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + EPS), m, v), (m, v)

    return optax.GradientTransformation(init, update)


def chain(run: str) -> optax.GradientTransformation:
    """Return the authors' optimizer, as one line of ours between lines of Optax."""
    case = META["runs"][run]
    lr = case["lr"]
    decay = optax.add_decayed_weights(case["weight_decay"])
    kind = case["cls"]
    if kind == "AdamW" and not case["gc_loc"]:
        return optax.chain(
            optax.scale_by_adam(B1, B2, EPS),
            optax.scale_by_schedule(lambda count: 1 - B1 ** (count + 1)),
            decay,
            centralize(),
            optax.scale_by_schedule(lambda count: -lr / (1 - B1 ** (count + 1))),
        )
    if kind == "AdamW_GC":
        return optax.chain(
            centralize(),
            scale_by_uncorrected_adam(),
            decay,
            optax.scale_by_schedule(lambda count: -lr * step_size(count)),
        )
    if kind == "Adam_GC2" or (kind == "Adam" and not case["gc_loc"]):
        return optax.chain(decay, optax.adam(lr, B1, B2, EPS), centralize())
    if kind in ("Adam_GC", "Adam"):
        return optax.chain(decay, centralize(), optax.adam(lr, B1, B2, EPS))
    if kind == "SGDW_GC":
        return optax.chain(centralize(), optax.trace(case["momentum"]), decay, optax.scale(-lr))
    assert kind in ("SGD_GC", "SGD_GCC", "SGD")
    where = is_convolution if kind == "SGD_GCC" else None
    sgd = optax.sgd(lr, momentum=case["momentum"], nesterov=case.get("nesterov", False))
    return optax.chain(decay, centralize(where), sgd)


@cache
def trajectory(bits: str, run: str) -> list[dict[str, dict[str, np.ndarray]]]:
    with jax.enable_x64(bits == "f64"):
        dtype = jnp.float64 if bits == "f64" else jnp.float32
        opt = chain(run)
        params = inputs("w", dtype)
        state = opt.init(params)

        @jax.jit
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = opt.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        path = []
        for i in range(len(GOLDEN["in/bias/grads"])):
            params, state = step(params, state, inputs("grads", dtype, i))
            path.append(jax.tree.map(np.asarray, params))
        return path


def assert_close(actual: Any, expected: np.ndarray, tolerance: float) -> None:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    difference = np.max(np.abs(actual - expected))
    assert difference <= tolerance * np.max(np.abs(expected)), difference


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("bits, run", RUNS)
def test_trajectory_equals_the_authors(bits: str, run: str, name: str) -> None:
    layer, leaf = LEAVES[name]
    actual = np.stack([params[layer][leaf] for params in trajectory(bits, run)])
    expected = to_flax(name, GOLDEN[f"{bits}/{run}/{name}"])
    assert_close(actual, expected, 1e-5 if bits == "f32" else 1e-12)


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("bits", ["f32", "f64"])
def test_centralized_gradient_equals_the_authors(bits: str, name: str) -> None:
    layer, leaf = LEAVES[name]
    with jax.enable_x64(bits == "f64"):
        opt = centralize()
        for i, expected in enumerate(to_flax(name, GOLDEN[f"{bits}/centralized/{name}"])):
            grads = inputs("grads", jnp.float64 if bits == "f64" else jnp.float32, i)
            actual, _ = opt.update(grads, opt.init(grads))
            assert_close(actual[layer][leaf], expected, 1e-6 if bits == "f32" else 1e-12)


@pytest.mark.parametrize("name", ["hwio", "inout"])
@pytest.mark.parametrize("bits", ["f32", "f64"])
@pytest.mark.parametrize("wrap", [lambda g: {"kernel": g}, lambda g: [g]], ids=["named", "unnamed"])
def test_centralized_kernel_in_the_layout_of_flax(
    bits: str, name: str, wrap: Callable[[Any], Any]
) -> None:
    with jax.enable_x64(bits == "f64"):
        expected = GOLDEN[f"{bits}/centralized/{name}"]
        grads = wrap(jnp.asarray(GOLDEN[f"in/{name}/g"], expected.dtype))
        opt = centralize()
        (actual,) = jax.tree.leaves(opt.update(grads, opt.init(grads))[0])
        assert_close(actual, expected, 1e-6 if bits == "f32" else 1e-12)


def test_no_array_of_the_archive_is_left_out() -> None:
    met = {f"{bits}/{run}/{name}" for bits, run in RUNS for name in LEAVES}
    names = (*LEAVES, "hwio", "inout")
    met |= {f"{bits}/centralized/{name}" for bits in ("f32", "f64") for name in names}
    met |= {f"in/{name}/{key}" for name in LEAVES for key in ("w", "grads")}
    met |= {"in/hwio/g", "in/inout/g", "meta"}
    assert met == set(GOLDEN)
