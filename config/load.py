"""From a config file and a command line to one complete, checked config."""

import copy
import difflib
import importlib.util
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections.config_dict import FieldReference, RequiredValueError

from config import default, rules
from config.paths import local_path
from config.schema import ConfigError, is_keyword, literal, nest

# dataset.dataset_name=imagenet is that of the published penalty code: a folder of photographs, of
# which it always takes random crops; its autoaugment is RandAugment there.
_IMAGENET_AUGMENTATIONS = {"none": "inception", "basic": "inception", "autoaugment": "randaugment"}
# What is no value of the key before it: a flag, though no negative number, or a lone equals sign.
_NO_VALUE = re.compile(r"=|-(?!\.?\d)")
# Config files of earlier versions, which people have in scripts; what takes their place, and its
# argument.
_MOVED = (
    (r"riemannian_(cifar10|cifar100|svhn)_(sgd|sgdg|adamg)", "riemannian", r"\1,\2"),
    (r"evolution_(boston|cifar10|cifar100|forda|iris|mnist)", "evolution", r"\1"),
    (r"gc_horses_or_humans", "horses_or_humans", "gc"),
    (r"(mnist|cifar)_methods", "methods", r"\1"),
    (r"((wide)?resnet|wideresnet_ss|pyramidnet_sd)_cifar", "original", r"\g<0>"),
    (r"vit_cifar_(basic|basic_grwarmup|heavy)", "original", r"\g<0>"),
    (r"(resnet|vggbn)_imagenet", "original", r"\g<0>"),
)


