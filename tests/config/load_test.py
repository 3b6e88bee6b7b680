"""Configs: every key has its kind, deltas load, and everything wrong is said at once."""

import os
import traceback
from pathlib import Path

import pytest
from absl import flags

from config import (
    ConfigError,
    apply_overrides,
    as_json,
    default,
    from_flat,
    load_config,
    on_devices,
    read_flags,
    with_group_size,
)
from config.load import split_overrides
from config.rules import flatten, problems

ROOT = Path(__file__).parents[2]
# The config files of before that take an argument now: people have their paths in scripts.
MOVED = {
    **{
        f"riemannian_{data}_{optimizer}": f"riemannian.py:{data},{optimizer}"
        for data in ("cifar10", "cifar100", "svhn")
        for optimizer in ("sgd", "sgdg", "adamg")
    },
    **{
        f"evolution_{data}": f"evolution.py:{data}"
        for data in ("boston", "cifar10", "cifar100", "forda", "iris", "mnist")
    },
    **{
        name: f"original.py:{name}"
        for name in (
            *("wideresnet_cifar", "resnet_cifar", "wideresnet_ss_cifar", "pyramidnet_sd_cifar"),
            *("vit_cifar_basic", "vit_cifar_basic_grwarmup", "vit_cifar_heavy"),
            *("resnet_imagenet", "vggbn_imagenet"),
        )
    },
    "gc_horses_or_humans": "horses_or_humans.py:gc",
    "mnist_methods": "methods.py:mnist",
    "cifar_methods": "methods.py:cifar",
}
FILES = sorted(
    path.name
    for path in (ROOT / "config").glob("*.py")
    if path.stem not in ("__init__", "schema", "load", "paths", "rules", "default")
)
NEEDS_AN_ARGUMENT = {"riemannian.py", "evolution.py", "methods.py"}
CONFIGS = [*(name for name in FILES if name not in NEEDS_AN_ARGUMENT), *MOVED.values()]


def load(*overrides: tuple[str, str], path: Path = ROOT / "config" / "digits.py"):
    return load_config(str(path), overrides)


def problems_of(*overrides: tuple[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    return str(caught.value).splitlines()


def test_defaults_are_allowed_and_keys_are_unique():
    assert problems(default.get_config()) == []
    names = [key.name for key in default.KEYS]
    assert len(names) == len(set(names))
    assert set(default.FREE_KEYS) <= set(names)
    assert all(key.meaning for key in default.KEYS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_loads_and_says_its_command(name):
    config = load_config(str(ROOT / "config" / name))
    assert config.is_locked
    file = name.partition(":")[0]
    assert f"--config=config/{file}" in (ROOT / "config" / file).read_text()


@pytest.mark.parametrize("old", MOVED)
def test_a_path_of_before_is_the_same_config(old):
    assert not (ROOT / "config" / f"{old}.py").exists()
    config = load_config(str(ROOT / "config" / f"{old}.py"))
    assert as_json(config) == as_json(load_config(str(ROOT / "config" / MOVED[old])))


def test_a_file_of_that_name_in_another_folder_is_a_users_own(tmp_path):
    path = tmp_path / "evolution_mnist.py"
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(path))
    path.write_text(
        "from config import default\ndef get_config():\n"
        "    c = default.get_config()\n    c.batch_size = 3\n    return c\n"
    )
    assert load_config(str(path)).batch_size == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evolution.py:minst", "unknown argument 'minst' (did you mean mnist?); write"),
        ("evolution.py", "no argument; write FILE.py:ARGUMENT with one of boston | cifar10"),
        ("riemannian.py:cifar10,sgdd", "unknown argument 'cifar10,sgdd' (did you mean cifar10,sgd"),
        ("cifar_resnet.py:55", "unknown argument '55'; write FILE.py:ARGUMENT with one of 20"),
        ("digits.py:small", "its get_config() takes no argument"),
        ("nowhere.py:x", "no such file"),
        ("evolution_minst.py", "no such file"),
        ("evolution_mnist.py:x", "no such file"),
    ],
)
def test_an_argument_that_does_not_fit_is_one_line(name, words):
    path = ROOT / "config" / name
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--config={path}: {words}")


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
    assert flatten(load((name, text)))[name] == value


