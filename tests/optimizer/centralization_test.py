"""Centralization: output axes of Flax's layers, properties, masks and dtypes."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer import (
    Axes,
    OptimizerError,
    centralize,
    flax_axes,
    is_convolution,
    output_first,
)
from tests.marks import quick_first
from tests.trees import assert_trees_equal

HEADS, LAST = {3: (0,)}, {2: (0,), 3: (0, 1), 4: (0, 1, 2), 5: (0, 1, 2, 3)}
ATTENTION = {"query": HEADS, "key": HEADS, "value": HEADS, "out": LAST}
STACKED_ATTENTION = {"query": {4: (1,)}, "key": {4: (1,)}, "value": {4: (1,)}, "out": {4: (1, 2)}}


def shapes(module: nn.Module, *inputs: tuple[int, ...]) -> Any:
    """Return the shapes of a layer's parameters, and their axes as the layer declares them."""
    arrays = [jnp.zeros(shape) for shape in inputs]
    params = jax.eval_shape(partial(module.init, jax.random.key(0)), *arrays)["params"]
    return params, flax_axes(module, *arrays)


def cell(module: Any, features: tuple[int, ...]) -> Any:
    """Return what `shapes` does of a recurrent cell."""
    key, x = jax.random.key(0), jnp.zeros(features)
    carry = module.initialize_carry(key, x.shape)
    params = jax.eval_shape(module.init, key, carry, x)["params"]
    return params, flax_axes(module, carry, x)


class Stack(nn.Module):
    """Three layers of one kind in a scan, which stacks their kernels."""

    layer: Any = nn.Dense(4, name="Dense_0")

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return scan(self.layer.copy(), x, None)


