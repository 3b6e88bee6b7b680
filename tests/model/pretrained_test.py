"""Published weights give the logits that PyTorch gives with them, whatever they are called."""

import functools
import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from model import ModelError, PretrainedError, get_model, load_pretrained, to_pytorch
from model.transformer import SelfAttention
from model.weight_files import read_weights
from model.weight_names import is_buffer, to_timm
from tests.marks import quick_first

REFERENCE = Path(__file__).parents[1] / "reference" / "models"
# Archive -> model, and the parameters that make it the archive's.
MODELS = {
    "vit": (
        "ViT_TI8",
        {
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 3,
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
        },
    ),
    "swin": (
        "Swin_Tiny",
        {
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 24,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "stochastic_depth_rate": 0.0,
        },
    ),
    "cait": (
        "CaiT_XXS2",
        {
            "patch_size": 8,
            "embed_dim": 48,
            "num_heads": 3,
            "stochastic_depth_rate": 0.0,
        },
    ),
    "resnet_basic": (
        "ResNet18",
        {"stages": (1, 2, 1, 1), "widths": (8, 16, 32, 64), "stem": "imagenet"},
    ),
    "resnet_bottleneck": (
        "ResNet50",
        {"stages": (1, 1, 1, 1), "widths": (8, 16, 32, 64), "stem": "imagenet"},
    ),
}


def archive(name):
    """Input [b, h, w, c], logits in both modes, PyTorch's names and arrays."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        weights = {key[6:]: file[key] for key in file.files if key.startswith("param/")}
        x = file["input"].transpose(0, 2, 3, 1)
        return x, file["logits_eval"], file["logits_train"], weights


def shapes_of(module, side):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return shapes["params"], {key: shapes[key] for key in shapes if key != "params"}


def model_of(name, side, num_classes=10, **changes):
    model, params = MODELS[name]
    module = get_model(model, num_classes, **(params | changes))
    return module, *shapes_of(module, side)


def saved(path, weights):
    if path.suffix == ".npz":
        np.savez(path, **weights)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, path)
    return path


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same(first, second):
    first, second = flat(first), flat(second)
    assert first.keys() == second.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(array, second[path], err_msg=path)


@pytest.mark.parametrize("name", quick_first(tuple(MODELS)))
def test_logits_are_those_of_pytorch(name, tmp_path):
    x, in_evaluation, in_training, weights = archive(name)
    module, params, state = model_of(name, x.shape[1])
    loaded = [
        load_pretrained(saved(tmp_path / f"weights{suffix}", weights), params, state)
        for suffix in (".safetensors", ".npz")
    ]
    assert_same(*(each[:2] for each in loaded))
    params, state, report = loaded[0]
    assert report.fits
    assert not report.resized + report.replaced
    variables = {"params": params, **state}
    rngs = {"dropout": jax.random.key(0)}
    for train, expected in ((False, in_evaluation), (True, in_training)):
        apply = jax.jit(functools.partial(module.apply, train=train, mutable=list(state)))
        logits, _ = apply(variables, x, rngs=rngs)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_written_again_it_is_the_file_of_pytorch(name, tmp_path):
    """The names, the layout and the values, to the bit; but for what PyTorch only counts."""
    x, *_, weights = archive(name)
    _, params, state = model_of(name, x.shape[1])
    params, state, _ = load_pretrained(saved(tmp_path / "w.npz", weights), params, state)
    written = to_pytorch(params, state)
    assert written.keys() == {each for each in weights if not is_buffer(each)}
    for each, array in written.items():
        np.testing.assert_array_equal(array.reshape(weights[each].shape), weights[each], each)
        assert array.ndim == weights[each].ndim, each


# Names.


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The archive's ViT: shapes, PyTorch's weights, and what they give."""
    _, _, _, weights = archive("vit")
    module, params, state = model_of("vit", 32)
    file = saved(tmp_path_factory.mktemp("vit") / "weights.npz", weights)
    return params, weights, load_pretrained(file, params, state)[0], module