def test_free_keyword_arguments_take_any_name():
    config = load(
        ("opt.opt_params.weight_decay", "0.3"),
        ("opt.opt_params.nesterov", "true"),
        ("model.model_params", "{'features': 8}"),
    )
    assert dict(config.opt.opt_params) == {"weight_decay": 0.3, "nesterov": True}
    assert dict(config.model.model_params) == {"features": 8}


def test_a_dict_and_its_keys_on_one_command_line():
    """Later ones win; a whole number is a real one where the file has one."""
    whole, key = ("opt.opt_params", "{'eps': 1e-3}"), ("opt.opt_params.eps", "1")
    assert repr(dict(load(whole, key).opt.opt_params)) == "{'eps': 1.0}"
    assert dict(load(key, whole).opt.opt_params) == {"eps": 1e-3}
    assert dict(load(key, whole, ("opt.opt_params.b", "x")).opt.opt_params)["b"] == "x"


def test_the_given_config_is_not_changed():
    config = default.get_config()
    before = config.to_json()
    apply_overrides(config, [("gnp.r", "0.3"), ("opt.opt_params.eps", "1")])
    assert config.to_json() == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (("base_ir", "0.1"), ("unknown config key base_ir", "did you mean base_lr?")),
        (("gnp.radius", "0.1"), ("unknown config key gnp.radius",)),
        (("gnp", "0.1"), ("unknown config key gnp",)),
        (("opt.opt_params.__class__", "1"), ("unknown config key opt.opt_params.__class__",)),
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
        (("dataset.data_dir", "gs://bucket/data"), ("data_dir = 'gs://bucket/data'", "no URL")),
        (("dataset.data_dir", "file:///data"), ("no URL",)),
        (("model.pretrained", "https://x.org/a.npz"), ("model.pretrained = 'https", "no URL")),
        (("model.pretrained", "~nobody-here/a.npz"), ("model.pretrained = '~nobody-here",)),
        (("dataset.dataset_name", "ucr/../../home"), ("dataset.dataset_name = 'ucr/../../home'",)),
        (("dataset.dataset_name", "/etc"), ("dataset.dataset_name = '/etc'",)),
        (("batch_size", "9" * 400), ("batch_size = 999", "a whole number >= 1")),
        (("batch_size", "9" * 5000), ("batch_size = '999", "a whole number >= 1")),
        (("batch_size", "1_000"), ("batch_size = '1_000'", "a whole number >= 1")),
        (("base_lr", "\uff11\uff12"), ("base_lr = ", "a number >= 0")),
        (("base_lr", "1e999"), ("base_lr = inf",)),
        (("base_lr", "1e300"), ("base_lr = 1e+300",)),
        (("lr_schedule_params.boundaries", "1_0,2_0"), ("boundaries = '1_0,2_0'",)),
        (("lr_schedule_params.boundaries", "1e999"), ("boundaries = (inf,)",)),
        (("total_epochs", str(2**31)), ("total_epochs = 2147483648", "< 2147483648")),
        (("model.model_params", "[" * 5000), ("model.model_params = '[[[", "a dict")),
        (("model.model_params", "{'dropout_rate': 1if 2else 3}"), ("a dict",)),
        (("model.model_params", "{'dropout_rate': 9**9**9}"), ("a dict",)),
        (("model.model_params", f"{{'dropout_rate': 1{'0' * 400}}}"), ("a dict",)),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(override, words):
    lines = problems_of(override)
    assert len(lines) == 1
    assert len(lines[0]) < 600
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$",
        "(.*)*",
        "(a|a)*",
        "(a|b){2}",
        ".*.*.*.*.*x",
        "a?a?a?a?aaaa",
        "(a|a)(a|a)(a|a)(a|a)x",
        "a{1,99999}",
        "a{99999999999}",
        "(?=a)",
        "(?<!a)",
        "(?P<n>a)",
        "(?i)a",
        r"(a)\1",
        "[[a]",
        r"[\]x[](a+)+]b]",  # where a class ends
        "a" * 201,
    ],
)
def test_an_expression_that_could_search_for_ever(expression):
    """Also in the config of a run directory, which may be a stranger's."""
    (line,) = problems_of(("opt.opt_type", "SGDG"), ("opt.grassmann_where", expression))
    assert line.startswith("opt.grassmann_where = ") and "at most three of * + ? {n}" in line
    stored = as_json(load(("opt.opt_type", "SGDG"))) | {"opt.grassmann_where": expression}
    with pytest.raises(ConfigError, match=r"at most three of"):
        from_flat(stored)


