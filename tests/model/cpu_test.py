"""The CPU's formulations against the plain ones, and the switch between them."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.test_util import check_grads

from model import cpu, layers
from tests.trees import assert_trees_close

assert_trees_close = functools.partial(assert_trees_close, rtol=1e-5, atol=1e-5)


def on(platform):
    """Trace for the devices of a platform, whether or not this machine has any."""
    device = AbstractDevice(platform, None, platform)
    mesh = AbstractMesh((4,), ("data",), (AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def primitives(function, *arguments):
    """Return the names of the primitives of a program, those inside of calls included."""
    return set(re.findall(r"= (?:\S+ )*?([a-z_0-9]+)\[", str(jax.make_jaxpr(function)(*arguments))))


@pytest.mark.parametrize(("platform", "expected"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_the_mesh_says_for_what_a_program_is(monkeypatch, platform, expected):
    # Where the mesh says it, this process' own devices are not asked.
    monkeypatch.setattr(jax, "default_backend", None)
    with on(platform):
        assert cpu.is_target() is expected


def test_a_compiled_function_is_traced_again_for_other_devices():
    seen = []

    @jax.jit
    def function(x):
        seen.append(cpu.is_target())
        return x

    for platform in ("gpu", "cpu", "gpu"):
        with on(platform):
            jax.eval_shape(function, jnp.ones(2))
    assert seen == [False, True]


@pytest.mark.parametrize(("backend", "expected"), [("cpu", True), ("gpu", False)])
def test_without_a_mesh_of_devices_the_default_backend_says_it(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert cpu.is_target() is expected
    with jax.sharding.use_abstract_mesh(AbstractMesh((4,), ("data",))):
        assert cpu.is_target() is expected


def test_a_mesh_of_this_machine_and_what_is_inside_of_shard_map(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", None)
    seen = []

    def body(x):
        seen.append(cpu.is_target())
        return x

    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert cpu.is_target()
        jax.jit(jax.shard_map(body, in_specs=jax.P(), out_specs=jax.P()))(jnp.ones(2))
    assert seen == [True]


@pytest.mark.parametrize(
    ("function", "shapes", "plain"),
    [
        (layers.conv, [(8, 6, 6, 1), (3, 3, 1, 2)], {"conv_general_dilated"}),
        (layers.conv, [(8, 6, 6, 2), (3, 3, 2, 2)], {"conv_general_dilated"}),
        (layers.max_pool, [(8, 6, 6, 2)], {"reduce_window_max"}),
        (layers.overlapping_max_pool, [(8, 6, 6, 2)], {"reduce_window_max"}),
    ],
    ids=["conv of one channel", "conv", "max_pool", "overlapping_max_pool"],
)
def test_other_devices_have_the_plain_formulations(key, function, shapes, plain):
    arguments = [jax.random.normal(key, shape) for shape in shapes]
    with on("gpu"):
        assert primitives(function, *arguments) == plain
        program = jax.make_jaxpr(function)(*arguments)
    with on("cpu"):
        assert primitives(function, *arguments) != plain
    (theirs,) = jax.core.eval_jaxpr(program.jaxpr, program.consts, *arguments)
    assert_trees_close(jax.jit(function)(*arguments), theirs)


def test_other_devices_go_through_a_loop():
    def total(x):
        return cpu.fori_loop(3, lambda index, sum_: sum_ + index * x[index], jnp.float32(0))

    x = jnp.arange(3.0)
    with on("gpu"):
        assert "scan" in primitives(total, x)
        assert float(total(x)) == 5.0
    assert "scan" not in primitives(total, x)
    assert float(total(x)) == 5.0


def test_xla_keeps_its_own_convolutions_on_the_cpu():
    def normalized(x, kernel):
        y = layers.conv(x, kernel)
        return y - y.mean((0, 1, 2), keepdims=True)

    arguments = jnp.ones((64, 14, 14, 32)), jnp.ones((3, 3, 32, 32))
    step = jax.jit(normalized, compiler_options=cpu.compiler_options("cpu"))
    program = step.lower(*arguments).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    assert re.search(r" convolution\(", entry)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_keep_their_defaults(platform):
    assert cpu.compiler_options(platform) == {}


def test_the_images_are_copied_without_the_operations_that_made_them():
    def loss(kernels, x):
        return jnp.sum(jnp.square(cpu.conv(nn.relu(cpu.conv(x, kernels[0])), kernels[1])))

    x, kernels = jnp.ones((2, 4, 4, 3)), [jnp.ones((3, 3, 3, 5)), jnp.ones((3, 3, 5, 4))]
    program = jax.jit(jax.grad(loss)).lower(kernels, x).compile().as_text()
    copied = re.findall(r"f32\[(\d+),4,4,2\]\S* call\(", program)
    assert sorted(copied) == ["3", "5"]


@pytest.mark.parametrize("channels", [1, 2])
def test_conv_maps_over_groups(channels):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 3, 4, 4, channels)).astype("f4")
    kernel = draw.normal(size=(3, 3, channels, 2)).astype("f4")
    gradient = jax.jit(jax.grad(lambda kernel, x: jnp.sum(jnp.sin(cpu.conv(x, kernel)))))
    mapped = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(kernel, x)
    assert_trees_close(mapped, np.stack([gradient(kernel, group) for group in x]))


def test_max_pools_take_ties_and_nan_as_flax_does():
    """Of three values, most windows have ties; the first in its window has all of the gradient."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.integers(0, 3, (2, 5, 7, 1)), jnp.float32)
    weights = draw.normal(size=(2, 3, 4, 1)).astype("f4")

    def of(pool):
        def loss(x):
            y = pool(x)
            return jnp.sum(y * weights[:, : y.shape[1], : y.shape[2]]), y

        # The first pixel of a window, and the last of another.
        return jax.grad(loss, has_aux=True)(x)[0], pool(
            x.at[0, 0, 2].set(jnp.nan).at[1, 1, 1].set(jnp.nan)
        )

    flat, overlapping = (
        lambda x: nn.max_pool(x, (2, 2), (2, 2)),
        lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
    )
    pools = (cpu.max_pool, cpu.overlapping_max_pool, flat, overlapping)
    *ours, one, other = jax.jit(lambda x: [of(pool) for pool in pools])(x)
    assert_trees_close(ours, [one, other])
    assert np.isnan(one[1]).sum() == 2


