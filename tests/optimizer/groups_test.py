"""Groups of examples with a perturbation each: against one group at a time, on any devices."""

import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizer import (
    GradientNormPenaltyState,
    OptimizerError,
    gradient_norm_penalty,
    looksam,
    map_groups,
    penalized_gradient,
    per_group,
)
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal

assert_trees_close = functools.partial(assert_trees_close, atol=1e-7)

K, M = 3, 2
PLAIN = optax.identity()
Params = dict[str, jax.Array]


def loss(params: Params, x: jax.Array) -> jax.Array:
    """Return the loss of a group of M examples [M, 4]."""
    return jnp.mean(jnp.square(jnp.tanh(x @ params["w"]) - jnp.sum(params["b"])))


@pytest.fixture
def params() -> Params:
    return {"w": jnp.array([0.3, -1.2, 0.7, 0.5]), "b": jnp.array([0.5, -0.4])}


@pytest.fixture
def x(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (K, M, 4))


@pytest.fixture
def grad_fn(x: jax.Array) -> Callable[[Params, Any], Params]:
    return lambda params, group: jax.grad(loss)(params, x[group])


def clean(grad_fn: Any, params: Params) -> Params:
    return map_groups(lambda group: grad_fn(params, group), K)


def mean_by_hand(opt: Any, grad_fn: Any, params: Params, **options: Any) -> Params:
    """Penalize each group alone, then take NumPy's mean."""
    results = [
        opt.update(
            grad_fn(params, group),
            opt.init(params),
            params,
            grad_fn=lambda p, group=group: grad_fn(p, group),
            **options,
        )[0]
        for group in range(K)
    ]
    return jax.tree.map(lambda *g: np.mean(np.stack(g), axis=0), *results)


def test_map_groups_stacks() -> None:
    seen = []

    def f(group: int) -> dict[str, Any]:
        seen.append(group)
        return {"a": jnp.full((2,), group), "b": None}

    result = map_groups(f, 3)
    assert seen == [0, 1, 2] and all(type(group) is int for group in seen)
    assert result["b"] is None
    np.testing.assert_array_equal(result["a"], [[0, 0], [1, 1], [2, 2]])


def test_map_groups_traces_once_in_a_loop() -> None:
    seen = []

    def f(group: jax.Array) -> jax.Array:
        seen.append(group)
        return jnp.arange(6.0).reshape(3, 2)[group].sum()

    np.testing.assert_array_equal(map_groups(f, 3, unroll=False), [1.0, 5.0, 9.0])
    assert len(seen) == 1 and isinstance(seen[0], jax.core.Tracer)


@pytest.mark.parametrize("unroll", [True, False])
def test_model_code_stays_out_of_control_flow_unless_told_otherwise(
    params: Params, grad_fn: Any, x: jax.Array, unroll: bool
) -> None:
    opt = per_group(gradient_norm_penalty(0.1, 0.8), unroll=unroll)
    grads = clean(grad_fn, params)

    def step(params: Params) -> Any:
        return opt.update(grads, opt.init(params), params, grad_fn=grad_fn)

    primitives = {str(equation.primitive) for equation in jax.make_jaxpr(step)(params).eqns}
    assert ("tanh" in primitives) == unroll
    assert bool(primitives & {"scan", "while", "cond"}) != unroll


def test_unroll_that_is_no_bool_is_an_error() -> None:
    for make in (lambda: map_groups(lambda i: i, 2, unroll=0), lambda: per_group(PLAIN, unroll=1)):
        with pytest.raises(OptimizerError, match="unroll=. must be True or False"):
            make()


@pytest.mark.parametrize("count", [np.int64(2), np.array(2), jnp.int32(2)])
def test_a_count_may_be_any_integer(count: Any) -> None:
    np.testing.assert_array_equal(map_groups(jnp.asarray, count), [0, 1])


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "2", np.float64(2), np.int64(0)])
def test_a_count_that_is_none_is_an_error(count: Any) -> None:
    with pytest.raises(OptimizerError, match="must be an int >= 1"):
        map_groups(lambda group: group, count)


