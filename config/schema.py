"""Kinds of values that a config key may hold: what is allowed, and how text becomes a value."""

import ast
import difflib
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from config.paths import local_path

# What counts in a regular expression: escapes, classes, groups, repetitions, alternatives.
_PATTERN_PIECES = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?.|(?:[*+?]|\{\d*,?\d*\})[*+?]?|.", flags=re.DOTALL
)
# Back-references, lookarounds and flags, sets in classes (which `re` warns of), large counts.
_REFUSED_PIECE = re.compile(
    r"\\[0-9]|\(\?[^:]|\[.*(?:\[|--|&&|~~|\|\|).*|\{.*[0-9]{3}.*", re.DOTALL
)


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
    """Allow whole numbers from `at_least` up, and below a bound where there is one.

    Example:
        >>> integer(at_least=1).check(0)
        False
    """
    return _bounded("a whole number", (int,), _plain(int), {">=": at_least, "<": below})


def axis() -> Kind:
    """Allow the length of a mesh axis: a whole number from 1 up, or -1 for all the rest.

    Example:
        >>> axis().check(0), axis().check(-1)
        (False, True)
    """
    positive = integer(at_least=1)
    allowed = f"{positive.allowed}, or -1"
    return Kind(
        allowed,
        _plain(int),
        lambda value: positive.check(value) or (value == -1 and isinstance(value, int)),
    )