class NonLocal(nn.Module):
    """Convolutions with the names of attention's projections, as in SAGAN."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        sizes = {"query": 2, "key": 2, "value": 3, "qkv": 9}
        for name, size in sizes.items():
            y = nn.Conv(size, (1, 1), use_bias=self.use_bias, name=name)(x)
        return nn.Conv(6, (1, 1), use_bias=self.use_bias, name="out")(y[..., :3])


class Tables(nn.Module):
    """Parameters without output units."""

    @nn.compact
    def __call__(self) -> Any:
        sizes = {"pos_embedding": (1, 4, 5), "cls_token": (1, 1, 5), "bias_table": (3, 4)}
        sizes |= {"relative_position_bias_table": (9, 2), "logit_scale": (2, 1, 1)}
        return [self.param(name, nn.initializers.ones, size) for name, size in sizes.items()]


@cache
def layers() -> dict[str, tuple[Any, Any]]:
    """Return name -> (what `shapes` does of a layer, axes of the mean).

    The axes are one tuple for all of its kernels, or for each layer in it by rank. () is: leave it
    alone.
    """
    return {
        "Conv_1d": (shapes(nn.Conv(5, (3,)), (1, 8, 2)), (0, 1)),
        "Conv_2d": (shapes(nn.Conv(5, (3, 3)), (1, 8, 8, 2)), (0, 1, 2)),
        "Conv_2d_without_bias": (
            shapes(nn.Conv(2, (3, 3), use_bias=False), (1, 8, 8, 2)),
            (0, 1, 2),
        ),
        "Conv_3d": (shapes(nn.Conv(5, (3, 3, 3)), (1, 8, 8, 8, 2)), (0, 1, 2, 3)),
        "Conv_depthwise": (
            shapes(nn.Conv(4, (3, 3), feature_group_count=4), (1, 8, 8, 4)),
            (0, 1, 2),
        ),
        "ConvTranspose": (shapes(nn.ConvTranspose(5, (3, 3)), (1, 8, 8, 2)), (0, 1, 2)),
        "ConvTranspose_transposed": (
            shapes(nn.ConvTranspose(5, (3, 3), transpose_kernel=True), (1, 8, 8, 2)),
            (0, 1, 3),
        ),
        "ConvLocal": (shapes(nn.ConvLocal(5, (3,)), (1, 8, 2)), (1,)),
        "Dense": (shapes(nn.Dense(5), (1, 7)), (0,)),
        "DenseGeneral": (
            shapes(nn.DenseGeneral(features=(2, 3), axis=(-2, -1)), (1, 4, 5)),
            (0, 1),
        ),
        "DenseGeneral_batched": (
            shapes(nn.DenseGeneral(features=(3,), axis=(-1,), batch_dims=(0,)), (2, 4, 5)),
            (1,),
        ),
        "Einsum": (shapes(nn.Einsum((3, 4), "abc,cd->abd"), (1, 2, 3)), (0,)),
        "MultiHeadDotProductAttention": (
            shapes(nn.MultiHeadDotProductAttention(2, qkv_features=6), (1, 5, 4)),
            ATTENTION,
        ),
        "MultiHeadDotProductAttention_without_bias": (
            shapes(nn.MultiHeadDotProductAttention(4, qkv_features=16, use_bias=False), (1, 5, 4)),
            ATTENTION,
        ),
        "LSTMCell": (cell(nn.LSTMCell(4), (3,)), (0,)),
        "OptimizedLSTMCell": (cell(nn.OptimizedLSTMCell(4), (3,)), (0,)),
        "GRUCell": (cell(nn.GRUCell(4), (3,)), (0,)),
        "ConvLSTMCell": (cell(nn.ConvLSTMCell(4, (3, 3)), (5, 5, 2)), (0, 1, 2)),
        "Stack": (shapes(Stack(), (1, 4)), (1,)),
        # As many layers as the window is wide, where the bias fits three pairs of axes.
        "Stack_of_Conv": (shapes(Stack(nn.Conv(4, (3, 3))), (1, 8, 8, 4)), (1, 2, 3)),
        "Stack_of_DenseGeneral": (
            shapes(Stack(nn.DenseGeneral((2, 6), (-2, -1))), (1, 2, 6)),
            (1, 2),
        ),
        "Stack_of_attention": (
            shapes(Stack(nn.MultiHeadDotProductAttention(4)), (1, 5, 8)),
            STACKED_ATTENTION,
        ),
        "Stack_of_attention_without_bias": (
            shapes(Stack(nn.MultiHeadDotProductAttention(4, use_bias=False)), (1, 5, 8)),
            STACKED_ATTENTION,
        ),
        "NonLocal": (shapes(NonLocal(), (1, 4, 4, 6)), (0, 1, 2)),
        "NonLocal_without_bias": (shapes(NonLocal(use_bias=False), (1, 4, 4, 6)), (0, 1, 2)),
        "Embed": (
            (
                jax.eval_shape(nn.Embed(7, 3).init, jax.random.key(0), jnp.zeros(2, int))["params"],
                flax_axes(nn.Embed(7, 3), jnp.zeros(2, int)),
            ),
            (),
        ),
        "Tables": (shapes(Tables()), ()),
        "BatchNorm": (shapes(nn.BatchNorm(True), (2, 3)), ()),
        "LayerNorm": (shapes(nn.LayerNorm(), (2, 3)), ()),
    }


@cache
def tree() -> Any:
    """Return the shapes of all the layers' parameters."""
    return {name: shape for name, ((shape, _), _) in layers().items()}


def paths() -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree())
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def mean_axes(path: str, leaf: jax.Array) -> tuple[int, ...]:
    """Return the axes of the mean, from the table above."""
    name, *_ = path.split("/")
    axes = layers()[name][1]
    if leaf.ndim <= 1 or path.endswith("/bias"):
        return ()
    return axes[path.split("/")[-2]][leaf.ndim] if isinstance(axes, dict) else axes


@jax.jit
def centralized(grads: Any) -> Any:
    opt = centralize(axes={name: axes for name, ((_, axes), _) in layers().items()})
    return opt.update(grads, opt.init(grads))[0]


def draw(seed: int, exponent: int) -> Any:
    """Draw gradients of all the layers, not centered."""
    generator = np.random.default_rng(seed)

    def leaf(shape: Any) -> np.ndarray:
        x = generator.normal(generator.normal(), 1.0, shape.shape) * 10.0**exponent
        return x.astype(np.float32)

    return jax.tree.map(leaf, tree())


