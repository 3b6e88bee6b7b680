"""Names of published weights, brought to those of timm (PyTorch), in PyTorch's layout.

PyTorch's layout: kernels of convolutions (out, in, height, width), of dense layers (out, in).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

# The layer that gives the logits, in each family and library.
HEADS = ("head", "head.fc", "fc", "linear", "classifier.6", "classifier", "heads.head")
# Constants and counters that PyTorch saves beside the parameters.
_BUFFERS = re.compile(r"(.*\.)?(num_batches_tracked|relative_position_index|attn_mask)")

_TORCHVISION_VIT = (
    (r"class_token", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.ln\.", "norm."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)",
        r"blocks.\1.attn.qkv.\2",
    ),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
)
_GOOGLE_ENCODER = "Transformer/encoderblock"
_GOOGLE_NAMES = {
    "cls": "cls_token",
    "pos_embedding": "pos_embed",
    "Transformer/pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "pre_logits/kernel": "pre_logits.weight",
    "pre_logits/bias": "pre_logits.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
# The counters behind the names differ between the versions of the library.
_GOOGLE_BLOCK = (
    (r"LayerNorm_0/scale", "norm1.weight"),
    (r"LayerNorm_0/bias", "norm1.bias"),
    (r"LayerNorm_[12]/scale", "norm2.weight"),
    (r"LayerNorm_[12]/bias", "norm2.bias"),
    (r"MlpBlock_\d/Dense_0/kernel", "mlp.fc1.weight"),
    (r"MlpBlock_\d/Dense_0/bias", "mlp.fc1.bias"),
    (r"MlpBlock_\d/Dense_1/kernel", "mlp.fc2.weight"),
    (r"MlpBlock_\d/Dense_1/bias", "mlp.fc2.bias"),
    (r"MultiHeadDotProductAttention_\d/out/kernel", "attn.proj.weight"),
    (r"MultiHeadDotProductAttention_\d/out/bias", "attn.proj.bias"),
    (r"MultiHeadDotProductAttention_\d/(query|key|value)/kernel", r"attn.\1.weight"),
    (r"MultiHeadDotProductAttention_\d/(query|key|value)/bias", r"attn.\1.bias"),
)

_MERGING = re.compile(r"layers\.(\d+)\.downsample\.")
# torchvision's and timm's names of the two dense layers before the logits.
_VGG_CLASSIFIER = (("classifier.0", "pre_logits.fc1"), ("classifier.3", "pre_logits.fc2"))

_FAMILIES = (
    ("CaiT", r"blocks_token_only\."),
    ("Swin", r"relative_position_bias_table$"),
    ("ViT", r"encoderblock|encoder_layer_\d|(^|\.)blocks\.\d+\.attn\.qkv\."),
    ("ResNet", r"(^|\.)layer1\.0\.conv1\."),
    ("VGG", r"(^|\.)features\.\d+\.weight$"),
)


def to_timm(weights: Mapping[str, np.ndarray], expected: Collection[str]) -> dict[str, np.ndarray]:
    """Rename weights to the names that a model expects, where these can be told.

    Understands timm and torchvision, behind any prefix (`module.`, `model.`), and, for ViT, the
    archives of vision_transformer and big_vision, also behind `params/` and `img/`, with blocks
    one by one or stacked. Unknown names stay as they are.

    Args:
        weights: name -> array, as the file has them.
        expected: timm's names of the model's arrays.

    Returns:
        timm's name -> array in PyTorch's layout.

    Example:
        >>> weights = {"module.fc.weight": np.zeros((10, 64))}
        >>> list(to_timm(weights, ["fc.weight", "fc.bias"]))
        ['fc.weight']
    """
    named = dict(weights)
    if any(_GOOGLE_ENCODER in name for name in named):
        named = _from_google(named)
    named = _renamed(named, expected)
    for old, new in _other_names(named, expected):
        moved = {name for name in named if name.startswith(old)}
        named = {
            (new + name.removeprefix(old) if name in moved else name): array
            for name, array in named.items()
        }
    return named


def is_buffer(name: str) -> bool:
    """Return whether PyTorch computes the array and only saves it with the parameters.

    Example:
        >>> is_buffer("bn1.num_batches_tracked")
        True
    """
    return _BUFFERS.fullmatch(name) is not None


def family(names: Iterable[str]) -> str | None:
    """Return the model family whose names these resemble.

    Example:
        >>> family(["layer1.0.conv1.weight", "fc.weight"])
        'ResNet'
    """
    listed = list(names)
    for known, mark in _FAMILIES:  # the first: CaiT and Swin carry the marks of others too
        if any(re.search(mark, name) for name in listed):
            return known
    return None


def _renamed(weights: Mapping[str, np.ndarray], expected: Collection[str]) -> dict[str, np.ndarray]:
    """Remove the prefix that most of the expected names have, and use timm's names."""
    prefix = _prefix(weights, expected)
    named: dict[str, np.ndarray] = {}
    rest: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        inside = name.startswith(prefix)
        tail = name.removeprefix(prefix) if inside else name
        (named if inside else rest)[_timm_name(tail, expected)] = array
    return named | {
        (f"{name} (not in {prefix})" if name in named else name): array
        for name, array in rest.items()
    }


