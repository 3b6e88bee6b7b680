"""Kinds of parameters, told from their paths, and masks."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_kinds_of_other_libraries() -> None:
    params = {
        "linear": {"w": 1.0, "b": 1.0},
        "layer_norm": {"scale": 1.0, "offset": 1.0},
        "keras": {"gamma": 1.0, "beta": 1.0},
        "rms_norm": {"gamma": 1.0},
        "bn_1": {"bias": 1.0},
        "BN": {"b": 1.0},
        "subnet": {"bias": 1.0},
        # No normalizations.
        "LayerScale_0": {"gamma": 1.0},
        "layer_scale": {"scale": 1.0},
        "block": {"gamma_1": 1.0, "gamma": 1.0, "layer_scale": 1.0, "bias": 1.0},
        "swish": {"beta": 1.0},
        "torch": {"weight": 1.0, "bias": 1.0},
    }
    assert parameter_kinds(params) == {
        "linear": {"w": "weight", "b": "bias"},
        "layer_norm": {"scale": "scale", "offset": "offset"},
        "keras": {"gamma": "scale", "beta": "offset"},
        "rms_norm": {"gamma": "scale"},
        "bn_1": {"bias": "offset"},
        "BN": {"b": "offset"},
        "subnet": {"bias": "bias"},
        "LayerScale_0": {"gamma": "weight"},
        "layer_scale": {"scale": "weight"},
        "block": {"gamma_1": "weight", "gamma": "weight", "layer_scale": "weight", "bias": "bias"},
        "swish": {"beta": "weight"},
        "torch": {"weight": "weight", "bias": "bias"},
    }


class Module(NamedTuple):
    """A pytree that can be called, as the modules of Equinox."""

    weight: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a mask was called")


PARAMS = {"a": {"x": 1.0, "y": 2.0}, "b": [3.0, None], "c": Module(4.0, optax.MaskedNode())}


@pytest.mark.parametrize(
    "where, message",
    [
        ({"a": True, "b": True}, "it has nothing for c.weight"),
        ({"a": {"x": True}, "b": True, "c": True}, "it has nothing for a.y"),
        ({"a": {"x": True, "y": None}, "b": True, "c": True}, "it has nothing for a.y"),
        ({"a": True, "b": True, "c": True, "d": True}, "params have no d"),
        ({"a": {"x": {"z": True}, "y": True}, "b": True, "c": True}, "nothing for a.x"),
        ({"a": True, "b": (True, True), "c": True}, "its containers are of other types"),
        (lambda p: [True, False], "it has nothing for a.x"),
        ({"a": 1, "b": True, "c": True}, "must hold True and False, not 1"),
        ({"a": np.ones(5, bool), "b": True, "c": True}, "an array of shape (5,) and dtype bool"),
        ("a", "must hold True and False, not 'a'"),
    ],
)
def test_wrong_masks(where: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        resolve_mask(where, PARAMS)
    assert message in str(caught.value)
    assert str(caught.value).startswith("where must ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160


def test_a_prefix_stands_for_all_below_it() -> None:
    whole = {"a": {"x": True, "y": True}, "b": [False, None]}
    expected = whole | {"c": Module(True, optax.MaskedNode())}
    assert resolve_mask({"a": True, "b": False, "c": True}, PARAMS) == expected
    assert resolve_mask(lambda _: {"a": True, "b": False, "c": True}, PARAMS) == expected
    assert all(jax.tree.leaves(resolve_mask(True, PARAMS)))
    # As optax.masked takes it.
    state = optax.masked(optax.trace(0.9), {"a": True, "b": False}).init(
        {key: PARAMS[key] for key in ("a", "b")}
    )
    assert len(jax.tree.leaves(state)) == 2


@pytest.mark.parametrize("true", [np.bool_(True), np.array(True), jnp.array(True)])
def test_bools_of_numpy_and_jax(true: Any) -> None:
    mask = resolve_mask({"a": true, "b": False}, {"a": 1.0, "b": 2.0})
    assert mask["a"] is True and mask["b"] is False

    def traced(x: Any) -> Any:
        return resolve_mask({"a": x}, {"a": 1.0})

    with pytest.raises(OptimizerError, match="must be known when a step is traced"):
        jax.jit(traced)(jnp.array(True))


def test_a_mask_that_can_be_called_is_no_function() -> None:
    params = Module(jnp.ones(2), jnp.ones(2))
    assert resolve_mask(Module(True, False), params) == Module(True, False)
    assert resolve_mask(Module(np.bool_(True), False), params) == Module(True, False)
    assert resolve_mask(jax.tree_util.Partial(lambda p: Module(True, True)), params) == (True, True)


def test_masks() -> None:
    params = {"a": 1.0, "b": None}
    assert resolve_mask(None, params) == {"a": True, "b": None}
    assert resolve_mask(lambda p: jax.tree.map(lambda _: False, p), params) == {
        "a": False, "b": None
    }  # fmt: skip
