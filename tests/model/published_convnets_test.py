"""VGG, PyramidNet, Shake-Shake and ShakeDrop: what the gradient-norm penalty's code computes.

And how all its convolutional networks start.
"""

import itertools
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from model import get_model
from model.layers import UNIFORM_HEAD
from model.pyramidnet import Bottleneck
from tests.model.published import (
    TOLERANCE,
    assert_close,
    check,
    in_our_names,
    in_ours,
    their_variables,
)
from tests.model.resnet_test import published_names as resnet_names
from tests.model.wide_resnet_test import published_names as wide_resnet_names
from tests.published import assert_drawn_alike, load

TWO_GROUPS = {
    **{"variant": "gnp", "dropout_rate": 0.0},
    **{"groups": (1, 2), "widths": (64, 128)},
}
DENSE_NORM = {"dense_norm": True}
THREE_STAGES = {"stages": (1, 1, 1), "widths": (64, 128, 256)}
TWO_STAGES = {"stages": (1, 1), "widths": (64, 128), "stem": "imagenet"}


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


def pyramid_names(path: str, *, blocks: int) -> str:
    """`blocks` is the number of each group's."""
    match = re.fullmatch(r"(BottleneckBlock_(\d+)/)?(\w+)_(\d)(/BatchNorm_0)?/(\w+)", path)
    assert match, path
    kind = {"ActivationOp": "norm", "Conv": "conv", "Dense": "head"}[match[3]]
    if not match[1]:
        return f"{'stem' if kind == 'conv' else kind}/{match[6]}"
    group, block = divmod(int(match[2]), blocks)
    return f"group_{group + 1}_block_{block + 1}/{kind}_{int(match[4]) + 1}/{match[6]}"


def shake_names(path: str) -> str:
    match = re.fullmatch(
        r"(\w+Group_(\d)/\w+Block_(\d)/)?(ShortCut_0/)?(\w+)_(\d)(/BatchNorm_0)?/(\w+)", path
    )
    assert match, path
    kind, index = {"ActivationOp": "norm", "Conv": "conv"}.get(match[5], "head"), int(match[6])
    if not match[1]:
        return f"{'stem' if kind == 'conv' else kind}/{match[8]}"
    block = f"group_{int(match[2]) + 1}_block_{int(match[3]) + 1}"
    if match[4]:
        part = f"shortcut/{kind}_{index + 1}" if kind == "conv" else "shortcut/norm"
    else:
        part = f"branch_{index // 2 + 1}/{kind}_{index % 2 + 1}"
    return f"{block}/{part}/{match[8]}"


def of_layers(convolutions, norms, heads=(), prefix=""):
    """Return the paths of the variables of layers of theirs."""
    kernels = [f"params/{prefix}{layer}/kernel" for layer in (*convolutions, *heads)]
    biases = [f"params/{prefix}{layer}/bias" for layer in heads]
    leaves = (
        ("params", "scale"),
        ("params", "bias"),
        ("batch_stats", "mean"),
        ("batch_stats", "var"),
    )
    normalized = [
        f"{kind}/{prefix}{norm}/BatchNorm_0/{leaf}" for norm in norms for kind, leaf in leaves
    ]
    return kernels + biases + normalized


@pytest.fixture
def force(monkeypatch):
    """Return a function that makes the draws from [0, 1) these, in turn and again."""

    def force(*draws: float) -> None:
        following = itertools.cycle(draws)

        def uniform(key, shape, dtype, low=0.0, high=1.0):
            return jnp.full(shape, low + (high - low) * next(following), dtype)

        monkeypatch.setattr(jax.random, "uniform", uniform)

    return force


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "params", "tolerance"),
    [
        ("vgg_bn_fc_dropout", {}, TOLERANCE),
        ("vgg_bn_fc_none", {}, TOLERANCE),
        ("vgg_plain_fc_dropout", {}, TOLERANCE),
        ("vgg_plain_fc_none", {}, TOLERANCE),
        # A batch norm of four examples: in float64 ours are as far from theirs as from themselves.
        ("vgg_bn_fc_bn", DENSE_NORM, 1e-4),
        ("vgg_plain_fc_bn", DENSE_NORM, 1e-4),
    ],
)
def test_vgg(entry, params, tolerance, optimized):
    plain = "plain" in entry
    module = get_model("VGG11" if plain else "VGG11BN", 10, **TWO_GROUPS, **params)
    check(entry, module, partial(vgg_names, step=2 if plain else 3), tolerance=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "name"),
    [("pyramidnet", "PyramidNet_11_9"), ("pyramidnet_20", "PyramidNet_20_10")],
)
def test_pyramidnet(entry, name):
    module = get_model(name, 10, variant="gnp")
    check(entry, module, partial(pyramid_names, blocks=(module.depth - 2) // 9))


@pytest.mark.slow
def test_pyramidnet_of_the_published_size():
    """Its 54 bottlenecks in the archive's names, which it does not list."""
    name = "PyramidNet_164_48"
    paths = of_layers(["Conv_0"], ["ActivationOp_0"], heads=["Dense_0"])
    for block in range(54):
        inner = ([f"Conv_{i}" for i in range(3)], [f"ActivationOp_{i}" for i in range(4)])
        paths += of_layers(*inner, prefix=f"BottleneckBlock_{block}/")
    names = partial(pyramid_names, blocks=18)
    module = get_model(name, 10, variant="gnp")
    # 217 batch norms one after another, the last of 128 pixels, in float32.
    check(f"published/{name}", module, names, tolerance=5e-5, paths=paths)


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "suffix"), [((0.3, 0.8), ""), ((0.3,), "_true_gradient")])
def test_shake_shake(force, draws, suffix):
    force(*draws)
    params = {"depth": 8, "variant": "gnp", "backward_noise": not suffix}
    check("shakeshake", get_model("WideResNet_2_4_ShakeShake", 10, **params), shake_names, suffix)