def _prefix(names: Iterable[str], expected: Collection[str]) -> str:
    counts: Counter[str] = Counter()
    for name in names:
        for dot in [-1, *(match.start() for match in re.finditer(r"\.", name))]:
            if _timm_name(name[dot + 1 :], expected) in expected:
                counts[name[: dot + 1]] += 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _timm_name(name: str, expected: Collection[str]) -> str:
    if name in expected:
        return name
    # torchvision's Swin counts patches, stages and reductions in one list.
    if match := re.fullmatch(r"features\.(\d+)\.(\d+)\.(.+)", name):
        module, index, tail = int(match[1]), match[2], match[3]
        if module == 0:
            new = {"0": "patch_embed.proj.", "2": "patch_embed.norm."}.get(index, "") + tail
        else:
            tail = tail.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
            new = f"layers.{module // 2}.blocks.{index}.{tail}"
        return new if new in expected else name
    if match := re.fullmatch(r"features\.(\d+)\.((?:norm|reduction)\..+)", name):
        new = f"layers.{int(match[1]) // 2}.downsample.{match[2]}"
        return new if new in expected else name
    return _rename(name, _TORCHVISION_VIT)


def _rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply the first rule that fits the beginning of the name."""
    for pattern, new in rules:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    return name


def _other_names(names: Collection[str], expected: Collection[str]) -> list[tuple[str, str]]:
    """Return beginnings of names in the file, each with its counterpart in the model."""
    found = []
    # Swin's patches are merged at the end of a stage (its authors) or at the start (timm).
    stages = {match[1] for name in names if (match := re.match(_MERGING, name))}
    if "0" in stages and not any(name.startswith("layers.0.downsample.") for name in expected):
        # The last one first, as each takes the next one's name.
        for stage in sorted(map(int, stages), reverse=True):
            found.append((f"layers.{stage}.downsample.", f"layers.{stage + 1}.downsample."))
    for group in (*_VGG_CLASSIFIER, HEADS):
        here = [name for name in group if f"{name}.weight" in expected]
        there = [name for name in group if f"{name}.weight" in names]
        if here and there and here[0] not in there:
            found.append((f"{there[0]}.", f"{here[0]}."))
    return found


def _from_google(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename the arrays of an archive of vision_transformer or big_vision."""
    inside = [name for name in weights if _GOOGLE_ENCODER in name]
    prefix = min((name[: name.index(_GOOGLE_ENCODER)] for name in inside), key=len)
    named: dict[str, np.ndarray] = {}
    for name, array in _unstacked(weights, prefix + _GOOGLE_ENCODER):
        tail = name.removeprefix(prefix)
        new = _GOOGLE_NAMES.get(tail, tail)
        if match := re.fullmatch(_GOOGLE_ENCODER + r"_(\d+)/(.+)", tail):
            new = f"blocks.{match[1]}.{_rename(match[2], _GOOGLE_BLOCK)}"
        named[new] = torch_layout(tail, array)
    return _with_joined_qkv(named)


def _unstacked(weights: Mapping[str, np.ndarray], encoder: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in weights.items():
        if name.startswith(f"{encoder}/") and array.ndim:
            for index, block in enumerate(array):
                yield name.replace(encoder, f"{encoder}_{index}", 1), block
        else:
            yield name, array


def torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Transpose Flax's (height, width, in, out) or (in, out), heads split, to PyTorch's order."""
    if "MultiHeadDotProductAttention" in name:
        if name.endswith("kernel") and array.ndim == 3:
            if "/out/" in name:
                return array.reshape(-1, array.shape[-1]).T
            return array.reshape(array.shape[0], -1).T
        return array.reshape(-1) if name.endswith("bias") else array.T
    if name.endswith("kernel") and array.ndim > 1:
        return np.transpose(array, (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)))
    return array


def _with_joined_qkv(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join query, key and value to one layer, in this order."""
    joined = dict(weights)
    for name in weights:
        if match := re.fullmatch(r"(blocks\.\d+\.attn\.)query\.(weight|bias)", name):
            names = [f"{match[1]}{layer}.{match[2]}" for layer in ("query", "key", "value")]
            if all(each in weights for each in names):
                new = f"{match[1]}qkv.{match[2]}"
                joined[new] = np.concatenate([joined.pop(each) for each in names])
    return joined
