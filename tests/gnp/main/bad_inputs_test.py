"""A user's mistake ends in one clear line and no traceback, a bug in its whole traceback."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from config import as_json, load_config
from tests.data_sets import write_split_files, write_tfds_set

ROOT = Path(__file__).resolve().parents[3]
DIGITS = f"--config={ROOT / 'config' / 'digits.py'}"
MNIST = f"--config={ROOT / 'config' / 'mnist_tutorial.py'}"


@pytest.fixture
def refused(run_gnp_here, tmp_path):
    """Run a command line that must fail; return its one line on standard error."""

    def refused(code: int, *words: str, config: str = DIGITS, directory: object = None) -> str:
        where = tmp_path / "run" if directory is None else directory
        result = run_gnp_here(config, f"--working_dir={where}", *words)
        assert result.returncode == code, result
        assert "Traceback" not in result.stderr + result.stdout
        lines = result.stderr.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("gnp: ")
        return lines[0]

    return refused


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("base_ir=0.1", ["unknown config key base_ir", "base_lr"]),
        ("model.model_name=WideResNt_16_4", ["WideResNt_16_4", "WideResNet"]),
        ("model.model_name=WideResNet_17_4", ["17"]),
        ("model.model_params.widht=3", ["widht", "DigitsCNN"]),
        ("opt.opt_type=Adamm", ["Adamm", "did you mean Adam?"]),
        ("opt.opt_params.wieght_decay=0.1", ["wieght_decay", "Momentum"]),
        ("lr_schedule_type=cosin", ["cosin", "did you mean cosine?"]),
        ("precision=float16", ["precision = 'float16'", "float32 | bfloat16"]),
        ("gr_warmup_strategy=lamda", ["lamda", "did you mean lambda?"]),
        ("gnp.r=-0.1", ["gnp.r = -0.1", ">= 0"]),
        ("gnp.alpha=-1", ["gnp.alpha = -1.0", ">= 0"]),
        ("seeds=4294967296", ["seeds = 4294967296", "< 4294967296"]),
        ("model.model_params={{}}", ["model.model_params = '{{}}'", "a dict"]),
        ("model.model_params={'a.b': 2}", ["model.model_params", "a dict"]),
        ("opt.opt_params.a.b=2", ["unknown config key opt.opt_params.a.b"]),
        ("gnp.r=0", ["gnp.alpha = 0.8 with gnp.r = 0"]),
        ("total_epochs=0", ["total_epochs = 0", ">= 1"]),
        ("batch_size=12.5", ["batch_size = '12.5'", "whole number"]),
        ("base_lr=fast", ["base_lr = 'fast'", "a number"]),
        ("use_test_set=perhaps", ["use_test_set = 'perhaps'", "True or False"]),
        ("loss=hinge", ["loss = 'hinge'", "softmax_cross_entropy"]),
        ("dataset.image_level_augmentations=autoagument", ["autoagument", "basic"]),
        ("warmup_epochs=30", ["warmup_epochs"]),
        ("top_k=0", ["top_k = 0", "a whole number >= 1, or none"]),
        ("keep_checkpoints=0", ["keep_checkpoints = 0", ">= 1"]),
        ("eval_batch_size=0", ["eval_batch_size = 0", ">= 1"]),
        ("gnp.m=8", ["gnp.m = 8 with gnp.sync_perturbations = True"]),
        ("gnp.where=norm", ["gnp.where = 'norm'", "normalization"]),
        ("gnp.reuse=0.5", ["gnp.reuse = 0.5", "gnp.every"]),
        ("accumulate_steps=0", ["accumulate_steps = 0", ">= 1"]),
        ("accumulate_steps=5", ["accumulate_steps = 5 does not divide batch_size = 64"]),
        ("accumulate_penalty=mikro", ["accumulate_penalty = 'mikro'", "batch | micro"]),
        ("accumulate_penalty=micro", ["accumulate_penalty = 'micro' with accumulate_steps = 1"]),
        ("ema_decay=1", ["ema_decay = 1.0", ">= 0 and < 1"]),
        ("ema_decay=-0.1", ["ema_decay = -0.1"]),
        ("opt.centralize=yes", ["opt.centralize = 'yes'", "none | all | conv"]),
        ("opt.learning_rate_grassmann=0.1", ["needs opt.opt_type = SGDG or AdamG"]),
        ("dataset.std=0.2,0,0.2", ["dataset.std = (0.2, 0.0, 0.2)", "numbers > 0"]),
        ("dataset.mean=0.5,half", ["dataset.mean = '0.5,half'", "numbers >= 0"]),
        ("dataset.subset=0", ["dataset.subset = 0", "> 0"]),
        ("dataset.subset=2.5", ["dataset.subset = 2.5"]),
        ("l2_by_kind.gamma=0.1", ["unknown config key l2_by_kind.gamma"]),
    ],
)
def test_config_values(refused, override, said):
    line = refused(2, f"--config.{override}")
    for word in said:
        assert word in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gnp.sync_perturbations=False", "gnp.m=7"], "gnp.m = 7 does not divide batch_size = 64"),
        (["opt.opt_type=SGDG", "opt.grassmann_where=("], "is no regular expression"),
        (["opt.opt_type=SGDG", "opt.grassmann_where=Norm"], "finds no parameter for the Grassmann"),
        (["opt.opt_type=SGDG", "opt.grassmann_where=Conv"], "finds Conv_0/kernel of shape"),
        (["opt.opt_type=SGDG", "model.model_params.features=(32,)"], "finds no parameter for the"),
        (["opt.opt_type=SGDG", "opt.opt_params.grad_clip=0"], "opt.opt_params.grad_clip=0 must"),
        (["opt.opt_type=AdamG", "opt.opt_params.grad_clip=-1"], "opt.opt_params.grad_clip=-1"),
        (["start_from=a", "record.gradients=True"], "start_from = 'a' does not go with record.gr"),
        (["start_from=a", "model.pretrained=b"], "start_from = 'a' does not go with model.pret"),
        (["top_k=3", "loss=sigmoid_cross_entropy"], "top_k needs loss = softmax_cross_entropy"),
        (["gnp.r=0", "gnp.alpha=0", "gnp.where=others"], "gnp.where = 'others' with gnp.r = 0"),
        (["gnp.r=0", "gnp.alpha=0", "gnp.sync_perturbations=False", "gnp.m=8"], "gnp.m = 8 with"),
        (["accumulate_steps=2", "gnp.sync_perturbations=False"], "accumulate_steps = 2 with gnp.s"),
        (
            ["gnp.r=0", "gnp.alpha=0", "accumulate_steps=2", "accumulate_penalty=micro"],
            "accumulate_penalty = 'micro' with gnp.r = 0",
        ),
        (["gnp.reuse=1", "use_hybrid_training=True", "hybrid_config.p=0"], "gnp.reuse = 1.0 needs"),
        (["opt.omega=5"], "opt.omega = 5.0 needs opt.opt_type = SGDG or AdamG, not Momentum"),
        (["opt.centralize_at=update"], "opt.centralize_at = 'update' with opt.centralize = 'none'"),
    ],
)
def test_values_that_do_not_go_together(refused, words, said):
    assert said in refused(2, *(f"--config.{word}" for word in words))


def test_spaces_around_the_equals_sign(refused):
    """As in the published recipes."""
    line = refused(2, "--config.opt.opt_params.weight_decay", "=", "0.3")
    assert "write --config.opt.opt_params.weight_decay=VALUE, no spaces" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--wurking_dir=x"], "working_dir"),
        (["--mode=trian"], "trian"),
        (["--checkpoint=first", "--mode=eval"], "first is neither a step, nor best, nor a folder"),
        (["--checkpoint=-1", "--mode=eval"], "--checkpoint=-1 is neither"),
        (["--checkpoint=s3://a/b", "--mode=eval"], "--checkpoint=s3://a/b is a URL"),
        (["--values=(", "--mode=inspect"], "--values=( is no regular expression: "),
        (["--values=a{9999999999}", "--mode=inspect"], "9999999999} is no regular expression: "),
        (["--values=kernel"], "--values=kernel goes with --mode=inspect only"),
        (["stray"], "'stray' is not a flag"),
        (["--checkpoint=7"], "goes with --mode=eval or --mode=inspect only"),
        (["--profile=7"], "--profile=7: FIRST:LAST is needed, two step numbers from 1 on"),
        (["--profile=7:6"], "the first not above the last"),
        (["--profile=0:6"], "from 1 on"),
        (["--profile="], "--profile=: FIRST:LAST is needed"),
        (["--profile=7:x"], "such as --profile=20:25"),
        (["--profile=7:8", "--mode=inspect"], "--profile=7:8 goes with --mode=train only"),
        (
            ["--profile=40:45", "--config.total_epochs=2"],
            "--profile=40:45: the run has 44 steps, 22 an epoch",
        ),
    ],
)
def test_flags(refused, words, said):
    assert said in refused(2, *words)


def test_missing_flags(run_gnp_here):
    for words in ([], [DIGITS], ["--working_dir=x"], ["--mode=inspect"], ["--mode=eval"]):
        result = run_gnp_here(*words)
        assert result.returncode == 2
        assert "--config=FILE" in result.stderr or "--working_dir=DIR" in result.stderr
        assert "Traceback" not in result.stderr


def test_several_problems_are_said_at_once(run_gnp_here):
    wrong = ["gnp.r=-1", "nonsense=1", "base_lr=x", "model.model_name=Foo", "opt.opt_params.z=1"]
    result = run_gnp_here(DIGITS, *(f"--config.{each}" for each in wrong))
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 6, lines
    assert all(line.startswith("gnp: ") for line in lines)
    for word in ("gnp.r", "nonsense", "base_lr", "Foo", "opt.opt_params", "--working_dir=DIR"):
        assert sum(word in line for line in lines) == 1, word


def test_config_file(refused, tmp_path):
    assert "no such file" in refused(2, config="--config=nowhere.py")
    assert "did you mean mnist?" in refused(2, config=f"--config={ROOT}/config/evolution.py:minst")
    empty = tmp_path / "empty.py"
    empty.write_text("get_confg = 1\n")
    assert "get_config() is needed" in refused(2, config=f"--config={empty}")


MODEL = """
import flax.linen as nn
from config import default
from model import register

