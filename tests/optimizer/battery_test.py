"""One battery of tests that every transformation of the package goes through.

Inside each wrapper of Optax the result is compared with the transformation's own, so that a wrapper
that drops an argument or some of the state is seen. Some do not fit by nature:

- `per_group` takes updates with an axis of groups. `partition` and `masked` hand them on; wrappers
  that compute with the updates themselves (MultiSteps, apply_if_finite) do not know the axis: there
  it stays outside, chain(per_group(...), wrapper(...)), and so it is tested.
- `lookahead` takes no arguments but updates, state and params, and its params are pairs: a penalty
  inside it gets no grad_fn, which is an error; it is applied by hand in front of it.
- `MultiSteps(...).gradient_transformation()` and a MultiSteps inside a chain forward no arguments
  either: a penalty inside one needs MultiSteps' own update.
- In `partition` and `masked` a penalty moves some of the parameters: its grad_fn is handed a tree
  with holes and gives one.
"""

import functools
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import Mesh, PartitionSpec

from optimizer import (
    OptimizerError,
    adamg,
    asam,
    build_optimizer,
    centralize,
    cr_sam,
    decouple,
    end_epoch,
    friendly_sam,
    gam,
    gradient_norm_penalty,
    gsam,
    is_convolution,
    looksam,
    momentum_sam,
    per_group,
    perturbed_params,
    random_weight_perturbation,
    record_gradient_evolution,
    sam,
    sam_on,
    sgdg,
    stable_sam,
    unnormalized_sam,
    vasso,
    wsam,
)
from tests.trees import assert_trees_close

assert_trees_close = functools.partial(assert_trees_close, rtol=1e-5)

ROOT = Path(__file__).parents[2]
STEPS = 3

Params = Any


class Case(NamedTuple):
    """A transformation, as an optimizer made from numbers that inject_hyperparams can set."""

    make: Callable[..., optax.GradientTransformation]
    numbers: dict[str, float]
    needs: tuple[str, ...] = ()  # arguments of update without which it is an error
    first: Callable[[], Any] = optax.identity  # what stays outside of a wrapper
    wrapped: Callable[[], Any] | None = None  # what goes into one, unless it is all
    has_aux: bool = False

    @property
    def is_penalty(self) -> bool:
        return "grad_fn" in self.needs

    @property
    def is_grouped(self) -> bool:
        return self.wrapped is not None

    def whole(self) -> optax.GradientTransformation:
        return self.make(**self.numbers)

    def answer(self, gradients: Any) -> Any:
        """Return the result of grad_fn."""
        return (gradients, {"statistics": jnp.ones(3)}) if self.has_aux else gradients

    def inside(self, wrap: Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
        """Put the transformation into a wrapper."""
        inner = self.whole() if self.wrapped is None else self.wrapped()
        return optax.chain(self.first(), wrap(inner))


def momentum(rate: Any) -> optax.GradientTransformation:
    """Make SGD whose momentum has the dtype of what a penalty gives: float32 or wider."""
    return optax.sgd(rate, momentum=0.9, accumulator_dtype=float)


def penalty(**options: Any) -> Case:
    def make(r: Any, alpha: Any) -> optax.GradientTransformation:
        return optax.chain(gradient_norm_penalty(r, alpha, **options), momentum(0.1))

    has_aux = options.get("has_aux", False)
    return Case(make, {"r": 0.3, "alpha": 0.6}, ("params", "grad_fn"), has_aux=has_aux)


def only_w(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "w", params)


def built() -> optax.GradientTransformation:
    """Build a chain of everything: recorder, penalty, clipping, centralization, groups."""
    gnp = SimpleNamespace(
        r=0.3, alpha=0.6, norm_perturbations=False, every=1, warmup_epochs=None, adaptive=False,
        method="finite_difference", where="all", reuse=0.0,
    )  # fmt: skip
    opt = SimpleNamespace(
        opt_type="AdamG", opt_params={}, learning_rate_grassmann=0.1, grassmann_where="^[vw]$",
        centralize="conv", centralize_at="gradient",
    )  # fmt: skip
    schedule = SimpleNamespace(boundaries=(), factor=0.1, rate=0.9, decay=0.0, period=2)
    config = SimpleNamespace(
        base_lr=0.1, total_epochs=3, warmup_epochs=0.0, lr_schedule_type="cosine",
        lr_schedule_params=schedule, gradient_clipping=5.0, no_weight_decay_on_bn=False,
        gr_warmup_strategy="none", use_hybrid_training=False, gnp=gnp, opt=opt,
        record=SimpleNamespace(gradients=True),
    )  # fmt: skip
    return build_optimizer(config, steps_per_epoch=4)


def in_front_of_sgd(transformation: Any) -> Case:
    def make(rate: Any) -> optax.GradientTransformation:
        return optax.chain(transformation, optax.sgd(rate, momentum=0.9))

    return Case(make, {"rate": 0.1})


def in_front_of_momentum(
    method: Callable[..., Any], numbers: dict[str, float], **options: Any
) -> Case:
    """Return the case of a method of the family; momentum is that of what it gives."""

    def make(**numbers: Any) -> optax.GradientTransformation:
        return optax.chain(method(**numbers, **options), momentum(0.1))

    # inject_hyperparams reads the names.
    names = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in numbers]
    make.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    return Case(make, numbers, ("params", "grad_fn"))


