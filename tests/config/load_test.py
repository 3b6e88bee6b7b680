"""Configs: every key has its kind, deltas load, and everything wrong is said at once."""

from pathlib import Path

import pytest

from config import ConfigError, apply_overrides, default, from_flat, load_config
from config.schema import flatten, problems, split_overrides

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path
    for path in (ROOT / "config").glob("*.py")
    if path.stem not in ("__init__", "schema", "load", "default", "riemannian")
)


def load(*overrides: tuple[str, str], path: Path = ROOT / "config" / "digits.py"):
    return load_config(str(path), overrides)


def problems_of(*overrides: tuple[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value).splitlines()


def test_defaults_are_allowed_and_keys_are_unique():
    assert problems(default.get_config(), default.KEYS) == []
    names = [key.name for key in default.KEYS]
    assert len(names) == len(set(names))
    assert set(default.FREE_KEYS) <= set(names)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_says_its_command(path):
    config = load_config(str(path))
    assert config.is_locked
    assert f"--config=config/{path.name}" in path.read_text()


def test_published_keys_are_there():
    """The flags of the published recipes stay valid."""
    names = {key.name for key in default.KEYS}
    published = """init_seeds seeds batch_size base_lr total_epochs gradient_clipping
        l2_regularization lr_schedule_type warmup_epochs label_smoothing compute_top_5_error_rate
        evaluate_every_n_epochs save_ckpt_every_n_epochs no_weight_decay_on_bn retrain
        gr_warmup_strategy use_hybrid_training hybrid_config.p gnp.r gnp.alpha
        gnp.norm_perturbations gnp.sync_perturbations dataset.dataset_name
        dataset.image_level_augmentations dataset.batch_level_augmentations dataset.image_size
        dataset.num_classes dataset.num_channels opt.opt_type opt.opt_params model.model_name
        model.model_params"""
    assert set(published.split()) <= names


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("gnp.r", "0.1", 0.1),
        ("gnp.r", "1e-1", 0.1),
        ("batch_size", "32", 32),
        ("retrain", "True", True),
        ("retrain", "false", False),
        ("lr_schedule_type", "stepped", "stepped"),
        ("lr_schedule_params.boundaries", "(1,2.5)", (1.0, 2.5)),
        ("gnp.warmup_epochs", "none", None),
        ("gnp.warmup_epochs", "2", 2.0),
    ],
)
def test_overrides_have_the_kind_of_their_key(name, text, value):
    config = load((name, text))
    assert flatten(config, default.KEYS)[name] == value


def test_free_keyword_arguments_take_any_name():
    config = load(
        ("opt.opt_params.weight_decay", "0.3"),
        ("opt.opt_params.nesterov", "true"),
        ("model.model_params", "{'features': 8}"),
    )
    assert dict(config.opt.opt_params) == {"weight_decay": 0.3, "nesterov": True}
    assert dict(config.model.model_params) == {"features": 8}


def test_the_given_config_is_not_changed():
    config = default.get_config()
    before = config.to_json()
    apply_overrides(config, [("gnp.r", "0.3"), ("opt.opt_params.eps", "1")], default.KEYS)
    assert config.to_json() == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (("base_ir", "0.1"), ("unknown config key base_ir", "did you mean base_lr?")),
        (("gnp.radius", "0.1"), ("unknown config key gnp.radius",)),
        (("gnp", "0.1"), ("unknown config key gnp",)),
        (("batch_size", "64.5"), ("batch_size = '64.5'", "a whole number >= 1")),
        (("batch_size", "0"), ("batch_size = 0", "a whole number >= 1")),
        (("batch_size", "many"), ("batch_size = 'many'",)),
        (("base_lr", "-1"), ("base_lr = -1.0", ">= 0")),
        (("base_lr", "nan"), ("base_lr = nan", ">= 0")),
        (("base_lr", "inf"), ("base_lr = inf", ">= 0")),
        (("gnp.r", "-0.1"), ("gnp.r = -0.1", ">= 0")),
        (("gnp.alpha", "-1"), ("gnp.alpha = -1.0", ">= 0")),
        (("total_epochs", "0"), ("total_epochs = 0",)),
        (("hybrid_config.p", "1.5"), ("hybrid_config.p = 1.5", "<= 1")),
        (("lr_schedule_type", "cosin"), ("lr_schedule_type = 'cosin'", "cosine")),
        (("gr_warmup_strategy", "both"), ("gr_warmup_strategy = 'both'", "none | lambda | r")),
        (("opt.opt_type", "Adamm"), ("opt.opt_type = 'Adamm'", "Adam")),
        (("lr_schedule_params.boundaries", "3,2"), ("lr_schedule_params.boundaries",)),
        (("retrain", "maybe"), ("retrain = 'maybe'", "True or False")),
        (("opt.opt_params", "3"), ("opt.opt_params = '3'", "a dict")),
        (("gnp.r", "0.05,0.1"), ("gnp.r = '0.05,0.1'",)),
        (("gnp.r", "0"), ("gnp.alpha = 0.8 with gnp.r = 0",)),
        (("warmup_epochs", "99"), ("warmup_epochs = 99 is longer than total_epochs",)),
        (("dataset.data_dir", ""), ("dataset.data_dir = ''",)),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(override, words):
    lines = problems_of(override)
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_all_problems_at_once():
    lines = problems_of(("gnp.r", "-1"), ("nonsense", "1"), ("batch_size", "x"))
    assert len(lines) == 3