@pytest.mark.parametrize("unroll", quick_first([True, False]))
@pytest.mark.parametrize(
    "options",
    quick_first([{}, {"method": "hvp"}, {"normalize": True}, {"adaptive": True}], 2),
    ids=str,
)
def test_is_the_mean_of_the_groups(
    params: Params, grad_fn: Any, options: Any, unroll: bool
) -> None:
    penalty = gradient_norm_penalty(0.4, 0.8, **options)
    expected = mean_by_hand(penalty, grad_fn, params)
    opt = per_group(penalty, unroll=unroll)
    result, state = jax.jit(lambda g, s, p: opt.update(g, s, p, grad_fn=grad_fn))(
        clean(grad_fn, params), opt.init(params), params
    )
    assert_trees_close(result, expected, rtol=1e-5)
    assert isinstance(state, GradientNormPenaltyState) and state.count == 1


def test_differs_from_one_perturbation_of_the_mean(params: Params, grad_fn: Any) -> None:
    penalty = gradient_norm_penalty(0.4, 0.8)
    opt = per_group(penalty)
    own, _ = opt.update(clean(grad_fn, params), opt.init(params), params, grad_fn=grad_fn)

    def mean_fn(p: Params) -> Params:
        return jax.tree.map(lambda g: g.mean(0), clean(grad_fn, p))

    shared, _ = penalty.update(mean_fn(params), penalty.init(params), params, grad_fn=mean_fn)
    assert np.max(np.abs(own["w"] - shared["w"])) > 1e-2


def test_one_group_is_the_penalty_itself(params: Params, grad_fn: Any) -> None:
    penalty = gradient_norm_penalty(0.4, 0.8)
    opt = per_group(penalty)
    only = jax.tree.map(lambda g: g[:1], clean(grad_fn, params))
    result, _ = opt.update(only, opt.init(params), params, grad_fn=grad_fn)
    expected, _ = penalty.update(
        grad_fn(params, 0), penalty.init(params), params, grad_fn=lambda p: grad_fn(p, 0)
    )
    assert_trees_equal(result, expected)


def test_a_plain_step_is_the_mean_gradient_and_counts(params: Params, grad_fn: Any) -> None:
    opt = per_group(gradient_norm_penalty(0.4, 0.8))
    gradients = clean(grad_fn, params)
    result, state = opt.update(gradients, opt.init(params), params, penalize=False)
    assert_trees_close(result, jax.tree.map(lambda g: np.mean(g, axis=0), gradients))
    assert state.count == 1
    result_without, _ = opt.update(gradients, opt.init(params), penalize=False)
    assert_trees_close(result_without, result)


def test_schedules_are_read_once_a_step(params: Params, grad_fn: Any) -> None:
    opt = per_group(gradient_norm_penalty(lambda t: 0.1 * (t + 1), 0.8))
    state = opt.init(params)
    for step in range(2):
        result, state = opt.update(clean(grad_fn, params), state, params, grad_fn=grad_fn)
        fixed = gradient_norm_penalty(0.1 * (step + 1), 0.8)
        assert_trees_close(result, mean_by_hand(fixed, grad_fn, params), rtol=1e-5)


def test_in_a_chain_with_aux_and_a_mask(params: Params, x: jax.Array, grad_fn: Any) -> None:
    mask = {"w": True, "b": False}

    def with_aux(params: Params, group: Any) -> Any:
        return jax.grad(lambda p: (loss(p, x[group]), x[group]), has_aux=True)(params)

    gradients, aux = map_groups(lambda group: with_aux(params, group), K)
    np.testing.assert_array_equal(aux, x)
    penalty = gradient_norm_penalty(0.4, 0.8, where=mask, has_aux=True)
    opt = optax.chain(per_group(penalty), optax.sgd(1.0))
    updates, _ = opt.update(gradients, opt.init(params), params, grad_fn=with_aux)
    expected = mean_by_hand(gradient_norm_penalty(0.4, 0.8, where=mask), grad_fn, params)
    assert_trees_close(updates, jax.tree.map(np.negative, expected), rtol=1e-5)