def one_gradient(method: Callable[..., Any], numbers: dict[str, float]) -> Case:
    return in_front_of_momentum(method, numbers)._replace(needs=("params",))


def make_decoupled(rho: Any, gamma: Any) -> optax.GradientTransformation:
    return decouple(wsam(rho, gamma), momentum(0.1), 0.1)


def make_looksam_with_memory(rho: Any, weight: Any) -> optax.GradientTransformation:
    return optax.chain(looksam(friendly_sam(rho, lmbda=0.6), weight), optax.sgd(0.1))


def make_looksam(r: Any, weight: Any) -> optax.GradientTransformation:
    return optax.chain(looksam(gradient_norm_penalty(r, 0.6), weight), optax.sgd(0.1))


def make_per_group(r: Any, rate: Any) -> optax.GradientTransformation:
    return optax.chain(per_group(gradient_norm_penalty(r, 0.6)), momentum(rate))


CASES = {
    "penalty": penalty(),
    "penalty_normalize_adaptive": penalty(normalize=True, adaptive=True),
    "penalty_hvp": penalty(method="hvp"),
    "sam": in_front_of_momentum(sam, {"rho": 0.3}),
    "asam": in_front_of_momentum(asam, {"rho": 0.3, "eta": 0.1}),
    "sam_on": in_front_of_momentum(sam_on, {"rho": 0.3}, where=only_w),
    "wsam": in_front_of_momentum(wsam, {"rho": 0.3, "gamma": 0.7}),
    "wsam_decoupled": Case(make_decoupled, {"rho": 0.3, "gamma": 0.4}, ("params", "grad_fn")),
    "gsam": in_front_of_momentum(gsam, {"rho": 0.3, "alpha": 0.4}),
    "stable_sam": in_front_of_momentum(stable_sam, {"rho": 0.3}),
    "friendly_sam": in_front_of_momentum(friendly_sam, {"rho": 0.3, "sigma": 0.5, "lmbda": 0.6}),
    "vasso": in_front_of_momentum(vasso, {"rho": 0.3, "theta": 0.4}),
    "unnormalized_sam": in_front_of_momentum(unnormalized_sam, {"rho": 0.3}),
    "cr_sam": in_front_of_momentum(cr_sam, {"rho": 0.3, "gamma": 0.1, "beta": 0.1}),
    "gam": in_front_of_momentum(gam, {"rho": 0.3, "norm_rho": 0.1, "gamma": 0.1}),
    "noise": in_front_of_momentum(random_weight_perturbation, {"sigma": 0.1, "lmbda": 0.5}),
    "momentum_sam": one_gradient(momentum_sam, {"rho": 0.3, "momentum": 0.9}),
    "noise_ahead": one_gradient(random_weight_perturbation, {"sigma": 0.1}),
    "looksam_with_memory": Case(
        make_looksam_with_memory, {"rho": 0.3, "weight": 0.5}, ("params", "grad_fn")
    ),
    "penalty_where": penalty(where=only_w),
    "penalty_has_aux": penalty(has_aux=True),
    "looksam": Case(make_looksam, {"r": 0.3, "weight": 0.5}, ("params", "grad_fn")),
    "per_group": Case(
        make_per_group,
        {"r": 0.3, "rate": 0.1},
        ("params", "grad_fn"),
        first=lambda: per_group(gradient_norm_penalty(0.3, 0.6)),
        wrapped=lambda: momentum(0.1),
    ),
    "centralize": in_front_of_sgd(centralize()),
    "centralize_convolutions": in_front_of_sgd(centralize(is_convolution)),
    "recorder": in_front_of_sgd(record_gradient_evolution()),
    "sgdg": Case(sgdg, {"learning_rate": 0.1, "momentum": 0.9, "grad_clip": 0.5}, ("params",)),
    "adamg": Case(adamg, {"learning_rate": 0.1, "b1": 0.9, "b2": 0.99, "eps": 1e-8}, ("params",)),
    "built": Case(built, {}, ("params", "grad_fn")),
}
AHEAD = ("momentum_sam", "noise_ahead")
PENALTIES = [name for name, case in CASES.items() if case.is_penalty]

X = np.random.default_rng(0).normal(size=(4, 3))


