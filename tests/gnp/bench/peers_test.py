"""Peers take the same step before they are measured; PyTorch itself where it is installed."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

import model
from gnp.bench import peers
from gnp.bench.measure import CIFAR_SHAPE, random_batch

NAME = "MLP"


@pytest.fixture(scope="module")
def ours():
    return peers.our_steps(NAME, 4)


@pytest.fixture
def torch(ours):
    """Return what PyTorch's process would answer, if it had this model."""
    images = random_batch(4, CIFAR_SHAPE)["input"]
    logits = model.get_model(NAME, num_classes=10).apply(ours.variables(), images, train=False)
    return SimpleNamespace(
        parameters=411146,
        outputs=lambda: np.asarray(logits),
        after_step=lambda kind: {**ours.after[kind], "norm/mean": np.zeros(3)},
    )


def test_sam_is_ours(ours):
    peers.check_optax(NAME, ours)


def test_another_step_is_refused(ours):
    other = ours._replace(after={**ours.after, "optax": ours.after["plain"]})
    with pytest.raises(SystemExit, match=r"a step of optax\.contrib\.sam differ from ours by"):
        peers.check_optax(NAME, other)


def test_the_same_network_passes(ours, torch):
    peers.check_torch(NAME, 4, torch, ours)


def test_another_network_is_refused(ours, torch):
    torch.parameters = 411147
    with pytest.raises(SystemExit, match="has 411,146 parameters, in PyTorch 411,147"):
        peers.check_torch(NAME, 4, torch, ours)
    torch.parameters, same = 411146, torch.outputs
    torch.outputs = lambda: 1.05 * same()
    with pytest.raises(SystemExit, match="logits of PyTorch's network differ"):
        peers.check_torch(NAME, 4, torch, ours)


def test_another_update_is_refused(ours, torch):
    torch.after_step = lambda kind: dict(ours.after["plain"])
    with pytest.raises(SystemExit, match="after a sam step of PyTorch differ"):
        peers.check_torch(NAME, 4, torch, ours)


def test_measures_and_writes(tmp_path, monkeypatch, capsys, ours):
    monkeypatch.delenv("GNP_TORCH_VENV", raising=False)
    monkeypatch.setattr(peers, "our_steps", lambda name, batch_size: ours)
    out = tmp_path / "peers.json"
    peers.main(["--models", NAME, "--batch_size=4", "--runs=1", f"--out={out}"])
    result = json.loads(out.read_text())
    assert [row["step"] for row in result["rows"]] == ["plain", "sam", "optax"]
    assert [row["ratio"] for row in result["rows"]][:2] == [1.0, 1.0]
    assert "PyTorch was not measured" in capsys.readouterr().out


def test_an_interpreter_without_torch(tmp_path, ours):
    with pytest.raises(SystemExit, match="--torch_python: .* does not start"):
        peers.TorchStep(str(tmp_path / "python"), NAME, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WideResNet_10_1", "ViT_TI16", "ResNet18"])
def test_torch(name):
    environment = os.environ.get("GNP_TORCH_VENV")
    if not environment:
        pytest.skip("needs an environment with PyTorch: set GNP_TORCH_VENV to its folder")
    rows, version = peers.measure(name, 2, 1, peers.python_of(environment), 1)
    assert version and [row.step for row in rows][3:] == ["torch plain", "torch sam"]


def test_wrong_arguments(capsys):
    with pytest.raises(SystemExit) as error:
        peers.main(["--models", "ResNet19"])
    assert error.value.code == 2
    assert "the depth must be one of" in capsys.readouterr().err
