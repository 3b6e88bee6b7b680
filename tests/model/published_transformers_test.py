"""The transformers of the gradient-norm penalty's authors, against what their code computes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from model import ModelError, get_model
from model.cait import CaiT
from model.swin import Swin
from model.vit import ViT
from tests.marks import quick_first
from tests.model.published import assert_close, check
from tests.published import assert_drawn_alike, load, weight

NOT_DROPPED = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}


def by_head(params, heads):
    """Parameters of a ViT with queries, keys and values apart and by heads, as theirs are."""

    def block(own):
        qkv, out = own["attn"]["qkv"], own["attn"]["proj"]
        c = len(qkv["kernel"])
        parts = {
            name: {
                "kernel": qkv["kernel"].reshape(c, 3, heads, -1)[:, index],
                "bias": qkv["bias"].reshape(3, heads, -1)[index],
            }
            for index, name in enumerate(("query", "key", "value"))
        }
        parts["out"] = {"kernel": out["kernel"].reshape(heads, -1, c), "bias": out["bias"]}
        return {**own, "attn": parts}

    return {name: block(own) if "blocks" in name else own for name, own in params.items()}


def joined(params):
    """The parameters that `by_head` takes apart."""

    def block(own):
        attn = own["attn"]
        c = attn["query"]["kernel"].shape[0]
        parts = [attn[name] for name in ("query", "key", "value")]
        qkv = {
            "kernel": jnp.concatenate([p["kernel"].reshape(c, c) for p in parts], axis=1),
            "bias": jnp.concatenate([p["bias"].reshape(c) for p in parts]),
        }
        out = {"kernel": attn["out"]["kernel"].reshape(c, c), "bias": attn["out"]["bias"]}
        return {**own, "attn": {"qkv": qkv, "proj": out}}

    return {name: block(own) if "blocks" in name else own for name, own in params.items()}


class ByHead:
    """A ViT of parameters as `by_head` gives them."""

    def __init__(self, module: ViT):
        self.module = module

    def init(self, *arguments, **keywords):
        params = self.module.init(*arguments, **keywords)["params"]
        return {"params": by_head(params, self.module.num_heads)}

    def apply(self, variables, *arguments, **keywords):
        return self.module.apply({"params": joined(variables["params"])}, *arguments, **keywords)


def vit_name(path):
    """Our name of a parameter -> theirs; so are the others."""
    for ours, theirs in (
        ("cls_token", "cls"),
        ("pos_embed", "Transformer/posembed_input/pos_embedding"),
        ("patch_embed/proj", "embedding"),
        ("norm1", "LayerNorm_0"),
        ("norm2", "LayerNorm_1"),
        ("norm", "Transformer/encoder_norm"),
        ("attn", "MultiHeadDotProductAttention_0"),
        ("mlp/fc1", "MlpBlock_0/Dense_0"),
        ("mlp/fc2", "MlpBlock_0/Dense_1"),
        ("blocks_", "Transformer/encoderblock_"),
    ):
        path = re.sub(rf"(^|/){ours}(?=/|$|\d)", rf"\1{theirs}", path)
    return path


def cait_name(path):
    return re.sub(r"(blocks|blocks_token_only)_(\d)", r"\1\2", path)


def swin_name(path):
    # Theirs ends a stage with the merging of patches, ours begins the next one with it.
    if match := re.fullmatch(r"layers_(\d)/(downsample/.*)", path):
        return f"layers{int(match[1]) - 1}/{match[2]}"
    return re.sub(r"(layers|blocks)_(\d)", r"\1\2", path).replace("head/fc", "head")


def vit(classes, patch, depth, heads, **params):
    size = {"embed_dim": 24, "depth": depth, "num_heads": heads}
    return ByHead(ViT(classes, patch, **size, variant="gnp", **params))


# Entry of the archive -> our network and its names.
SMALL = {
    "vit_representation": (
        vit(100, 8, 1, 2, mlp_ratio=40 / 24, representation_size=20, **NOT_DROPPED),
        vit_name,
    ),
    "vit_patch4": (vit(10, 4, 2, 3, mlp_ratio=2, **NOT_DROPPED), vit_name),
    "vit_patch4_dropout": (vit(10, 4, 2, 3, mlp_ratio=2), vit_name),
    "cait": (CaiT(10, 2, patch_size=4, embed_dim=24, num_heads=4, variant="gnp"), cait_name),
    "swin": (
        Swin(
            10,
            patch_size=2,
            window_size=4,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
            stochastic_depth_rate=0.0,
            variant="gnp",
        ),
        swin_name,
    ),
}
PUBLISHED = {
    "ViT_TI16": (lambda: ByHead(get_model("ViT_TI4", 10, variant="gnp")), vit_name),
    "CaiT_XXS12": (lambda: get_model("CaiT_XXS12", 10, patch_size=4, variant="gnp"), cait_name),
    "Swin_Tiny": (lambda: get_model("Swin_Tiny_Patch4", 10, patch_size=2), swin_name),
}


def shapes(module, image=(32, 32, 3)):
    """Our names and shapes."""
    x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return flatten_dict(variables["params"], sep="/")


@pytest.mark.slow
@pytest.mark.parametrize("entry", quick_first(list(SMALL), 1))
def test_outputs_and_gradients(entry):
    module, theirs = SMALL[entry]
    _, meta = load("gnp_models")
    ours = {theirs(path): path for path in shapes(module, meta["models"][entry]["image"])}
    check(entry, module, ours.__getitem__)


@pytest.mark.parametrize("entry", quick_first(["vit_representation", "cait", "swin"], 1))
def test_nothing_is_rounded_to_float32(entry):
    """Trajectories are compared in float64."""
    module, _ = SMALL[entry]
    module = getattr(module, "module", module).clone(dtype=jnp.float64)
    _, meta = load("gnp_models")
    image = meta["models"][entry]["image"]
    with jax.enable_x64(True):
        wide = {
            path: jax.ShapeDtypeStruct(leaf.shape, jnp.float64)
            for path, leaf in shapes(module, image).items()
        }
        variables = {"params": unflatten_dict(wide, sep="/")}
        x = jax.ShapeDtypeStruct((2, *image), jnp.float64)
        apply = jax.make_jaxpr(lambda variables, x: module.apply(variables, x, train=True))
        assert "f32" not in str(apply(variables, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_of_the_published_size(name):
    build, theirs = PUBLISHED[name]
    module, entry = build(), f"published/{name}"
    params = {
        path: weight(f"{entry}/params/{theirs(path)}", leaf.shape)
        for path, leaf in shapes(module).items()
    }
    arrays, _ = load("gnp_models")
    x = arrays[f"{entry}/input_int8"] / np.float32(48)
    apply = jax.jit(lambda params: module.apply({"params": params}, x, train=False))
    logits = apply(unflatten_dict(params, sep="/"))
    assert_close(logits, arrays[f"{entry}/logits_eval"], entry)


def registered(name, side, classes):
    """Our network of their name."""
    if name.startswith("ViT"):
        return get_model(name.replace("16", "4") if side == 32 else name, classes, variant="gnp")
    if name.startswith("CaiT"):
        return get_model(name, classes, patch_size=4, variant="gnp")
    if re.fullmatch("Swin_[A-Z][a-z]+", name):
        return get_model(f"{name}_Patch4", classes, patch_size=2)
    return get_model(name, classes)


# The sizes of the networks for 32 x 32 pixels, and, of each family, of one for 224 x 224.
COUNTS = {
    (name, int(side), int(classes)): count
    for name, counts in load("gnp_models")[1]["parameter_counts"].items()
    for key, count in counts.items()
    for classes, side in re.findall(r"(\d+) classes, (\d+)x", key)
    if name.startswith(("ViT", "CaiT", "Swin"))
}


@pytest.mark.parametrize(("name", "side", "classes"), quick_first(list(COUNTS), 1))
def test_counts_of_every_name(name, side, classes):
    module, count = registered(name, side, classes), COUNTS[name, side, classes]
    if isinstance(count, str):
        assert count.startswith("fails")
        with pytest.raises(ModelError, match="does not divide into windows"):
            shapes(module, (side, side, 3))
    else:
        found = sum(leaf.size for leaf in shapes(module, (side, side, 3)).values())
        assert found == count["parameters"]


@pytest.mark.parametrize(
    ("family", "module", "theirs"),
    quick_first(
        [
            ("vit", ByHead(get_model("ViT_TI4", 10, depth=1, variant="gnp")), vit_name),
            ("cait", get_model("CaiT_XXS1", 10, patch_size=4, variant="gnp"), cait_name),
        ],
        1,
    ),
)
def test_initial_weights(family, module, theirs):
    _, meta = load("gnp_models")
    x = jnp.ones((1, 32, 32, 3))
    params = jax.jit(lambda key: module.init(key, x, train=False)["params"])(jax.random.key(0))
    ours = {theirs(path): np.asarray(a) for path, a in flatten_dict(params, sep="/").items()}
    compared = 0
    for path, expected in meta["initialisers"][family].items():
        array = ours.get(path.removeprefix("params/"))
        if array is None:
            assert re.search(r"blocks\d", path), path  # theirs has twelve blocks, ours one
            continue
        compared += 1
        assert_drawn_alike(path, array, expected)
    assert compared > 12