def start(dtype: Any = jnp.float32, seed: int = 1) -> Params:
    """Draw two kernels of convolutions in a window of one pixel, with unit columns."""
    generator = np.random.default_rng(seed)
    tree = {name: generator.normal(size=(1, 1, 3, 2)) for name in ("v", "w")}
    return {name: jnp.asarray(x / np.linalg.norm(x, axis=2), dtype) for name, x in tree.items()}


def loss(params: Params, x: jax.Array) -> jax.Array:
    """Return a loss of w and v only, whose Hessian is not constant."""
    w, v = (params[name].reshape(3, 2) for name in ("w", "v"))
    return jnp.mean(jnp.square(x @ w) * (x @ v)) + jnp.sum(w * w * v)


def data(params: Params) -> jax.Array:
    return jnp.asarray(X, jax.tree.leaves(params)[0].dtype)


gradient = jax.jit(jax.grad(loss))


def split(x: jax.Array) -> jax.Array:
    """Split into groups of two examples."""
    return x.reshape(-1, 2, *x.shape[1:])


def inputs(case: Case, params: Params, x: jax.Array | None = None) -> tuple[Params, dict[str, Any]]:
    """Return the gradients, and the further arguments of update."""
    x = data(params) if x is None else x
    if not case.is_grouped:
        more = {"grad_fn": lambda p: case.answer(gradient(p, x))} if case.is_penalty else {}
        return gradient(params, x), more
    groups = split(x)
    gradients = [gradient(params, group) for group in groups]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    return stacked, {"grad_fn": lambda p, group: gradient(p, groups[group])}


def stepper(case: Case, opt: Any, extra: Any = None, **jit_options: Any) -> Any:
    """Compile one step, with extra arguments of update."""

    def step(params: Params, state: Any) -> Any:
        gradients, more = inputs(case, perturbed_params(state, params))
        updates, state = opt.update(gradients, state, params, **more, **(extra or {}))
        return optax.apply_updates(params, updates), state

    return jax.jit(step, **jit_options)


def run(step: Any, params: Params, state: Any, steps: int = STEPS) -> tuple[list[Params], Any]:
    """Return the parameters after each step and the last state; steps compile once."""
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (params, state))
    path = []
    for _ in range(steps):
        params, state = step(params, state)
        path.append(params)
    assert step._cache_size() == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (params, state)) == shapes
    return path, state


@cache
def plain(name: str, steps: int = STEPS) -> list[Params]:
    """Return the path of the transformation outside of any wrapper."""
    case = CASES[name]
    opt = case.whole()
    return run(stepper(case, opt), start(), opt.init(start()), steps)[0]


def multi_steps(inner: Any, count: int) -> optax.GradientTransformationExtraArgs:
    """Make MultiSteps with an update that hands its arguments on, also in a chain."""
    opt = optax.MultiSteps(inner, count)
    return optax.GradientTransformationExtraArgs(opt.init, opt.update)


# The quick tests have one of each kind: two gradients, one gradient, an optimizer.
QUICK = ("penalty", "momentum_sam", "sgdg")


def each(names: Iterable[str]) -> Any:
    """Parametrize a test by the names of cases; those of no other kind are slow."""
    return pytest.mark.parametrize(
        "name",
        [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names],
    )


every_case = each(CASES)
# Not the variants, where one that has the state of another case could not fail alone.
VARIANTS = ("penalty_where", "penalty_has_aux", "centralize_convolutions", "built")
every_state = each(name for name in CASES if name not in VARIANTS)


# In the wrappers of Optax.


@every_case
def test_it_moves_and_compiles_once(name: str) -> None:
    path = plain(name)
    assert all(
        not np.allclose(a["w"], b["w"]) for a, b in zip([start(), *path], path, strict=False)
    )


@every_case
def test_chain(name: str) -> None:
    case = CASES[name]
    opt = optax.chain(
        optax.identity(), case.inside(optax.chain), optax.apply_every(1), optax.scale(1.0)
    )
    path, _ = run(stepper(case, opt), start(), opt.init(start()))
    assert_trees_close(path, plain(name))


def fill(pierced: Any, whole: Any) -> Any:
    """Return the whole, with the leaves of the pierced tree where that has no holes."""

    def leaf(p: Any, w: Any) -> Any:
        return w if isinstance(p, optax.MaskedNode) else p

    return jax.tree.map(leaf, pierced, whole, is_leaf=lambda x: isinstance(x, optax.MaskedNode))


def pierce(whole: Any, pierced: Any) -> Any:
    """Return the whole, with the holes of the pierced tree."""

    def leaf(p: Any, w: Any) -> Any:
        return p if isinstance(p, optax.MaskedNode) else w

    return jax.tree.map(leaf, pierced, whole, is_leaf=lambda x: isinstance(x, optax.MaskedNode))


