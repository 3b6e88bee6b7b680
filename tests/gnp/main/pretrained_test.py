"""`model.pretrained` on the command line: read when a run begins, or evaluated without one."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import model
from config import load_config
from ds_pipeline import build_dataset
from gnp.experiment import build_experiment

ROOT = Path(__file__).resolve().parents[3]
DIGITS = str(ROOT / "config" / "digits.py")
PARAMS = "{'embed_dim': 8, 'depth': 1, 'num_heads': 2, 'mlp_ratio': 1}"
WORDS = (
    ("model.model_name", "ViT_TI4"),
    ("model.model_params", PARAMS),
    ("total_epochs", "1"),
    ("warmup_epochs", "0"),
    ("base_lr", "0"),
    ("gnp.r", "0"),
    ("gnp.alpha", "0"),
    ("dataset.subset", "64"),
)


@pytest.fixture
def weights():
    """Return arrays with PyTorch's names and layout, of the model that WORDS ask for."""
    draw = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, 8),
        "pos_embed": (1, 5, 8),
        "patch_embed.proj.weight": (8, 1, 4, 4),
        "patch_embed.proj.bias": (8,),
        "blocks.0.norm1.weight": (8,),
        "blocks.0.norm1.bias": (8,),
        "blocks.0.attn.qkv.weight": (24, 8),
        "blocks.0.attn.qkv.bias": (24,),
        "blocks.0.attn.proj.weight": (8, 8),
        "blocks.0.attn.proj.bias": (8,),
        "blocks.0.norm2.weight": (8,),
        "blocks.0.norm2.bias": (8,),
        "blocks.0.mlp.fc1.weight": (8, 8),
        "blocks.0.mlp.fc1.bias": (8,),
        "blocks.0.mlp.fc2.weight": (8, 8),
        "blocks.0.mlp.fc2.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "head.weight": (7, 8),
        "head.bias": (7,),
    }
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def build(*words):
    config = load_config(DIGITS, words)
    return build_experiment(config, build_dataset(config))


@pytest.fixture
def gnp(run_gnp_here, tmp_path):
    def gnp(*words, command=()):
        settings = [f"--config.{name}={value}" for name, value in (*WORDS, *words)]
        return run_gnp_here(
            f"--config={DIGITS}", f"--working_dir={tmp_path / 'run'}", *settings, *command
        )

    return gnp


@pytest.mark.slow
def test_a_run_begins_with_the_weights_and_goes_on_without_them(gnp, weights, tmp_path):
    file = tmp_path / "weights.npz"
    np.savez(file, **weights)
    words = (("model.pretrained", file),)
    result = gnp(*words)
    assert result.returncode == 0, result
    said = "18 arrays loaded; as initialized: head/bias (file 7, model 10), head/kernel (file 7, m"
    assert f"{file}: {said}" in result.stderr
    assert "warning" not in result.stderr

    # The file is needed no more; another one is another run.
    file.unlink()
    result = gnp(*words)
    assert result.returncode == 0, result
    assert "going on" in result.stderr
    assert gnp(*words, command=["--mode=eval"]).returncode == 0
    result = gnp(("model.pretrained", "other.npz"))
    assert result.returncode == 2
    assert f"model.pretrained (there '{file}', here 'other.npz')" in result.stderr
    result = gnp(*words, ("retrain", "True"))
    assert result.returncode == 2
    assert result.stderr == f"gnp: pretrained weights {file}: no such file\n"
    assert (tmp_path / "run" / "checkpoints").is_dir()


@pytest.mark.slow
def test_the_state_before_the_first_step(weights, tmp_path):
    np.savez(tmp_path / "weights.npz", **weights)
    path = ("model.pretrained", str(tmp_path / "weights.npz"))
    experiment = build(*WORDS, path, ("ema_decay", "0.9"))
    state, report = experiment.initialize()
    assert report.fits
    for average, first in zip(*map(jax.tree.leaves, (state.ema, state.params)), strict=True):
        np.testing.assert_array_equal(average, first)
        # Both are donated.
        assert average.unsafe_buffer_pointer() != first.unsafe_buffer_pointer()
    np.testing.assert_array_equal(
        state.params["patch_embed"]["proj"]["kernel"],
        weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
    )
    # The head is the one of a run without weights, and everything else is as it expects.
    plain, _ = build(*WORDS).initialize()
    np.testing.assert_array_equal(state.params["head"]["kernel"], plain.params["head"]["kernel"])

    def described(state):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)

    assert described(state) == described(experiment.abstract_state)


@pytest.mark.slow
def test_weights_that_do_not_fit_claim_nothing(gnp, weights, tmp_path):
    file = tmp_path / "weights.npz"
    np.savez(file, **{name: weights[name] for name in weights if "fc2" not in name}, extra=1)
    result = gnp(("model.pretrained", file))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"gnp: pretrained weights {file} do not match the model: 16 of its 20 arrays fit",
        "gnp: missing: blocks_0/mlp/fc2/bias, blocks_0/mlp/fc2/kernel",
        "gnp: unexpected: extra",
        "gnp: model.pretrained_strict=False goes on without these",
    ]
    assert not (tmp_path / "run").exists()

    result = gnp(("model.pretrained", file), ("model.pretrained_strict", "False"))
    assert result.returncode == 0
    assert "16 arrays loaded" in result.stderr
    assert result.stderr.splitlines()[-2:] == [
        "warning: pretrained weights, missing: blocks_0/mlp/fc2/bias, blocks_0/mlp/fc2/kernel",
        "warning: pretrained weights, unexpected: extra",
    ]