def test_dtypes_and_none_leaves_are_kept(key: jax.Array) -> None:
    params = {"a": jnp.ones(500, jnp.bfloat16), "b": None, "c": jnp.ones(2)}
    gradient = jax.random.normal(key, (K, 500), jnp.bfloat16)
    gradients = {"a": gradient, "b": None, "c": None}
    opt = per_group(gradient_norm_penalty(0.0, 0.5))
    result, _ = opt.update(gradients, opt.init(params), params, grad_fn=lambda p, g: p)
    assert result["b"] is None and result["c"] is None
    # The mean in float32, rounded once.
    expected = jnp.asarray(np.mean(np.asarray(gradient, np.float32), axis=0), jnp.bfloat16)
    assert result["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (result["a"], expected)))


def test_looksam_goes_around(params: Params, grad_fn: Any) -> None:
    # It must see the mean plain gradient and the mean penalized one.
    penalty, weight = gradient_norm_penalty(0.4, 1.0), 0.7
    opt = looksam(per_group(penalty), weight)
    state = opt.init(params)
    u, state = opt.update(clean(grad_fn, params), state, params, grad_fn=grad_fn)
    expected = mean_by_hand(penalty, grad_fn, params)
    assert_trees_close(u, expected, rtol=1e-5)
    reused, _ = opt.update(clean(grad_fn, params), state, params, penalize=False)

    def flat(tree: Params) -> np.ndarray:
        return np.concatenate([np.asarray(tree[name], np.float64) for name in sorted(tree)])

    g = flat(jax.tree.map(lambda g: g.mean(0), clean(grad_fn, params)))
    across = flat(expected) - (flat(expected) @ g) / (g @ g) * g
    by_hand = g + weight * np.linalg.norm(g) / np.linalg.norm(across) * across
    np.testing.assert_allclose(flat(reused), by_hand, rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: looksam(gradient_norm_penalty(0.1, 0.5), 0.5),
        lambda: optax.chain(gradient_norm_penalty(0.1, 0.5), optax.sgd(0.1, momentum=0.9)),
    ],
)
def test_a_state_per_parameter_inside_is_an_error(make: Any, params: Params) -> None:
    with pytest.raises(OptimizerError, match="looksam\\(per_group"):
        per_group(make()).init(params)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda g: jax.tree.map(lambda x: x[0], g), "one leading axis of groups.*not .* 2, 4"),
        (lambda g: g | {"b": g["b"][:2]}, "one leading axis of groups.*not .* 2, 3"),
        (lambda g: g | {"b": jnp.zeros(())}, "not a leaf of shape ()"),
        (lambda g: g | {"b": jnp.zeros(K)}, "of shape \\(groups, \\*\\(2,\\)\\), not \\(3,\\)"),
        (lambda g: {"w": None, "b": None}, "at least one array"),
    ],
)
def test_updates_without_groups_are_an_error(
    params: Params, grad_fn: Any, change: Any, message: str
) -> None:
    opt = per_group(gradient_norm_penalty(0.1, 0.5))
    with pytest.raises(OptimizerError, match=message) as caught:
        opt.update(change(clean(grad_fn, params)), opt.init(params), params, grad_fn=grad_fn)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("penalize", [False, True])
def test_an_axis_outside_of_shard_map_is_an_error(
    params: Params, grad_fn: Any, penalize: bool
) -> None:
    opt = per_group(gradient_norm_penalty(0.1, 0.5), "data")
    with pytest.raises(OptimizerError, match="axis_name='data'.*shard_map") as caught:
        opt.update(
            clean(grad_fn, params), opt.init(params), params, grad_fn=grad_fn, penalize=penalize
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["params", "grad_fn"])
def test_a_penalized_step_without_its_arguments_is_an_error(
    params: Params, grad_fn: Any, missing: str
) -> None:
    opt = per_group(PLAIN)
    given = {"params": params, "grad_fn": grad_fn}
    del given[missing]
    with pytest.raises(OptimizerError, match=f"needs {missing}"):
        opt.update(clean(grad_fn, params), opt.init(params), **given)


@pytest.mark.parametrize("unroll", [True, False])
def test_penalized_gradients_of_the_groups_are_used(
    params: Params, grad_fn: Any, unroll: bool
) -> None:
    penalty = gradient_norm_penalty(0.4, 0.8)
    opt, gradients = per_group(penalty, unroll=unroll), clean(grad_fn, params)
    own = [
        penalized_gradient(lambda p, i=i: grad_fn(p, i), params, grad_fn(params, i), 0.4, 0.8)
        for i in range(K)
    ]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *own)
    result, state = opt.update(gradients, opt.init(params), params, penalized=stacked)
    assert_trees_close(result, mean_by_hand(penalty, grad_fn, params))
    assert state.count == 1
    # A plain step does not look at it.
    result, _ = opt.update(gradients, state, params, penalized="no gradient", penalize=False)
    assert_trees_close(result, jax.tree.map(lambda g: np.mean(g, axis=0), gradients))
    with pytest.raises(OptimizerError, match="penalized has b of shape \\(2,\\), not \\(3, 2\\)"):
        opt.update(gradients, state, params, penalized=own[0])


