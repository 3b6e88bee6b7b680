"""Kinds of values that a config key may hold: how they are read, and what is wrong with them."""

import ast
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections


class ConfigError(ValueError):
    """A config, or a command line, that cannot be run; each line of the message is one problem."""


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        allowed: what is allowed, in words, for messages and help.
        parse: text from a command line -> value; ValueError where it does not fit.
        check: whether a value is allowed.
        names: the values, where they are names.
    """

    allowed: str
    parse: Callable[[str], Any]
    check: Callable[[Any], bool]
    names: tuple[str, ...] = ()


class Key(NamedTuple):
    """One config key: its dotted name, default, kind and meaning (with the unit)."""

    name: str
    default: Any
    kind: Kind
    meaning: str


def _is_number(value: Any, types: tuple[type, ...]) -> bool:
    is_number: bool = isinstance(value, types) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def integer(at_least: int, below: int | None = None) -> Kind:
    """Whole numbers from `at_least` up, and below a bound where there is one.

    Example:
        >>> integer(at_least=1).check(0)
        False
    """

    def check(value: Any) -> bool:
        return _is_number(value, (int,)) and value >= at_least and (below is None or value < below)

    upper = "" if below is None else f" and < {below}"
    return Kind(f"a whole number >= {at_least}{upper}", int, check)


def axis() -> Kind:
    """The length of a mesh axis: a whole number from 1 up, or -1 for all the rest.

    Example:
        >>> axis().check(0), axis().check(-1)
        (False, True)
    """
    return Kind(
        "a whole number >= 1, or -1",
        int,
        lambda value: _is_number(value, (int,)) and (value >= 1 or value == -1),
    )


def number(
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """Finite numbers within bounds.

    Example:
        >>> number(at_least=0, at_most=1).allowed
        'a number >= 0 and <= 1'
    """
    bounds = [
        f"{sign} {bound}"
        for sign, bound in ((">=", at_least), (">", above), ("<=", at_most), ("<", below))
        if bound is not None
    ]

    def check(value: Any) -> bool:
        return (
            _is_number(value, (int, float))
            and (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
        )

    return Kind(" ".join(["a number", " and ".join(bounds)]).strip(), float, check)


def boolean() -> Kind:
    """True or False; `true`, `false`, `1`, `0` on a command line.

    Example:
        >>> boolean().parse("false")
        False
    """
    words = {"true": True, "1": True, "false": False, "0": False}

    def parse(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]

    return Kind("True or False", parse, lambda value: isinstance(value, bool))


def text() -> Kind:
    """Any text that is not empty.

    Example:
        >>> text().check("")
        False
    """
    return Kind("a text", str, lambda value: isinstance(value, str) and value != "")


def choice(*names: str) -> Kind:
    """One of some names.

    Example:
        >>> choice("cosine", "constant").allowed
        'cosine | constant'
    """
    return Kind(" | ".join(names), str, lambda value: value in names, names)


def numbers(at_least: float, increasing: bool = True, above: bool = False) -> Kind:
    """A tuple of numbers, written `60,120,160`.

    Args:
        at_least: the smallest allowed.
        increasing: each is larger than the one before.
        above: at_least itself is not allowed.

    Example:
        >>> numbers(at_least=0).parse("60,120")
        (60.0, 120.0)
    """

    def parse(line: str) -> tuple[float, ...]:
        return tuple(float(word) for word in line.strip("()[] ").split(",") if word.strip())

    def check(value: Any) -> bool:
        if not isinstance(value, (tuple, list)):
            return False
        large_enough = all(
            _is_number(v, (int, float)) and (v > at_least if above else v >= at_least)
            for v in value
        )
        return large_enough and (
            not increasing or all(low < high for low, high in zip(value, value[1:], strict=False))
        )

    order, sign = ("increasing ", "60,120,160") if increasing else ("", "0.5,0.4,0.4")
    return Kind(f"{order}numbers {'>' if above else '>='} {at_least}, such as {sign}", parse, check)


def mapping() -> Kind:
    """A dict with names as keys; which names is for the model or the optimizer to say.

    Example:
        >>> mapping().parse("{'dropout_rate': 0.3}")
        {'dropout_rate': 0.3}
    """

    def parse(line: str) -> dict[str, Any]:
        value = _evaluate(line)
        if not isinstance(value, dict) or not check(value):
            raise ValueError(line)
        return value

    def check(value: Any) -> bool:
        return isinstance(value, (Mapping, ml_collections.ConfigDict)) and all(
            isinstance(name, str) and name.isidentifier() for name in value
        )

    return Kind("a dict of keyword arguments", parse, check)


def _evaluate(line: str) -> Any:
    """A Python literal.

    Raises:
        ValueError: it is none.
    """
    try:
        return ast.literal_eval(line)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(line) from error


def optional(kind: Kind) -> Kind:
    """`kind`, or None (written `none`).

    Example:
        >>> optional(integer(at_least=1)).parse("none") is None
        True
    """
    return Kind(
        f"{kind.allowed}, or none",
        lambda line: None if line.lower() == "none" else kind.parse(line),
        lambda value: value is None or kind.check(value),
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """` (did you mean X?)` where some name is near, else nothing.

    Example:
        >>> nearest("base_ir", ["base_lr", "batch_size"])
        ' (did you mean base_lr?)'
    """
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def build_config(keys: Sequence[Key]) -> ml_collections.ConfigDict:
    """A locked ConfigDict with every key at its default.

    The dicts of free keyword arguments (`opt.opt_params`, `model.model_params`) stay open.

    Args:
        keys: every key once, dotted names.

    Example:
        >>> build_config([Key("gnp.r", 0.0, number(at_least=0), "radius")]).gnp.r
        0.0
    """
    config = ml_collections.ConfigDict()
    for key in keys:
        *path, leaf = key.name.split(".")
        node = config
        for part in path:
            if part not in node:
                node[part] = ml_collections.ConfigDict()
            node = node[part]
        default = key.default
        node[leaf] = ml_collections.ConfigDict(default) if isinstance(default, dict) else default
    config.lock()
    for key in keys:
        if isinstance(key.default, dict):
            _get(config, key.name).unlock()
    return config


def _get(config: Any, name: str) -> Any:
    node = config
    for part in name.split("."):
        node = node[part]
    return node


def flatten(config: Mapping[str, Any] | ml_collections.ConfigDict, keys: Sequence[Key]) -> dict:
    """Dotted name -> value; the dicts of free keyword arguments stay whole.

    Example:
        >>> flatten({"gnp": {"r": 0.1}}, [])
        {'gnp.r': 0.1}
    """
    free = {key.name for key in keys if isinstance(key.default, dict)}
    flat: dict[str, Any] = {}

    def visit(prefix: str, node: Any) -> None:
        for name, value in node.items():
            path = f"{prefix}{name}"
            is_dict = isinstance(value, (Mapping, ml_collections.ConfigDict))
            if is_dict and path not in free:
                visit(f"{path}.", value)
            else:
                flat[path] = dict(value) if is_dict else value

    visit("", config)
    return flat


def problems(
    config: Mapping[str, Any] | ml_collections.ConfigDict, keys: Sequence[Key]
) -> list[str]:
    """Every unknown or missing key and every value that its kind does not allow, a line each.

    Args:
        config: a ConfigDict or nested dict.
        keys: what there may be.

    Example:
        >>> problems({"r": -1.0}, [Key("r", 0.0, number(at_least=0), "radius")])
        ['r = -1.0: allowed is a number >= 0']
    """
    known = {key.name: key for key in keys}
    flat = flatten(config, keys)
    lines = [
        f"unknown config key {name}{nearest(name, list(known))}; config/default.py lists all keys"
        for name in flat
        if name not in known
    ]
    lines += [f"config key {name} is missing" for name in known if name not in flat]
    lines += [
        _not_allowed(name, value, known[name].kind)
        for name, value in flat.items()
        if name in known and not known[name].kind.check(value)
    ]
    return lines


def _not_allowed(name: str, value: Any, kind: Kind) -> str:
    return f"{name} = {value!r}: allowed is {kind.allowed}{nearest(str(value), kind.names)}"


def apply_overrides(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]], keys: Sequence[Key]
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """A copy of the config with command-line values in it, and what was wrong with them.

    Args:
        config: the config that a file gave.
        overrides: (dotted name, text) pairs, later ones win.
        keys: what there may be. Below a dict of free keyword arguments any name is taken.

    Returns:
        The new config, and a line for each override that could not be used.

    Example:
        >>> keys = [Key("gnp.r", 0.0, number(at_least=0), "radius")]
        >>> new, wrong = apply_overrides(build_config(keys), [("gnp.r", "0.1")], keys)
        >>> new.gnp.r, wrong
        (0.1, [])
    """
    new = config.copy_and_resolve_references()
    known = {key.name: key for key in keys}
    wrong = []
    for name, value in overrides:
        parent = name.rpartition(".")[0]
        if name in known:
            try:
                parsed = known[name].kind.parse(value)
            except ValueError:
                wrong.append(_not_allowed(name, value, known[name].kind))
                continue
            set_value(new, name, parsed)
        elif _is_free(name, parent, known):
            set_value(new, name, _literal(value))
        else:
            wrong.append(
                f"unknown config key {name}{nearest(name, list(known))}; "
                "config/default.py lists all keys"
            )
    return new, wrong


def _is_free(name: str, parent: str, known: Mapping[str, Key]) -> bool:
    """Whether the name is that of a keyword argument below a dict of them."""
    is_dict = parent in known and isinstance(known[parent].default, dict)
    return is_dict and name.rpartition(".")[2].isidentifier()


def set_value(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Writes one key, whatever its type was, into a config that may be locked."""
    path, _, leaf = name.rpartition(".")
    node = _get(config, path) if path else config
    with node.ignore_type(), node.unlocked():
        node[leaf] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value


