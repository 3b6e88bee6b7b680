"""The structure of the wide residual network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.wide_resnet import Block


def shapes(name, **params):
    module = get_model(name, 10, **params)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)["params"]


def test_convolutions_of_a_depth_of_16():
    params = shapes("WideResNet_16_4")
    kernels = [leaf.shape for leaf in jax.tree.leaves(params) if len(leaf.shape) == 4]
    assert sum(shape[:2] == (3, 3) for shape in kernels) == 13
    assert sum(shape[:2] == (1, 1) for shape in kernels) == 3
    assert params["group_1_block_1"]["conv_1"]["kernel"].shape == (3, 3, 16, 64)
    assert params["group_3_block_2"]["conv_2"]["kernel"].shape == (3, 3, 256, 256)
    assert params["norm"]["scale"].shape == (256,)
    assert "shortcut" not in params["group_1_block_2"]
    assert "bias" not in params["stem"]


def test_convolutions_start_from_the_published_distribution(key):
    module = get_model("WideResNet_10_1", 10)

    @jax.jit
    def kernel_of(key):
        params = module.init(key, jnp.ones((1, 4, 4, 3)), train=False)["params"]
        return params["group_3_block_1"]["conv_1"]["kernel"]

    # 32 channels in, 64 out: fan in and fan out differ.
    kernel = kernel_of(key)
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(("depth", "nearest"), [(17, 16), (21, 22), (4, 10), (1, 10)])
def test_depth_must_be_6n_plus_4(depth, nearest):
    with pytest.raises(ModelError) as error:
        get_model(f"WideResNet_{depth}_4", 10)
    assert "6n + 4" in str(error.value)
    assert str(error.value).endswith(f"nearest: {nearest}")


def test_shortcut_starts_behind_norm_and_relu(key):
    block = Block(features=4, strides=2, dropout_rate=0.0)
    x = jax.random.normal(key, (2, 4, 4, 3))
    variables = jax.jit(lambda: block.init(key, x, train=False))()
    params = variables["params"]
    # Without the residual branch, what is left is the shortcut.
    params["conv_2"]["kernel"] = jnp.zeros_like(params["conv_2"]["kernel"])
    y = jax.jit(lambda variables: block.apply(variables, x, train=False))(variables)
    normalized = jnp.maximum(x / jnp.sqrt(1 + 1e-5), 0)[:, ::2, ::2]
    np.testing.assert_allclose(
        y, jnp.einsum("bhwc,co->bhwo", normalized, params["shortcut"]["kernel"][0, 0]), atol=1e-5
    )
