"""CIFAR's residual networks: their shortcuts, and PyTorch's values from a file of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from model import ModelError, get_model, load_pretrained
from model.layers import subsample_and_pad
from model.resnet import BasicBlock


def shapes_of(module, side):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return shapes["params"], {"batch_stats": shapes["batch_stats"]}


@pytest.mark.parametrize(
    ("shape", "strides", "features", "before", "after"),
    [
        ((2, 4, 6, 8), 2, 16, 4, 4),
        ((2, 5, 3, 2), 2, 7, 2, 3),
        ((1, 3, 3, 2), 1, 2, 0, 0),
    ],
)
def test_a_shortcut_takes_every_second_pixel_between_zeros(shape, strides, features, before, after):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows, columns = range(0, shape[1], strides), range(0, shape[2], strides)
    expected = np.zeros((shape[0], len(rows), len(columns), features), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            expected[:, i, j, before : features - after] = x[:, row, column]
    np.testing.assert_array_equal(subsample_and_pad(jnp.asarray(x), strides, features), expected)


def test_only_shortcuts_that_change_the_shape_are_padded():
    """Where the kernels are zeros, a block's output is relu of its shortcut."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 2)), jnp.float32)
    for features, strides in ((4, 2), (2, 1)):
        block = BasicBlock(features, strides, padded=True)
        shapes = jax.eval_shape(lambda b=block: b.init(jax.random.key(0), x, train=False))
        assert set(shapes["params"]) == {"conv1", "bn1", "conv2", "bn2"}
        y = block.apply(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), x, train=False)
        expected = x if strides == 1 else jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((1, 1),))
        np.testing.assert_array_equal(y, jnp.maximum(expected, 0))


def conv_in_numpy(x, kernel, stride):
    """[b, c, h, w] -> [b, o, h / stride, w / stride], with a pixel of zeros at each edge."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("bcijuv,ocuv->boij", windows[:, :, ::stride, ::stride], kernel)


def resnet_in_numpy(weights, x, blocks):
    """[b, c, h, w] -> logits, by PyTorch's definitions, channels first."""

    def norm(x, name):
        mean, var, scale, bias = (
            weights[f"{name}.{each}"][:, None, None]
            for each in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm(conv_in_numpy(x, weights["conv1.weight"], 1), "bn1"), 0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(conv_in_numpy(x, weights[f"{name}.conv1.weight"], stride), f"{name}.bn1")
            y = norm(conv_in_numpy(np.maximum(y, 0), weights[f"{name}.conv2.weight"], 1),
                     f"{name}.bn2")  # fmt: skip
            if stride == 2:
                quarter = y.shape[1] // 4
                x = np.pad(x[:, :, ::2, ::2], ((0, 0), (quarter, quarter), (0, 0), (0, 0)))
            x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


def torch_weights(blocks, draw):
    """Random arrays with the names and the layout of the published files."""

    def layer(conv, norm, inputs, outputs):
        size = (2 / (9 * inputs)) ** 0.5
        return {
            f"{conv}.weight": size * draw.normal(size=(outputs, inputs, 3, 3)),
            f"{norm}.weight": draw.uniform(0.5, 1.5, outputs),
            f"{norm}.bias": 0.1 * draw.normal(size=outputs),
            f"{norm}.running_mean": 0.1 * draw.normal(size=outputs),
            f"{norm}.running_var": draw.uniform(0.5, 1.5, outputs),
        }

    weights = layer("conv1", "bn1", 3, 16)
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            weights |= layer(f"{name}.conv1", f"{name}.bn1", inputs, outputs)
            weights |= layer(f"{name}.conv2", f"{name}.bn2", outputs, outputs)
            inputs = outputs
    weights |= {"linear.weight": draw.normal(size=(10, 64)), "linear.bias": draw.normal(size=10)}
    return {name: array.astype(np.float32) for name, array in weights.items()}


@pytest.fixture
def weights():
    return torch_weights(2, np.random.default_rng(0))


def saved(path, weights):
    save_file({f"module.{name}": array for name, array in weights.items()}, path)
    return path


def test_logits_are_those_of_pytorch(weights, tmp_path):
    module = get_model("CifarResNet14", 10)
    file = saved(tmp_path / "weights.safetensors", weights)
    params, state, report = load_pretrained(file, *shapes_of(module, 8))
    assert report.summary() == f"{len(weights)} arrays loaded"
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
    logits = jax.jit(lambda x: module.apply({"params": params, **state}, x, train=False))(x)
    expected = resnet_in_numpy(weights, x.transpose(0, 3, 1, 2), blocks=2)
    assert expected.std(0).min() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_a_file_of_another_depth_is_refused(weights, tmp_path):
    file = saved(tmp_path / "weights.safetensors", weights)
    with pytest.raises(ModelError) as raised:
        load_pretrained(file, *shapes_of(get_model("CifarResNet8", 10), 8))
    head, *lines = str(raised.value).splitlines()
    assert head.endswith("do not match the model: 37 of its 37 arrays fit")
    assert lines[0].startswith("unexpected: layer1.1.bn1.bias, ")


def test_the_head_of_other_classes_stays_as_initialized(weights, tmp_path):
    file = saved(tmp_path / "weights.safetensors", weights)
    *_, report = load_pretrained(file, *shapes_of(get_model("CifarResNet14", 100), 8))
    assert report.fits
    assert report.replaced == [
        "fc/bias (file 10, model 100)",
        "fc/kernel (file 10, model 100)",
    ]


@pytest.mark.parametrize(("depth", "nearest"), [(18, 20), (22, 20), (2, 8), (111, 110)])
def test_depth_must_be_6n_plus_2(depth, nearest):
    with pytest.raises(ModelError) as error:
        get_model(f"CifarResNet{depth}", 10)
    assert "the depth must be 6n + 2, at least 8" in str(error.value)
    assert str(error.value).endswith(f"nearest: {nearest}")