@pytest.mark.parametrize(
    "expression",
    [
        "Conv",
        r"^layer[1-4]_\d+/conv\d{1,2}/kernel$",
        "(?:conv1|conv2)/kernel",
        "a|b|c|d|e|f",
        r"a\.b",
        "[]a]",
    ],
)
def test_usual_expressions(expression):
    config = load(("opt.opt_type", "SGDG"), ("opt.grassmann_where", expression))
    assert config.opt.grassmann_where == expression


def test_paths_stay_as_they_were_written():
    config = load(("dataset.data_dir", "~/data"), ("model.pretrained", "~/weights.npz"))
    assert (config.dataset.data_dir, config.model.pretrained) == ("~/data", "~/weights.npz")


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


def test_a_relative_replaces_the_weight_of_the_penalty():
    config = load(("gnp.method", "vasso"), ("gnp.method_params.theta", "0.2"))
    assert (config.gnp.alpha, config.gnp["lambda"]) == (0.0, None)
    assert config.gnp.method_params.to_dict() == {"theta": 0.2}
    assert load(("gnp.method", "hvp")).gnp.alpha == 0.8


def test_a_noisy_gradient_has_no_hessian():
    noisy = ("model.model_params.backward_noise", "true")
    (line,) = problems_of(("gnp.method", "hvp"), noisy)
    assert "leave the method at 'finite_difference'" in line
    assert load(noisy).model.model_params.backward_noise


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"gnp.method": "sam", "gnp.alpha": "0.5"}, "gnp.alpha = 0.5 is of the penalty, whose wei"),
        ({"gnp.method": "sam", "gnp.lambda": "0.5"}, "gnp.lambda = 0.5 is of the penalty"),
        ({"gnp.method": "sam", "gnp.norm_perturbations": "true"}, "gnp.norm_perturbations = True"),
        ({"gnp.method": "sam", "gr_warmup_strategy": "lambda"}, "gr_warmup_strategy = 'lambda' is"),
        ({"gnp.method": "sam", "gnp.r": "0"}, "gnp.method = 'sam' needs a radius, such as"),
        ({"gnp.method": "friendly"}, "did you mean friendly_sam?"),
        ({"gnp.every_scales_alpha": "true"}, "gnp.every = 1: each step is penalized already"),
        ({"gnp.tail_epochs": "300"}, "gnp.tail_epochs = 300 is longer than total_epochs"),
        ({"gnp.tail_epochs": "1", "gnp.r": "0", "gnp.alpha": "0"}, "there is no penalty to work"),
        ({"gnp.unusual_norm": "1"}, "must be two numbers, at the run's begin and end"),
        (
            {"gnp.r_by_kind.bias": "0.1", "gnp.r": "0", "gnp.alpha": "0"},
            "gnp.r_by_kind.bias = 0.1 with gnp.r = 0: it takes the place of gnp.r in some",
        ),
        (
            {"gnp.alpha_by_kind.scale": "1", "gnp.method": "sam"},
            "gnp.alpha_by_kind.scale = 1.0 is of the penalty, whose weight is gnp.alpha",
        ),
        (
            {"gnp.alpha_by_kind.scale": "1", "gnp.alpha": "0"},
            "gnp.alpha_by_kind.scale = 1 with gnp.alpha = 0: it takes the place of gnp.alpha",
        ),
        ({"gnp.ascent_share": "0.001"}, "gnp.ascent_share = 0.001 must be at least 0.01"),
        (
            {"loss_reduction": "sum", "gnp.norm_perturbations": "true",
             "gnp.sync_perturbations": "false"},
            "the sum of normalized gradients has no length of 1",
        ),
        ({"gnp.ascent_share": "0.5", "gnp.r": "0", "gnp.alpha": "0"}, "there is no penalty to wor"),
        (
            {"gnp.ascent_share": "0.5", "gnp.sync_perturbations": "false"},
            "gnp.ascent_share = 0.5 does not go with a perturbation for each group",
        ),
        (
            {"gnp.method": "functional_sam", "accumulate_steps": "2",
             "accumulate_penalty": "micro"},
            "gnp.method = 'functional_sam' does not go with a perturbation for each group",
        ),
        (
            {"opt.centralize": "all", "opt.centralize_at": "perturbation", "gnp.r": "0",
             "gnp.alpha": "0"},
            "there is no perturbation",
        ),
        (
            {"dataset.labels_file": "a.npz", "dataset.label_noise": "0.4"},
            "dataset.labels_file = 'a.npz' does not go with dataset.label_noise = 0.4",
        ),
    ],
)  # fmt: skip
def test_rules_on_the_family(keys, words):
    (line,) = problems_of(*keys.items())
    assert words in line


