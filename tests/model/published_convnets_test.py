"""VGG, PyramidNet, Shake-Shake and ShakeDrop: what the gradient-norm penalty's code computes."""

import re
from functools import partial

import pytest

from model import get_model
from tests.marks import quick_first
from tests.model.published import check

TWO_GROUPS = {"head": "gnp", "groups": (1, 2), "widths": (64, 128)}


def vgg_names(path: str, *, step: int) -> str:
    """Ours are PyTorch's, which count convolutions, norms, activations and poolings."""
    layer, _, leaf = path.rpartition("/")
    layer = layer.removesuffix("/BatchNorm_0")
    if match := re.fullmatch(r"VGGBlock_(\d)/(Conv|ActivationOp)_(\d)", layer):
        # In front of the second group are one convolution and its pooling.
        first = int(match[1]) * (step + 1) + int(match[3]) * step
        return f"features_{first + (match[2] == 'ActivationOp')}/{leaf}"
    ours = {"Dense_2": "head"}
    ours |= {f"Dense_{i}": f"dense_{i + 1}" for i in range(2)}
    ours |= {f"ActivationOp_{i}": f"dense_{i + 1}_norm" for i in range(2)}
    return f"{ours[layer]}/{leaf}"


@pytest.mark.parametrize(
    ("entry", "params"),
    quick_first(
        [
            ("vgg_bn_fc_dropout", {}),
            ("vgg_bn_fc_none", {"dropout_rate": 0.0}),
            ("vgg_bn_fc_bn", {"dropout_rate": 0.0, "dense_norm": True}),
            ("vgg_plain_fc_dropout", {}),
            ("vgg_plain_fc_none", {"dropout_rate": 0.0}),
            ("vgg_plain_fc_bn", {"dropout_rate": 0.0, "dense_norm": True}),
        ],
        0,
    ),
)
def test_vgg(entry, params):
    plain = "plain" in entry
    module = get_model("VGG11" if plain else "VGG11BN", 10, **TWO_GROUPS, **params)
    check(entry, module, partial(vgg_names, step=2 if plain else 3))