def beside_a_bias(wrap: Callable[[Any], Any], whole: bool = False) -> Callable[[str], None]:
    """Make a test with one more parameter, a bias b, that the transformation does not get.

    With `whole` all of it goes into the wrapper, `per_group` too.
    """

    def test(name: str) -> None:
        case = CASES[name]
        params = start() | {"b": jnp.ones(2)}
        opt = wrap(case.wrapped() if case.wrapped and not whole else case.whole())
        outside = optax.identity() if whole else case.first()

        def step(params: Params, state: Any) -> Any:
            kernels = {key: params[key] for key in ("v", "w")}
            at = perturbed_params(state[1], params)
            gradients, more = inputs(case, {key: at[key] for key in ("v", "w")})
            if case.is_grouped and not whole:
                gradients, _ = outside.update(gradients, state[0], kernels, **more)
                more = {}
            elif more:
                x = data(kernels)

                def grad_fn(pierced: Params, *group: Any) -> Any:
                    full = fill(pierced, params)
                    moved = {key: full[key] for key in ("v", "w")}
                    moved = gradient(moved, split(x)[group] if group else x)
                    return case.answer(pierce(moved | {"b": full["b"]}, pierced))

                more = {"grad_fn": grad_fn}
            gradients = gradients | {"b": params["b"]}
            updates, inner = opt.update(gradients, state[1], params, **more)
            return optax.apply_updates(params, updates), (state[0], inner)

        path, _ = run(jax.jit(step), params, (outside.init(start()), opt.init(params)))
        assert_trees_close([{key: p[key] for key in ("v", "w")} for p in path], plain(name))
        assert path[-1]["b"].shape == (2,) and not np.allclose(path[-1]["b"], 1.0)

    return test


def partition(opt: Any) -> Any:
    def labels(tree: Any) -> Any:
        return {key: "rest" if key == "b" else "kernels" for key in tree}

    return optax.partition({"kernels": opt, "rest": optax.sgd(0.1)}, labels)


def masked(opt: Any) -> Any:
    return optax.masked(opt, lambda tree: {key: key != "b" for key in tree})


@every_case
def test_partition(name: str) -> None:
    beside_a_bias(partition)(name)


@every_case
def test_masked(name: str) -> None:
    beside_a_bias(masked)(name)


@pytest.mark.parametrize("wrap", [partition, masked])
def test_groups_inside_a_wrapper(wrap: Callable[[Any], Any]) -> None:
    beside_a_bias(wrap, whole=True)("per_group")


@every_state
def test_inject_hyperparams(name: str) -> None:
    case = CASES[name]
    opt = optax.inject_hyperparams(case.make)(**case.numbers)
    step, state = stepper(case, opt), opt.init(start())
    assert set(state.hyperparams) == set(case.numbers)
    path, _ = run(step, start(), state)
    assert_trees_close(path, plain(name))
    if name in AHEAD:
        return  # a number set between two steps is that of the step after the next
    # A number set between two steps is the one of the next step.
    key, value = next(iter(case.numbers.items()))
    state = opt.init(start())
    state.hyperparams[key] = jnp.asarray(value / 2)
    halved, _ = step(start(), state)
    other = case.make(**case.numbers | {key: value / 2})
    expected, _ = stepper(case, other)(start(), other.init(start()))
    assert_trees_close(halved, expected)
    assert not np.allclose(halved["w"], path[0]["w"], rtol=1e-5)


@every_case
def test_multi_steps(name: str) -> None:
    case = CASES[name]
    opt = case.inside(lambda inner: multi_steps(inner, 2))
    path, _ = run(stepper(case, opt), start(), opt.init(start()), 2 * STEPS)
    # The gradient is the same in both of its mini-steps, so its mean is that of one step.
    assert_trees_close([start(), *plain(name)[:-1]], path[0::2])
    assert_trees_close(plain(name), path[1::2])


@pytest.mark.slow
@every_state
def test_apply_if_finite(name: str) -> None:
    case = CASES[name]
    opt = case.inside(lambda inner: optax.apply_if_finite(inner, 3))
    step, state = stepper(case, opt), opt.init(start())
    path, _ = run(step, start(), state)
    assert_trees_close(path, plain(name))
    # A gradient of NaN moves neither the parameters nor the state inside.
    params, state = step(start(), state)
    gradients, more = inputs(case, params)
    bad = jax.tree.map(lambda g: g * jnp.nan, gradients)
    updates, after = opt.update(bad, state, params, **more)
    assert_trees_close(updates, jax.tree.map(jnp.zeros_like, params))
    assert after[1].total_notfinite == 1
    assert_trees_close(after[1].inner_state, state[1].inner_state)
    assert_trees_close(step(params, after)[0], path[1])