seeds, exponents = st.integers(0, 10**6), st.integers(-12, 12)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(seed=seeds, exponent=exponents)
def test_every_output_unit_of_every_layer_has_mean_zero(seed: int, exponent: int) -> None:
    grads = draw(seed, exponent)
    result = centralized(grads)
    leaves = zip(paths(), jax.tree.leaves(grads), jax.tree.leaves(result), strict=True)
    for path, before, after in leaves:
        axes = mean_axes(path, before)
        if not axes:
            np.testing.assert_array_equal(after, before, path)
            continue
        expected = before - np.mean(before, axes, np.float64, keepdims=True)
        tolerance = 1e-6 * np.max(np.abs(before))
        np.testing.assert_allclose(after, expected, 0, tolerance, err_msg=path)
        means = np.mean(np.asarray(after, np.float64), axes)
        np.testing.assert_allclose(means, 0, 0, tolerance, err_msg=path)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(seed=seeds, exponent=exponents)
def test_centralization_is_a_projection(seed: int, exponent: int) -> None:
    a, b = draw(seed, exponent), draw(seed + 1, 0)
    pa, pb = centralized(a), centralized(b)
    trees = (a, b, pa, pb, centralized(pa))
    for path, *leaves in zip(paths(), *map(jax.tree.leaves, trees), strict=True):
        a_, b_, pa_, pb_, ppa_ = (np.asarray(leaf, np.float64) for leaf in leaves)
        np.testing.assert_allclose(ppa_, pa_, 0, 1e-6 * np.max(np.abs(a_)), err_msg=path)
        size = np.linalg.norm(a_) * np.linalg.norm(b_)
        assert abs(np.vdot(pa_, b_) - np.vdot(a_, pb_)) <= 1e-6 * size, path


def update(opt: optax.GradientTransformation, grads: Any, params: Any = None) -> Any:
    return opt.update(grads, opt.init(grads if params is None else params), params)[0]


def test_centralize_of_optax_averages_the_wrong_axes_of_a_flax_kernel() -> None:
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8)) + 1.0
    ours, theirs = update(centralize(), kernel), update(optax.centralize(), kernel)
    assert np.max(np.abs(np.mean(theirs, (0, 1, 2)))) > 0.1
    np.testing.assert_allclose(np.mean(ours, (0, 1, 2)), 0, atol=1e-6)
    transposed = update(optax.centralize(), jnp.moveaxis(kernel, -1, 0))
    np.testing.assert_allclose(ours, jnp.moveaxis(transposed, 0, -1), atol=1e-6)


def test_units_do_not_mix() -> None:
    # A gradient that reaches one output unit leaves the other units at zero.
    kernel = jnp.zeros((3, 3, 2, 5)).at[..., 2].set(jnp.arange(18.0).reshape(3, 3, 2))
    result = update(centralize(), {"kernel": kernel})["kernel"]
    assert np.all(np.asarray(result)[..., [0, 1, 3, 4]] == 0)
    np.testing.assert_allclose(result[..., 2].ravel(), np.arange(18.0) - 8.5, atol=1e-5)


KERNEL = jnp.arange(12.0).reshape(3, 4)
CENTRALIZED = KERNEL - jnp.mean(KERNEL, 0, keepdims=True)


@pytest.mark.parametrize(
    "path",
    [
        "embedding",
        "pos_embed",
        "position_x",
        "cls_token",
        "bias",
        "scale",
        "mask_token",
        "wte",
        "table",
    ],
)
def test_leaves_without_output_units_pass(path: str) -> None:
    assert_trees_equal(update(centralize(), {path: KERNEL}), {path: KERNEL})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: [x],
        lambda x: {"embedding": {"kernel": x}},  # the patches' projection
        lambda x: {"patch_embed": {"proj": {"kernel": x}}},
        lambda x: {"position_wise": {"kernel": x}},
        lambda x: {"compose": x},
        lambda x: {"postprocess": {"w": x}},
        lambda x: {"query": {"kernel": x}},
    ],
    ids=[
        "array",
        "list",
        "embedding_kernel",
        "patches",
        "position_wise",
        "compose",
        "haiku",
        "query",
    ],
)
def test_other_leaves_are_centralized(wrap: Callable[[Any], Any]) -> None:
    (result,) = jax.tree.leaves(update(centralize(), wrap(KERNEL)))
    np.testing.assert_allclose(np.squeeze(result), CENTRALIZED, atol=1e-6)


