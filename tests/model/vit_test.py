"""The structure of the vision transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import ModelError, get_model
from tests.marks import quick_first

SIZES = [
    ("ViT_TI16", 5_717_416),
    ("ViT_S16", 22_050_664),
    ("ViT_B16", 86_567_656),
    ("ViT_L16", 304_326_632),
]


def shapes(name, side=224, num_classes=1000, **params):
    module = get_model(name, num_classes, **params)
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)["params"]


@pytest.mark.parametrize(("name", "parameters"), quick_first(SIZES))
def test_published_size(name, parameters):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(name))) == parameters


@pytest.mark.slow
def test_any_patch():
    params = shapes("ViT_S4", side=32, num_classes=10)
    assert params["patch_embed"]["proj"]["kernel"].shape == (4, 4, 3, 384)
    assert params["pos_embed"].shape == (1, 8 * 8 + 1, 384)
    assert shapes("ViT_TI7", side=28)["pos_embed"].shape == (1, 4 * 4 + 1, 192)


def test_sides_may_differ(key):
    module = get_model("ViT_TI8", 10, depth=1)
    x = jax.ShapeDtypeStruct((2, 16, 32, 1), jnp.float32)
    logits, variables = jax.eval_shape(lambda x: module.init_with_output(key, x, train=False), x)
    assert logits.shape == (2, 10)
    assert variables["params"]["pos_embed"].shape == (1, 2 * 4 + 1, 192)


@pytest.mark.slow
def test_start(key):
    module = get_model("ViT_TI4", 10, depth=1)

    @jax.jit
    def start(key):
        params = module.init(key, jnp.ones((1, 8, 8, 3)), train=False)["params"]
        block = params["blocks_0"]
        return block["mlp"]["fc1"], block["norm1"], params["cls_token"]

    dense, norm, token = start(key)
    assert float(dense["kernel"].std()) == pytest.approx(0.02, rel=0.02)
    assert not dense["bias"].any()
    assert np.all(norm["scale"] == 1)
    assert 0 < np.abs(token).max() < 1e-5


@pytest.mark.parametrize("name", ["ViT_H16", "ViT_16", "ViT_TI", "ViT_Ti16", "ViT_S04"])
def test_unknown_sizes(name):
    with pytest.raises(ModelError, match=r"unknown model_name .*ViT_S{patch}"):
        get_model(name, 10)


def test_the_name_gives_the_patch():
    with pytest.raises(ModelError, match=r"unknown model_params.patch for ViT_S16"):
        get_model("ViT_S16", 10, patch=4)