@register("Mistyped")
class Mistyped(nn.Module):
    num_classes: int
    dtype: type | None = None

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_clases)(x.reshape(len(x), -1))

def get_config():
    config = default.get_config()
    config.dataset.dataset_name = "digits"
    config.model.model_name = "Mistyped"
    return config
"""


@pytest.mark.slow
def test_a_traceback_is_on_standard_error_and_the_exit_code_1(run_gnp, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return {}['key']\n")
    result = run_gnp(f"--config={tmp_path / 'broken.py'}", f"--working_dir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert result.stdout == "" and result.stderr.endswith("\nKeyError: 'key'\n")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("def get_config():\n    return {}['key']\n", "KeyError: 'key'"),
        ("def get_config():\n    return 1 + 'a'\n", "TypeError: "),
        (MODEL, 'AttributeError: "Mistyped" object has no attribute "num_clases"'),
    ],
    ids=["syntax", "key", "type", "model"],
)
def test_a_bug_of_the_users_own_shows_its_traceback(run_gnp_here, tmp_path, text, error):
    broken = tmp_path / "broken.py"
    broken.write_text(text)
    result = run_gnp_here(f"--config={broken}", f"--working_dir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and f'File "{broken}", line' in result.stderr
    assert error in result.stderr
    assert not list((tmp_path / "run").glob("*"))


# The data.


def test_unknown_data_set(refused, tmp_path):
    write_tfds_set(tmp_path / "data", "mnist")
    line = refused(
        1, f"--config.dataset.data_dir={tmp_path / 'data'}", "--config.dataset.dataset_name=minst"
    )
    assert "minst" in line
    assert "mnist" in line


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_data_dir(refused, tmp_path, make):
    data = tmp_path / "data"
    if make == "empty":
        data.mkdir()
    elif make == "file":
        data.write_text("")
    assert str(data) in refused(1, f"--config.dataset.data_dir={data}", config=MNIST)


def test_unprepared_data_set(refused, tmp_path):
    write_tfds_set(tmp_path / "data", "cifar10", shape=(32, 32, 3))
    line = refused(1, f"--config.dataset.data_dir={tmp_path / 'data'}", config=MNIST)
    assert "recipe/prepare_data.sh mnist" in line


@pytest.mark.parametrize("harm", ["foreign", "truncated", "description", "unreadable", "missing"])
def test_damaged_data_files(refused, tmp_path, harm):
    folder = write_tfds_set(tmp_path / "data", "mnist", n_train=80)
    file = next(folder.glob("*train.array_record*"))
    if harm == "foreign":
        file.write_text("not an array record\n" * 100)
    elif harm == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif harm == "description":
        (folder / "dataset_info.json").write_text("{")
    elif harm == "unreadable":
        if os.geteuid() == 0:
            pytest.skip("the superuser may read everything")
        file.chmod(0)
    else:
        file.unlink()
    line = refused(1, f"--config.dataset.data_dir={tmp_path / 'data'}", config=MNIST)
    assert str(folder) in line


def test_nan_in_the_data(refused, tmp_path):
    data = tmp_path / "data"
    images = np.random.default_rng(0).normal(size=(80, 28, 28, 1)).astype(np.float32)
    images[17, 3, 4] = np.nan
    examples = (list(images), list(np.arange(80) % 10))
    write_split_files(
        data / "mnist" / "1.0.0",
        "mnist",
        {"train": examples, "test": examples},
        shape=(28, 28, 1),
        num_classes=10,
    )
    line = refused(1, f"--config.dataset.data_dir={data}", config=MNIST)
    assert "NaN" in line
    assert "example 17" in line


def test_data_that_do_not_match_the_config(refused, tmp_path):
    write_tfds_set(tmp_path / "data", "mnist", shape=(20, 20, 1))
    line = refused(1, f"--config.dataset.data_dir={tmp_path / 'data'}", config=MNIST)
    assert "image_size" in line


def test_batch_larger_than_the_data(refused):
    line = refused(1, "--config.batch_size=5000")
    assert "batch_size 5000" in line
    assert "1438" in line


# The run directory and its checkpoints.


def test_working_dir_is_a_file(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    assert "is a file" in refused(2, directory=file)
    assert "cannot be made" in refused(2, directory=file / "below")
    assert file.read_text() == "precious"


def test_working_dir_is_not_writable(refused, tmp_path):
    assert "cannot be made" in refused(2, directory="/proc/gnp")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "not writable" in refused(2, directory=tmp_path / "locked")


def test_working_dir_holds_another_config(refused, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    config = {"program": "gnp", "base_lr": 1.0}
    (directory / "config.json").write_text(json.dumps(config))
    assert "holds a run with another config: base_lr (there 1.0, here 0.05)" in refused(2)
    (directory / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(2)
    assert (directory / "config.json").read_text() == "{"


def test_a_command_that_cannot_run_claims_nothing(run_gnp_here, refused, tmp_path):
    """The corrected command may use the same directory; retrain removes nothing before that."""
    refused(1, "--config.batch_size=5000")
    refused(1, "--config.dataset.dataset_name=digts")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"program": "gnp"}')
    (tmp_path / "run" / "metrics.jsonl").write_text("precious\n")
    refused(1, "--config.batch_size=5000", "--config.retrain=True")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "precious\n"


def test_checkpoints_without_a_config(refused, tmp_path):
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    assert "holds checkpoints but no config.json" in refused(2)


@pytest.mark.parametrize("row", ["not json", "[1]", '{"epoch": 1}'])
def test_damaged_metrics(refused, tmp_path, row):
    (tmp_path / "run").mkdir()
    config = as_json(load_config(DIGITS.partition("=")[2], [("total_epochs", "2")]))
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "program": "gnp"}))
    (tmp_path / "run" / "metrics.jsonl").write_text(row + "\n")
    line = refused(1, "--config.total_epochs=2")
    assert "metrics.jsonl, line 1" in line


@pytest.mark.slow
def test_no_device(gnp_environment, tmp_path):
    command = [
        sys.executable, "-P", "-m", "gnp.main.main", DIGITS, f"--working_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    environment = dict(gnp_environment) | {"JAX_PLATFORMS": "cuda"}
    result = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "jax finds no device" in result.stderr


def test_nothing_to_evaluate(run_gnp_here, refused, tmp_path):
    assert "holds no run" in refused(2, "--mode=eval")
    directory = tmp_path / "run"
    result = run_gnp_here(DIGITS, "--mode=inspect")
    assert result.returncode == 0
    directory.mkdir()
    flat = as_json(load_config(str(ROOT / "config" / "digits.py")))
    (directory / "config.json").write_text(json.dumps(flat))
    assert "no checkpoint in" in refused(1, "--mode=eval")


def test_checkpoint_that_is_not_there(refused, digits_run):
    words = ("--mode=eval", "--checkpoint=7", "--config.total_epochs=3")
    assert "no checkpoint of step 7" in refused(1, *words, directory=digits_run.directory)


def test_eval_with_another_config(refused, digits_run):
    words = ("--mode=eval", "--config.total_epochs=3", "--config.batch_size=32")
    assert "batch_size (there 64, here 32)" in refused(2, *words, directory=digits_run.directory)


def test_checkpoint_of_another_model(run_gnp_here, digits_run, tmp_path):
    """Its config.json was edited, or the checkpoints copied from another run."""
    directory = tmp_path / "copy"
    shutil.copytree(digits_run.directory, directory)
    config = json.loads((directory / "config.json").read_text())
    config["model.model_params"] = {"features": [4, 4]}
    (directory / "config.json").write_text(json.dumps(config))
    result = run_gnp_here("--mode=eval", f"--working_dir={directory}")
    assert result.returncode == 1
    assert "is of another model, optimizer or version" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_training_that_diverges(refused, tmp_path):
    small = ("--config.model.model_name=MLP", "--config.model.model_params={'widths': (4,)}")
    line = refused(1, *small, "--config.base_lr=1e38", "--config.total_epochs=2")
    assert "is not finite" in line
    assert "step" in line
    assert "epoch" in line


@pytest.mark.slow
def test_full_disk(gnp_environment, tmp_path):
    """A file-size limit stands for the full disk: writing fails in the same way, later."""
    command = [
        sys.executable, "-P", "-m", "gnp.main.main", DIGITS, f"--working_dir={tmp_path / 'run'}",
        "--config.total_epochs=2",
    ]  # fmt: skip

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    environment = {k: v for k, v in gnp_environment.items() if "CACHE" not in k}
    result = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, preexec_fn=limit
    )
    assert result.returncode == 1, result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert str(tmp_path / "run") in lines[0]
    assert "File too large" in lines[0]
