"""The step benchmark at a tiny size, with a stand-in for PyTorch; slow: PyTorch itself."""

import json
import os
import sys

import numpy as np
import pytest

from gnp.bench import step
from gnp.bench.measure import BenchError, Steps, build_steps, step_config


@pytest.fixture(scope="module")
def plain():
    return build_steps(step_config("MLP", 4))


def after_a_step(steps, penalize):
    steps.take(penalize)
    return step.by_path(steps.state.params)


@pytest.mark.slow
def test_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "step.json"
    words = ["--models", "MLP", "--steps", "penalized", "every_5", "--batch_size=2", "--runs=2"]
    assert step.main([*words, f"--out={out}"]) == 0
    result = json.loads(out.read_text())
    rows = {row["step"]: row for row in result["rows"]}
    assert list(rows) == ["plain", "penalized", "every_5"]
    assert all(row["ms"] > 0 and len(row["seconds"]) == 2 for row in rows.values())
    assert rows["plain"]["over plain"] == 1.0 and rows["plain"]["ours over it"] is None
    # Those of its penalized step, which "penalized" shares, and its plain one.
    assert rows["every_5"]["compile s"] > rows["penalized"]["compile s"] > 0
    assert (result["batch_size"], result["dtype"]) == (2, "float32")
    assert "| MLP   | penalized |" in capsys.readouterr().out


@pytest.mark.slow
def test_optax_takes_our_sam_step(plain):
    ours = build_steps(step_config("MLP", 4, step.VARIANTS["sam"][0]))
    optax = Steps(step.with_optax_sam(plain.experiment), 4)
    of = [after_a_step(*each) for each in ((ours, True), (optax, False), (plain, False))]
    for path, value in of[0].items():
        np.testing.assert_allclose(of[1][path], value, rtol=1e-4, atol=1e-7)
    assert any(np.abs(of[2][path] - value).max() > 1e-5 for path, value in of[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", step.VARIANTS)
def test_every_variant(name):
    changes, cycle = step.VARIANTS[name]
    assert build_steps(step_config("MLP", 64, changes)).cycle(*cycle)(1) > 0


@pytest.mark.parametrize("name", step.VARIANTS | step.RELATIVES)
def test_every_variant_is_a_config(name):
    assert step_config("WideResNet_16_4", 64, (step.VARIANTS | step.RELATIVES)[name][0])


@pytest.fixture
def python(plain, tmp_path):
    """Return a function that makes an interpreter whose network has our logits, times a factor."""
    state = plain.experiment.initialize()[0]
    apply, images = plain.experiment.model.apply, plain.batch["input"]
    logits = np.asarray(apply(state.params, state.model_state, images, False, None)[0])

    def make(factor):
        np.save(tmp_path / "made.npy", factor * logits)
        script = tmp_path / "stand_in.py"
        script.write_text(
            "import shutil, sys\n"
            f"shutil.copy({str(tmp_path / 'made.npy')!r}, sys.argv[4])\n"
            "print('2.0', flush=True)\n"
            "for line in sys.stdin: print(len(line.split()[0]), flush=True)\n"
        )
        file = tmp_path / "python"
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        file.chmod(0o755)
        return str(file)

    return make


def test_asks_pytorch(plain, python):
    torch = step.Torch(python(1.0), "MLP", plain, threads=1)
    assert (torch.version, torch.measure("sam")(3)) == ("2.0", 3.0)
    torch.close()


def test_another_network_is_refused(plain, python):
    with pytest.raises(BenchError, match=r"MLP: PyTorch's logits differ from ours by 0\.05"):
        step.Torch(python(1.05), "MLP", plain, threads=1)


@pytest.mark.parametrize(
    ("python", "said"), [("/no/such/python", "No such file"), ("/bin/false", "ended early")]
)
def test_an_interpreter_that_cannot_help(python, said, plain):
    with pytest.raises(BenchError, match=f"--torch_python={python}.*{said}"):
        step.Torch(python, "MLP", plain, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WideResNet_10_1", "ResNet18"])
def test_pytorch_itself(name):
    environment = os.environ.get("GNP_TORCH_VENV")
    if not environment:
        pytest.skip("needs an environment with PyTorch: set GNP_TORCH_VENV to its folder")
    steps = build_steps(step_config(name, 2))
    torch = step.Torch(f"{environment}/bin/python", name, steps, threads=1)
    assert torch.measure("plain")(1) > 0 and torch.measure("sam")(1) > 0
    torch.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", "DigitCNN"],
        ["--runs=0"],
        ["--steps", "penalty"],
        ["--dtype=float16"],
        ["--dtype=bfloat16", "--torch_python=python"],
        ["--models", "MLP", "--batch_size=3", "--steps", "m_32"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    assert step.main(arguments) == 2
    assert capsys.readouterr().err.startswith("gnp: ")