@pytest.mark.slow
@every_state
def test_lookahead(name: str) -> None:
    case = CASES[name]
    if not case.is_penalty:
        opt = optax.lookahead(case.whole(), sync_period=2, slow_step_size=0.5)
        front: Any = optax.identity()
    else:
        # A penalty goes in front of it, on the fast parameters.
        full = case.whole()
        front, opt = full, optax.lookahead(optax.identity(), sync_period=2, slow_step_size=0.5)

    def step(params: Any, state: Any) -> Any:
        gradients, more = inputs(case, perturbed_params(state, params.fast))
        gradients, outer = front.update(gradients, state[0], params.fast, **more)
        updates, inner = opt.update(gradients, state[1], params)
        return optax.apply_updates(params, updates), (outer, inner)

    pair = optax.LookaheadParams.init_synced(start())
    path, _ = run(jax.jit(step), pair, (front.init(pair.fast), opt.init(pair)), 2)
    fast = plain(name)
    assert_trees_close(path[0], optax.LookaheadParams(fast=fast[0], slow=start()))
    halfway = jax.tree.map(lambda a, b: a + 0.5 * (b - a), start(), fast[1])
    assert_trees_close(path[1], optax.LookaheadParams(fast=halfway, slow=halfway))


@each(PENALTIES)
def test_a_penalty_inside_what_forwards_no_arguments_is_an_error(name: str) -> None:
    case = CASES[name]
    if not case.is_grouped:
        opt = optax.MultiSteps(case.whole(), 2).gradient_transformation()
        gradients, more = inputs(case, start())
        with pytest.raises(OptimizerError, match="needs grad_fn"):
            optax.chain(opt).update(gradients, (opt.init(start()),), start(), **more)
    opt = optax.chain(optax.lookahead(case.whole(), sync_period=2, slow_step_size=0.5))
    pair = optax.LookaheadParams.init_synced(start())
    gradients, more = inputs(case, pair.fast)
    with pytest.raises(OptimizerError, match="needs grad_fn"):
        opt.update(gradients, opt.init(pair), pair, **more)


@pytest.mark.slow
@every_state
def test_schedule_free(name: str) -> None:
    case, b1 = CASES[name], 0.9
    opt = optax.contrib.schedule_free(case.whole(), learning_rate=0.1, b1=b1)
    path, _ = run(stepper(case, opt), start(), opt.init(start()))
    # z goes the steps of the transformation at y, x is the mean of z, y lies between.
    inner = case.whole()
    x = y = z = start()
    state = inner.init(y)
    expected = []
    step = stepper(case, inner)
    for count in range(1, STEPS + 1):
        moved, state = step(y, state)
        z = jax.tree.map(lambda z, new, old: z + (new - old), z, moved, y)
        x = jax.tree.map(lambda x, z, c=count: x + (z - x) / c, x, z)
        y = jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, x, z)
        expected.append(y)
    assert_trees_close(path, expected, rtol=1e-4, atol=1e-5)


# Under the transformations of JAX.


@pytest.mark.slow
@every_case
def test_vmap_over_seeds(name: str) -> None:
    case = CASES[name]
    opt = case.whole()
    seeds = [start(seed=seed) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    step = stepper(case, opt)
    path, state = run(jax.jit(jax.vmap(step)), stacked, jax.jit(jax.vmap(opt.init))(stacked))
    alone = [run(step, params, opt.init(params)) for params in seeds]
    assert_trees_close(
        path, jax.tree.map(lambda *x: jnp.stack(x), *[p for p, _ in alone]), rtol=1e-4
    )
    assert jax.tree.structure(state) == jax.tree.structure(alone[0][1])


@pytest.mark.slow
@every_state
def test_donated_buffers(name: str) -> None:
    # Buffers that cannot be used again give a warning, which is an error here.
    case = CASES[name]
    opt = case.whole()
    step = stepper(case, opt, donate_argnums=(0, 1))
    params = start()
    state = opt.init(params)
    for expected in plain(name):
        before = params
        params, state = step(params, state)
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
        assert_trees_close(params, expected)
    assert step._cache_size() == 1
    if case.is_penalty:
        # LookSAM reads the direction that it has kept at such steps only.
        params = start()
        state = opt.init(params)
        plain_step = stepper(case, opt, {"penalize": False}, donate_argnums=(0, 1))
        expected, _ = stepper(case, opt, {"penalize": False})(params, state)
        assert_trees_close(plain_step(params, state)[0], expected)


def sharded(name: str, mesh: Mesh) -> list[Params]:
    """Return the path with the examples split over the devices."""
    case = CASES[name]
    opt = case.whole()
    if case.is_grouped:
        inner = per_group(gradient_norm_penalty(0.3, 0.6), axis_name="data")
        opt = optax.chain(inner, case.wrapped())

    def grad_fn(params: Params, x: jax.Array) -> Params:
        # Inside shard_map the gradient of parameters that all share is summed over the devices.
        return jax.tree.map(lambda g: g / mesh.size, gradient(params, x))

    def step(params: Params, state: Any, x: jax.Array) -> Any:
        if case.is_grouped:
            own = jax.lax.pcast(params, "data", to="varying")
            gradients, more = inputs(case, own, x)
        else:
            gradients = grad_fn(perturbed_params(state, params), x)
            more = {"grad_fn": lambda p: case.answer(grad_fn(p, x))} if case.is_penalty else {}
        updates, state = opt.update(gradients, state, params, **more)
        return optax.apply_updates(params, updates), state

    everywhere, split_ = PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(everywhere, everywhere, split_), out_specs=everywhere
    )
    compiled = jax.jit(mapped)
    # Where the loop puts them; arrays of one device would compile the first step for themselves.
    sharding = jax.sharding.NamedSharding(mesh, everywhere)
    params, state = jax.device_put((start(), opt.init(start())), sharding)
    x = jax.device_put(data(params), jax.sharding.NamedSharding(mesh, split_))
    path = []
    for _ in range(STEPS):
        params, state = compiled(params, state, x)
        path.append(params)
    assert compiled._cache_size() == 1
    return path