def test_a_share_takes_of_each_device():
    config = load(("batch_size", "48"), ("gnp.ascent_share", "0.75"))
    assert problems(config, devices=4) == []
    (line,) = problems(config, devices=8)
    assert "takes 3 of every 4 examples, and 4 does not divide a device's share of" in line
    config = load(*{"batch_size": "48", "gnp.ascent_share": "0.75",
                    "model.model_params.batch_norm_group": "24"}.items())  # fmt: skip
    (line,) = problems(config, devices=1)  # 24 divides 48, and not the 36
    assert "does not divide batch_size / 4 = 12" in line


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


GET_CONFIG = "from config import default\ndef get_config():\n    c = default.get_config()\n    "


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x = 1\n", "a function get_config() is needed"),
        ("get_config = 1\n", "a function get_config() is needed"),
        ("def get_config():\n    return {}\n", "returned dict, a ConfigDict is needed"),
        ("def get_config():\n    pass\n", "returned NoneType, a ConfigDict is needed"),
        ("def get_config(name):\n    pass\n", "needs an argument, FILE.py:ARGUMENT"),
        ("import sys\nsys.exit()\n", "it calls sys.exit"),
        ("def get_config():\n    exit(3)\n", "it calls sys.exit"),
        ("# \udcff\n", "is no Python file, whose text is in UTF-8"),
        ("# coding: nonsense\n", "is no Python file, whose text is in UTF-8"),
        ("a = '\0'\n", "it holds null characters"),
    ],
)
def test_a_file_that_gives_no_config_is_one_line(tmp_path, content, words):
    path = tmp_path / "mine.py"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--config={path}: ")
    assert words in line


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("def get_config(:\n", SyntaxError),
        ("import nowhere_to_be_found\n", ModuleNotFoundError),
        (f"{GET_CONFIG}c['gnp']['q']\n", KeyError),
        (f"{GET_CONFIG}c.batch_size = 'x'\n", TypeError),
        (f"{GET_CONFIG}open('nowhere')\n", FileNotFoundError),
        (f"{GET_CONFIG}1 / 0\n", ZeroDivisionError),
    ],
)
def test_what_a_users_file_does_wrong_is_not_hidden(tmp_path, content, error):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(error) as caught:
        load_config(str(path))
    shown = "".join(traceback.format_exception(caught.value))
    assert f'File "{path}", line' in shown


def load_text(tmp_path, lines: str, *overrides: tuple[str, str]):
    path = tmp_path / "mine.py"
    path.write_text(f"from ml_collections import config_dict\n{GET_CONFIG}{lines}\n    return c\n")
    return load_config(str(path), overrides)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.base_ir = 1", "unknown config key base_ir (did you mean base_lr?)"),
        (
            "c.num_seeds = 3",
            "key num_seeds was removed: train one run a seed, by SEEDS",
        ),
        ("c.num_seeds = 1", "bash recipe/sweep.sh CONFIG seeds=0,1,2"),
        ("del c.gnp", "config key gnp.r is missing"),
    ],
)
def test_keys_of_a_users_file_are_told(tmp_path, line, words):
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, line, ("gnp.r", "0.1"))
    assert words in str(caught.value)


def test_a_key_that_is_a_reference_follows_the_command_line(tmp_path):
    line = "c.evaluate_every_n_epochs = c.get_ref('total_epochs')"
    assert load_text(tmp_path, line).evaluate_every_n_epochs == 200
    config = load_text(tmp_path, line, ("total_epochs", "7"))
    assert (config.total_epochs, config.evaluate_every_n_epochs) == (7, 7)
    both = [("total_epochs", "7"), ("evaluate_every_n_epochs", "2")]
    config = load_text(tmp_path, line, *both)
    assert (config.total_epochs, config.evaluate_every_n_epochs) == (7, 2)
    product = "c.evaluate_every_n_epochs = c.get_ref('total_epochs') // 2"
    assert load_text(tmp_path, product, ("total_epochs", "7")).evaluate_every_n_epochs == 3
    lambdas = "c.gnp.r = 0.1\n    c.gnp.alpha = c.gnp.get_ref('r') * 8"
    assert load_text(tmp_path, lambdas, ("gnp.r", "0.2")).gnp.alpha == 1.6


