"""The registry: names, patterns, parameters, and what is said when they are wrong."""

import inspect
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from model import ModelError, build_model, get_model, model_names, registry
from model.registry import register, registered_name


@pytest.fixture
def entries(monkeypatch):
    monkeypatch.setattr(registry, "_entries", list(registry._entries))


def error_of(name, num_classes=10, **params):
    with pytest.raises(ModelError) as error:
        get_model(name, num_classes, **params)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names():
    assert {"DigitsCNN", "MnistTutorialCNN", "WideResNet_28_10"} <= set(model_names())
    for name in model_names():
        assert get_model(name, num_classes=2).num_classes == 2


def test_a_pattern_takes_any_valid_size():
    module = get_model("WideResNet_46_3", 10)
    assert (module.depth, module.width) == (46, 3)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("WideResNet_16-4", "WideResNet_16_4"),
        ("wideresnet_28_10", "WideResNet_28_10"),
        ("DigitCNN", "DigitsCNN"),
        ("WideResNet_16_4_", "WideResNet_16_4"),
    ],
)
def test_unknown_name_with_a_near_one(name, suggestion):
    message = error_of(name)
    assert f"unknown model_name {name!r}" in message
    assert f"did you mean {suggestion!r}?" in message
    assert "WideResNet_{depth}_{width}" in message


@pytest.mark.parametrize("name", ["", "zzz", "WideResNet_x_4", "WideResNet_016_4", "DigitsCNN\n"])
def test_unknown_name(name):
    allowed = error_of(name).partition(" Allowed: ")[2]
    assert {"DigitsCNN", "WideResNet_{depth}_{width}"} <= set(allowed.split(", "))


def test_unknown_parameter():
    message = error_of("WideResNet_16_4", droput_rate=0.1)
    assert "model_params.droput_rate" in message
    assert "did you mean 'dropout_rate'?" in message
    assert message.endswith("Allowed: dropout_rate, variant, group_skips, batch_norm_group, remat")


@pytest.mark.parametrize("key", ["depth", "num_classes", "dtype", "parent", "name"])
def test_a_parameter_that_the_name_or_the_data_set(key):
    name = "WideResNet_16_4"
    config = SimpleNamespace(model=SimpleNamespace(model_name=name, model_params={key: 1}))
    with pytest.raises(ModelError, match=f"unknown model_params.{key} "):
        build_model(config, 10)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dropout_rate": "0.1"}, "model_params.dropout_rate = '0.1' for DigitsCNN: must be float"),
        ({"dropout_rate": True}, "must be float, is bool"),
        ({"dropout_rate": 1}, "must be at least 0 and below 1"),
        ({"dense": 1.5}, "must be int, is float"),
        ({"dense": 0}, "must be at least 1"),
        ({"features": 32}, "model_params.features = 32"),
        ({"features": (32, "64")}, "must be int, is str"),
        ({"features": ()}, "must be whole numbers of at least 1"),
    ],
)
def test_wrong_value(params, message):
    assert message in error_of("DigitsCNN", **params)


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True])
def test_wrong_number_of_classes(num_classes):
    assert "num_classes" in error_of("DigitsCNN", num_classes)


def test_values_take_the_types_of_their_fields():
    module = get_model("DigitsCNN", 10, features=[4, 8], dropout_rate=0)
    assert module.features == (4, 8)
    assert isinstance(module.dropout_rate, float)


def test_build_model_leaves_the_config_alone():
    params = {"features": [4, 8]}
    config = SimpleNamespace(model=SimpleNamespace(model_name="DigitsCNN", model_params=params))
    assert build_model(config, 7).num_classes == 7
    assert params == {"features": [4, 8]}


@pytest.mark.parametrize(("precision", "dtype"), registry.PRECISIONS.items())
def test_precision_of_a_config_is_the_dtype(precision, dtype):
    names = SimpleNamespace(model_name="DigitsCNN", model_params={"remat": True})
    module = build_model(SimpleNamespace(model=names, precision=precision), 10)
    assert module.dtype == dtype
    assert module.remat
    assert get_model("DigitsCNN", 10, dtype=dtype) == get_model("DigitsCNN", 10, dtype)