if os.environ.get("BATTERY_DEVICES"):

    @every_case
    def test_shard_map(name: str) -> None:
        mesh = Mesh(jax.devices(), ("data",))
        assert mesh.size == int(os.environ["BATTERY_DEVICES"])
        assert_trees_close(sharded(name, mesh), plain(name))

    @pytest.mark.parametrize("check_vma", [True, False])
    def test_shard_map_of_split_parameters(check_vma: bool) -> None:
        # One leaf is split, the other the same on both devices, which its norm counts once where
        # shard_map keeps track of that.
        mesh = Mesh(jax.devices(), ("data",))
        params = {"split": jnp.arange(1.0, 5.0), "whole": jnp.array([2.0, -1.0])}
        if not check_vma:
            params.pop("whole")
        cube = partial(jax.tree.map, lambda p: p**3)
        split_, everywhere = PartitionSpec("data"), PartitionSpec()
        specs = {name: split_ if name == "split" else everywhere for name in params}
        for make in (
            lambda **more: gradient_norm_penalty(0.3, 0.6, normalize=True, **more),
            lambda **more: gsam(0.3, 0.4, **more),
            lambda **more: looksam(sam(0.3, **more), 0.5, **more),
            lambda **more: momentum_sam(0.3, **more),
        ):

            def step(params: Params, method: Any) -> tuple[Params, ...]:
                """Return a penalized gradient, the one after it, and where that is taken."""
                state = method.init(params)
                first, state = method.update(cube(params), state, params, grad_fn=cube)
                more = {"penalize": False, "grad_fn": cube}
                reused, _ = method.update(jax.tree.map(jnp.sin, params), state, params, **more)
                return first, reused, perturbed_params(state, params)

            mapped = jax.shard_map(
                partial(step, method=make(axis_name="data")),
                mesh=mesh,
                in_specs=(specs,),
                out_specs=(specs, specs, specs),
                check_vma=check_vma,
            )
            assert_trees_close(jax.jit(mapped)(params), step(params, make()))

    def test_shard_map_of_noise() -> None:
        mesh = Mesh(jax.devices(), ("data",))
        params = {"split": jnp.ones(4), "whole": jnp.ones(2)}
        specs = {"split": PartitionSpec("data"), "whole": PartitionSpec()}
        method = random_weight_perturbation(0.1, axis_name="data")
        noise = jax.shard_map(
            lambda p: method.init(p).perturbation, mesh=mesh, in_specs=(specs,), out_specs=specs
        )(params)
        one, other = np.split(noise["split"], 2)
        assert not np.allclose(one, other)
        ours, theirs = (shard.data for shard in noise["whole"].addressable_shards)
        np.testing.assert_array_equal(ours, theirs)

else:

    @pytest.mark.slow
    def test_two_devices() -> None:
        two = {"JAX_NUM_CPU_DEVICES": "2", "BATTERY_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
        result = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
            + ["-k", "test_shard_map", "-m", "", str(Path(__file__))],
            capture_output=True,
            check=False,
            cwd=ROOT,
            env=os.environ | two,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{len(CASES) + 3} passed" in result.stdout


# States on disk.


@every_state
def test_pickle_of_the_state(name: str) -> None:
    case = CASES[name]
    opt = case.whole()
    step = stepper(case, opt)
    params, state = step(start(), opt.init(start()))
    copy = pickle.loads(pickle.dumps(jax.device_get(state)))
    assert jax.tree.structure(copy) == jax.tree.structure(state)
    assert_trees_close(step(params, copy)[0], plain(name)[1])


@pytest.mark.slow
@pytest.mark.parametrize("names", [QUICK, pytest.param(tuple(CASES), marks=pytest.mark.slow)])
def test_orbax_gives_the_state_back(names: tuple[str, ...], tmp_path: Path) -> None:
    import orbax.checkpoint as ocp  # all else here needs jax and optax alone

    optimizers = {name: CASES[name].whole() for name in names}
    steps = {name: stepper(CASES[name], opt) for name, opt in optimizers.items()}
    states = {name: steps[name](start(), optimizers[name].init(start()))[1] for name in names}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, states)
        restored = checkpointer.restore(tmp_path / "states", shapes)
    for name in names:
        assert_trees_close(restored[name], states[name], rtol=0, atol=0)
        assert_trees_close(steps[name](plain(name)[0], restored[name])[0], plain(name)[1])


