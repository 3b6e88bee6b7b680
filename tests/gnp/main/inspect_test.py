"""--mode=inspect: the published sizes, in seconds, without data."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
import optimizer
from gnp.training.checkpoint import read_checkpoint
from tests.marks import quick_first

CONFIG = Path(__file__).resolve().parents[3] / "config"


@pytest.mark.parametrize(
    ("name", "parameters"),
    quick_first(
        [
            ("WideResNet_16_4", 2_748_890),
            ("WideResNet_22_8", 17_158_106),
            ("WideResNet_28_10", 36_479_194),
            ("WideResNet_40_10", 55_841_754),
        ]
    ),
)
def test_published_sizes(run_gnp_here, name, parameters):
    result = run_gnp_here(
        f"--config={CONFIG / 'cifar.py'}", "--mode=inspect", f"--config.model.model_name={name}"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"parameters: {parameters}"


def test_shows_config_layers_and_parameters(run_gnp_here):
    result = run_gnp_here(
        f"--config={CONFIG / 'digits.py'}",
        "--mode=inspect",
        "--config.l2_regularization=0.001",
        "--config.no_weight_decay_on_bn=True",
    )
    assert result.returncode == 0, result.stderr
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in result.stdout.splitlines()
        if line.startswith("│")
    ]
    assert ["gnp.r", "0.05"] in rows
    parameters = {row[0]: row[1:] for row in rows if len(row) == 5}
    decayed = {path.rpartition("/")[2]: row[-1] for path, row in parameters.items()}
    assert decayed == {"kernel": "yes", "bias": "no", "scale": "no"}
    total = sum(int(row[1].replace(",", "")) for row in parameters.values())
    assert result.stdout.splitlines()[-1] == f"parameters: {total}"
    layers = [row for row in rows if len(row) == 4]
    assert layers[-1][0] == "(the model)"
    assert layers[-1][2] == "1 x 10"


def test_shows_the_grassmann_group(run_gnp_here):
    result = run_gnp_here(
        f"--config={CONFIG / 'cifar.py'}", "--mode=inspect", "--config.opt.opt_type=SGDG"
    )
    assert result.returncode == 0, result.stderr
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in result.stdout.splitlines()
        if line.startswith("│")
    ]
    parameters = {row[0]: row[1:] for row in rows if len(row) == 5}
    groups = {path: row[-2:] for path, row in parameters.items()}
    # 1e-3 of L2, which the points of the manifold have no part in.
    assert groups["stem/kernel"] == ["grassmann", "no"]
    assert groups["group_1_block_1/conv_1/kernel"] == ["grassmann", "no"]
    assert groups["group_1_block_1/shortcut/kernel"] == ["euclidean", "yes"]  # 16 to 64
    assert groups["head/kernel"] == ["euclidean", "yes"]
    assert groups["norm/scale"] == ["euclidean", "yes"]
    assert sum(group == "grassmann" for group, _ in groups.values()) == 13


def test_shows_the_values_of_a_checkpoint(run_gnp_here, digits_run):
    """Of any array: parameters, statistics, the optimizer's."""
    directory = digits_run.directory
    result = run_gnp_here(
        "--mode=inspect", f"--working_dir={directory}", "--checkpoint=44", "--values=Dense_0/bias"
    )
    assert result.returncode == 0, result.stderr
    _, *found = re.split(r"^([a-z]\S+), step 44: [0-9]+\n", result.stdout, flags=re.MULTILINE)
    shown = {name: np.fromstring(text.strip(" []\n"), sep=" ") for name, text in zip(
        found[::2], found[1::2], strict=True)}  # fmt: skip
    arrays = read_checkpoint(directory, None, 44).state
    np.testing.assert_allclose(
        shown["params/Dense_0/bias"], arrays.params["Dense_0"]["bias"], atol=1e-7
    )
    assert all(name.startswith("opt_state/") for name in shown.keys() - {"params/Dense_0/bias"})
    assert len(shown) > 1
    none = run_gnp_here("--mode=inspect", f"--checkpoint={directory}", "--values=nothing")
    assert none.returncode == 2
    assert none.stderr.startswith("gnp: --values=nothing finds none of ")


def test_values_need_a_checkpoint(run_gnp_here):
    result = run_gnp_here(f"--config={CONFIG / 'digits.py'}", "--mode=inspect", "--values=x")
    assert result.returncode == 2
    assert result.stderr.startswith("gnp: --values=x needs --working_dir=DIR or --checkpoint=RUN/")


def test_needs_no_data_where_the_config_says_their_shape(run_gnp_here):
    result = run_gnp_here(
        f"--config={CONFIG / 'mnist_tutorial.py'}",
        "--mode=inspect",
        "--config.dataset.data_dir=/nowhere",
    )
    assert result.returncode == 0, result.stderr


EXPERTS = """
import flax.linen as nn
import jax.numpy as jnp
from config import default
from model import register

@register("Experts")
class Experts(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        kernel = self.param("kernel", nn.initializers.ones, (3, 64, self.num_classes))
        return jnp.mean(jnp.einsum("bi,eio->beo", x.reshape(len(x), -1), kernel), axis=1)

def get_config():
    config = default.get_config()
    config.dataset.dataset_name = "digits"
    config.model.model_name = "Experts"
    return config
"""


def test_lists_what_is_left_alone(run_gnp_here, tmp_path):
    (tmp_path / "experts.py").write_text(EXPERTS)
    result = run_gnp_here(f"--config={tmp_path / 'experts.py'}", "--mode=inspect")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == [
        "axes not known, left alone by centralization and the Grassmann group: kernel",
        "parameters: 1920",
    ]


@pytest.mark.parametrize(
    ("name", "shape"),
    quick_first(
        [
            ("WideResNet_16_4", (32, 32, 3)),
            ("EvolutionFordACNN", (500,)),
            ("CaiT_XXS24", (32, 32, 3)),
            ("DigitsCNN", (8, 8, 1)),
            ("EvolutionCifarCNN", (32, 32, 3)),
            ("EvolutionMnistCNN", (28, 28, 1)),
            ("EvolutionIrisMLP", (4,)),
            ("HorsesOrHumansCNN", (224, 224, 3)),
            ("LinearForecaster", (8, 3)),
            ("MLP", (4,)),
            ("MnistTutorialCNN", (28, 28, 1)),
            ("PyramidNet_164_48_ShakeDrop", (32, 32, 3)),
            ("ResNet18", (32, 32, 3)),
            ("ResNet50", (32, 32, 3)),
            ("SAMformer", (8, 3)),
            ("Swin_Tiny", (224, 224, 3)),
            ("TSMixer", (8, 3)),
            ("VGG11BN", (32, 32, 3)),
            ("VGG13Riemannian", (32, 32, 3)),
            ("ViT_TI16", (32, 32, 3)),
            ("WideResNet_2_96_ShakeShake", (32, 32, 3)),
        ],
        count=2,
    ),
)
def test_the_axes_of_each_family_are_known(name, shape):
    """Compare what names and shapes tell with what the layers say."""
    module, x = model.get_model(name, 10), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params, _ = model.describe(module, x)
    axes = optimizer.axes_of(params)
    assert optimizer.unknown_axes(params) == []
    assert axes == optimizer.flax_axes(module, x, train=False)
    is_axes = lambda node: isinstance(node, optimizer.Axes)  # noqa: E731
    assert all(each.stack == () for each in jax.tree.leaves(axes, is_leaf=is_axes))
