"""CIFAR's residual networks: their shortcuts and depths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.layers import subsample_and_pad
from model.resnet import BasicBlock


@pytest.mark.parametrize(
    ("shape", "strides", "features", "before", "after"),
    [
        ((2, 4, 6, 8), 2, 16, 4, 4),
        ((2, 5, 3, 2), 2, 7, 2, 3),
        ((1, 3, 3, 2), 1, 2, 0, 0),
    ],
)
def test_a_shortcut_takes_every_second_pixel_between_zeros(shape, strides, features, before, after):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows, columns = range(0, shape[1], strides), range(0, shape[2], strides)
    expected = np.zeros((shape[0], len(rows), len(columns), features), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            expected[:, i, j, before : features - after] = x[:, row, column]
    np.testing.assert_array_equal(subsample_and_pad(jnp.asarray(x), strides, features), expected)


def test_only_shortcuts_that_change_the_shape_are_padded():
    """Where the kernels are zeros, a block's output is relu of its shortcut."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 2)), jnp.float32)
    for features, strides in ((4, 2), (2, 1)):
        block = BasicBlock(features, strides, padded=True)
        shapes = jax.eval_shape(lambda b=block: b.init(jax.random.key(0), x, train=False))
        assert set(shapes["params"]) == {"conv1", "bn1", "conv2", "bn2"}
        y = block.apply(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), x, train=False)
        expected = x if strides == 1 else jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((1, 1),))
        np.testing.assert_array_equal(y, jnp.maximum(expected, 0))


@pytest.mark.parametrize(("depth", "nearest"), [(18, 20), (22, 20), (2, 8), (111, 110)])
def test_depth_must_be_6n_plus_2(depth, nearest):
    with pytest.raises(ModelError) as error:
        get_model(f"CifarResNet{depth}", 10)
    assert "the depth must be 6n + 2, at least 8" in str(error.value)
    assert str(error.value).endswith(f"nearest: {nearest}")
