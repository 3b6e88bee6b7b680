"""The structure of the Swin transformer: windows, their shift, merging."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.swin import PatchMerging, WindowAttention, relative_positions
from tests.marks import quick_first

SIZES = [("Swin_Tiny", 28_288_354), ("Swin_Small", 49_606_258), ("Swin_Base", 87_768_224)]


def shapes(name, size, **params):
    module = get_model(name, 1000, **params)
    x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)["params"]


def drawn(module, x, *arguments):
    """Variables of a module for x, without compiling its initializers."""
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, *arguments))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: draw.normal(0, 0.5, leaf.shape).astype("f4"), variables)


def image(h, w, c=4):
    return np.random.default_rng(0).normal(size=(2, h, w, c)).astype(np.float32)


@pytest.mark.parametrize(("name", "parameters"), quick_first(SIZES))
def test_published_size(name, parameters):
    params = shapes(name, (224, 224))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_depths_and_rates_of_the_sizes():
    tiny, base = get_model("Swin_Tiny", 10), get_model("Swin_Base", 10)
    assert (tiny.depths, tiny.num_heads) == ((2, 2, 6, 2), (3, 6, 12, 24))
    assert (base.depths, base.num_heads) == ((2, 2, 18, 2), (4, 8, 16, 32))
    rates = [get_model(name, 10).stochastic_depth_rate for name, _ in SIZES]
    assert rates == [0.2, 0.3, 0.5]


def test_lists_stand_for_tuples():
    module = get_model("Swin_Tiny", 10, depths=[2, 2], num_heads=[3, 6])
    assert (module.depths, module.num_heads) == ((2, 2), (3, 6))


def attention_over_the_whole_map(params, x, window, shift, heads):
    """Every token with every other, where both are in one window of a grid moved by the shift."""
    b, h, w, c = x.shape
    row, column = (axis.ravel() for axis in np.indices((h, w)))
    place = [
        (axis - far) // side for axis, far, side in zip((row, column), shift, window, strict=True)
    ]
    together = np.all([axis[:, None] == axis for axis in place], axis=0)
    apart = row[:, None] - row, column[:, None] - column
    table = params["relative_position_bias_table"].reshape(
        2 * window[0] - 1, 2 * window[1] - 1, heads
    )
    inside = [
        np.where(together, axis, 0) + side - 1 for axis, side in zip(apart, window, strict=True)
    ]
    bias = np.moveaxis(table[inside[0], inside[1]], -1, 0)

    def affine(layer, x):
        return x @ params[layer]["kernel"] + params[layer]["bias"]

    qkv = affine("qkv", x.reshape(b, h * w, c)).reshape(b, h * w, 3, heads, c // heads)
    query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
    scores = query @ key.swapaxes(2, 3) / np.sqrt(c // heads) + bias
    weights = np.where(together, np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    return affine("proj", (weights @ value).swapaxes(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((4, 6), (2, 3), (0, 0)),
        ((6, 6), (3, 3), (1, 1)),
        ((4, 8), (2, 4), (1, 2)),
        ((4, 8), (4, 4), (0, 2)),
    ],
)
def test_windows_against_attention_over_the_whole_map(size, window, shift):
    x = image(*size)
    module = WindowAttention(window, shift, 2, 0.0, 0.0, jnp.float32)
    variables = drawn(module, x, False)
    shifted = jax.jit(lambda x: module.apply(variables, x, train=False))
    expected = attention_over_the_whole_map(variables["params"], x, window, shift, heads=2)
    np.testing.assert_allclose(shifted(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [8, 4])
def test_every_second_block_is_shifted_unless_the_window_is_the_map(side):
    shifts = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, WindowAttention):
            shifts.append(context.module.shift)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes("Swin_Tiny", (side, side), patch_size=1, window_size=4, depths=(3,), num_heads=(3,))
    assert shifts == [(0, 0), (2, 2) if side == 8 else (0, 0), (0, 0)]


def test_the_window_shrinks_with_the_map():
    params = shapes("Swin_Tiny", (32, 64), patch_size=4, window_size=8)
    tables = [
        params[f"layers_{stage}"]["blocks_1"]["attn"]["relative_position_bias_table"].shape
        for stage in range(4)
    ]
    assert tables == [(15 * 15, 3), (7 * 15, 6), (3 * 7, 12), (1 * 3, 24)]


def test_relative_positions_of_a_window():
    index = relative_positions((2, 3))
    assert index.shape == (6, 6)
    assert np.unique(index).tolist() == list(range(3 * 5))
    assert np.all(np.diag(index) == 7)
    # One step in the same direction is the same entry wherever it starts.
    assert index[0, 1] == index[1, 2] == index[3, 4] == 6


def test_merging_goes_column_by_column():
    x = image(2, 4, c=3)
    module = PatchMerging(jnp.float32)
    variables = drawn(module, x)
    params = variables["params"]
    y = np.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = (y * params["norm"]["scale"] + params["norm"]["bias"]) @ params["reduction"]["kernel"]
    np.testing.assert_allclose(
        jax.jit(lambda: module.apply(variables, x))(), y, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("size", "params", "message"),
    [
        ((32, 32), {}, "a side of 8 tokens does not divide into windows of 7"),
        ((56, 40), {}, "a side of 10 tokens does not divide into windows of 7"),
        ((28, 28), {}, "a map of 7 x 7 tokens cannot be halved"),
        ((30, 32), {}, "does not divide into patches of 4 x 4"),
    ],
)
def test_images_that_do_not_fit(size, params, message):
    with pytest.raises(ModelError, match=message) as error:
        shapes("Swin_Tiny", size, **params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"depths": (2, 2)}, "must have one number for each stage"),
        ({"depths": (2, 0, 6, 2)}, "whole numbers of at least 1"),
        ({"num_heads": (3, 6, 12, 25)}, "must divide the 768 channels"),
        ({"window_size": 0}, "model_params.window_size = 0: must be at least 1"),
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises(ModelError, match=message):
        get_model("Swin_Tiny", 10, **params)
