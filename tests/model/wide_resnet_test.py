"""The structure of the wide residual network."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.wide_resnet import Block
from tests.marks import quick_first
from tests.model.published import check
from tests.published import load


def shapes(name, classes=10, size=32, **params):
    module = get_model(name, classes, **params)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
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


PUBLISHED = {
    "init_conv": "stem",
    "ActivationOp_0/BatchNorm_0": "norm_1",
    "ActivationOp_1/BatchNorm_0": "norm_2",
    "conv1": "conv_1",
    "conv2": "conv_2",
    "Dense_0": "head",
}


def published_names(path):
    layer, _, leaf = path.rpartition("/")
    if layer == "ActivationOp_0/BatchNorm_0":
        return f"norm/{leaf}"
    block = re.match(r"WideResnetGroup_(\d)/WideResNetBlock_(\d)/", layer)
    ours = PUBLISHED[layer[block.end() :] if block else layer]
    return f"{in_block(block)}{ours}/{leaf}"


def in_block(match):
    return f"group_{int(match[1]) + 1}_block_{int(match[2]) + 1}/" if match else ""


@pytest.mark.parametrize(
    ("entry", "name", "options", "tolerance"),
    quick_first(
        [
            ("wrn_10_1_extra_skips", "WideResNet_10_1", {"group_skips": True}, 1e-5),
            ("wrn_10_1", "WideResNet_10_1", {}, 1e-5),
            # Theirs, in float32, has inputs of ReLU at the other side of zero than ours has, in
            # float32 as in float64: they are as small as 3e-6.
            ("wrn_16_1", "WideResNet_16_1", {}, 0.05),
            ("published/WideResNet_16_4", "WideResNet_16_4", {}, 1e-5),
            ("published/WideResNet_28_10", "WideResNet_28_10", {}, 1e-5),
        ],
        0,  # tests/gnp/training/published_test.py trains the second one
    ),
)
def test_values_of_the_penaltys_authors(entry, name, options, tolerance):
    module = get_model(name, 10, variant="gnp", **options)
    check(entry, module, published_names, tolerance=tolerance)


@pytest.mark.parametrize(
    "name", quick_first(["WideResNet_16_4", "WideResNet_28_10", "WideResNet_40_10"])
)
def test_size_of_the_penaltys_authors(name):
    counts = load("gnp_models")[1]["parameter_counts"][name]
    for classes, size in ((10, 32), (100, 32), (1000, 224)):
        params = shapes(name, classes, size, variant="gnp")
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count == counts[f"{classes} classes, {size}x{size}"]["parameters"]


def test_last_layer_of_the_penaltys_authors_is_uniform(key):
    module = get_model("WideResNet_10_4", 100, variant="gnp")
    published = load("gnp_models")[1]["initialisers"]["wrn"]["params/Dense_0/kernel"]

    @jax.jit
    def kernel_of(key):
        return module.init(key, jnp.ones((1, 4, 4, 3)), train=False)["params"]["head"]["kernel"]

    kernel = kernel_of(key)
    assert kernel.shape == tuple(published["shape"])
    assert float(kernel.std()) == pytest.approx(published["std"], rel=0.02)
    assert float(jnp.abs(kernel).max()) == pytest.approx(published["max"], rel=0.001)


def test_variants():
    with pytest.raises(ModelError, match=r"variant = 'sam': must be one of paper, gnp"):
        get_model("WideResNet_16_4", 10, variant="sam")
