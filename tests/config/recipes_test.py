"""The recipes of the published experiments, against a table of what was published.

tests/reference/recipes.json was written from the sources' files, not from the configs; its "about"
says what is in it.
"""

import json
import re
from pathlib import Path

import pytest

from config import as_json, load_config
from gnp.main.command_line import parse
from tests.recipe.experiments import experiments

ROOT = Path(__file__).resolve().parents[2]
TABLE = json.loads((ROOT / "tests/reference/recipes.json").read_text())
CONFIGS = [(recipe, config) for recipe, configs in TABLE["recipes"].items() for config in configs]
FLAGS = TABLE["published_flags"]
EXPERIMENTS = experiments()


def config_file(name: str) -> str:
    """The table has the names of before, which load as well."""
    return str(ROOT / "config" / f"{name}.py")


def flat(config) -> dict:
    """Dotted key -> JSON value; the free keyword arguments have keys of their own."""
    values = json.loads(json.dumps(as_json(config)))
    for name in ("opt.opt_params", "model.model_params"):
        values |= {f"{name}.{key}": value for key, value in values.pop(name).items()}
    return values


def parsed(*arguments: str) -> dict:
    command = parse([*arguments, "--working_dir=somewhere"])
    assert command is not None
    return flat(command.config)


def flags(recipe: str) -> list[str]:
    return [f"--config.{key}={value}" for key, value in FLAGS[recipe]["flags"].items()]


@pytest.mark.parametrize(("recipe", "config"), CONFIGS, ids=[config for _, config in CONFIGS])
def test_the_config_says_what_was_published(recipe, config):
    published = TABLE["recipes"][recipe][config]
    values = parsed(f"--config={config_file(config)}")
    assert {key: values.get(key, "missing") for key in published} == published


@pytest.mark.parametrize("recipe", TABLE["recipes"])
def test_the_recipe_trains_its_configs(recipe):
    """And the config file says the recipe."""
    trained = [each.config for each in EXPERIMENTS if each.script.stem == recipe]
    configs = TABLE["recipes"][recipe]
    assert [flat(load_config(str(ROOT / "config" / name))) for name in trained] == [
        flat(load_config(config_file(name))) for name in configs
    ]
    for name in trained:
        text = (ROOT / "config" / name.partition(":")[0]).read_text()
        assert re.search(rf"recipe/{recipe}\.sh\b", text), name


def test_every_recipe_of_an_experiment_is_in_the_table():
    assert {experiment.script.stem for experiment in EXPERIMENTS} == set(TABLE["recipes"])


@pytest.mark.parametrize("recipe", TABLE["recipes"])
def test_every_setting_has_its_file_and_commit(recipe):
    source, rows = TABLE["sources"][recipe], TABLE["recipes"][recipe].values()
    assert "article" in source or re.fullmatch("[0-9a-f]{40}", source["commit"])
    read = [key for keys in source["files"].values() for key in keys]
    assert sorted(read) == sorted({key for row in rows for key in row})


@pytest.mark.parametrize("recipe", FLAGS)
def test_a_published_command_line_is_our_recipe(recipe):
    """Behind our config it changes nothing but what the table says."""
    (config,) = TABLE["recipes"][recipe]
    ours = parsed(f"--config={config_file(config)}")
    theirs = parsed(f"--config={config_file(config)}", *flags(recipe))
    changed = {key: [theirs[key], ours[key]] for key in ours if theirs[key] != ours[key]}
    assert changed == FLAGS[recipe]["differs"]


# What the authors' code does unasked: ImageNet's crops and sizes, Adam's second clipping, its
# networks.
UNASKED = {
    *("dataset.image_size", "dataset.num_classes", "dataset.num_channels"),
    *("gradient_clipping", "model.model_params.variant", "model.model_params.backward_noise"),
}


@pytest.mark.parametrize("recipe", FLAGS)
def test_a_published_command_line_is_accepted_behind_their_defaults(recipe):
    (config,) = TABLE["recipes"][recipe]
    ours = parsed(f"--config={config_file(config)}")
    theirs = parsed(f"--config={config_file('original')}", *flags(recipe))
    changed = {key for key in ours if theirs.get(key) != ours[key]}
    assert changed <= UNASKED | set(FLAGS[recipe]["differs"])
    assert theirs["gnp.norm_perturbations"] is True


def test_the_command_on_the_page_is_accepted():
    page = (ROOT / "docs/from_the_original.md").read_text()
    (command,) = re.findall(r"^```bash\npython3 -m gnp.main.main (.*?)^```$", page, re.M | re.S)
    arguments = command.replace("\\\n", " ").replace("config/", f"{ROOT}/config/").split()
    recipe = flat(load_config(config_file("wideresnet_cifar")))
    values = parsed(*arguments)
    keys = ("gnp.r", "gnp.alpha", "gnp.norm_perturbations", "batch_size", "model.model_name")
    assert {key: values[key] for key in keys} == {key: recipe[key] for key in keys}


@pytest.mark.parametrize("recipe", [name for name in FLAGS if "cifar" in name])
def test_cifar_100(recipe):
    (config,) = TABLE["recipes"][recipe]
    hundred = ("--config.dataset.dataset_name=cifar100", "--config.dataset.num_classes=100")
    values = parsed(f"--config={config_file(config)}", *hundred)
    ours = parsed(f"--config={config_file(config)}")
    changed = {key for key in ours if values[key] != ours[key]}
    assert changed == {"dataset.dataset_name", "dataset.num_classes"}


def test_imagenet_is_a_folder_of_photographs():
    name = ("dataset.dataset_name", "imagenet")
    level = "dataset.image_level_augmentations"
    for theirs, ours in (("none", "inception"), ("autoaugment", "randaugment")):
        config = load_config(config_file("original"), [name, (level, theirs)])
        assert config.dataset.dataset_name == "image_folder"
        assert config.dataset.image_level_augmentations == ours
    config = load_config(config_file("original"), [(level, "none")])
    assert config.dataset.image_level_augmentations == "none"


@pytest.mark.parametrize("config", [config for _, config in CONFIGS if "riemannian" in config])
def test_a_vgg_of_the_riemannian_paper(config):
    values = parsed(
        f"--config={config_file(config)}",
        "--config.model.model_name=VGG13Riemannian",
        "--config.model.model_params.dropout_rate=0",
    )
    assert values["model.model_params.dropout_rate"] == 0


@pytest.mark.parametrize("strategy", ["none", "lambda", "r", "zero"])
@pytest.mark.parametrize("size", ["TI", "S", "B"])
def test_the_table_of_the_warmups(strategy, size):
    file = config_file("vit_cifar_basic_grwarmup")
    values = parsed(
        f"--config={file}",
        f"--config.model.model_name=ViT_{size}4",
        f"--config.gr_warmup_strategy={strategy}",
    )
    assert (values["gnp.alpha"], values["gr_warmup_strategy"]) == (1.0, strategy)
    assert parsed(f"--config={file}", "--config.gnp.r=0", "--config.gnp.alpha=0")["gnp.r"] == 0