def number(
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """Allow finite numbers within bounds.

    Example:
        >>> number(at_least=0, at_most=1).allowed
        'a number >= 0 and <= 1'
    """
    bounds = {">=": at_least, ">": above, "<=": at_most, "<": below}
    return _bounded("a number", (int, float), _plain(float), bounds)


_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def _bounded(
    noun: str,
    types: tuple[type[float], ...],
    parse: Callable[[str], Any],
    bounds: Mapping[str, float | None],
) -> Kind:
    given = {sign: bound for sign, bound in bounds.items() if bound is not None}

    def check(value: Any) -> bool:
        if not isinstance(value, types) or isinstance(value, bool) or not fits(value):
            return False
        return all(_COMPARE[sign](value, bound) for sign, bound in given.items())

    limits = " and ".join(f"{sign} {bound}" for sign, bound in given.items())
    return Kind(f"{noun} {limits}".strip(), parse, check)


def fits(value: Any) -> bool:
    """Return whether an array can hold a number: an integer of 64 bits, a finite float32.

    Example:
        >>> fits(2**64), fits(1e300), fits(float("nan"))
        (False, False, False)
    """
    return abs(value) < (2**63 if isinstance(value, int) else 3.4e38)


def _plain(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `parse` without what Python allows besides: 1_3 for 13, digits of other scripts."""

    def strict(line: str) -> Any:
        if "_" in line or not line.isascii():
            raise ValueError(line)
        return parse(line)

    return strict


def boolean() -> Kind:
    """Allow True or False; `true`, `false`, `1`, `0` on a command line.

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
    """Allow any text that is not empty.

    Example:
        >>> text().check("")
        False
    """
    return Kind("a text", str, lambda value: isinstance(value, str) and value != "")


def name() -> Kind:
    """Allow a name of parts, none of which leads out of the folder where it is looked for.

    Example:
        >>> name().check("ucr/FordA"), name().check("ucr/../../home")
        (True, False)
    """

    def check(value: Any) -> bool:
        return isinstance(value, str) and not {"", ".", ".."} & set(value.split("/"))

    return Kind("a name, of parts such as ucr/FordA", str, check)


def path() -> Kind:
    """Allow a folder or file of this machine; `~` stays, and is expanded where the path is used.

    Example:
        >>> path().check("~/data"), path().check("gs://bucket/data")
        (True, False)
    """

    def check(value: Any) -> bool:
        try:
            return isinstance(value, str) and local_path(value) is not None
        except ValueError:
            return False

    return Kind("a folder or file of this machine, no URL", str, check)


def pattern() -> Kind:
    """Allow regular expressions whose search ends soon, as a stranger's config may hold one.

    Whether it is a regular expression at all is for `re` to say.

    Example:
        >>> pattern().check("^conv[0-9]+/kernel$"), pattern().check("(a+)+$")
        (True, False)
    """
    allowed = (
        "a regular expression of at most 200 characters, with at most three of * + ? {n} and | in "
        "groups, in each of its alternatives; no repeated group, no n above 99, no (?...) but "
        "(?:...), no back-reference"
    )

    def check(value: Any) -> bool:
        if not isinstance(value, str) or not 0 < len(value) <= 200:
            return False
        pieces = _PATTERN_PIECES.findall(value)
        repeats = [piece[0] in "*+?{" for piece in pieces]
        # Their costs multiply one another within an alternative, and add up between them.
        costs, depth = [0], 0
        for piece, repeated in zip(pieces, repeats, strict=True):
            depth += {"(": 1, "(?:": 1, ")": -1}.get(piece, 0)
            if piece == "|" and depth == 0:
                costs.append(0)
            costs[-1] += repeated or piece == "|" and depth > 0
        return (
            max(costs) <= 3
            and not any(map(_REFUSED_PIECE.fullmatch, pieces))
            and not any(
                repeated and (before == ")" or before[0] in "*+?{")
                for before, repeated in zip(pieces, repeats[1:], strict=False)
            )
        )

    return Kind(allowed, str, check)


def choice(*names: str) -> Kind:
    """Allow one of some names.

    Example:
        >>> choice("cosine", "constant").allowed
        'cosine | constant'
    """
    return Kind(" | ".join(names), str, lambda value: value in names, names)


def numbers(each: Kind, increasing: bool = False) -> Kind:
    """Allow a tuple of numbers, written `60,120,160`.

    Example:
        >>> numbers(number(at_least=0), increasing=True).parse("60,120")
        (60.0, 120.0)
    """

    def parse(line: str) -> tuple[float, ...]:
        words = line.strip("()[] ").split(",")
        return tuple(_plain(float)(word) for word in words if word.strip())

    def check(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or not all(each.check(v) for v in value):
            return False
        return not increasing or all(a < b for a, b in zip(value, value[1:], strict=False))

    order, sample = ("increasing ", "60,120,160") if increasing else ("", "0.5,0.4,0.4")
    allowed = each.allowed.replace("a number", "numbers")
    return Kind(f"{order}{allowed}, such as {sample}", parse, check)


def mapping() -> Kind:
    """Allow a dict with names as keys; which names is for the model or the optimizer to say.

    Example:
        >>> mapping().parse("{'dropout_rate': 0.3}")
        {'dropout_rate': 0.3}
    """

    def parse(line: str) -> dict[str, Any]:
        value = evaluate(line)
        if not isinstance(value, dict) or not check(value):
            raise ValueError(line)
        return value

    def check(value: Any, depth: int = 9) -> bool:
        if not isinstance(value, (Mapping, ml_collections.ConfigDict)) or depth == 0:
            return False
        for name, each in value.items():
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
                return False
            if isinstance(each, int) and not fits(each):
                return False
            if isinstance(each, (Mapping, ml_collections.ConfigDict)) and not check(
                each, depth - 1
            ):
                return False
        return True

    return Kind("a dict of keyword arguments", parse, check)


def optional(kind: Kind) -> Kind:
    """Allow `kind`, or None (written `none`).

    Example:
        >>> optional(integer(at_least=1)).parse("none") is None
        True
    """
    return Kind(
        f"{kind.allowed}, or none",
        lambda line: None if line.lower() == "none" else kind.parse(line),
        lambda value: value is None or kind.check(value),
    )


def evaluate(line: str) -> Any:
    """Return the value of a Python literal.

    Raises:
        ValueError: the line is none.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a text that is none: 1if 2else 3
            return ast.literal_eval(line)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(line) from error


def nearest(name: str, names: Sequence[str]) -> str:
    """Return ` (did you mean X?)` where some name is near, else nothing.

    Example:
        >>> nearest("base_ir", ["base_lr", "batch_size"])
        ' (did you mean base_lr?)'
    """
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def pick(argument: str, names: Sequence[str]) -> str:
    """Return the argument of a config file, FILE.py:ARGUMENT, where it is one of the names.

    Raises:
        ConfigError: it is not.

    Example:
        >>> pick("mnist", ["mnist", "iris"])
        'mnist'
    """
    if argument in names:
        return argument
    wrong = (
        f"unknown argument {argument!r}{nearest(argument, names)}" if argument else "no argument"
    )
    raise ConfigError(f"{wrong}; write FILE.py:ARGUMENT with one of {' | '.join(names)}")


def build_config(keys: Sequence[Key]) -> ml_collections.ConfigDict:
    """Build a ConfigDict with every key at its default.

    It is not locked, as ml_collections cannot lock one with a `required_placeholder`; a key that
    there is not is found by `config.rules`.

    Args:
        keys: every key once, dotted names.

    Example:
        >>> build_config([Key("gnp.r", 0.0, number(at_least=0))]).gnp.r
        0.0
    """
    config = ml_collections.ConfigDict()
    for key in keys:
        *path, leaf = key.name.split(".")
        node = config
        for name in path:
            if name not in node:
                node[name] = ml_collections.ConfigDict()
            node = node[name]
        node[leaf] = key.default  # a dict becomes a ConfigDict
    return config


def flatten(config: Mapping[str, Any] | ml_collections.ConfigDict, keys: Sequence[Key]) -> dict:
    """Return dotted name -> value; the dicts of free keyword arguments stay whole.

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
            elif isinstance(value, ml_collections.ConfigDict):
                flat[path] = value.to_dict()
            else:
                flat[path] = value

    visit("", config)
    return flat