def load_config(path: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """Return the config of a file with command-line values in it, checked and resolved.

    Args:
        path: FILE.py, a Python file that defines `get_config()`, or FILE.py:ARGUMENT, which is
            given to it.
        overrides: (dotted key, text) pairs; later ones win.

    Raises:
        ConfigError: one line for each thing that is wrong.

    Example:
        >>> load_config("config/digits.py", [("gnp.r", "0.1")]).gnp.r
        0.1
    """
    config, wrong = read_config(path, overrides)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return config


def read_config(
    path: str, overrides: Sequence[tuple[str, str]] = ()
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Return the config of a file, as `load_config` does, and a line for each thing that is wrong.

    Raises:
        ConfigError: the file gives no config.
    """
    given, wrong = _parse(overrides)
    # Where a command line sets one of gnp.alpha and gnp.lambda, the file's other one is dropped.
    names = {name for name, _ in given}
    if "gnp.lambda" in names and "gnp.alpha" not in names:
        given.append(("gnp.alpha", 0.0))
    if "gnp.alpha" in names and "gnp.lambda" not in names:
        given.append(("gnp.lambda", None))
    # So is all that is the penalty's weight where it chooses a relative, which has none.
    if dict(given).get("gnp.method") in default.RELATIVES:
        kinds = {f"gnp.alpha_by_kind.{kind}": None for kind in default.PARAMETER_KINDS}
        off = {"gnp.alpha": 0.0, "gnp.lambda": None, **kinds}
        given += [(name, value) for name, value in off.items() if name not in names]
    # A copy, as what the file holds may be the user's, or frozen, and references are written to.
    tree = _as_dicts(copy.deepcopy(_run_file(path)))
    _write(tree, given)
    unset: list[str] = []
    tree = _follow(tree, "", unset)
    _write(tree, given)  # of two keys that are one reference, each has the value given to itself
    wrong += [
        f"{name} has no value: the config file requires --config.{name}=VALUE" for name in unset
    ]
    config = ml_collections.ConfigDict(tree)
    wrong += rules.value_problems(rules.flatten(config)) if wrong else rules.problems(config)
    return (config if wrong else _resolve(config)), list(dict.fromkeys(wrong))


def _run_file(path: str) -> ml_collections.ConfigDict:
    """Return what `get_config` of a file returns; whatever it raises is the file's own bug."""
    try:
        file, argument = _find(path)
        names = {"__name__": f"config_file_{file.stem}", "__file__": str(file)}
        exec(compile(_read_source(file), file, "exec", dont_inherit=True), names)
        get_config: Any = names.get("get_config")
        if not callable(get_config):
            raise ConfigError("a function get_config() is needed in it")
        arguments = (argument,) if argument else ()
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError as error:
            needed = "takes no argument" if argument else "needs an argument, FILE.py:ARGUMENT"
            raise ConfigError(f"its get_config() {needed}") from error
        config = get_config(*arguments)
        if not isinstance(config, ml_collections.ConfigDict):
            kind = type(config).__name__
            raise ConfigError(f"get_config() returned {kind}, a ConfigDict is needed")
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    except SystemExit as error:  # the program would end as if it had trained
        raise ConfigError(
            f"--config={path}: it calls sys.exit, and is to return a config"
        ) from error
    return config


def _find(path: str) -> tuple[Path, str]:
    """Return the file and the argument of FILE.py:ARGUMENT, or of a name from earlier versions."""
    name, _, argument = path.partition(".py:")
    try:
        file = local_path(f"{name}.py" if argument else path)
    except ValueError as error:
        raise ConfigError(f"it {error}") from error
    if not argument and not os.path.isfile(file):
        for old, stem, names in _MOVED:
            if match := re.fullmatch(old, file.stem):
                return file.with_stem(stem), match.expand(names)
    return file, argument


def _read_source(file: Path) -> str:
    """Return the text of a Python file."""
    # os.path takes names that are too long, or in a folder that cannot be read, for missing.
    if not os.path.exists(file):
        ready = (*Path(__file__).parent.glob("*.py"), *file.parent.glob("*.py"))
        paths = {each.stem: each for each in ready}
        close = difflib.get_close_matches(file.stem, paths, n=1)
        near = f" (did you mean {paths[close[0]]}?)" if close else ""
        raise ConfigError(f"no such file{near}; config/ holds ready ones")
    if not os.path.isfile(file) or file.suffix != ".py":
        kind = "a folder" if file.is_dir() else "no regular file"
        raise ConfigError(f"is {kind}; a Python file (.py) with get_config() is needed")
    try:
        text = importlib.util.decode_source(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    except (SyntaxError, UnicodeDecodeError) as error:  # an unknown encoding, or not in it
        raise ConfigError(f"is no Python file, whose text is in UTF-8: {error}") from error
    if "\0" in text:
        raise ConfigError("is no Python file: it holds null characters")
    return text


def _as_dicts(node: Any) -> Any:
    """Return nested dicts with the references of a config, be it frozen or locked."""
    if isinstance(node, ml_collections.FrozenConfigDict):
        node = node.as_configdict()
    if isinstance(node, ml_collections.ConfigDict):
        items = node.items(preserve_field_references=True)
        return {name: _as_dicts(value) for name, value in items}
    return node


def _follow(node: Any, name: str, unset: list[str]) -> Any:
    """Return nested dicts with values for references.

    Those that are required and have none get the key's default, with which everything else that is
    wrong can be told as well; their names are added to `unset`.
    """
    if isinstance(node, FieldReference):
        try:
            node = _as_dicts(node.get())
        except RequiredValueError:
            unset.append(name)
            node = default.BY_NAME[name].default if name in default.BY_NAME else None
    if isinstance(node, dict):
        prefix = f"{name}." if name else ""
        return {leaf: _follow(value, f"{prefix}{leaf}", unset) for leaf, value in node.items()}
    return node


def _parse(overrides: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, Any]], list[str]]:
    """Return (dotted key, value) pairs of command-line texts; a line for each that is wrong."""
    given: list[tuple[str, Any]] = []
    wrong = []
    for name, text in overrides:
        parent, _, leaf = name.rpartition(".")
        if name in default.BY_NAME:
            try:
                given.append((name, default.BY_NAME[name].kind.parse(text)))
            except ValueError:
                wrong.append(rules.not_allowed(name, text))
        elif parent in default.KEYWORD_ARGUMENTS and is_keyword(leaf):
            given.append((name, literal(text)))
        else:
            wrong.append(rules.unknown_key(name))
    return given, wrong


def _write(tree: dict[str, Any], given: Iterable[tuple[str, Any]]) -> None:
    """Write values into nested dicts, and into the references there."""
    for name, value in given:
        *path, leaf = name.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            continue  # the config lacks more than this key, and is refused for that
        old = node.get(leaf)
        if isinstance(old, FieldReference):
            old.set(value, type_safe=False)
        elif isinstance(old, float) and isinstance(value, int):
            node[leaf] = float(value)  # as a ConfigDict does
        else:
            node[leaf] = value


def _resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Set what follows from the other keys of a config without problems, and lock it."""
    gnp, opt, dataset = config.gnp, config.opt, config.dataset
    if gnp["lambda"] is not None and gnp.r > 0:
        gnp.alpha = gnp["lambda"] / gnp.r
    if opt.learning_rate_grassmann is None:
        opt.learning_rate_grassmann = default.GRASSMANN_RATES.get(opt.opt_type)
    if dataset.dataset_name == "imagenet":
        level = dataset.image_level_augmentations
        dataset.dataset_name = "image_folder"
        dataset.image_level_augmentations = _IMAGENET_AUGMENTATIONS.get(level, level)
    return config.lock()


def apply_overrides(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Return a copy of a config with command-line values in it, and what was wrong with them."""
    given, wrong = _parse(overrides)
    tree = config.to_dict()
    _write(tree, given)
    return ml_collections.ConfigDict(tree), wrong


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return dotted key -> JSON value, every key: what `config.json` of a run directory holds.

    Example:
        >>> as_json(default.get_config())["lr_schedule_params.boundaries"]
        [60.0, 120.0, 160.0]
    """
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in rules.flatten(config).items()
    }


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config without the keys of earlier versions that say nothing now."""
    usual = [(key.name, key.default) for key in default.REMOVED]
    return {name: value for name, value in values.items() if (name, value) not in usual}


def from_flat(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Return the config of a run directory's `config.json`.

    Args:
        values: dotted key -> JSON value. Keys that the run is too old to know get their defaults,
            which stand for what was there before them.

    Raises:
        ConfigError: one line for each thing that is wrong.
    """
    values = {key.name: key.default for key in default.KEYS} | without_removed(values)
    if wrong := rules.value_problems(values):
        raise ConfigError("\n".join(wrong))
    return nest(values)


def with_group_size(
    config: ml_collections.ConfigDict, stored: Mapping[str, Any], devices: int
) -> ml_collections.ConfigDict:
    """Return a copy that says the size of its groups, where it has groups and leaves that open.

    It is that of the run that goes on, whatever devices there are now, else a device's share.

    Args:
        config: checked.
        stored: the run directory's config, dotted key -> JSON value; empty: a new run.
        devices: how many there are.
    """
    new = config.copy_and_resolve_references()
    if new.gnp.r > 0 and not new.gnp.sync_perturbations and new.gnp.m is None:
        new.gnp.m = stored.get("gnp.m") or rules.group_size(new, devices)
    return new


def on_devices(config: ml_collections.ConfigDict, devices: int) -> ml_collections.ConfigDict:
    """Return a copy of a stored config, with the default mesh where its own is of other devices."""
    new = config.copy_and_resolve_references()
    if rules.mesh_problems(new, devices):
        new.mesh = default.get_config().mesh
    return new


def read_flags(
    values: flags.FlagValues, arguments: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Read a command line, with the files that --flagfile names, into defined flags.

    Args:
        values: the flags; set in place.
        arguments: without the program's name.

    Returns:
        The (key, text) pairs of `--config.KEY=VALUE`; a line for each word that is neither.

    Raises:
        ConfigError: a flag is unknown or has a value that is not allowed.

    Example:
        >>> read_flags(flags.FlagValues(), ["--config.gnp.r=0.1", "stray"])
        ([('gnp.r', '0.1')], ["'stray' is not a flag; --help shows the usage"])
    """
    wrong: list[str] = []
    try:
        words = values.read_flags_from_files(list(arguments))
        rest, overrides, wrong = split_overrides(words)
        positional = values(["gnp", *rest])[1:]
    except flags.Error as error:
        raise ConfigError("\n".join([*wrong, f"{error}; --help shows the usage"])) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--flagfile: its text is not in UTF-8: {error}") from error
    wrong += [f"{word!r} is not a flag; --help shows the usage" for word in positional]
    return overrides, wrong


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Take `--config.KEY=VALUE` and `--config.KEY VALUE` out of a command line.

    ml_collections' config_flags does the same, but stops at the first key that is wrong, and sets
    neither a key whose default is None nor one that is new below `opt.opt_params`.

    Returns:
        The other arguments; the (key, value) pairs; a line for each that has no value.

    Example:
        >>> split_overrides(["--mode=eval", "--config.gnp.r=0.1"])
        (['--mode=eval'], [('gnp.r', '0.1')], [])
    """
    rest, pairs, wrong = [], [], []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        match = re.fullmatch(r"--?config\.([^=]+?)(?:=(.*))?", argument, flags=re.DOTALL)
        if match is None:
            rest.append(argument)
            continue
        name, value = match.groups()
        if value is None and waiting and not _NO_VALUE.match(waiting[0]):
            value = waiting.pop(0)
        if value is not None and name == name.strip():
            pairs.append((name, value.strip()))
            continue
        # `--config.x = 0.3`: the shell has made three words of it.
        dropped = waiting.pop(0) if waiting and waiting[0].startswith("=") else ""
        if dropped == "=" and waiting and not waiting[0].startswith("--"):
            waiting.pop(0)
        name = name.strip()
        wrong.append(f"--config.{name} has no value: write --config.{name}=VALUE, no spaces")
    return rest, pairs, wrong