def test_a_part_that_is_a_reference_is_set_as_well(tmp_path):
    line = "c.opt.opt_params = c.model.get_ref('model_params')"
    config = load_text(tmp_path, line, ("opt.opt_params.eps", "0.1"))
    assert dict(config.opt.opt_params) == {"eps": 0.1}


def test_required_placeholders_are_satisfied_by_the_command_line(tmp_path):
    lines = """with c.unlocked():
        c.base_lr = config_dict.required_placeholder(float)
        c.opt.opt_params.eps = config_dict.required_placeholder(float)"""
    given = [("base_lr", "0.3"), ("opt.opt_params.eps", "1e-7")]
    config = load_text(tmp_path, lines, *given)
    assert (config.base_lr, config.opt.opt_params.eps) == (0.3, 1e-7)
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, lines, given[1], ("batch_size", "0"))
    assert str(caught.value).splitlines() == [
        "base_lr has no value: the config file requires --config.base_lr=VALUE",
        "batch_size = 0: allowed is a whole number >= 1",
    ]


def test_a_locked_config_may_have_one_too(tmp_path):
    line = "c.lock().base_lr = config_dict.required_placeholder(float)"
    config = load_text(tmp_path, line, ("batch_size", "3"), ("base_lr", "0.3"))
    assert (config.batch_size, config.base_lr) == (3, 0.3)


def test_a_required_placeholder_without_a_value_is_told_wherever_it_is(tmp_path):
    """Also where the key's default is None, in free keyword arguments, and seen from elsewhere."""
    lines = """c.dataset.data_dir = config_dict.required_placeholder(str)
    c.model.pretrained = c.dataset.get_ref('data_dir')
    c.opt.opt_params = {'eps': config_dict.required_placeholder(float)}
    c.l2_by_kind = config_dict.required_placeholder(config_dict.ConfigDict)"""
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, lines, ("l2_by_kind.bias", "1"))
    told = str(caught.value)
    for name in ("dataset.data_dir", "model.pretrained", "opt.opt_params.eps", "l2_by_kind"):
        assert f"{name} has no value: the config file requires --config.{name}=VALUE" in told
    given = [("dataset.data_dir", "x"), ("opt.opt_params.eps", "1e-7")]
    config = load_text(tmp_path, lines.rpartition("\n")[0], *given)
    assert (config.dataset.data_dir, config.model.pretrained) == ("x", "x")


def test_a_part_that_is_frozen_is_thawed(tmp_path):
    lines = """c.gnp = config_dict.FrozenConfigDict(c.gnp)
    c.opt.opt_params = config_dict.FrozenConfigDict({'eps': 1e-3})"""
    config = load_text(tmp_path, lines, ("gnp.r", "0.1"), ("opt.opt_params.momentum", "0.5"))
    assert config.gnp.r == 0.1
    assert dict(config.opt.opt_params) == {"eps": 1e-3, "momentum": 0.5}
    assert load_text(tmp_path, lines).gnp.r == 0


def test_a_frozen_config_is_thawed(tmp_path):
    lines = """c.evaluate_every_n_epochs = c.get_ref('total_epochs')
    c.model.model_params.features = [8, 8]
    c = config_dict.FrozenConfigDict(c)"""
    given = [("total_epochs", "7"), ("model.model_params.dropout_rate", "0.1")]
    config = load_text(tmp_path, lines, *given)
    assert (config.total_epochs, config.evaluate_every_n_epochs) == (7, 7)
    assert dict(config.model.model_params) == {"features": [8, 8], "dropout_rate": 0.1}