def test_a_table_of_haiku_is_known_by_its_layer() -> None:
    grads = {"token_embedding": {"w": KERNEL}, "linear": {"w": KERNEL}}
    expected = {"token_embedding": {"w": KERNEL}, "linear": {"w": CENTRALIZED}}
    assert_trees_equal(update(centralize(), grads), expected)


def test_leaves_named_weight_pass_unless_declared_or_selected() -> None:
    convolution = jax.random.normal(jax.random.key(0), (5, 2, 3, 3))
    grads = {
        "linear": {"weight": KERNEL, "bias": jnp.ones(3)},
        "conv": {"weight": convolution, "bias": jnp.ones((5, 1, 1))},
    }
    with pytest.warns(UserWarning, match=r"alone.*: conv\.weight, linear\.weight; declare"):
        assert_trees_equal(update(centralize(), grads), grads)
    assert is_convolution({"layers": [grads["conv"]]}) == {
        "layers": [{"weight": True, "bias": False}]
    }
    selected = centralize(lambda p: jax.tree.map(lambda x: x.ndim in (2, 4), p))
    for opt in (centralize(axes=output_first), selected):
        result = update(opt, grads)
        expected = grads["linear"]["weight"] - jnp.mean(KERNEL, 1, keepdims=True)
        np.testing.assert_allclose(result["linear"]["weight"], expected, atol=1e-6)
        np.testing.assert_allclose(np.mean(result["conv"]["weight"], (1, 2, 3)), 0, atol=1e-6)
        assert np.max(np.abs(result["conv"]["weight"])) > 0.5


@pytest.mark.parametrize(
    "name, shape, axes",
    [
        ("query", (1, 1, 6, 4), (0, 1, 2)),
        ("qkv", (1, 1, 6, 12), (0, 1, 2)),
        ("qkv", (3, 3, 6, 12), (0, 1, 2)),
        ("qkv", (6, 3, 2, 4), 0),
    ],
)
def test_projections_without_bias(name: str, shape: tuple[int, ...], axes: Any) -> None:
    grad = jax.random.normal(jax.random.key(0), shape)
    for tree in ({name: grad}, {"block": {name: {"kernel": grad}}}):
        (result,) = jax.tree.leaves(update(centralize(), tree))
        np.testing.assert_allclose(result, grad - np.mean(grad, axes, keepdims=True), atol=1e-6)


def test_a_transposed_convolution_as_wide_as_its_window() -> None:
    # The axis of the window fits the bias too.
    grad = jax.random.normal(jax.random.key(0), (3, 3, 3, 2))
    result = update(centralize(), {"kernel": grad, "bias": jnp.ones(3)})["kernel"]
    np.testing.assert_allclose(np.mean(result, (0, 1, 3)), 0, atol=1e-6)


def test_a_fused_attention_kernel_has_all_axes_but_the_first_as_outputs() -> None:
    kernel = jax.random.normal(jax.random.key(0), (4, 3, 2, 5))
    result = update(centralize(), {"qkv": {"kernel": kernel}})["qkv"]["kernel"]
    np.testing.assert_allclose(np.mean(result, 0), 0, atol=1e-6)


def test_masks_as_a_tree_and_as_a_function() -> None:
    grads = {"a": KERNEL, "w": KERNEL, "c": jnp.ones(3)}
    mask = {"a": False, "w": True, "c": True}
    expected = grads | {"w": CENTRALIZED}
    for where in (mask, lambda params: mask):
        assert_trees_equal(update(centralize(where), grads), expected)
    # A mask does not make a kernel of a table, axes do; a leaf of rank 1 passes.
    grads = {"embedding": KERNEL, "bias": jnp.ones(3)}
    everything = lambda params: jax.tree.map(lambda _: True, params)  # noqa: E731
    assert_trees_equal(update(centralize(everything), grads), grads)
    axes = {"embedding": Axes((), (0,), (1,)), "bias": None}
    result = update(centralize(everything, axes), grads)
    assert_trees_equal(result, {"embedding": CENTRALIZED, "bias": jnp.ones(3)})


