"""Kinds of values that a config key may hold: what is allowed, and how text becomes a value."""

import ast
import difflib
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from config.paths import local_path

# What counts in a regular expression: escapes, classes, groups, repetitions, alternatives.
_PATTERN_PIECES = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?.|(?:[*+?]|\{\d*,?\d*\})[*+?]?|.", flags=re.DOTALL
)
# Back-references, lookarounds and flags, sets in classes (which `re` warns of), large counts.
_REFUSED_PIECE = re.compile(
    r"\\[0-9]|\(\?[^:]|\[.*(?:\[|--|&&|~~|\|\|).*|\{.*[0-9]{3}.*", re.DOTALL
)
_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class ConfigError(ValueError):
    """A config, or a command line, that cannot be run; each line of the message is one problem."""


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        allowed: what is allowed, in words, for messages and help.
        parse: text from a command line -> value; ValueError where it does not fit.
        check: value -> is it allowed.
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
    meaning: str = ""

    def means(self, meaning: str) -> "Key":
        """Return the key with its meaning."""
        return self._replace(meaning=meaning)


def integer(at_least: int, below: int | None = None) -> Kind:
    """Allow whole numbers from `at_least` up, and below a bound where there is one."""
    return _bounded("a whole number", int, {">=": at_least, "<": below})


