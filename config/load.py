"""From a config file and a command line to one complete, checked config."""

import contextlib
import copy
import difflib
import importlib.util
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections.config_dict import FieldReference, RequiredValueError

from config import default, rules
from config.paths import local_path
from config.schema import ConfigError, evaluate, fits, flatten

_KEYS = {key.name: key for key in default.KEYS}
_FREE = tuple(key.name for key in default.KEYS if isinstance(key.default, dict))
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
    config = _thawed(_run_file(path))
    wrong = _override(config, overrides)
    unset = list(_unset(config))
    wrong += [
        f"{name} has no value: the config file requires --config.{name}=VALUE" for name in unset
    ]
    for name in unset:  # None would stay a reference without a value
        _set(config, name, 0)
    config = config.copy_and_resolve_references()
    for name in unset:  # with the defaults everything else that is wrong can be told as well
        _set(config, name, _KEYS[name].default if name in _KEYS else None)
    # Once more: of two keys that are one reference, each has the value that it was given itself.
    _override(config, overrides)
    _drop_other_weight(config, [name for name, _ in overrides])
    wrong += rules.value_problems(config) if wrong else rules.problems(config)
    return (config if wrong else _resolve(config)), list(dict.fromkeys(wrong))


def _run_file(path: str) -> ml_collections.ConfigDict:
    """Return what `get_config` of a file returns; whatever it raises is the file's own bug."""
    said = f"--config={path}"
    try:
        file, argument = _find(path)
    except ValueError as error:
        raise ConfigError(f"{said} {error}") from error
    arguments = (argument,) if argument else ()
    try:
        _check_file(file)
        spec = importlib.util.spec_from_file_location(f"config_file_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise ConfigError("a Python file (.py) with get_config() is needed")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ConfigError("a function get_config() is needed in it")
        _check_call(get_config, arguments)
        config = get_config(*arguments)
    except ConfigError as error:
        raise ConfigError(f"{said}: {error}") from error
    except SystemExit as error:  # the program would end as if it had trained
        raise ConfigError(f"{said}: it calls sys.exit, and is to return a config") from error
    if not isinstance(config, ml_collections.ConfigDict):
        kind = type(config).__name__
        raise ConfigError(f"{said}: get_config() returned {kind}, a ConfigDict is needed")
    return config


def _find(path: str) -> tuple[Path, str]:
    """Return the file and the argument of FILE.py:ARGUMENT, or of a name from earlier versions.

    Raises:
        ValueError: it is no path of this machine; see `local_path`.
    """
    name, _, argument = path.partition(".py:")
    if argument:
        return local_path(f"{name}.py"), argument
    file = local_path(path)
    for old, stem, names in () if os.path.isfile(file) else _MOVED:
        match = re.fullmatch(old, file.stem)
        if match:
            return file.with_stem(stem), match.expand(names)
    return file, ""


def _check_file(file: Path) -> None:
    """Raise unless this is a file of text, which Python could run."""
    # os.path takes names that are too long, or in a folder that cannot be read, for missing.
    if not os.path.isfile(file):
        if os.path.exists(file):
            kind = "a folder" if file.is_dir() else "no regular file"
            raise ConfigError(f"is {kind}; a Python file (.py) with get_config() is needed")
        ready = (*Path(__file__).parent.glob("*.py"), *file.parent.glob("*.py"))
        names = {each.stem: each for each in ready}
        near = "".join(
            f" (did you mean {names[stem]}?)"
            for stem in difflib.get_close_matches(file.stem, names, n=1)
        )
        raise ConfigError(f"no such file{near}; config/ holds ready ones")
    try:
        text = importlib.util.decode_source(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    except (SyntaxError, UnicodeDecodeError) as error:  # an unknown encoding, or not in it
        raise ConfigError(f"is no Python file, whose text is in UTF-8: {error}") from error
    if "\0" in text:
        raise ConfigError("is no Python file: it holds null characters")


def _check_call(get_config: Any, arguments: Sequence[str]) -> None:
    """Raise where a file is given an argument that it does not take, or none that it needs."""
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        needed = "takes no argument" if arguments else "needs an argument, FILE.py:ARGUMENT"
        raise ConfigError(f"its get_config() {needed}") from error


def _thawed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return a copy that can be changed, references and all."""
    if isinstance(config, ml_collections.FrozenConfigDict):
        return config.as_configdict()
    config = copy.deepcopy(config)
    _thaw_parts(config)
    return config


def _thaw_parts(node: ml_collections.ConfigDict) -> None:
    for name, value in node.items(preserve_field_references=True):
        if isinstance(value, ml_collections.FrozenConfigDict):
            _set(node, name, value.as_configdict())
        elif isinstance(value, ml_collections.ConfigDict):
            _thaw_parts(value)


def _override(config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]) -> list[str]:
    """Write command-line values into a config; return a line for each that cannot be used."""
    wrong = []
    for name, value in overrides:
        if name in _KEYS:
            try:
                _set(config, name, _KEYS[name].kind.parse(value))
            except ValueError:
                wrong.append(rules.not_allowed(_KEYS[name], value))
        elif name.rpartition(".")[0] in _FREE and name.rpartition(".")[2].isidentifier():
            _set(config, name, _literal(value))
        else:
            wrong.append(rules.unknown_key(name))
    return wrong


def _set(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Write one key, whatever its type was, into a config that may be locked."""
    *path, leaf = name.split(".")
    node = config
    for each in path:
        try:
            node = node.get(each) if isinstance(node, ml_collections.ConfigDict) else None
        except RequiredValueError:
            node = None
    if not isinstance(node, ml_collections.ConfigDict):
        return  # the config lacks more than this key, and is refused for that
    value = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    # Locking again fails where a required placeholder has no value yet: only for a new key.
    with node.ignore_type(), contextlib.nullcontext() if leaf in node else node.unlocked():
        node[leaf] = value


def _literal(value: str) -> Any:
    """Return a Python literal, else the text itself (`true` and `none` as people write them)."""
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        literal = evaluate(value)
    except ValueError:
        return value
    return value if isinstance(literal, int) and not fits(literal) else literal


def _unset(node: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yield the names of the required placeholders that have no value."""
    for name, value in node.items(preserve_field_references=True):
        try:
            value = value.get() if isinstance(value, FieldReference) else value
        except RequiredValueError:
            yield f"{prefix}{name}"
        if isinstance(value, ml_collections.ConfigDict):
            yield from _unset(value, f"{prefix}{name}.")


def _drop_other_weight(config: ml_collections.ConfigDict, overridden: Sequence[str]) -> None:
    """Where a command line sets one of gnp.alpha and gnp.lambda, drop the file's other one."""
    if "gnp.lambda" in overridden and "gnp.alpha" not in overridden:
        _set(config, "gnp.alpha", 0.0)
    if "gnp.alpha" in overridden and "gnp.lambda" not in overridden:
        _set(config, "gnp.lambda", None)


def _resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return a copy of a config without problems, with what follows from its other keys.

    `gnp.alpha` follows from `gnp.lambda` where that is given, and
    `opt.learning_rate_grassmann` from SGDG or AdamG where it is not. The data set `imagenet` of the
    published penalty code becomes an `image_folder` with its augmentation.
    """
    new = config.copy_and_resolve_references()
    if new.gnp["lambda"] is not None and new.gnp.r > 0:
        new.gnp.alpha = new.gnp["lambda"] / new.gnp.r
    if new.opt.learning_rate_grassmann is None and new.opt.opt_type in default.GRASSMANN_RATES:
        _set(new, "opt.learning_rate_grassmann", default.GRASSMANN_RATES[new.opt.opt_type])
    if new.dataset.dataset_name == "imagenet":
        level = new.dataset.image_level_augmentations
        new.dataset.dataset_name = "image_folder"
        new.dataset.image_level_augmentations = _IMAGENET_AUGMENTATIONS.get(level, level)
    return new.lock()


def apply_overrides(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Return a copy of a config with command-line values in it, and what was wrong with them.

    Below a dict of free keyword arguments any name is taken.

    Example:
        >>> new, wrong = apply_overrides(default.get_config(), [("gnp.r", "0.1")])
        >>> new.gnp.r, wrong
        (0.1, [])
    """
    new = config.copy_and_resolve_references()
    return new, _override(new, overrides)


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return dotted key -> JSON value, every key: what `config.json` of a run directory holds.

    Example:
        >>> as_json(default.get_config())["lr_schedule_params.boundaries"]
        [60.0, 120.0, 160.0]
    """
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(config, default.KEYS).items()
    }


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config without the keys of earlier versions that say nothing now.

    Example:
        >>> without_removed({"num_seeds": 1, "seeds": 3})
        {'seeds': 3}
    """
    usual = {key.name: key.default for key in default.REMOVED}
    return {
        name: value for name, value in values.items() if name not in usual or value != usual[name]
    }


def from_flat(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Return the config of a run directory's `config.json`.

    Args:
        values: dotted key -> JSON value. Keys that the run is too old to know get their defaults,
            which stand for what was there before them.

    Raises:
        ConfigError: one line for each thing that is wrong.

    Example:
        >>> from_flat(as_json(default.get_config())).batch_size
        128
    """
    config = default.get_config()
    values = without_removed(values)
    wrong = [rules.unknown_key(name) for name in values if name not in _KEYS]
    known = {name: _KEYS[name] for name in values if name in _KEYS}
    wrong += [
        rules.not_allowed(key, values[name])
        for name, key in known.items()
        if not key.kind.check(values[name])
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
    for name in known:
        _set(config, name, values[name])
    return config


def with_group_size(
    config: ml_collections.ConfigDict, stored: Mapping[str, Any], devices: int
) -> ml_collections.ConfigDict:
    """Return a copy that says the size of its groups, where it has groups and leaves that open.

    It is that of the run that goes on, whatever devices there are now, else a device's share.

    Args:
        config: checked.
        stored: the run directory's config, dotted key -> JSON value; empty: a new run.
        devices: how many there are.

    Example:
        >>> config = load_config("config/original.py:wideresnet_cifar")
        >>> with_group_size(config, {}, devices=4).gnp.m
        64
    """
    new = config.copy_and_resolve_references()
    if new.gnp.r > 0 and not new.gnp.sync_perturbations and new.gnp.m is None:
        _set(new, "gnp.m", stored.get("gnp.m") or rules.group_size(new, devices))
    return new


def on_devices(config: ml_collections.ConfigDict, devices: int) -> ml_collections.ConfigDict:
    """Return a copy of a stored config, with the default mesh where its own is of other devices.

    Args:
        config: of a run that may have been trained elsewhere.
        devices: how many there are.

    Example:
        >>> config = default.get_config()
        >>> config.mesh.fsdp = 8
        >>> on_devices(config, 2).mesh.fsdp
        1
    """
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