def test_a_function_sees_params_or_else_the_updates() -> None:
    seen = []

    def where(tree: Any) -> Any:
        seen.append(tree)
        return jax.tree.map(lambda _: True, tree)

    opt = centralize(where)
    params, grads = {"a": jnp.ones((2, 2))}, {"a": jnp.zeros((2, 2))}
    state = opt.init(params)
    opt.update(grads, state, params)
    opt.update(grads, state)
    assert [tree is params for tree in seen] == [True, True, False] and seen[2] is grads


@pytest.mark.parametrize(
    "where", [{"b": True}, {"a": 1.0}, lambda params: [True]], ids=["structure", "leaf", "function"]
)
def test_a_wrong_mask_is_an_error_in_init_and_update(where: Any) -> None:
    grads = {"a": KERNEL}
    opt = centralize(where)
    with pytest.raises(OptimizerError, match="where must"):
        opt.init(grads)
    with pytest.raises(OptimizerError, match="where must"):
        opt.update(grads, optax.EmptyState(), grads)


@pytest.mark.slow
def test_convolutions_are_told_from_the_other_layers() -> None:
    mask = is_convolution(tree())
    assert jax.tree.structure(mask) == jax.tree.structure(tree())
    found = {path for path, is_one in zip(paths(), jax.tree.leaves(mask), strict=True) if is_one}
    convolutions = ("Conv", "NonLocal", "Stack_of_Conv")
    assert found == {p for p in paths() if p.startswith(convolutions) and p.endswith("/kernel")}


@pytest.mark.parametrize(
    "path, shape, expected",
    [
        (("stem",), (3, 3, 3, 8), True),
        (("out",), (3, 3, 3, 8), True),
        (("embedding", "kernel"), (16, 16, 3, 8), True),
        (("Conv_0", "kernel"), (3, 4, 8), True),
        (("conv1d", "kernel"), (3, 4, 8), True),
        (("Dense_0", "kernel"), (3, 4, 8), False),
        (("proj", "kernel"), (3, 4, 8), False),
        (("query", "kernel"), (2, 3, 4, 8), True),
        (("query", "kernel"), (3, 4, 8), False),
        (("einsum_0", "kernel"), (2, 3, 4, 8), False),
        (("linear", "kernel"), (2, 3, 4, 8), False),
        (("stem", "kernel"), (2, 2, 3, 3, 4, 8), False),
        (("conv", "weight"), (8, 4, 3, 3), True),
        (("qkv", "kernel"), (6, 3, 4, 8), False),
        (("DenseGeneral_0", "kernel"), (2, 3, 4, 8), False),
        (("pos_embed",), (1, 14, 14, 8), False),
        (("Conv_0", "bias"), (4, 4, 8), False),
        ((), (3, 3, 3, 8), True),
        ((), (3, 8), False),
    ],
)
def test_is_convolution_by_name_and_rank(
    path: tuple[str, ...], shape: tuple[int, ...], expected: bool
) -> None:
    tree: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name in reversed(path):
        tree = {name: tree}
    assert jax.tree.leaves(is_convolution(tree)) == [expected]


def test_a_bias_of_several_axes_tells_a_kernel_from_a_convolution() -> None:
    kernel = jnp.zeros((3, 3, 4, 8))
    for bias, expected in (((8,), True), ((4, 8), False), ((3, 8), False)):
        tree = {"stem": {"kernel": kernel, "bias": jnp.zeros(bias)}}
        assert is_convolution(tree)["stem"]["kernel"] is expected