@pytest.mark.parametrize("prefix", ["module.", "model.", "state_dict.module."])
def test_prefixes_and_buffers(vit, tmp_path, prefix):
    params, weights, expected, _ = vit
    named = {prefix + name: array for name, array in weights.items()}
    named[prefix + "bn.num_batches_tracked"] = np.array(7)
    given, _, report = load_pretrained(saved(tmp_path / "w.safetensors", named), params, {})
    assert report.fits
    assert_same(given, expected)


def test_the_copy_outside_the_prefix_is_unexpected(vit, tmp_path):
    params, weights, expected, _ = vit
    named = {f"model.{name}": array for name, array in weights.items()}
    named |= {"norm.weight": np.zeros(48), "step": np.array(3)}
    given, _, report = load_pretrained(saved(tmp_path / "w.npz", named), params, {}, strict=False)
    assert_same(given, expected)
    assert set(report.unexpected) == {"norm.weight (not in model.)", "step"}


TORCHVISION = {
    "vit": [
        (r"cls_token", "class_token"),
        (r"pos_embed", "encoder.pos_embedding"),
        (r"patch_embed\.proj", "conv_proj"),
        (r"^norm", "encoder.ln"),
        (r"^head", "heads.head"),
        (r"blocks\.(\d)\.norm(\d)", r"encoder.layers.encoder_layer_\1.ln_\2"),
        (r"blocks\.(\d)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
        (r"blocks\.(\d)\.attn\.proj", r"encoder.layers.encoder_layer_\1.self_attention.out_proj"),
        (r"blocks\.(\d)\.mlp\.fc1", r"encoder.layers.encoder_layer_\1.mlp.0"),
        (r"blocks\.(\d)\.mlp\.fc2", r"encoder.layers.encoder_layer_\1.mlp.3"),
    ],
    "swin": [
        (r"patch_embed\.proj", "features.0.0"),
        (r"patch_embed\.norm", "features.0.2"),
        (r"layers\.0\.blocks", "features.1"),
        (r"layers\.1\.downsample", "features.2"),
        (r"layers\.1\.blocks", "features.3"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
        (r"head\.fc", "head"),
    ],
}
SWIN_AUTHORS = [(r"layers\.1\.downsample", "layers.0.downsample"), (r"head\.fc", "head")]


@pytest.mark.parametrize(
    ("name", "rules"), [*TORCHVISION.items(), ("swin", SWIN_AUTHORS)], ids=["vit", "swin", "merge"]
)
def test_other_names_in_pytorch(name, rules, tmp_path):
    x, _, _, weights = archive(name)
    _, params, state = model_of(name, x.shape[1])
    renamed = {}
    for old, array in weights.items():
        new = old
        for pattern, text in rules:
            new = re.sub(pattern, text, new)
        renamed[new] = array
    renamed["features.1.0.attn.relative_position_index"] = np.zeros(4, np.int64)
    assert len(renamed.keys() & weights.keys()) < len(weights)
    expected = load_pretrained(saved(tmp_path / "timm.npz", weights), params, state)[0]
    given, _, report = load_pretrained(saved(tmp_path / "other.npz", renamed), params, state)
    assert report.fits
    assert_same(given, expected)


def in_google_names(weights, heads, version):
    """ViT as vision_transformer or big_vision save it: Flax's layout, heads apart."""
    counters = {"paper": (0, 2, 3, 1), "big_vision": (0, 1, 0, 0)}[version]
    width = weights["norm.weight"].size
    named = {
        "cls": weights["cls_token"],
        "embedding/kernel": weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": weights["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": weights["norm.weight"],
        "Transformer/encoder_norm/bias": weights["norm.bias"],
        "head/kernel": weights["head.weight"].T,
        "head/bias": weights["head.bias"],
    }
    posembed = "Transformer/posembed_input/" if version == "paper" else ""
    named[f"{posembed}pos_embedding"] = weights["pos_embed"]
    for block in range(2):
        here, there = f"Transformer/encoderblock_{block}/", f"blocks.{block}."
        norm1, norm2, mlp, attention = counters
        for kind, new in (("weight", "scale"), ("bias", "bias")):
            named[f"{here}LayerNorm_{norm1}/{new}"] = weights[f"{there}norm1.{kind}"]
            named[f"{here}LayerNorm_{norm2}/{new}"] = weights[f"{there}norm2.{kind}"]
        for dense in (0, 1):
            new, old = f"{here}MlpBlock_{mlp}/Dense_{dense}/", f"{there}mlp.fc{dense + 1}."
            named[f"{new}kernel"] = weights[f"{old}weight"].T
            named[f"{new}bias"] = weights[f"{old}bias"]
        attention = f"{here}MultiHeadDotProductAttention_{attention}/"
        kernels = np.split(weights[f"{there}attn.qkv.weight"], 3)
        biases = np.split(weights[f"{there}attn.qkv.bias"], 3)
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            named[f"{attention}{part}/kernel"] = kernel.T.reshape(width, heads, -1)
            named[f"{attention}{part}/bias"] = bias.reshape(heads, -1)
        out = weights[f"{there}attn.proj.weight"].T
        named[f"{attention}out/kernel"] = out.reshape(heads, -1, width)
        named[f"{attention}out/bias"] = weights[f"{there}attn.proj.bias"]
    return named


def stacked(named):
    """The blocks' arrays one upon another, as big_vision's scan has them."""
    block = "Transformer/encoderblock_{}/"
    return {
        name.replace(block.format(0), "Transformer/encoderblock/"): (
            np.stack([array, named[name.replace(block.format(0), block.format(1))]])
            if name.startswith(block.format(0))
            else array
        )
        for name, array in named.items()
        if not name.startswith(block.format(1))
    }


@pytest.mark.parametrize(
    ("version", "prefix", "stack"),
    [
        ("paper", "", False),
        ("big_vision", "", False),
        ("big_vision", "params/img/", False),
        ("big_vision", "params/", True),
        ("big_vision", "img/", True),
    ],
)
def test_google_names(vit, tmp_path, version, prefix, stack):
    params, weights, expected, _ = vit
    named = in_google_names(weights, 3, version)
    named = stacked(named) if stack else named
    file = saved(tmp_path / "w.npz", {prefix + name: array for name, array in named.items()})
    given, _, report = load_pretrained(file, params, {})
    assert report.fits
    assert_same(given, expected)


def test_google_attention_computes_the_same():
    """Flax's own attention, with the names and shapes that these archives have."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 5, 12)).astype("f4")
    theirs = nn.MultiHeadDotProductAttention(num_heads=3)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype("f4"), shapes)
    block = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/"
    named = {block + name: array for name, array in flat(variables["params"]).items()}
    parts = to_timm(named, {"blocks.0.attn.qkv.weight"})
    ours = {
        layer: {
            "kernel": parts[f"blocks.0.attn.{layer}.weight"].T,
            "bias": parts[f"blocks.0.attn.{layer}.bias"],
        }
        for layer in ("qkv", "proj")
    }
    attention = SelfAttention(3, 0.0, 0.0, jnp.float32)
    y = jax.jit(functools.partial(attention.apply, train=False))({"params": ours}, x)
    np.testing.assert_allclose(y, jax.jit(theirs.apply)(variables, x), rtol=1e-4, atol=1e-4)


def test_the_layer_before_the_logits_goes_with_a_replaced_head(vit, tmp_path):
    _, weights, _, _ = vit
    named = in_google_names(weights, 3, "paper")
    named |= {"pre_logits/kernel": np.eye(48), "pre_logits/bias": np.zeros(48)}
    file = saved(tmp_path / "w.npz", named)
    _, params, _ = model_of("vit", 32, num_classes=3)
    assert load_pretrained(file, params, {})[2].fits
    with pytest.raises(PretrainedError, match=r"unexpected: pre_logits.weight, pre_logits.bias"):
        load_pretrained(file, vit[0], {})


def test_timm_names_of_vgg(tmp_path, key):
    """Dense layers as convolutions in the file; logits as a head."""
    module = get_model("VGG11", 10, widths=(2,) * 5, dense=3, head="imagenet")
    params, _ = shapes_of(module, 32)
    draw = np.random.default_rng(0)
    weights = torch_weights(params, draw)
    expected = load_pretrained(saved(tmp_path / "torchvision.npz", weights), params, {})[0]
    weights["pre_logits.fc1.weight"] = weights.pop("classifier.0.weight").reshape(3, 2, 7, 7)
    weights["pre_logits.fc2.weight"] = weights.pop("classifier.3.weight")[:, :, None, None]
    weights["head.fc.weight"] = weights.pop("classifier.6.weight")
    for old, new in (("0", "pre_logits.fc1"), ("3", "pre_logits.fc2"), ("6", "head.fc")):
        weights[f"{new}.bias"] = weights.pop(f"classifier.{old}.bias")
    given, _, report = load_pretrained(saved(tmp_path / "timm.npz", weights), params, {})
    assert report.fits
    assert_same(given, expected)


# Layouts.


def torch_weights(params, draw):
    """Random arrays in PyTorch's names and layout for a VGG without batch norm."""
    weights = {}
    for path, leaf in flat_shapes(params).items():
        module, kind = path.split("/")
        shape = leaf.shape
        if kind == "kernel":
            shape = (shape[-1], shape[-2], *shape[:-2])
        name = f"{module.replace('_', '.')}.{'weight' if kind == 'kernel' else 'bias'}"
        fan_in = np.prod(shape[1:]) if kind == "kernel" else 4
        weights[name] = draw.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
    return weights


def flat_shapes(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def vgg_in_numpy(weights, x):
    """[b, c, h, w] -> logits, by PyTorch's definitions: VGG11, then 7 x 7 means, channels first."""
    places = sorted({int(name.split(".")[1]) for name in weights if name.startswith("features")})
    for index, place in enumerate(places):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        x = np.einsum("bcijuv,ocuv->boij", windows, weights[f"features.{place}.weight"])
        x = np.maximum(x + weights[f"features.{place}.bias"][:, None, None], 0)
        if index in (0, 1, 3, 5, 7):
            b, c, h, w = x.shape
            x = x.reshape(b, c, h // 2, 2, w // 2, 2).max((3, 5))
    edges = [(i * x.shape[2] // 7, -(-(i + 1) * x.shape[2] // 7)) for i in range(7)]
    pooled = [[x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges] for a, b in edges]
    x = np.moveaxis(np.array(pooled), (0, 1), (2, 3)).reshape(x.shape[0], -1)
    for layer in (0, 3, 6):
        x = x @ weights[f"classifier.{layer}.weight"].T + weights[f"classifier.{layer}.bias"]
        x = np.maximum(x, 0) if layer < 6 else x
    return x


@pytest.mark.slow
def test_vgg_flattens_as_pytorch_does(tmp_path):
    module = get_model("VGG11", 10, widths=(4, 4, 6, 8, 8), dense=16, head="imagenet")
    params, state = shapes_of(module, 96)
    draw = np.random.default_rng(0)
    weights = torch_weights(params, draw)
    x = draw.normal(size=(2, 96, 96, 3)).astype(np.float32)
    params, _, report = load_pretrained(saved(tmp_path / "w.safetensors", weights), params, state)
    assert report.fits
    logits = module.apply({"params": params}, x, train=False)
    expected = vgg_in_numpy(weights, x.transpose(0, 3, 1, 2))
    assert expected.std() > 0.01
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_bfloat16_in_the_file(vit, tmp_path, suffix):
    params, weights, _, _ = vit
    halved = {name: array.astype(jnp.bfloat16) for name, array in weights.items()}
    given, _, report = load_pretrained(saved(tmp_path / f"w{suffix}", halved), params, {})
    assert report.fits
    for array in jax.tree.leaves(given):
        assert array.dtype == jnp.float32
    np.testing.assert_array_equal(
        given["head"]["kernel"], halved["head.weight"].T.astype(np.float32)
    )


# Other sizes.


def with_grid(weights, grid, token):
    rows = grid.reshape(1, -1, 48)
    tokens = np.full((1, token, 48), 7.0)
    return weights | {"pos_embed": np.concatenate([tokens, rows], 1).astype(np.float32)}


@pytest.mark.parametrize("name", ["vit", "cait"])
def test_position_embeddings_of_another_image(name, tmp_path):
    """4 x 4 patches become 6 x 6: rows stay rows, a ramp stays one, the class token is kept."""
    _, _, _, weights = archive(name)
    _, params, state = model_of(name, 48)
    token = 1 if name == "vit" else 0
    ramp = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 4, 48))
    file = saved(tmp_path / "w.npz", with_grid(weights, ramp, token))
    given, _, report = load_pretrained(file, params, state)
    assert report.fits
    assert len(report.resized) == 1
    positions = np.asarray(given["pos_embed"])
    assert positions.shape == (1, token + 36, 48)
    assert np.all(positions[0, :token] == 7)
    grid = positions[0, token:].reshape(6, 6, 48)
    np.testing.assert_allclose(grid, np.broadcast_to(grid[:, :1, :1], grid.shape), atol=1e-6)
    # Between the centers of patches, the cubic is exact for a ramp: row i is at (2 i - 1) / 3.
    np.testing.assert_allclose(grid[2:4, 0, 0], [1 + 1 / 6, 1 + 5 / 6], atol=1e-5)
    assert np.all(np.diff(grid[:, 0, 0]) > 0)


def test_positions_without_one_for_the_class_token(vit, tmp_path):
    """big_vision adds the class token behind the embeddings."""
    params, weights, expected, _ = vit
    named = weights | {"pos_embed": weights["pos_embed"][:, 1:]}
    given, _, _ = load_pretrained(saved(tmp_path / "w.npz", named), params, {})
    np.testing.assert_array_equal(given["pos_embed"][:, 0], 0)
    np.testing.assert_array_equal(given["pos_embed"][:, 1:], expected["pos_embed"][:, 1:])


def test_positions_that_are_no_square(vit, tmp_path):
    params, weights, _, _ = vit
    named = weights | {"pos_embed": weights["pos_embed"][:, :13]}
    with pytest.raises(PretrainedError, match=r"pos_embed \(file \(1, 13, 48\), model \(1, 17, 4"):
        load_pretrained(saved(tmp_path / "w.npz", named), params, {})


@pytest.mark.slow
def test_relative_positions_of_another_window(tmp_path):
    x, _, _, weights = archive("swin")
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    # By row and head: 0 in the middle.
    table = np.broadcast_to(np.arange(-3.0, 4.0)[:, None, None] * [1.0, 10.0], (7, 7, 2))
    weights[name] = table.reshape(49, 2).astype(np.float32)
    _, params, state = model_of("swin", x.shape[1], window_size=8)
    given, _, report = load_pretrained(saved(tmp_path / "w.npz", weights), params, state)
    assert report.fits
    assert len(report.resized) == 4
    resized = given["layers_0"]["blocks_1"]["attn"]["relative_position_bias_table"]
    assert resized.shape == (225, 2)
    resized = np.asarray(resized).reshape(15, 15, 2)
    np.testing.assert_allclose(resized[7], 0, atol=1e-5)
    np.testing.assert_allclose(resized[10, :, 0], 3 * 7 / 15, atol=1e-4)
    np.testing.assert_allclose(resized[..., 1], 10 * resized[..., 0], atol=1e-4)


@pytest.mark.parametrize("name", quick_first(tuple(MODELS)))
def test_the_head_of_other_classes_stays_as_initialized(name, tmp_path):
    x, _, _, weights = archive(name)
    _, params, state = model_of(name, x.shape[1], num_classes=3)
    given, _, report = load_pretrained(saved(tmp_path / "w.npz", weights), params, state)
    assert report.fits
    assert [line.split("/")[-1] for line in report.replaced] == [
        "bias (file 10, model 3)",
        "kernel (file 10, model 3)",
    ]
    kept = [leaf for leaf in jax.tree.leaves(given) if isinstance(leaf, jax.ShapeDtypeStruct)]
    assert sorted(leaf.shape for leaf in kept)[0] == (3,)
    assert len(kept) == 2


# What does not match.


@pytest.fixture
def spoiled(vit, tmp_path):
    """A file with something missing, something unexpected and a wrong shape."""
    _, weights, _, _ = vit
    named = dict(weights)
    for block in range(2):
        del named[f"blocks.{block}.attn.proj.weight"]
        named[f"blocks.{block}.attn.scale"] = np.zeros(3)
    named["blocks.1.mlp.fc1.weight"] = np.zeros((64, 48))
    named["dist_token"] = np.zeros((1, 1, 48))
    return saved(tmp_path / "w.npz", named)


def test_what_does_not_match_is_listed(vit, spoiled):
    with pytest.raises(PretrainedError) as raised:
        load_pretrained(spoiled, vit[0], {})
    first, *rest = str(raised.value).splitlines()
    assert first == f"pretrained weights {spoiled} do not match the model: 29 of its 32 arrays fit"
    assert rest == [
        "missing: blocks_*/attn/proj/kernel (2)",
        "unexpected: blocks.*.attn.scale (2), dist_token",
        "wrong shape: blocks_1/mlp/fc1/kernel (file (48, 64), model (48, 192))",
        "model.pretrained_strict=False goes on without these",
    ]
    assert len(raised.value.report.missing) == 2


def test_going_on_without_what_does_not_match(vit, spoiled):
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), vit[0])
    given, _, report = load_pretrained(spoiled, zeros, {}, strict=False)
    assert not report.fits
    different = {path for path, leaf in flat(given).items() if not np.any(leaf)}
    assert different == {*report.missing, "blocks_1/mlp/fc1/kernel"}
    assert "29 arrays loaded" in report.summary()


@pytest.mark.parametrize("strict", [True, False])
def test_another_family(vit, tmp_path, strict):
    file = saved(tmp_path / "w.npz", archive("resnet_basic")[-1])
    with pytest.raises(ModelError, match=r"look like ResNet .*, the model's look like ViT") as e:
        load_pretrained(file, vit[0], {}, strict=strict)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("strict", [True, False])
def test_another_size_of_the_family(tmp_path, strict):
    file = saved(tmp_path / "w.npz", archive("vit")[-1])
    _, params, _ = model_of("vit", 32, embed_dim=24)
    with pytest.raises(PretrainedError, match=r"1 of its 32 arrays fit\nwrong shape: .*blocks_\*"):
        load_pretrained(file, params, {}, strict=strict)


def test_a_sister_family_is_named(vit, tmp_path):
    file = saved(tmp_path / "w.npz", archive("cait")[-1])
    with pytest.raises(PretrainedError, match="the file looks like CaiT, the model is ViT"):
        load_pretrained(file, vit[0], {})


def test_unknown_names(vit, tmp_path):
    file = saved(tmp_path / "w.npz", {"a": np.zeros(3)})
    with pytest.raises(ModelError, match=r"its names are of no known family \(a\), the model's"):
        load_pretrained(file, vit[0], {})


# Files.


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(vit, tmp_path, value):
    params, weights, _, _ = vit
    bad = weights["norm.bias"].astype(np.float64)
    bad[3] = value
    file = saved(tmp_path / "w.npz", weights | {"norm.bias": bad})
    with pytest.raises(ModelError, match=r"norm.bias holds NaN or infinite values"):
        load_pretrained(file, params, {}, strict=False)


def write_pickled(file):
    np.savez(file, **{"head.weight": np.array([{"a": 1}], dtype=object)})


def write_member_without_array(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no array")


def write_strange_type(file):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")


def write_truncated(file):
    saved(file, {"head.weight": np.zeros((50, 48), np.float32)})
    file.write_bytes(file.read_bytes()[:-3000])


def write_flipped(file):
    saved(file, {"head.weight": np.zeros((50, 48), np.float32)})
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def write_members(*members, method=zipfile.ZIP_DEFLATED):
    """Return a function that writes an archive of (name, claimed shape) without numbers."""

    def write(file):
        with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile tells of a name that is there twice
            for name, shape in members:
                header = io.BytesIO()
                described = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(header, described)
                archive.writestr(f"{name}.npy", header.getvalue())

    return write


def write_bomb(file):
    """3 MB that are 3 GB."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.npy", "w") as member,
    ):
        member.write(bytes(2**20))
    content = file.read_bytes()
    claimed, real = (3 * 2**30).to_bytes(4, "little"), (2**20).to_bytes(4, "little")
    file.write_bytes(content.replace(real, claimed))


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("w.safetensors", None, "no such file"),
        (f"{'w' * 300}.npz", None, "no such file"),
        ("w.npz", os.mkfifo, "is no regular file"),
        ("w.safetensors", os.mkfifo, "is no regular file"),
        ("w.npz", lambda file: file.symlink_to("/dev/zero"), "is no regular file"),
        ("w.npz", write_bomb, r"MB unpack to 3\.2 GB"),
        ("w.npz", write_members(("a", (10**13,))), "damaged or truncated"),
        ("w.npz", write_members(("a", (0,)), ("a", (0,))), "a name is there twice"),
        ("w.npz", write_members(("a", (0,)), method=zipfile.ZIP_LZMA), "compressed in another"),
        ("w.npz", write_members(("a\n\x1b[2J", (0,))), r"'a\\n\\x1b\[2J' is no array's name"),
        ("w.npz", write_members(("a" * 1000, (0,))), "is no array's name"),
        ("w.npz", Path.mkdir, "is a folder"),
        ("w.pth", Path.touch, r"is a pickle.*torch.load\('w.pth', weights_only=True\)"),
        ("w.CKPT", Path.touch, "is a pickle"),
        ("w.h5", Path.touch, "allowed is a file .safetensors or .npz"),
        ("w.safetensors", lambda file: file.write_bytes(b"hello"), "no .safetensors file, or a d"),
        ("w.safetensors", Path.touch, "no .safetensors file"),
        ("w.safetensors", write_truncated, "damaged or truncated"),
        ("w.safetensors", write_strange_type, "type of number"),
        ("w.safetensors", lambda file: saved(file, {}), "holds no arrays"),
        ("w.npz", lambda file: file.write_bytes(b"\x80\x04K\x07."), "no zip archive"),
        ("w.npz", write_truncated, "damaged or truncated"),
        ("w.npz", write_flipped, "damaged or truncated"),
        ("w.npz", write_pickled, "head.weight is a pickled Python object"),
        ("w.npz", write_member_without_array, "readme.txt is no array"),
        ("w.npz", np.savez, "holds no arrays"),
    ],
)
def test_files_that_cannot_be_used(vit, tmp_path, name, write, said):
    file = tmp_path / name
    if write:
        write(file)
    with pytest.raises(ModelError, match=said) as raised:
        load_pretrained(file, vit[0], {})
    assert str(file) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_text_in_place_of_numbers(vit, tmp_path):
    params, weights, _, _ = vit
    file = saved(tmp_path / "w.npz", weights | {"norm.bias": np.array(["a", "b"])})
    with pytest.raises(PretrainedError, match=r"wrong shape: norm/bias \(<U1 is no type of weig"):
        load_pretrained(file, params, {})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, bool])
def test_quantized_weights(vit, tmp_path, dtype):
    params, weights, _, _ = vit
    file = saved(tmp_path / "w.npz", weights | {"norm.bias": weights["norm.bias"].astype(dtype)})
    with pytest.raises(PretrainedError, match=r"norm/bias \(u?(int8|bool) is no type of weights"):
        load_pretrained(file, params, {})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_thousand_mutations_end_in_one_line_each(tmp_path, suffix):
    draw = np.random.default_rng(0)
    arrays = {"a.weight": np.ones((4, 6), np.float32), "b": np.zeros(3, np.float16)}
    content = saved(tmp_path / f"w{suffix}", arrays).read_bytes()
    file = tmp_path / f"mutated{suffix}"
    for _ in range(1000):
        mutated = bytearray(content)
        for place in draw.integers(len(content), size=draw.integers(1, 4)):
            mutated[place] = draw.integers(256)
        file.write_bytes(mutated[: draw.integers(len(content)) if draw.random() < 0.2 else None])
        try:
            read_weights(file)
        except ModelError as error:
            assert len(str(error).splitlines()) == 1
