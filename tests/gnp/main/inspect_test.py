"""--mode=inspect: the published sizes, in seconds, without data."""

from pathlib import Path

import pytest

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


def test_needs_no_data_where_the_config_says_their_shape(run_gnp_here):
    result = run_gnp_here(
        f"--config={CONFIG / 'mnist_tutorial.py'}",
        "--mode=inspect",
        "--config.dataset.data_dir=/nowhere",
    )
    assert result.returncode == 0, result.stderr