# Dtypes.


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@every_state
def test_dtypes(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        case = CASES[name]
        opt = case.whole()
        params = start(dtype)
        state = opt.init(params)
        path, new = run(stepper(case, opt), params, state, 2)  # dtypes stay, it compares them
        exact = dtype == "float64"
        tolerance = (1e-4, 1e-5) if exact else (0.05, 0.05)
        for actual, expected in zip(path, plain(name), strict=False):
            rounded = jax.tree.map(lambda x: np.asarray(x, np.float32), actual)
            rtol, atol = tolerance
            assert_trees_close(rounded, jax.tree.map(np.asarray, expected), rtol=rtol, atol=atol)
        kept = {x.dtype.name for x in jax.tree.leaves(new)} - {"int32"}
        assert kept <= ({"float64"} if exact else {dtype, "float32"})


# Arguments.


@every_state
@pytest.mark.parametrize("missing", ["params", "grad_fn"])
@pytest.mark.parametrize("wrap", [lambda opt: opt, optax.chain], ids=["alone", "chain"])
def test_missing_arguments(name: str, missing: str, wrap: Callable[[Any], Any]) -> None:
    case = CASES[name]
    opt = wrap(case.whole())
    state = opt.init(start())
    gradients, more = inputs(case, perturbed_params(state, start()))
    given = {"params": start(), **more}
    given.pop(missing, None)
    if missing in case.needs:
        with pytest.raises(OptimizerError, match=f"needs {missing}") as caught:
            opt.update(gradients, state, **given)
        assert "\n" not in str(caught.value)
    else:
        updates, _ = opt.update(gradients, state, **given)
        assert_trees_close(optax.apply_updates(start(), updates), plain(name)[0])


@every_state
def test_further_arguments_are_for_others(name: str) -> None:
    case = CASES[name]
    opt = optax.chain(case.whole())
    state = opt.init(start())
    gradients, more = inputs(case, perturbed_params(state, start()))
    updates, _ = opt.update(gradients, state, start(), **more, value=1.0)
    assert_trees_close(optax.apply_updates(start(), updates), plain(name)[0])


@each(name for name in PENALTIES if name != "built")
def test_a_plain_step_in_a_wrapper_needs_no_gradient_function(name: str) -> None:
    case = CASES[name]
    opt = case.inside(lambda inner: multi_steps(inner, 1))
    gradients, _ = inputs(case, start())
    updates, _ = jax.jit(partial(opt.update, penalize=False))(gradients, opt.init(start()), start())
    expected = jax.tree.map(lambda g: -0.1 * g, gradient(start(), data(start())))
    assert_trees_close(updates, expected)


def test_the_recorder_is_read_from_within_a_wrapper() -> None:
    opt = optax.MultiSteps(optax.apply_if_finite(CASES["recorder"].whole(), 3), 1)
    step = stepper(CASES["recorder"], opt.gradient_transformation())
    _, state = run(step, start(), opt.init(start()), 1)
    assert_trees_close(end_epoch(state)[0].epoch, gradient(start(), data(start())))


# Convergence, on targets like those of Optax's contributed optimizers.


class Target(NamedTuple):
    start: np.ndarray
    solution: np.ndarray
    loss: Callable[[jax.Array], jax.Array]


def parabola(initial: Any, solution: Any) -> Target:
    solution = np.asarray(solution, np.float32)
    return Target(
        np.asarray(initial, np.float32), solution, lambda p: jnp.sum(jnp.square(p - solution))
    )


def rosenbrock(initial: Any, a: float) -> Target:
    """Return (a - x)² + 100 (y - x²)², with its minimum 0 at (a, a²)."""

    def valley(p: jax.Array) -> jax.Array:
        x, y = jnp.ravel(p)
        return jnp.square(a - x) + 100.0 * jnp.square(y - jnp.square(x))

    initial = np.asarray(initial, np.float32)
    return Target(initial, np.array([a, a * a], np.float32).reshape(initial.shape), valley)


GOLDEN_A = float(np.sqrt((np.sqrt(5) - 1) / 2))  # (a, a²) has length 1
TARGETS = {
    "parabola": parabola([-1.0, 10.0, 1.0], [1.0, -1.0, 1.0]),
    "matrix": parabola(np.zeros((2, 2)), [[3.0, -2.0], [1.0, 4.0]]),
    # Each column's mean stays under centralization, so the solution has the means of the start.
    "centered_matrix": parabola(np.ones((2, 2)), [[3.0, -2.0], [-1.0, 4.0]]),
    "rosenbrock": rosenbrock([0.0, 0.0], 1.0),
    "sphere": parabola(
        [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.6, 0.48], [0.0, 0.6], [0.8, 0.64]]
    ),
    "sphere_rosenbrock": rosenbrock([[0.0], [1.0]], GOLDEN_A),
}
ADAM = partial(optax.adam, optax.cosine_decay_schedule(0.1, 3000))
RATE = optax.cosine_decay_schedule(0.05, 3000)
R = 0.001
EUCLIDEAN = {
    "penalty": lambda: optax.chain(gradient_norm_penalty(R, 0.5), ADAM()),
    "penalty_normalize_adaptive": lambda: optax.chain(
        gradient_norm_penalty(R, 0.5, normalize=True, adaptive=True), ADAM()
    ),
    "penalty_hvp": lambda: optax.chain(gradient_norm_penalty(R, 0.5, method="hvp"), ADAM()),
    "looksam": lambda: optax.chain(looksam(gradient_norm_penalty(R, 0.5), 0.1), ADAM()),
    "per_group": lambda: optax.chain(per_group(gradient_norm_penalty(R, 0.5)), ADAM()),
    "recorder": lambda: optax.chain(record_gradient_evolution(), ADAM()),
    "centralize": lambda: optax.chain(centralize(), ADAM()),
}
FAMILY = {
    "sam": sam,
    "asam": asam,
    "sam_on": partial(sam_on, where=lambda params: True),
    "wsam": wsam,
    "gsam": gsam,
    "stable_sam": stable_sam,
    "friendly_sam": friendly_sam,
    "vasso": vasso,
    "unnormalized_sam": unnormalized_sam,
    "cr_sam": cr_sam,
    "gam": partial(gam, norm_rho=R),
    "noise": partial(random_weight_perturbation, lmbda=0.5),
    "momentum_sam": momentum_sam,
    "noise_ahead": random_weight_perturbation,
}
EUCLIDEAN |= {
    name: lambda method=method: optax.chain(method(R), ADAM()) for name, method in FAMILY.items()
}
RIEMANNIAN = {"sgdg": lambda: sgdg(RATE, grad_clip=1.0), "adamg": lambda: adamg(RATE)}
TABLE = [
    *((name, target) for name in EUCLIDEAN for target in ("parabola", "matrix", "rosenbrock")),
    *((name, target) for name in RIEMANNIAN for target in ("sphere", "sphere_rosenbrock")),
]
TABLE = [
    (name, "centered_matrix" if (name, target) == ("centralize", "matrix") else target)
    for name, target in TABLE
]