@pytest.mark.parametrize(
    "shape",
    [
        (2, 7, 6, 2),
        pytest.param((2, 6, 8, 3), marks=pytest.mark.slow),
        pytest.param((2, 7, 5, 2), marks=pytest.mark.slow),
        pytest.param((1, 1, 2, 1), marks=pytest.mark.slow),
    ],
)
def test_overlapping_max_pool_equals_flax(shape):
    @jax.jit
    def values(x):
        def theirs(x):
            return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

        def gradient(pool):
            return jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x)

        halves = x.astype(jnp.bfloat16)
        pools = (cpu.overlapping_max_pool, theirs)
        return [(pool(x), gradient(pool), pool(halves)) for pool in pools]

    (y, gradient, halves), theirs = values(jax.random.normal(jax.random.key(0), shape))
    np.testing.assert_array_equal(y, theirs[0])
    np.testing.assert_allclose(gradient, theirs[1], rtol=1e-5)
    assert halves.dtype == jnp.bfloat16
    np.testing.assert_array_equal(halves, theirs[2])


@pytest.mark.slow
def test_overlapping_max_pool_differentiates_in_every_order():
    x = jnp.asarray(np.random.default_rng(0).permutation(20).reshape(1, 4, 5, 1) / 9, jnp.float32)
    pool = jax.jit(lambda x: jnp.sin(cpu.overlapping_max_pool(x)))
    check_grads(pool, (x,), order=2, modes=("fwd", "rev"), eps=1e-2, atol=0.05, rtol=0.05)