@pytest.fixture
def evaluated(run_gnp_here, weights, tmp_path):
    """Evaluate the weights, in their file as PyTorch's wrapper names them."""

    def evaluated(*words, folder=None, **changes):
        file = tmp_path / "weights.npz"
        np.savez(file, **{f"module.{name}": array for name, array in (weights | changes).items()})
        settings = [
            f"--config.{name}={value}" for name, value in (*WORDS, ("model.pretrained", file))
        ]
        where = [f"--working_dir={folder}"] if folder else []
        return run_gnp_here("--mode=eval", f"--config={DIGITS}", *settings, *where, *words)

    return evaluated


@pytest.mark.slow
def test_weights_are_evaluated_without_a_run(evaluated, tmp_path):
    draw = np.random.default_rng(1)
    head = {"head.weight": draw.normal(size=(10, 8)), "head.bias": draw.normal(size=10)}
    alone, beside = evaluated(**head), evaluated(**head, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    experiment = build(*WORDS, ("model.pretrained", str(tmp_path / "weights.npz")))
    examples = experiment.dataset.evaluation.batch(np.arange(359))
    state, _ = experiment.initialize()
    logits, _ = experiment.model.apply(
        state.params, state.model_state, examples["input"], train=False, key=None
    )
    wrong = np.mean(np.asarray(logits).argmax(1) != examples["label"])
    for result in (alone, beside):
        assert result.returncode == 0, result.stderr
        said = f"{tmp_path / 'weights.npz'}, before any training: 20 arrays loaded\n"
        assert result.stderr == said
        printed = json.loads(result.stdout.splitlines()[-1])
        assert (printed["step"], printed["examples"]) == (0, 359)
        assert printed["test_error_rate"] == pytest.approx(wrong, abs=1e-6)
        assert "test error rate" in result.stdout


@pytest.mark.slow
def test_what_cannot_be_evaluated_without_a_run(evaluated, tmp_path):
    keys = {"dataset_name": "diabetes", "image_size": None, "num_classes": None}
    other = [f"--config.dataset.{name}={value}" for name, value in keys.items()]
    result = evaluated(*other, "--config.dataset.num_channels=None")
    assert result.returncode == 2
    said = "gnp: loss = softmax_cross_entropy does not go with regression, the task of 'diabetes'"
    assert result.stderr.startswith(said)
    result = evaluated(extra=np.zeros(1))
    assert result.returncode == 2
    assert "\ngnp: unexpected: extra\n" in result.stderr
    result = evaluated("--config.model.pretrained_strict=False", extra=np.zeros(1))
    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("\nwarning: pretrained weights, unexpected: extra\n")
    # A checkpoint that is named is a run's.
    result = evaluated("--checkpoint=3", folder=tmp_path / "run")
    assert result.returncode == 2
    assert f"--working_dir={tmp_path / 'run'} holds no run" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "wrong"), [(20, 827), (32, 737), (44, 690), (56, 661)])
def test_published_weights_give_the_published_errors(run_gnp, data_dir, weights_dir, depth, wrong):
    """On the 10,000 test images of CIFAR-10."""
    file = weights_dir / f"cifar10_resnet{depth}.safetensors"
    result = run_gnp(
        "--mode=eval", f"--config={ROOT / 'config' / 'cifar_resnet.py'}:{depth}",
        f"--config.dataset.data_dir={data_dir}", f"--config.model.pretrained={file}",
        timeout=900.0,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout.splitlines()[-1])
    assert printed["examples"] == 10_000
    assert round(10_000 * printed["test_error_rate"]) == wrong


def test_inspect_shows_the_key(gnp):
    result = gnp(("model.pretrained", "weights.safetensors"), command=["--mode=inspect"])
    assert result.returncode == 0
    assert "weights.safetensors" in result.stdout


@pytest.mark.slow
def test_grassmann_groups_have_unit_columns_after_loading(tmp_path):
    """A residual network's file in the layout of PyTorch, made from another seed's state."""
    words = [
        ("model.model_name", "ResNet18"),
        ("model.model_params", "{'stages': [1], 'widths': [4], 'stem_features': 4}"),
        ("opt.opt_type", "SGDG"),
        ("model.pretrained", str(tmp_path / "weights.npz")),
    ]
    experiment = build(*words)
    params, model_state = experiment.abstract_state[:2]
    draw = np.random.default_rng(0)
    weights = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, model_state["batch_stats"])):
        *parts, kind = (key.key for key in path[1:])
        name = ".".join(parts).replace("layer1_0", "layer1.0")
        kind = {"kernel": "weight", "scale": "weight"}.get(kind, kind)
        kind = {"mean": "running_mean", "var": "running_var"}.get(kind, kind)
        value = draw.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        weights[f"{name}.{kind}"] = value.transpose(*range(value.ndim)[:-3:-1], *range(
            value.ndim - 2)) if value.ndim > 1 else value  # fmt: skip
    np.savez(tmp_path / "weights.npz", **weights)
    _, _, report = model.load_pretrained(tmp_path / "weights.npz", params, model_state)
    assert report.fits
    state, _ = experiment.initialize()
    kernel = np.asarray(state.params["layer1_0"]["conv1"]["kernel"]).reshape(-1, 4)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=1e-5)
    loaded = weights["layer1.0.conv1.weight"].transpose(2, 3, 1, 0).reshape(-1, 4)
    np.testing.assert_allclose(kernel, loaded / np.linalg.norm(loaded, axis=0), rtol=1e-5)
    mean = state.model_state["batch_stats"]["bn1"]["mean"]
    np.testing.assert_array_equal(mean, weights["bn1.running_mean"])