QUICK_TARGETS = [
    ("penalty", "parabola"),
    ("looksam", "matrix"),
    ("centralize", "centered_matrix"),
]
QUICK_TARGETS += [("momentum_sam", "parabola"), ("sgdg", "sphere"), ("adamg", "sphere_rosenbrock")]
TABLE = [
    row if row in QUICK_TARGETS else pytest.param(*row, marks=pytest.mark.slow) for row in TABLE
]


@pytest.mark.parametrize("name, target", TABLE)
def test_convergence(name: str, target: str) -> None:
    case, problem = CASES[name], TARGETS[target]
    opt = (EUCLIDEAN | RIEMANNIAN)[name]()
    gradient_at = jax.grad(problem.loss)

    def step(params: Any, state: Any, penalize: bool) -> Any:
        gradients, more = gradient_at(perturbed_params(state, params)), {}
        if case.is_penalty:
            more = {"grad_fn": lambda p, *group: gradient_at(p), "penalize": penalize}
        if case.is_grouped:
            gradients = jnp.stack([gradients, gradients])
        updates, state = opt.update(gradients, state, params, **more)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def train(params: Any, state: Any) -> Any:
        def pair(carry: Any, _: Any) -> Any:
            # LookSAM penalizes every other step and reuses that step's direction in the next.
            return step(*step(*carry, True), name != "looksam"), None

        return jax.lax.scan(pair, (params, state), length=1500)[0][0]

    start_ = jnp.asarray(problem.start)
    result = train(start_, opt.init(start_))
    np.testing.assert_allclose(result, problem.solution, 0.03, 0.03)
    assert problem.loss(result) < 0.01 * problem.loss(start_)
