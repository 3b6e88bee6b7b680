"""Axes of parameters: what is known, what is declared, what is left alone, and who reads them."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optimizer import (
    Axes,
    OptimizerError,
    adamg,
    axes_of,
    centralize,
    flax_axes,
    geometry,
    grassmann_labels,
    orthogonality_penalty,
    output_first,
    parameter_kinds,
    sgdg,
    unit_norm,
    unknown_axes,
)
from optimizer.axes import is_axes
from tests.marks import quick_first
from tests.trees import assert_trees_close, assert_trees_equal

OPTIMIZERS = [sgdg, adamg]
# Three layers of a convolution, as nn.scan stacks them, and as wide as it is deep.
STACK = (3, 3, 3, 4, 8)
STACKED = Axes((0,), (1, 2, 3), (4,))


class Block(nn.Module):
    """A layer with a normalization, the body of a scan."""

    layer: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        return nn.LayerNorm()(self.layer()(x)), None


class Deep(nn.Module):
    """Some blocks in a scan, or one after another in a vmap."""

    layer: Callable[[], nn.Module]
    layers: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        scan = nn.scan(Block, length=self.layers, **options)
        return scan(self.layer, name="blocks")(x, None)[0]


def random(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape) + 0.5


def kernel_of(tree: Any) -> Any:
    (found,) = [
        axes
        for path, axes in jax.tree_util.tree_leaves_with_path(
            tree, is_leaf=lambda x: isinstance(x, Axes)
        )
        if path[-1].key == "kernel"
    ]
    return found


# What is known.

CONV = partial(nn.Conv, 4, (3, 3), use_bias=False)
LINEAR = partial(nn.Dense, 4, use_bias=False)


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        (CONV, (1, 5, 5, 4), STACKED),
        (partial(nn.Conv, 4, (3,), use_bias=False), (1, 5, 4), Axes((0,), (1, 2), (3,))),
        (LINEAR, (1, 4), Axes((0,), (1,), (2,))),
        (partial(nn.Dense, 4), (1, 4), Axes((0,), (1,), (2,))),
        (partial(nn.Conv, 4, (3, 3)), (1, 5, 5, 4), STACKED),
    ],
)
@pytest.mark.parametrize("layers", [3, 4])  # as many as the window is wide, and as inputs
def test_stacks_of_scan(layer: Any, size: Any, expected: Axes, layers: int) -> None:
    module, x = Deep(layer, layers), jnp.zeros(size)
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    declared = flax_axes(module, x)
    assert kernel_of(declared) == expected and axes_of(params) == declared
    assert unknown_axes(params) == []


def test_stacks_of_vmap() -> None:
    ensemble = nn.vmap(
        nn.Conv, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=3
    )
    module = ensemble(8, (3, 3), use_bias=False)
    axes = flax_axes(module, jnp.zeros((3, 1, 5, 5, 4)))
    assert axes == {"kernel": STACKED}


def test_a_stack_that_is_not_in_front_is_left_alone() -> None:
    options = {"split_rngs": {"params": True}, "axis_size": 3}
    module = nn.vmap(nn.Dense, variable_axes={"params": 1}, **options)(8, use_bias=False)
    assert flax_axes(module, jnp.zeros((3, 1, 4))) == {"kernel": None}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("transpose_kernel", [True, False])
@pytest.mark.parametrize("features", [3, 5])
def test_both_layouts_of_transposed_convolutions(
    use_bias: bool, transpose_kernel: bool, features: int
) -> None:
    module = nn.ConvTranspose(
        features, (2, 2), use_bias=use_bias, transpose_kernel=transpose_kernel
    )
    x = jnp.zeros((1, 4, 4, 3))
    expected = Axes((), (0, 1, 3), (2,)) if transpose_kernel else Axes((), (0, 1, 2), (3,))
    assert flax_axes(module, x)["kernel"] == expected
    params = {"ConvTranspose_0": jax.eval_shape(module.init, jax.random.key(0), x)["params"]}
    # Only a bias tells them apart, and only where inputs and outputs differ in number.
    known = axes_of(params)["ConvTranspose_0"]["kernel"]
    assert known == (expected if use_bias and features != 3 else None)
    assert unknown_axes(params) == ([] if known else ["ConvTranspose_0.kernel"])


@pytest.mark.parametrize("use_bias", [True, False])
def test_attention_is_known_together(use_bias: bool) -> None:
    module = nn.MultiHeadDotProductAttention(2, qkv_features=6, use_bias=use_bias)
    x = jnp.zeros((1, 5, 4))
    params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    axes = axes_of(params)
    assert axes["query"]["kernel"] == Axes((), (0,), (1, 2))
    assert axes["out"]["kernel"] == Axes((), (0, 1), (2,))
    assert axes == flax_axes(module, x)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("Dense_0", "kernel"), (4, 4, 8), Axes((0,), (1,), (2,))),
        (("Conv_0", "kernel"), (3, 4, 8), Axes((), (0, 1), (2,))),
        (("w",), (4, 8), Axes((), (0,), (1,))),
        (("stem",), (3, 3, 4, 8), Axes((), (0, 1, 2), (3,))),
        (("embedding",), (9, 4), None),
        (("bias",), (3, 4), None),
        (("kernel",), (4,), None),
    ],
)
def test_names_and_shapes_that_are_certain(names: Any, shape: Any, expected: Any) -> None:
    tree: Any = jnp.ones(shape)
    for name in reversed(names):
        tree = {name: tree}
    assert jax.tree.leaves(axes_of(tree), is_leaf=lambda x: isinstance(x, Axes)) == (
        [expected] if expected else []
    )
    assert unknown_axes(tree) == []


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (("experts", "kernel"), (4, 8, 8)),
        (("experts",), (4, 8, 8)),
        (("up", "kernel"), (8, 8, 8)),
        (("Conv_0", "kernel"), STACK),  # or a 3-D convolution
        (("query", "kernel"), (4, 2, 2)),  # or a dense layer, stacked
        (("DenseGeneral_0", "kernel"), (2, 3, 4, 8)),
        (("linear", "weight"), (8, 4)),
    ],
)
def test_what_has_two_readings_is_left_alone_and_said(names: Any, shape: Any) -> None:
    tree: Any = random(shape)
    for name in reversed(names):
        tree = {name: tree}
    assert unknown_axes(tree) == [".".join(names)]
    opt = centralize()
    with pytest.warns(UserWarning, match=rf"centralize leaves alone.*{names[0]}.*axes="):
        state = opt.init(tree)
    assert_trees_equal(opt.update(tree, state, tree)[0], tree)


def test_attention_is_unknown_where_stacked_layers_have_the_same_shapes() -> None:
    kernels = {name: {"kernel": jnp.ones((4, 4, 4))} for name in ("query", "out")}
    assert unknown_axes(kernels) == ["out.kernel", "query.kernel"]


def test_the_warning_comes_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        opt = centralize()
        for _ in range(3):
            opt.init({"a": {"weight": KERNEL}})
    assert len(caught) == 1


KERNEL = random((3, 4))


class Linear(NamedTuple):
    """A layer as Equinox and PyTorch have them: output first."""

    weight: jax.Array
    bias: jax.Array | None = None


def test_an_equinox_model_is_centralized_when_its_layout_is_declared() -> None:
    model = {
        "layers": [Linear(random((8, 4)), random((8,))), Linear(random((8, 4, 3, 3)))],
        "embed": Linear(random((9, 4))),
        "norm": Linear(random((8, 8))),
        "activation": None,
    }
    opt = centralize(axes=output_first)
    result, _ = opt.update(model, opt.init(model), model)
    np.testing.assert_allclose(np.mean(result["layers"][0].weight, 1), 0, atol=1e-6)
    np.testing.assert_allclose(np.mean(result["layers"][1].weight, (1, 2, 3)), 0, atol=1e-6)
    for name in ("embed", "norm"):
        assert_trees_equal(result[name], model[name])
    assert_trees_equal(result["layers"][0].bias, model["layers"][0].bias)


def test_a_state_dict_of_torch() -> None:
    """Its keys are paths; an (out, in) kernel is not taken for one of Flax."""
    state = {
        "layer1.0.conv1.weight": jnp.ones((8, 3, 3, 3)),
        "layer1.0.bn1.weight": jnp.ones(8),
        "fc.weight": jnp.ones((10, 8)),
        "fc.bias": jnp.ones(10),
        "wte.weight": jnp.ones((30, 4)),
    }
    kernels = {"layer1.0.conv1.weight", "fc.weight"}
    assert {*unknown_axes(state)} == kernels | {"wte.weight"}
    assert set(jax.tree.leaves(axes_of(state), is_leaf=is_axes)) == {None}
    axes = output_first(state)
    assert {name for name in state if axes[name]} == kernels
    assert axes["fc.weight"] == Axes((), (1,), (0,))
    assert parameter_kinds(state)["fc.bias"] == "bias"


def test_output_first_behind_a_stack() -> None:
    axes = output_first({"linear": {"weight": jnp.ones((3, 8, 4))}}, stack=1)
    assert axes == {"linear": {"weight": Axes((0,), (2,), (1,))}}


def test_modules_of_nnx() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.ConvTranspose(3, 3, (2, 2), transpose_kernel=True, rngs=rngs)
            self.general = nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=rngs)

    model = Model(nnx.Rngs(0))
    axes = flax_axes(model)
    leaves = {
        jax.tree_util.keystr(path[:2], simple=True, separator="."): a
        for path, a in jax.tree_util.tree_leaves_with_path(
            axes, is_leaf=lambda x: isinstance(x, Axes)
        )
    }
    assert leaves == {
        "conv.kernel": Axes((), (0, 1, 3), (2,)),
        "general.kernel": Axes((), (0, 1), (2, 3)),
    }
    params = nnx.state(model, nnx.Param)
    result, _ = centralize(axes=axes).update(params, optax.EmptyState(), params)
    np.testing.assert_allclose(
        np.mean(result["conv"]["kernel"].get_value(), (0, 1, 3)), 0, atol=1e-6
    )


# What is declared.


@pytest.mark.parametrize(
    "axes",
    [
        {"a": Axes((0,), (1,), (2,)), "b": None},
        lambda params: {"a": Axes((0,), (1,), (2,)), "b": None},
    ],
)
def test_declared_axes_as_a_tree_a_prefix_and_a_function(axes: Any) -> None:
    params = {"a": {"x": random((4, 8, 8)), "y": random((2, 3, 5))}, "b": {"kernel": KERNEL}}
    result, _ = centralize(axes=axes).update(params, optax.EmptyState(), params)
    for name in ("x", "y"):
        np.testing.assert_allclose(np.mean(result["a"][name], 1), 0, atol=1e-6)
        assert np.max(np.abs(np.mean(result["a"][name], 0))) > 0.01
    assert_trees_equal(result["b"], params["b"])


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"b": None}, "axes must be a pytree of Axes and None.*nothing for a$"),
        ({"a": Axes([], [0], [1])}, "of a, of shape .3, 4., must be .* name, in tuples, each of"),
        ({"a": Axes((), 0, 1)}, "of a, of shape .3, 4., must be .* name, in tuples, each of"),
        ({"a": Axes((), (0,), (2,))}, "of a, of shape .3, 4., must be None or Axes"),
        ({"a": Axes((), (), (0, 1))}, "one of them as input"),
        ({"a": True}, "axes=True of a"),
    ],
)
def test_wrong_axes(axes: Any, message: str) -> None:
    for use in (centralize(axes=axes).init, sgdg(0.1, axes=axes).init, partial(axes_of, axes=axes)):
        with pytest.raises(OptimizerError, match=message):
            use({"a": KERNEL})


# Who reads them.


def test_experts_are_centralized_each_on_its_own() -> None:
    g = random((4, 8, 8))
    result, _ = centralize(axes=Axes((0,), (1,), (2,))).update(g, optax.EmptyState(), g)
    np.testing.assert_allclose(result, g - np.mean(g, 1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("use_bias", quick_first([True, False]))
@pytest.mark.parametrize("layers", quick_first([3, 4]))
def test_layers_of_a_scan_are_centralized_each_on_its_own(use_bias: bool, layers: int) -> None:
    module = Deep(partial(nn.Dense, 4, use_bias=use_bias), layers)
    grads = module.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    grads = jax.tree.map(lambda x: random(x.shape), grads)
    opt = centralize()
    result, _ = opt.update(grads, opt.init(grads))
    g, actual = (tree["blocks"]["Dense_0"]["kernel"] for tree in (grads, result))
    np.testing.assert_allclose(actual, g - np.mean(g, 1, keepdims=True), atol=1e-6)


def test_the_grassmann_group_counts_the_inputs_of_one_layer() -> None:
    """Three layers of (1, 1, 4, 8) have 12 numbers before the output, and are not tall."""
    scales = {"norm": {"scale": jnp.ones((3, 8))}}
    wide = {"Conv_0": {"kernel": jnp.ones((3, 1, 1, 4, 8))}} | scales
    tall = {"Conv_0": {"kernel": jnp.ones((3, 3, 3, 4, 8))}} | scales
    assert grassmann_labels(wide)["Conv_0"]["kernel"] == "euclidean"
    assert grassmann_labels(tall)["Conv_0"]["kernel"] == "grassmann"
    declared = {"Conv_0": {"kernel": STACKED}, "norm": None}
    assert grassmann_labels(wide, axes=declared)["Conv_0"]["kernel"] == "euclidean"
    first = Axes((), (1, 2, 3), (0,))
    params = {"conv": {"weight": jnp.ones((4, 2, 3, 3))}}
    assert grassmann_labels(params, axes=output_first) == {"conv": {"weight": "grassmann"}}
    assert axes_of(params, output_first)["conv"]["weight"] == first


@pytest.mark.slow
def test_unit_norm_and_penalty_of_a_stack_go_layer_by_layer() -> None:
    kernels = random(STACK)
    unit = unit_norm(kernels, "grassmann", STACKED)
    np.testing.assert_allclose(np.sum(np.square(unit), (1, 2, 3)), 1, rtol=1e-6)
    penalty = orthogonality_penalty(kernels, "grassmann", 0.3, STACKED)
    v = np.asarray(kernels, np.float64).reshape(3, 36, 8)
    each = [0.15 * np.sum((layer.T @ layer - np.eye(8)) ** 2) for layer in v]
    np.testing.assert_allclose(penalty, np.sum(each), rtol=1e-5)
    one = orthogonality_penalty(jnp.moveaxis(kernels[1], -1, 0), "grassmann", 0.3, OUTPUT_FIRST)
    np.testing.assert_allclose(one, each[1], rtol=1e-5)


OUTPUT_FIRST = Axes((), (1, 2, 3), (0,))


@pytest.mark.parametrize("size", [1e-25, 5e-9, 1e25])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tiny_and_huge_columns_are_points(optimizer: Any, size: float) -> None:
    kernel = geometry.unit(random((4, 3)))
    np.testing.assert_allclose(unit_norm(size * kernel, "grassmann"), kernel, rtol=1e-6)
    state, g = optimizer(0.1).init(kernel), random((4, 3), 1)
    _, expected = optimizer(0.1).update(g, state, kernel)
    _, actual = optimizer(0.1).update(g, state, size * kernel)
    assert_trees_close(actual, expected)


def moved(opt: Any, params: Any, gradients: Any) -> Any:
    state = opt.init(params)
    for g in gradients:
        updates, state = opt.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", tuple(OPTIMIZERS))
def test_layers_of_a_stack_move_as_alone(optimizer: Any) -> None:
    params, *gradients = (random(STACK, seed) for seed in range(4))
    actual, state = moved(optimizer(0.1, grad_clip=0.5, axes=STACKED), params, gradients)
    for layer in range(3):
        expected, _ = moved(
            optimizer(0.1, grad_clip=0.5), params[layer], [g[layer] for g in gradients]
        )
        assert_trees_close(actual[layer], expected)
    if optimizer is adamg:
        assert state.nu.shape == (3, 1, 1, 1, 8)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", tuple(OPTIMIZERS))
def test_a_transposed_convolution_moves_along_its_inputs(optimizer: Any) -> None:
    params, *gradients = (random((2, 2, 3, 5), seed) for seed in range(4))
    swap = lambda x: jnp.swapaxes(x, -1, -2)  # noqa: E731
    tree = lambda x: {"kernel": swap(x), "bias": jnp.zeros(5)}  # noqa: E731
    axes = axes_of(tree(params))
    assert axes["kernel"] == Axes((), (0, 1, 3), (2,))
    opt = optax.partition(
        {"grassmann": optimizer(0.1, axes=axes), "euclidean": optax.sgd(0.1)},
        {"kernel": "grassmann", "bias": "euclidean"},
    )
    actual, _ = moved(opt, tree(params), map(tree, gradients))
    assert_trees_close(swap(actual["kernel"]), moved(optimizer(0.1), params, gradients)[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unknown_axes_are_an_error_of_one_line(optimizer: Any) -> None:
    with pytest.raises(OptimizerError, match=r"^\w+ moves .*experts has .*no known axes.*axes=$"):
        optimizer(0.1).init({"experts": random((4, 8, 8))})


# Leaves that hold no numbers to change a little.

OTHERS = {
    "int": jnp.full((2, 2), 16_777_217),
    "bool": jnp.ones((2, 2), bool),
    "key": jax.random.split(jax.random.key(0), 4).reshape(2, 2),
}


@pytest.mark.parametrize("name", quick_first(tuple(OTHERS)))
def test_integers_bools_and_keys_pass(name: str) -> None:
    params = {"w": random((3, 3, 2, 4)), name: OTHERS[name]}
    assert axes_of(params)[name] is None and unknown_axes(params) == []
    grads = params | {name: np.zeros((2, 2), jax.dtypes.float0)}
    opt = centralize(lambda tree: jax.tree.map(lambda _: True, tree))
    assert opt.update(params, opt.init(params), params)[0][name] is params[name]
    assert grassmann_labels(params)[name] == "euclidean"
    for function in (unit_norm, partial(orthogonality_penalty, omega=0.1)):
        function(params, "grassmann")
    assert unit_norm(params, "grassmann")[name] is params[name]
    for optimizer in OPTIMIZERS:
        opt = optimizer(0.1)
        updates, state = opt.update(grads, opt.init(params), params)
        assert updates[name] is grads[name]
        alone = {"w": params["w"]}
        assert_trees_equal(updates["w"], opt.update(alone, opt.init(alone), alone)[0]["w"])


# Columns that devices share.


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", quick_first(tuple(OPTIMIZERS)))
def test_columns_split_over_an_axis_move_as_whole(optimizer: Any) -> None:
    params, *gradients = (random((8, 5), seed) for seed in range(4))
    params = geometry.unit(params)
    split = lambda x: x.reshape(4, 2, 5)  # noqa: E731
    opt = optimizer(0.1, grad_clip=0.5, axis_name="d")
    run = jax.vmap(lambda p, *g: moved(opt, p, g)[0], axis_name="d")
    actual = run(split(params), *map(split, gradients)).reshape(8, 5)
    assert_trees_close(actual, moved(optimizer(0.1, grad_clip=0.5), params, gradients)[0])
    scaled = jax.vmap(partial(unit_norm, labels="grassmann", axis_name="d"), axis_name="d")
    np.testing.assert_allclose(scaled(split(3 * params)).reshape(8, 5), params, rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_axis_name_outside_of_shard_map(optimizer: Any) -> None:
    opt = optimizer(0.1, axis_name="d")
    with pytest.raises(OptimizerError, match="axis_name='d', and update is called outside"):
        opt.update(KERNEL, opt.init(KERNEL), KERNEL)


# Derivatives through a step of zero.


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", quick_first(tuple(OPTIMIZERS)))
def test_derivatives_through_a_first_step_of_zero(optimizer: Any) -> None:
    """Take the gradient of the parameters after a step, by its gradient, where that is zero."""
    y = geometry.unit(random((4, 1)))

    def after(g: jax.Array) -> jax.Array:
        return moved(optimizer(0.1), y, [g, 0 * g])[0][:, 0]

    jacobian = jax.jacobian(after)(jnp.zeros((4, 1)))[..., 0]
    if optimizer is sgdg:  # both steps together turn by -lr (1 + μ) times the tangent part
        np.testing.assert_allclose(jacobian, -0.19 * (np.eye(4) - y @ y.T), atol=1e-6)
    assert np.all(np.isfinite(jacobian)) and np.max(np.abs(jacobian)) > 0.1
    rate = jax.grad(lambda lr: jnp.sum(moved(optimizer(lr), y, [0 * y])[0]))(0.1)
    assert rate == 0


@pytest.mark.slow
def test_flax_is_needed_by_flax_axes_alone() -> None:
    code = "import sys, optimizer; assert 'flax' not in sys.modules"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


SHARDED = """
import jax, numpy as np, optax
from jax.sharding import AxisType, PartitionSpec as P
from optimizer import adamg, constrain, sgdg

mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
p, g = jax.random.normal(jax.random.key(0), (2, 8, 20))

def two_steps(opt):
    def run(p, g):
        state = opt.init(p)
        for _ in range(2):
            updates, state = opt.update(g, state, p)
            p = optax.apply_updates(p, updates)
        return p
    return run

for make in (
    lambda **on: sgdg(0.1, grad_clip=0.5, **on),
    lambda **on: adamg(0.1, **on),
    lambda **on: constrain(optax.adam(0.1), "oblique", **on),
    lambda **on: constrain(optax.adam(0.1), "sphere", **on),
    lambda **on: constrain(optax.sgd(0.1), "hyperball", 0.1, **on),
):
    whole = two_steps(make())(p, g)
    rows, columns = P("d"), P(None, "d")
    shared = jax.shard_map(two_steps(make(axis_name="d")), mesh=mesh, in_specs=rows, out_specs=rows)
    np.testing.assert_allclose(jax.jit(shared)(p, g), whole, atol=1e-6)
    alone = jax.shard_map(two_steps(sgdg(0.1)), mesh=mesh, in_specs=columns, out_specs=columns)
    np.testing.assert_allclose(jax.jit(alone)(p, g), two_steps(sgdg(0.1))(p, g), atol=1e-6)
"""


@pytest.mark.slow
def test_columns_on_four_devices() -> None:
    flags = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=Path(__file__).parents[2],
        env=os.environ | flags,
        check=True,
        timeout=300,
    )
