"""The structure of CaiT: layer scale, talking heads, class-attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from model.cait import ClassAttention, ClassBlock
from model.transformer import Block, SelfAttention
from tests.marks import quick_first

SIZES = [
    ("CaiT_XXS24", 11_956_264),
    ("CaiT_XXS36", 17_299_720),
    ("CaiT_S24", 46_916_200),
]
# Millions, as the paper rounds them.
ROUNDED = [("CaiT_XS24", 26.6), ("CaiT_S36", 68.2), ("CaiT_M24", 185.9), ("CaiT_M36", 270.9)]


def shapes(name, num_classes=1000, side=224):
    module = get_model(name, num_classes)
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)["params"]


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def drawn(module, *arguments):
    """Variables of a module for its arguments, without compiling its initializers."""
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: draw.normal(0, 0.3, leaf.shape).astype("f4"), variables)


def tokens(count=5, channels=6):
    return np.random.default_rng(0).normal(size=(2, count, channels)).astype(np.float32)


@pytest.mark.parametrize(("name", "parameters"), quick_first(SIZES))
def test_published_size(name, parameters):
    assert count(shapes(name)) == parameters


@pytest.mark.parametrize(("name", "millions"), quick_first(ROUNDED, 0))
def test_published_size_in_millions(name, millions):
    assert count(shapes(name)) / 1e6 == pytest.approx(millions, abs=0.2)


@pytest.mark.parametrize(
    ("name", "channels", "heads", "depth"),
    [
        ("CaiT_XXS12", 192, 4, 12),
        ("CaiT_XS12", 288, 6, 12),
        ("CaiT_S12", 384, 8, 12),
        ("CaiT_M48", 768, 16, 48),
        ("CaiT_S5", 384, 8, 5),
    ],
)
def test_names(name, channels, heads, depth):
    module = get_model(name, 10)
    assert (module.embed_dim, module.num_heads, module.depth) == (channels, heads, depth)
    assert module.class_depth == 2


def test_layer_scale_follows_the_depth_unless_given():
    def start(name, **params):
        module = get_model(name, 10, **params)
        x = jnp.zeros((1, 16, 16, 3))

        def gamma():
            params = module.init(jax.random.key(0), x, train=False)["params"]
            return params["blocks_0"]["gamma_1"][0], params["blocks_token_only_1"]["gamma_2"][0]

        return [float(value) for value in jax.jit(gamma)()]

    assert start("CaiT_XXS2") == pytest.approx([0.1, 0.1])
    assert start("CaiT_XXS2", layer_scale=1e-3) == pytest.approx([1e-3, 1e-3])
    assert start("CaiT_XXS2", variant="gnp") == pytest.approx([1e-5, 1e-5])
    assert start("CaiT_M2", variant="gnp") == pytest.approx([1e-6, 1e-6])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_layer_scale_out_of_range(value):
    with pytest.raises(ModelError, match=r"layer_scale = .*: must be a finite number"):
        get_model("CaiT_XXS2", 10, layer_scale=value)


@pytest.mark.slow
def test_stochastic_depth_is_the_published_one_unless_given():
    def rates(name, **params):
        module, found = get_model(name, 10, patch_size=4, **params), []

        def record(call, args, kwargs, context):
            if isinstance(context.module, nn.Dropout) and context.module.broadcast_dims:
                found.append(context.module.rate)
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            jax.eval_shape(
                lambda: module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
            )
        return found

    # Both branches of each block, class-attention not among them.
    assert rates("CaiT_XXS24") == [0.05] * 48
    assert rates("CaiT_XXS24", variant="gnp") == [0.0] * 48
    assert rates("CaiT_M2") == [0.0] * 4
    assert rates("CaiT_M2", stochastic_depth_rate=0.3) == [0.3] * 4


def test_talking_heads_against_the_definition():
    x, heads = tokens(), 2
    module = SelfAttention(heads, 0.0, 0.0, jnp.float32, talking=True)
    variables = drawn(module, x, False)
    p = variables["params"]

    def affine(layer, x):
        return x @ p[layer]["kernel"] + p[layer]["bias"]

    query, key, value = np.split(affine("qkv", x), 3, axis=-1)
    split = [part.reshape(2, 5, heads, 3).swapaxes(1, 2) for part in (query, key, value)]
    scores = split[0] @ split[1].swapaxes(2, 3) / np.sqrt(3)
    mixed = np.moveaxis(affine("proj_l", np.moveaxis(scores, 1, -1)), -1, 1)
    weights = np.exp(mixed) / np.exp(mixed).sum(-1, keepdims=True)
    weights = np.moveaxis(affine("proj_w", np.moveaxis(weights, 1, -1)), -1, 1)
    y = affine("proj", (weights @ split[2]).swapaxes(1, 2).reshape(2, 5, 6))
    np.testing.assert_allclose(
        jax.jit(lambda: module.apply(variables, x, train=False))(), y, rtol=1e-4, atol=1e-5
    )


def test_class_attention_asks_for_the_first_token_alone():
    x = tokens()
    module = ClassAttention(2, jnp.float32)
    variables = drawn(module, x)
    apply = jax.jit(lambda x: module.apply(variables, x))
    y = apply(x)
    assert y.shape == (2, 1, 6)
    # The order of the patches does not matter, which token is first does.
    np.testing.assert_allclose(apply(x[:, [0, 3, 2, 4, 1]]), y, rtol=1e-4, atol=1e-5)
    assert not np.allclose(apply(x[:, [1, 0, 2, 3, 4]]), y, atol=1e-3)


def test_tokens_stay_float32_from_block_to_block():
    # In bfloat16, a branch that layer scale makes small would be lost in the sum.
    module = get_model("CaiT_XXS2", 10, jnp.bfloat16, patch_size=4)
    found = []

    def record(call, args, kwargs, context):
        outputs = call(*args, **kwargs)
        if isinstance(context.module, (Block, ClassBlock)):
            found.append((args[0].dtype, outputs.dtype))
        return outputs

    with nn.intercept_methods(record):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))
    assert found == [(jnp.float32, jnp.float32)] * 4