def test_a_flag_file_may_hold_keys(tmp_path):
    file = tmp_path / "flags"
    file.write_text("# a comment\n--config.gnp.r=0.1\n--mode=eval\n--config.opt.opt_params.eps=1\n")
    values = flags.FlagValues()
    flags.DEFINE_string("mode", None, "", flag_values=values)
    pairs, wrong = read_flags(values, ["--config.gnp.r=0.2", f"--flagfile={file}"])
    assert pairs == [("gnp.r", "0.2"), ("gnp.r", "0.1"), ("opt.opt_params.eps", "1")]
    assert (wrong, values.mode) == ([], "eval")
    with pytest.raises(ConfigError, match="nowhere"):
        read_flags(flags.FlagValues(), ["--flagfile=nowhere"])


@pytest.mark.parametrize("text", [b"--config.gnp.r=0.1\n# \xff\n", None])
def test_a_flag_file_that_is_none(tmp_path, text):
    file = tmp_path / "flags"
    file.mkdir() if text is None else file.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read_flags(flags.FlagValues(), [f"--flagfile={file}"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere-to-be-found.py", "no such file; config/ holds ready ones"),
        ("digit.py", f"did you mean {ROOT / 'config' / 'digits.py'}?"),
        ("digits", f"did you mean {ROOT / 'config' / 'digits.py'}?"),
        (f"{ROOT}/config/imagenet_foldr.py", "config/imagenet_folder.py?"),
        (f"{'a' * 300}.py", "no such file"),
        ("gs://bucket/digits.py", "is a URL"),
        ("file:///digits.py:argument", "is a URL"),
        ("~nobody-here/digits.py", "the home of a user who does not exist"),
        ("digits\0.py", "null character"),
        ("FOLDER.py", "is a folder"),
        ("PIPE.py", "is no regular file"),
    ],
)
def test_a_file_that_is_not_there(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    Path("FOLDER.py").mkdir()
    os.mkfifo("PIPE.py")
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    (line,) = str(caught.value).splitlines()
    assert words in line


def test_a_file_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(f"{GET_CONFIG}return c\n")
    assert load_config("~/mine.py").batch_size == 128


def test_from_flat_is_the_inverse_of_flatten():
    config = load(("opt.opt_params.eps", "1e-7"), ("gnp.lambda", "0.04"), ("gnp.alpha", "0"))
    assert config.gnp.alpha == pytest.approx(0.8)
    flat = flatten(config)
    assert flatten(from_flat(flat)) == flat


NESTED: dict = {}
for _ in range(500):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    "name", ["gnp.r", "accumulate_penalty", "model.model_params", "dataset.std"]
)
@pytest.mark.parametrize(
    "value",
    [{"a.b": 1}, {"a": {"b.c": 1}}, {"__class__": 1}, {"": 1}, NESTED, [[1]], "\0", float("inf")],
    ids=lambda value: str(value)[:20],
)
def test_a_strangers_config_is_refused_in_lines(name, value):
    with pytest.raises(ConfigError) as caught:
        from_flat({**as_json(load()), name: value})
    assert str(caught.value).startswith(f"{name} = ")


def test_keyword_arguments_may_hold_dicts():
    config = load(("model.model_params", "{'a': {'b': 1}}"))
    assert as_json(config)["model.model_params"] == {"a": {"b": 1}}
    assert as_json(from_flat(as_json(config))) == as_json(config)


def test_a_run_that_does_not_know_a_key_has_its_default():
    flat = flatten(load(("opt.opt_params.eps", "1e-7")))
    older = {name: value for name, value in flat.items() if not name.startswith("l2_by")}
    assert flatten(from_flat(older)) == flat
    with pytest.raises(ConfigError, match="unknown config key a"):
        from_flat({**flat, "a": 1})


def test_a_run_that_knows_a_removed_key_goes_on():
    flat = as_json(load())
    assert as_json(from_flat({**flat, "num_seeds": 1})) == flat
    with pytest.raises(ConfigError, match="num_seeds was removed"):
        from_flat({**flat, "num_seeds": 2})
    (line,) = problems_of(("num_seeds", "1"))
    assert "num_seeds was removed" in line and "bash recipe/sweep.sh" in line


