"""What a parameter is told from its place, and masks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from optimizer import OptimizerError, is_normalization, parameter_kinds
from optimizer.parameters import leaf_path, resolve_mask


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.LayerNorm()(nn.Conv(4, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=True, use_bias=False)(x)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(x)
        return nn.BatchNorm(use_running_average=True, use_scale=False)(x)


def paths_of(tree: Any) -> list[str]:
    return ["/".join(leaf_path(path)) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_kinds_of_linen_layers() -> None:
    shapes = jax.eval_shape(Block().init, jax.random.key(0), jnp.ones((1, 8, 8, 4)))["params"]
    kinds = dict(zip(paths_of(shapes), jax.tree.leaves(parameter_kinds(shapes)), strict=True))
    attention = "MultiHeadDotProductAttention_0"
    expected = {f"{attention}/{name}/kernel": "weight" for name in ("query", "key", "value", "out")}
    expected |= {f"{attention}/{name}/bias": "bias" for name in ("query", "key", "value", "out")}
    expected |= {
        "Conv_0/kernel": "weight",
        "Conv_0/bias": "bias",
        "LayerNorm_0/scale": "scale",
        "LayerNorm_0/bias": "offset",
        "BatchNorm_0/scale": "scale",
        # Without a scale beside it, by the layer's name.
        "BatchNorm_1/bias": "offset",
    }
    assert kinds == expected
    selected = [p for p, m in zip(paths_of(shapes), jax.tree.leaves(is_normalization(shapes)),
                                  strict=True) if m]  # fmt: skip
    assert sorted(selected) == ["BatchNorm_0/scale", "BatchNorm_1/bias",
                                "LayerNorm_0/bias", "LayerNorm_0/scale"]  # fmt: skip


def test_kinds_of_an_nnx_state() -> None:
    net = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    state = nnx.state(net, nnx.Param)
    assert paths_of(state) == [
        "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/scale"
    ]  # fmt: skip
    assert jax.tree.leaves(parameter_kinds(state)) == ["bias", "weight", "offset", "scale"]


def test_a_dict_entry_named_value_stays_in_the_path() -> None:
    assert paths_of({"value": {"kernel": 1.0}, "last": {"value": 2.0}}) == [
        "last/value", "value/kernel"
    ]  # fmt: skip


def test_bare_arrays_and_lists() -> None:
    assert parameter_kinds(jnp.ones(3)) == "weight"
    assert parameter_kinds([1.0, None, (2.0,)]) == ["weight", None, ("weight",)]


@pytest.mark.parametrize("where", [{"a": True}, {"a": 1, "b": False}, lambda p: [True, False]])
def test_wrong_masks(where: Any) -> None:
    with pytest.raises(OptimizerError) as caught:
        resolve_mask(where, {"a": 1.0, "b": 2.0})
    assert "\n" not in str(caught.value)


def test_masks() -> None:
    params = {"a": 1.0, "b": None}
    assert resolve_mask(None, params) == {"a": True, "b": None}
    assert resolve_mask(lambda p: jax.tree.map(lambda _: False, p), params) == {
        "a": False, "b": None
    }  # fmt: skip