@pytest.mark.parametrize("name", ["query", "out", "qkv"])
def test_a_bias_of_one_axis_tells_a_convolution_from_attention(name: str) -> None:
    tree = {name: {"kernel": jnp.zeros((6, 3, 4, 8)), "bias": jnp.zeros(8)}}
    assert is_convolution(tree)[name]["kernel"] is True


def test_attention_that_a_scan_stacks_is_no_convolution() -> None:
    sizes = dict.fromkeys(("query", "key", "value"), (2, 6, 3, 4)) | {"out": (2, 3, 4, 6)}
    tree = {name: {"kernel": jnp.zeros(size)} for name, size in sizes.items()}
    assert not any(jax.tree.leaves(is_convolution(tree)))


def test_convolutions_only() -> None:
    grads = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}, "dense": {"kernel": jnp.ones((3, 4))}}
    result = update(centralize(is_convolution), grads)
    expected = grads | {"conv": {"kernel": jnp.zeros((3, 3, 2, 4))}}
    assert_trees_equal(result, expected)


@pytest.mark.slow
def test_modules_of_nnx() -> None:
    attention = nnx.MultiHeadAttention(2, 4, 6, decode=False, rngs=nnx.Rngs(0))
    params = nnx.state({"attention": attention, "embed": nnx.Embed(5, 3, rngs=nnx.Rngs(0))})
    params = nnx.filter_state(params, nnx.Param)
    result = update(centralize(), params)
    assert jax.tree.structure(result) == jax.tree.structure(params)
    for name, axes in {"query": 0, "key": 0, "value": 0, "out": (0, 1)}.items():
        kernel = result["attention"][name]["kernel"]
        np.testing.assert_allclose(np.mean(jax.tree.leaves(kernel)[0], axes), 0, atol=1e-6)
    assert_trees_equal(result["embed"], params["embed"])


@pytest.mark.parametrize(
    "dtype", quick_first(["bfloat16", "complex64", "float32", "float16", "float64"], 2)
)
def test_dtypes_are_kept(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        grads = {"kernel": jnp.ones((4096, 2), dtype).at[0, 0].set(3.0)}
        result = update(centralize(), grads)["kernel"]
        assert result.dtype == dtype
        expected = np.asarray(grads["kernel"], np.complex128)
        expected = expected - expected.mean(0, keepdims=True)
        tolerance = {"float64": 1e-15, "bfloat16": 1e-2, "float16": 1e-3}.get(dtype, 1e-6)
        np.testing.assert_allclose(np.asarray(result, np.complex128), expected, 0, tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_mean_is_wide(dtype: str) -> None:
    # The mean of two neighboring numbers is none of the dtype's.
    step = jnp.finfo(dtype).eps
    result = update(centralize(), jnp.array([[1.0], [1.0 + step]], dtype))
    np.testing.assert_array_equal(result, jnp.array([[-step / 2], [step / 2]], dtype))


def test_none_leaves_and_holes_stay() -> None:
    params = {"a": KERNEL, "b": KERNEL, "c": None, "d": KERNEL}
    grads = params | {"b": None, "d": optax.MaskedNode()}
    result = update(centralize(), grads, grads | {"b": KERNEL})
    assert result["b"] is None and result["c"] is None and result["d"] == optax.MaskedNode()
    np.testing.assert_array_equal(result["a"], CENTRALIZED)


def test_a_unit_of_one_element_gets_no_gradient() -> None:
    result = update(centralize(), {"kernel": jnp.arange(4.0).reshape(1, 4)})
    assert_trees_equal(result, {"kernel": jnp.zeros((1, 4))})


@pytest.mark.slow
def test_the_mean_weight_of_each_unit_stays() -> None:
    grad_fn = jax.grad(lambda p: jnp.sum(jnp.sin(p["kernel"] * 3.0)))
    params = {"kernel": jax.random.normal(jax.random.key(0), (6, 3))}
    start = np.mean(params["kernel"], 0)
    opt = optax.chain(centralize(), optax.sgd(0.1, momentum=0.9))
    state = opt.init(params)
    for _ in range(10):
        updates, state = opt.update(grad_fn(params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(np.mean(params["kernel"], 0), start, atol=1e-5)
    assert state[0] == optax.EmptyState()