def test_a_traced_penalize_is_an_error(params: Params, grad_fn: Any) -> None:
    opt = per_group(gradient_norm_penalty(0.1, 0.5))
    with pytest.raises(OptimizerError, match="Python bool"):
        opt.update(clean(grad_fn, params), opt.init(params), params, penalize=jnp.array(True))


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, PartitionSpec
from optimizer import OptimizerError, gradient_norm_penalty, is_normalization, map_groups, per_group

params = {"dense": {"kernel": jnp.array([0.3, -1.2, 0.7, 0.5])}, "norm": {"scale": jnp.ones(2)}}
data = np.random.default_rng(0).normal(size=(5, 4, 2, 4)).astype(np.float32)  # steps of 4 groups

def loss(params, x):
    return jnp.mean(jnp.square(jnp.tanh(x @ params["dense"]["kernel"]) - params["norm"]["scale"]))

def gradient(params, x):
    return jax.grad(loss)(params, x)

def train(devices, check_vma, where, penalize=True):
    mesh = Mesh(jax.devices()[:devices], ("data",))
    penalty = gradient_norm_penalty(0.4, 0.8, where=where)
    opt = optax.chain(per_group(penalty, "data"), optax.sgd(0.5, momentum=0.9))

    def step(params, state, x):
        grad_fn = lambda p, group: gradient(p, x[group])
        own = jax.lax.pcast(params, "data", to="varying")
        grads = map_groups(lambda group: grad_fn(own, group), 4 // devices)
        updates, state = opt.update(grads, state, params, grad_fn=grad_fn, penalize=penalize)
        return optax.apply_updates(params, updates), state

    step = jax.jit(jax.shard_map(
        step, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(), check_vma=check_vma,
    ))
    result, state = params, opt.init(params)
    for x in data:
        result, state = step(result, state, x)
    assert state[0].count == 5
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])

def by_hand(where):
    penalty = gradient_norm_penalty(0.4, 0.8, where=where)
    opt = optax.sgd(0.5, momentum=0.9)
    result, state = params, opt.init(params)
    one = jax.jit(lambda p, x: penalty.update(
        gradient(p, x), penalty.init(p), p, grad_fn=lambda q: gradient(q, x))[0])
    for x in data:
        mean = jax.tree.map(lambda *g: sum(g) / 4, *[one(result, group) for group in x])
        updates, state = opt.update(mean, state, result)
        result = optax.apply_updates(result, updates)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])

for where in (None, is_normalization):
    expected = by_hand(where)
    for devices in (1, 2, 4):
        for check_vma in (True, False):
            actual = train(devices, check_vma, where)
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
one, four = train(1, True, None, penalize=False), train(4, True, None, penalize=False)
np.testing.assert_allclose(one, four, rtol=1e-6, atol=1e-6)
assert np.max(np.abs(one - train(1, True, None))) > 1e-2

def summed(x):
    grads = map_groups(lambda group: gradient(params, x[group]), 2)
    opt = per_group(gradient_norm_penalty(0.4, 0.8), "data")
    return opt.update(grads, opt.init(params), params, grad_fn=lambda p, group: p)[0]

try:
    jax.shard_map(summed, mesh=Mesh(jax.devices()[:2], ("data",)),
                  in_specs=PartitionSpec("data"), out_specs=PartitionSpec())(data[0])
except OptimizerError as error:
    assert "summed them over the devices" in str(error), error
else:
    raise AssertionError("gradients summed by shard_map were accepted")
print("done")
"""


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing(gnp_environment: dict[str, str]) -> None:
    flags = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(DEVICES)],
        capture_output=True,
        check=False,
        env=gnp_environment | flags,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0 and result.stdout == "done\n", result.stderr