def test_lambda_gives_alpha():
    """And replaces the one of the file."""
    config = load(("gnp.lambda", "0.02"), ("gnp.r", "0.05"))
    assert config.gnp.alpha == pytest.approx(0.4)


def test_lambda_and_alpha_may_not_disagree():
    (line,) = problems_of(("gnp.lambda", "0.9"), ("gnp.alpha", "0.8"))
    assert "gnp.lambda = 0.9 and gnp.alpha = 0.8 disagree" in line
    assert load(("gnp.lambda", "0.04"), ("gnp.alpha", "0.8")).gnp.alpha == pytest.approx(0.8)


def test_split_overrides():
    rest, pairs, wrong = split_overrides(
        ["--mode=eval", "--config=f.py", "--config.a.b=1", "--config.c", "-2e-3", "--config.d=x=y"]
    )
    assert rest == ["--mode=eval", "--config=f.py"]
    assert pairs == [("a.b", "1"), ("c", "-2e-3"), ("d", "x=y")]
    assert wrong == []


@pytest.mark.parametrize(
    "words",
    [
        ["--config.opt.opt_params.weight_decay", "=", "0.3"],
        ["--config.opt.opt_params.weight_decay", "=0.3"],
        ["--config.opt.opt_params.weight_decay"],
        ["--config.opt.opt_params.weight_decay", "--mode=eval"],
    ],
)
def test_spaces_around_the_equals_sign_are_named(words):
    rest, pairs, wrong = split_overrides([*words, "--config=f.py"])
    assert pairs == []
    assert wrong == [
        "--config.opt.opt_params.weight_decay has no value: "
        "write --config.opt.opt_params.weight_decay=VALUE, no spaces"
    ]
    assert rest[-1] == "--config=f.py"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\n", "AttributeError"),
        ("def get_config():\n    return {}\n", "a ConfigDict is needed"),
        (
            "from config import default\n"
            "def get_config():\n    c = default.get_config()\n    c.base_ir = 1\n    return c\n",
            "base_ir",
        ),
        (
            "from config import default\n"
            "def get_config():\n"
            "    c = default.get_config()\n    c.batch_size = 'x'\n    return c\n",
            "TypeError",
        ),
    ],
)
def test_config_files_that_fail_are_one_line(tmp_path, content, words):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert words in lines[0]


def test_missing_file():
    with pytest.raises(ConfigError, match="no such file"):
        load_config("nowhere.py")


def test_from_flat_is_the_inverse_of_flatten():
    config = load(("opt.opt_params.eps", "1e-7"), ("gnp.lambda", "0.04"), ("gnp.alpha", "0"))
    assert config.gnp.alpha == pytest.approx(0.8)
    flat = flatten(config, default.KEYS)
    assert flatten(from_flat(flat), default.KEYS) == flat


def test_a_run_that_does_not_know_a_key_has_its_default():
    flat = flatten(load(("opt.opt_params.eps", "1e-7")), default.KEYS)
    older = {name: value for name, value in flat.items() if not name.startswith("l2_by")}
    assert flatten(from_flat(older), default.KEYS) == flat
    with pytest.raises(ConfigError, match="unknown config key a"):
        from_flat({**flat, "a": 1})