@pytest.mark.slow
def test_shake_shake_of_the_published_size():
    name = "WideResNet_2_96_ShakeShake"
    paths = of_layers(["Conv_0"], ["ActivationOp_0"], heads=["Dense_0"])
    for group, block in itertools.product(range(3), range(4)):
        prefix = f"WideResNetShakeShakeGroup_{group}/ShakeShakeBlock_{block}/"
        inner = ([f"Conv_{i}" for i in range(4)], [f"ActivationOp_{i}" for i in range(4)])
        paths += of_layers(*inner, prefix=prefix)
        if block == 0:
            shortcut = (["Conv_0", "Conv_1"], ["ActivationOp_0"])
            paths += of_layers(*shortcut, prefix=f"{prefix}ShortCut_0/")
    check(f"published/{name}", get_model(name, 10, variant="gnp"), shake_names, paths=paths)


def test_shake_drop(force, monkeypatch):
    arrays, meta = load("gnp_models")
    entry = "shakedrop_block"
    mask = jnp.asarray(arrays[f"{entry}/mask"], bool).reshape(-1, 1, 1, 1)
    monkeypatch.setattr(jax.random, "bernoulli", lambda *_: mask)
    variables = in_our_names(
        their_variables(entry), lambda path: pyramid_names(f"BottleneckBlock_0/{path}", blocks=1)
    )
    variables = {kind: tree["group_1_block_1"] for kind, tree in variables.items()}
    x, cotangent = arrays[f"{entry}/input"], arrays[f"{entry}/cotangent"]
    survival = meta["models"][entry]["hyperparameters"]["mask_prob"]

    def block(betas=()):
        return Bottleneck(6, 2, survival, (-1.0, 1.0), betas)

    @jax.jit
    def outputs(variables, x):
        def trained(x, betas):
            return block(betas).apply(
                variables, x, True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
            )[0]

        force(0.15, 0.6)
        noisy, noisy_back = jax.vjp(lambda x: trained(x, (0.0, 1.0)), x)
        force(0.15)
        exact, exact_back = jax.vjp(lambda x: trained(x, ()), x)
        return {
            "out_eval": block().apply(variables, x, False),
            "out_train": noisy,
            "grad_input": noisy_back(cotangent)[0],
            "out_train_true_gradient": exact,
            "grad_input_true_gradient": exact_back(cotangent)[0],
        }

    ours = outputs(variables, x)
    assert not np.allclose(ours["grad_input"], ours["grad_input_true_gradient"], atol=1e-2)
    for key, value in ours.items():
        assert_close(value, arrays[f"{entry}/{key}"], key)


COUNTS = {
    name: counts
    for name, counts in load("gnp_models")[1]["parameter_counts"].items()
    if re.match("VGG|PyramidNet|.*Shake", name)
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(
            name,
            kind,
            marks=[pytest.mark.slow] * (name.startswith("Pyramid") or not kind.startswith("10 ")),
        )
        for name, counts in COUNTS.items()
        for kind, count in counts.items()
        # Their PyramidNets with ShakeDrop stop at a wrong argument.
        if not str(count).startswith("fails: ")
    ],
)
def test_counts(name, kind):
    classes, side = map(int, re.fullmatch(r"(\d+) classes, (\d+)x\2", kind).groups())
    module = get_model(name, classes, variant="gnp")
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    params, statistics = map(jax.tree.leaves, (shapes["params"], shapes.get("batch_stats", {})))
    assert {
        "parameters": sum(leaf.size for leaf in params),
        "statistics": sum(leaf.size for leaf in statistics),
        "leaves": len(params),
    } == COUNTS[name][kind]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "gnp"])
@pytest.mark.parametrize(
    ("name", "count"),
    [("VGG11BN", 3), ("PyramidNet_11_9", 1), ("WideResNet_2_4_ShakeShake", 1)],
)
def test_dense_layers_start_uniform_in_the_variant(name, count, variant):
    module, found = get_model(name, 10, variant=variant), []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            found.append(context.module.kernel_init is UNIFORM_HEAD)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    assert found == ([True] * count if variant == "gnp" else [False])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "name", "params", "side", "names"),
    [
        ("vgg_bn", "VGG11BN", TWO_GROUPS, 8, partial(vgg_names, step=3)),
        ("pyramidnet", "PyramidNet_20_200", {}, 32, partial(pyramid_names, blocks=2)),
        ("shakeshake", "WideResNet_2_96_ShakeShake", {"depth": 8}, 32, shake_names),
        ("wrn", "WideResNet_16_4", {}, 4, wide_resnet_names),
        ("resnet_basic", "ResNet18", THREE_STAGES, 8, resnet_names(18, THREE_STAGES["stages"])),
        ("resnet_bottleneck", "ResNet50", TWO_STAGES, 16, resnet_names(50, TWO_STAGES["stages"])),
    ],
)
def test_initializers(network, name, params, side, names):
    classes = 1000 if network == "resnet_bottleneck" else 100
    module = get_model(name, classes, **{"variant": "gnp", **params})
    x = jnp.zeros((1, side, side, 3))
    drawn = jax.jit(lambda: module.init(jax.random.key(0), x, train=False))()
    ours = flatten_dict(drawn, sep="/")
    for path, theirs in load("gnp_models")[1]["initialisers"][network].items():
        assert_drawn_alike(path, ours[in_ours(path, names)], theirs)