def _literal(value: str) -> Any:
    """A Python literal, else the text itself (`true` and `none` as people write them)."""
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return _evaluate(value)
    except ValueError:
        return value


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of a command line.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The other arguments; the (key, value) pairs; a line for each that has no value.

    Example:
        >>> split_overrides(["--mode=eval", "--config.gnp.r=0.1"])
        (['--mode=eval'], [('gnp.r', '0.1')], [])
    """
    rest: list[str] = []
    pairs: list[tuple[str, str]] = []
    wrong: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        match = re.fullmatch(r"--?config\.([^=]+?)(=(.*))?", argument, flags=re.DOTALL)
        if match is None:
            rest.append(argument)
        elif match[2] is not None and match[1] == match[1].strip():
            pairs.append((match[1], match[3].strip()))
        elif match[2] is None and waiting and _is_value(waiting[0]):
            pairs.append((match[1], waiting.pop(0)))
        else:
            if waiting and waiting[0].startswith("="):
                # `--config.x = 0.3`: the shell has made three words of it.
                lone = waiting.pop(0) == "="
                if lone and waiting and not waiting[0].startswith("--"):
                    waiting.pop(0)
            name = match[1].strip()
            wrong.append(f"--config.{name} has no value: write --config.{name}=VALUE, no spaces")
    return rest, pairs, wrong


def _is_value(word: str) -> bool:
    """Whether the word after a key is its value: no flag and no lone equals sign."""
    is_negative_number = re.fullmatch(r"-\d*\.?\d+([eE][-+]?\d+)?", word) is not None
    return is_negative_number or not word.startswith(("-", "="))
