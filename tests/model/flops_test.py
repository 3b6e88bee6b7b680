"""The forward pass of the convolutional families does the products that its layers ask for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from model import get_model
from model.layers import Conv
from tests.marks import quick_first

# Name, input, classes.
MODELS = [
    ("VGG11", (224, 224, 3), 1000),
    ("ResNet18", (224, 224, 3), 1000),
    ("ResNet50", (224, 224, 3), 1000),
    ("CifarResNet20", (32, 32, 3), 10),
    ("WideResNet_16_4", (32, 32, 3), 10),
    ("WideResNet_2_32_ShakeShake", (32, 32, 3), 10),
    ("PyramidNet_29_240", (32, 32, 3), 10),
    ("VGG13Riemannian", (32, 32, 3), 10),
    ("HorsesOrHumansCNN", (300, 300, 3), 1),
]


def taps(size: int, outputs: int, window: int, stride: int, padding: int) -> int:
    """Count the products that a convolution has along one axis, without those with padding."""
    starts = [position * stride - padding for position in range(outputs)]
    return sum(min(start + window, size) - max(start, 0) for start in starts)


def counted_by_hand(module, x):
    """Twice the multiply-adds of all convolutions and dense layers, without padding."""
    total = 0

    def count(call, args, kwargs, context):
        nonlocal total
        y = call(*args, **kwargs)
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, Conv):
            (height, width), inputs = args[0].shape[1:3], args[0].shape[3]
            products = inputs // layer.groups * y.shape[3]
            for size, outputs, window in zip(
                (height, width), y.shape[1:3], layer.window, strict=True
            ):
                padding = layer.padding
                if padding == "SAME":
                    needed = (outputs - 1) * layer.strides + window - size
                    padding = max(needed, 0) // 2
                elif padding == "VALID":
                    padding = 0
                products *= taps(size, outputs, window, layer.strides, padding)
            total += 2 * products
        elif context.method_name == "__call__" and isinstance(layer, nn.Dense):
            total += 2 * args[0].shape[-1] * y.size
        return y

    def initialize(x):
        with nn.intercept_methods(count):
            return module.init(jax.random.key(0), x, train=False)

    return jax.eval_shape(initialize, x), lambda: total


@pytest.mark.parametrize(("name", "shape", "classes"), quick_first(MODELS, 2))
def test_flops_and_layouts(name, shape, classes):
    module = get_model(name, classes)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables, total = counted_by_hand(module, x)
    lowered = jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, x)
    assert lowered.cost_analysis()["flops"] == pytest.approx(total(), rel=0.05)
    # Only VGG's ImageNet head, whose kernel is PyTorch's, reads its input in another order.
    transposes = lowered.as_text().count("stablehlo.transpose")
    assert transposes == (1 if name == "VGG11" else 0)


@pytest.mark.parametrize(
    ("name", "published"),
    # Multiply-adds, as the papers say them or, for ViT, the paper of DeiT.
    quick_first([("VGG16", 15.5e9), ("ResNet50", 4.1e9), ("ViT_B16", 17.6e9), ("CaiT_S24", 9.4e9)]),
)
def test_published_multiply_adds(name, published):
    module = get_model(name, 1000)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    lowered = jax.jit(lambda v, x: module.apply(v, x, train=False)).lower(variables, x)
    assert lowered.cost_analysis()["flops"] == pytest.approx(2 * published, rel=0.05)