@pytest.mark.parametrize(
    ("keys", "devices", "words"),
    [
        ({}, 8, ""),
        ({"batch_size": "50"}, 8, "batch_size = 50 cannot be split over 8 devices"),
        ({"accumulate_steps": "12"}, 8, "accumulate_steps = 12 leaves micro-batches of 4 examples"),
        ({"gnp.sync_perturbations": "False", "gnp.m": "4"}, 4, ""),
        ({"gnp.sync_perturbations": "False", "gnp.m": "48"}, 4, ""),
        ({"gnp.sync_perturbations": "False", "gnp.m": "8"}, 4, "gnp.m = 8 does not divide a dev"),
        ({"mesh.data": "-1", "mesh.fsdp": "-1"}, 4, "only one of them can be -1"),
        ({"mesh.fsdp": "3"}, 4, "3 does not divide the number of devices, 4: allowed is 1, 2, 4"),
        (
            {"mesh.data": "2"},
            4,
            "mesh.data = 2 and mesh.fsdp = 1 are for 2 devices, and there are 4",
        ),
        ({"mesh.data": "2", "mesh.fsdp": "-1"}, 4, ""),
        ({"mesh.data": "2", "mesh.fsdp": "2"}, 4, ""),
        ({"model.model_params.batch_norm_group": "5"}, 4, "does not divide batch_size = 48"),
    ],
)
def test_rules_on_devices(keys, devices, words):
    config = load(("batch_size", "48"), *keys.items())
    assert problems(config) == []
    lines = problems(config, devices=devices)
    assert len(lines) == bool(words) and words in "".join(lines)
    evaluating = problems(config, devices=devices, training=False)
    assert evaluating == (lines if "mesh.fsdp" in keys or "mesh.data" in keys else [])


@pytest.mark.parametrize(
    ("keys", "devices", "examples", "words"),
    [
        ({}, 4, 100, ""),
        ({}, 8, 100, "a batch of 4 of 100 examples, for which batch_size = 4 cannot be split"),
        ({}, 8, 96, ""),
        ({"dataset.keep_last_batch": "False"}, 8, 100, ""),
        ({"accumulate_steps": "3"}, 1, 100, "accumulate_steps = 3 does not divide batch_size = 4"),
        ({"gnp.sync_perturbations": "False", "gnp.m": "48"}, 1, 100, ""),
        ({"gnp.sync_perturbations": "False", "gnp.m": "8"}, 1, 100, "gnp.m = 8 does not divide"),
    ],
)
def test_rules_on_the_last_batch_of_an_epoch(keys, devices, examples, words):
    config = load(("batch_size", "48"), *{"dataset.keep_last_batch": "True", **keys}.items())
    assert problems(config, devices=devices) == []
    lines = problems(config, devices=devices, examples=examples)
    assert len(lines) == bool(words) and words in "".join(lines)


@pytest.mark.parametrize(
    ("keys", "devices", "name"),
    [
        ({"gnp.sync_perturbations": "False"}, 4, "gnp.m = 12"),
        ({"gnp.sync_perturbations": "False", "gnp.m": "24"}, 1, "gnp.m = 24"),
        ({"accumulate_steps": "6"}, 1, "batch_size / accumulate_steps = 8"),
    ],
)
def test_groups_with_statistics_of_their_own_divide_what_the_model_is_given(keys, devices, name):
    config = load(*keys.items(), ("batch_size", "48"), ("model.model_params.batch_norm_group", "5"))
    (line,) = problems(config, devices=devices)
    assert f"batch_norm_group = 5 does not divide {name}, the examples" in line
    config = load(*keys.items(), ("batch_size", "48"), ("model.model_params.batch_norm_group", "4"))
    assert problems(config, devices=devices) == []


def test_a_real_number_needs_the_loss_for_it():
    config = load()
    assert problems(config, task="classification", losses=("softmax_cross_entropy",)) == []
    (line,) = problems(config, task="regression", losses=("squared_error",))
    assert line.endswith("go with regression, the task of 'digits': set loss to squared_error")


def test_a_stored_config_fits_other_devices():
    config = load(("mesh.fsdp", "8"), ("gnp.sync_perturbations", "False"))
    assert on_devices(config, 3).mesh.fsdp == 1
    assert on_devices(config, 16).mesh.fsdp == 8
    assert with_group_size(config, {}, devices=4).gnp.m == 16
    assert with_group_size(config, {"gnp.m": 32}, devices=4).gnp.m == 32
    assert (config.mesh.fsdp, config.gnp.m) == (8, None)
    assert with_group_size(load(), {}, devices=4).gnp.m is None
