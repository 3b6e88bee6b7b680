"""The transformers of the gradient-norm penalty's authors, against what their code computes."""

import re

import jax.numpy as jnp
import pytest

from model.vit import ViT
from tests.model.published import check

NOT_DROPPED = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}


class ByHead:
    """A ViT whose queries, keys and values are apart and by heads, as theirs are."""

    def __init__(self, module: ViT):
        self.module = module

    def init(self, *arguments, **keywords):
        params = self.module.init(*arguments, **keywords)["params"]
        heads = self.module.num_heads

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

        return {"params": {k: block(v) if "blocks" in k else v for k, v in params.items()}}

    def apply(self, variables, *arguments, **keywords):
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

        params = variables["params"]
        params = {k: block(v) if "blocks" in k else v for k, v in params.items()}
        return self.module.apply({"params": params}, *arguments, **keywords)


VIT_NAMES = {
    "cls_token": "cls",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
    "patch_embed/proj": "embedding",
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_1",
    "norm": "Transformer/encoder_norm",
    "attn": "MultiHeadDotProductAttention_0",
    "mlp/fc1": "MlpBlock_0/Dense_0",
    "mlp/fc2": "MlpBlock_0/Dense_1",
    "blocks_": "Transformer/encoderblock_",
}


def vit_name(name):
    """Their name of a parameter -> ours."""
    for ours, theirs in VIT_NAMES.items():
        name = re.sub(rf"(^|/){theirs}(?=/|$|\d)", rf"\1{ours}", name)
    return name


VITS = {
    "vit_patch4": ViT(10, 4, 24, depth=2, num_heads=3, mlp_ratio=2, variant="gnp", **NOT_DROPPED),
    "vit_patch4_dropout": ViT(10, 4, 24, depth=2, num_heads=3, mlp_ratio=2, variant="gnp"),
    "vit_representation": ViT(
        100,
        8,
        24,
        depth=1,
        num_heads=2,
        mlp_ratio=40 / 24,
        representation_size=20,
        variant="gnp",
        **NOT_DROPPED,
    ),
}


@pytest.mark.parametrize("name", VITS)
def test_a_vision_transformer_computes_what_theirs_does(name):
    check(name, ByHead(VITS[name]), vit_name)