def number(
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """Allow finite numbers within bounds, of which there is at least one.

    Example:
        >>> number(at_least=0, at_most=1).allowed
        'a number >= 0 and <= 1'
    """
    bounds = {">=": at_least, ">": above, "<=": at_most, "<": below}
    return _bounded("a number", float, bounds)


def _bounded(noun: str, form: type[float], bounds: Mapping[str, float | None]) -> Kind:
    given = {sign: bound for sign, bound in bounds.items() if bound is not None}

    def check(value: Any) -> bool:
        is_number = isinstance(value, (int, form)) and not isinstance(value, bool)
        return (
            is_number
            and _fits(value)
            and all(_COMPARE[sign](value, bound) for sign, bound in given.items())
        )

    limits = " and ".join(f"{sign} {bound}" for sign, bound in given.items())
    return Kind(f"{noun} {limits}", _plain(form), check)


def _fits(value: float) -> bool:
    """Return whether an array can hold a number: an integer of 64 bits, a finite float32."""
    return abs(value) < (2**63 if isinstance(value, int) else 3.4e38)


def _plain(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `parse` without what Python allows besides: 1_3 for 13, digits of other scripts."""

    def strict(text: str) -> Any:
        if "_" in text or not text.isascii():
            raise ValueError(text)
        return parse(text)

    return strict


def numbers(each: Kind, increasing: bool = False) -> Kind:
    """Allow a tuple of numbers, written `60,120,160`."""

    def parse(text: str) -> tuple[float, ...]:
        words = text.strip("()[] ").split(",")
        return tuple(each.parse(word) for word in words if word.strip())

    def check(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or not all(map(each.check, value)):
            return False
        return not increasing or all(map(operator.lt, value, value[1:]))

    order, sample = ("increasing ", "60,120,160") if increasing else ("", "0.5,0.4,0.4")
    allowed = each.allowed.replace("a number", "numbers")
    return Kind(f"{order}{allowed}, such as {sample}", parse, check)


def choice(*names: str) -> Kind:
    """Allow one of some names."""
    return Kind(" | ".join(names), str, lambda value: value in names, names)


def optional(kind: Kind) -> Kind:
    """Allow `kind`, or None (written `none`)."""
    return Kind(
        f"{kind.allowed}, or none",
        lambda text: None if text.lower() == "none" else kind.parse(text),
        lambda value: value is None or kind.check(value),
    )


def _is_name(value: Any) -> bool:
    """Return whether no part of a name leads out of the folder where it is looked for."""
    return isinstance(value, str) and not {"", ".", ".."} & set(value.split("/"))


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and local_path(value) is not None
    except ValueError:
        return False


def _is_pattern(value: Any) -> bool:
    """Return whether a search for it ends soon, as a stranger's config may hold one.

    Whether it is a regular expression at all is for `re` to say.

    Example:
        >>> _is_pattern("^conv[0-9]+/kernel$"), _is_pattern("(a+)+$")
        (True, False)
    """
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        return False
    # Costs multiply one another within an alternative, and add up between them.
    costs, depth, before = [0], 0, "("
    for piece in _PATTERN_PIECES.findall(value):
        repeats = piece[0] in "*+?{"
        if _REFUSED_PIECE.fullmatch(piece) or repeats and before[0] in ")*+?{":
            return False
        depth += {"(": 1, "(?:": 1, ")": -1}.get(piece, 0)
        if piece == "|" and depth == 0:
            costs.append(0)
        costs[-1] += repeats or piece == "|" and depth > 0
        before = piece
    return max(costs) <= 3


def literal(text: str) -> Any:
    """Return the value of a Python literal (`true` and `none` as people write them), else the text.

    Example:
        >>> literal("1e-3"), literal("true"), literal("relu")
        (0.001, True, 'relu')
    """
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        with warnings.catch_warnings(action="ignore"):  # of a text that is none: 1if 2else 3
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return text if isinstance(value, int) and not _fits(value) else value


def is_keyword(name: Any) -> bool:
    """Return whether it can name an argument, and no attribute that every Python object has."""
    return isinstance(name, str) and name.isidentifier() and not name.startswith("__")


def _parse_keywords(text: str) -> Any:
    value = literal(text)
    if not _is_keywords(value):
        raise ValueError(text)
    return value


def _is_keywords(value: Any, depth: int = 9) -> bool:
    """Return whether it is a dict of keyword arguments, which may be dicts again."""
    return (
        isinstance(value, dict)
        and depth > 0
        and all(map(is_keyword, value))
        and all(_fits(each) for each in value.values() if isinstance(each, int))
        and all(_is_keywords(each, depth - 1) for each in value.values() if isinstance(each, dict))
    )


AXIS = Kind("a whole number >= 1, or -1", _plain(int), lambda n: n != 0 and integer(-1).check(n))
BOOLEAN = Kind("True or False", flags.BooleanParser().parse, lambda value: isinstance(value, bool))
# Which names is for the model or the optimizer to say.
KEYWORDS = Kind("a dict of keyword arguments", _parse_keywords, _is_keywords)
NAME = Kind("a name, of parts such as ucr/FordA", str, _is_name)
# `~` stays, and is expanded where the path is used.
PATH = Kind("a folder or file of this machine, no URL", str, _is_path)
PATTERN = Kind(
    "a regular expression of at most 200 characters, with at most three of * + ? {n} and | in "
    "groups, in each of its alternatives; no repeated group, no n above 99, no (?...) but "
    "(?:...), no back-reference",
    str,
    _is_pattern,
)
TEXT = Kind("a text", str, lambda value: isinstance(value, str) and value != "")


def nearest(name: str, names: Sequence[str]) -> str:
    """Return ` (did you mean X?)` where some name is near, else nothing.

    Example:
        >>> nearest("base_ir", ["base_lr", "batch_size"])
        ' (did you mean base_lr?)'
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def pick(argument: str, names: Sequence[str]) -> str:
    """Return the argument of a config file, FILE.py:ARGUMENT, where it is one of the names.

    Raises:
        ConfigError: it is not.
    """
    if argument in names:
        return argument
    near = nearest(argument, names)
    wrong = f"unknown argument {argument!r}{near}" if argument else "no argument"
    raise ConfigError(f"{wrong}; write FILE.py:ARGUMENT with one of {' | '.join(names)}")


def nest(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Return the ConfigDict of dotted names.

    It is not locked, as ml_collections cannot lock one with a `required_placeholder`; a key that
    there is not is found by `config.rules`.

    Example:
        >>> nest({"gnp.r": 0.1}).gnp.r
        0.1
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return ml_collections.ConfigDict(tree)