def test_a_config_without_precision_computes_in_float32():
    names = SimpleNamespace(model_name="DigitsCNN", model_params={})
    assert build_model(SimpleNamespace(model=names), 10).dtype == jnp.float32


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", jnp.float64), ("bfloat16", jnp.bfloat16)]
)
def test_where_jax_has_64_bits_float64_takes_the_place_of_float32(precision, dtype):
    names = SimpleNamespace(model_name="DigitsCNN", model_params={})
    with jax.enable_x64(True):
        module = build_model(SimpleNamespace(model=names, precision=precision), 10)
        assert module.dtype == dtype


def test_unknown_precision():
    names = SimpleNamespace(model_name="DigitsCNN", model_params={})
    with pytest.raises(ModelError) as error:
        build_model(SimpleNamespace(model=names, precision="float16"), 10)
    assert str(error.value) == "unknown precision 'float16'. Allowed: float32, bfloat16"


def test_every_model_has_dtype_and_remat():
    ours = [
        entry
        for entry in registry._entries
        # Not those that examples and pages register.
        if entry.build.__module__.startswith("model.")
        and entry.build.__module__ != registry.__name__
    ]
    assert len(ours) > 20
    for entry in ours:
        fields = list(inspect.signature(entry.build).parameters.values())
        own = [field for field in fields if field.name not in ("parent", "name")]
        assert [field.name for field in own[-2:]] == ["dtype", "remat"], entry.pattern
        assert [field.default for field in own[-2:]] == [jnp.float32, False], entry.pattern


def test_a_model_of_ones_own(entries, key):
    @register("Widths_{width:int}_{kind}", examples=("Widths_3_a",))
    class Widths(nn.Module):
        num_classes: int
        width: int
        kind: str
        bias: bool | None = None

        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(self.num_classes, use_bias=bool(self.bias))(x)

    module = get_model("Widths_12_b", 5, bias=True)
    assert (module.width, module.kind) == (12, "b")
    assert module.init_with_output(key, jnp.ones((2, 3)), train=True)[0].shape == (2, 5)
    assert "Widths_3_a" in model_names()
    assert "did you mean 'Widths_3_a'?" in error_of("Width_3_a")
    # It has no dtype, so float32 is what it computes in.
    with pytest.raises(ModelError, match="Widths_3_a computes in float32 alone"):
        get_model("Widths_3_a", 5, dtype=jnp.bfloat16)
    assert "must be bool | None, is int" in error_of("Widths_3_a", bias=1)


@pytest.mark.parametrize("name", ["DigitsCNN", "WideResNet_16_4", "VGG13BN", "ViT_S8", "CaiT_XS7"])
def test_a_model_knows_its_name(name):
    assert registered_name(get_model(name, 10, remat=True)) == name


def test_a_mistake_in_a_model_of_ones_own_is_not_an_error_of_its_name(entries, key):
    @register("Mistaken")
    class Mistaken(nn.Module):
        num_classes: int
        depth: int = 1

        def __post_init__(self):
            if self.depth > 1:
                raise KeyError("depths")
            super().__post_init__()

        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(self.num_clases)(x)

    with pytest.raises(AttributeError, match="num_clases"):
        get_model("Mistaken", 5).init(key, jnp.ones((2, 3)), train=True)
    with pytest.raises(KeyError, match="depths"):
        get_model("Mistaken", 5, depth=2)


def test_a_class_that_is_loaded_again_takes_its_own_place(entries):
    def load():
        @register("Loaded")
        class Loaded(nn.Module):
            num_classes: int

        return Loaded

    first, second = load(), load()
    assert first is not second
    assert type(get_model("Loaded", 3)) is second


def test_a_pattern_is_registered_once(entries):
    with pytest.raises(ModelError, match="already registered"):
        register("DigitsCNN")(nn.Module)
