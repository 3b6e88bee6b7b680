"""Models by name: register a class under a name or a pattern of names, and build it from one."""

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

# config.precision -> dtype of the computation.
PRECISIONS = types.MappingProxyType({"float32": jnp.float32, "bfloat16": jnp.bfloat16})


class ModelError(ValueError):
    """A model name, parameter, input or file of weights that cannot be used; one line."""


class Entry(NamedTuple):
    """A registered pattern: how it is written, what it matches, the class, names to suggest."""

    pattern: str
    regex: re.Pattern[str]
    build: type[nn.Module]
    examples: tuple[str, ...]


_FIELD = re.compile(r"\{(\w+)(?::(int))?\}")
_RESERVED = {"num_classes", "dtype", "parent", "name"}
_entries: list[Entry] = []

Model = typing.TypeVar("Model", bound=type[nn.Module])


def register(pattern: str, *, examples: tuple[str, ...] = ()) -> Callable[[Model], Model]:
    """Make the decorated Flax module available under a name or a pattern of names.

    Args:
        pattern: a name; `{field:int}` stands for a whole number and `{field}` for letters and
            digits, given to the class as keyword arguments.
        examples: names that the pattern matches, for messages; needed where it has fields.

    Raises:
        ModelError: the pattern is taken.

    Example:
        >>> @register("Linear_{width:int}", examples=("Linear_3",))
        ... class Linear(nn.Module):
        ...     num_classes: int
        ...     width: int
        ...     use_bias: bool = True
        >>> get_model("Linear_5", num_classes=10, use_bias=False).width
        5
    """

    def add(build: Model) -> Model:
        for entry in [each for each in _entries if each.pattern == pattern]:
            # A config file that registers its model may be loaded again, by a sweep for instance.
            if (entry.build.__module__, entry.build.__qualname__) != (
                build.__module__,
                build.__qualname__,
            ):
                raise ModelError(f"model name {pattern!r} is already registered: choose another")
            _entries.remove(entry)
        names = examples if _FIELD.search(pattern) else (pattern,)
        _entries.append(Entry(pattern, _regex(pattern), build, names))
        return build

    return add


def get_model(name: str, num_classes: int, dtype: Any = jnp.float32, **params: Any) -> nn.Module:
    """Build the model of a name: a Flax module called as `module(x, train)`.

    Its logits are [b, num_classes] in float32.

    Args:
        name: such as "WideResNet_28_10"; see `model_names`.
        num_classes: number of logits, at least 1.
        dtype: of the computation. Parameters, statistics, softmax and logits are float32 anyway.
        params: the model's own keyword arguments. Those of this package all have remat: compute
            each block's activations again in the backward pass, for less memory; and those with
            batch norms batch_norm_group: examples of a group with batch statistics of its own;
            None: the batch.

    Raises:
        ModelError: an unknown name or parameter, a wrong type, or a value that is not allowed.

    Example:
        >>> get_model("WideResNet_16_4", num_classes=10, dropout_rate=0.3).depth
        16
        >>> get_model("WideResnet_16_4", num_classes=10)
        Traceback (most recent call last):
        ...
        model.registry.ModelError: unknown model_name 'WideResnet_16_4'; did you mean
        'WideResNet_16_4'? Allowed: ...
    """
    return _build(name, num_classes, dtype, params)


def build_model(config: Any, num_classes: int) -> nn.Module:
    """Build the model that a config's `model.model_name` and `model.model_params` ask for.

    Args:
        config: any object with these attributes; `model_params` is a mapping. Its `precision`,
            "float32" where it has none, is the dtype of the computation.
        num_classes: number of logits.

    Raises:
        ModelError: as `get_model`, or an unknown precision.

    Example:
        >>> from types import SimpleNamespace
        >>> params = {"dropout_rate": 0.1}
        >>> config = SimpleNamespace(
        ...     model=SimpleNamespace(model_name="WideResNet_10_1", model_params=params))
        >>> build_model(config, 10).dropout_rate
        0.1
    """
    precision = getattr(config, "precision", "float32")
    if precision not in PRECISIONS:
        raise ModelError(f"unknown precision {precision!r}. Allowed: {', '.join(PRECISIONS)}")
    params = {key: config.model.model_params[key] for key in config.model.model_params}
    # JAX_ENABLE_X64=1 makes float64 of what is float32 otherwise.
    dtype = jnp.result_type(float) if precision == "float32" else PRECISIONS[precision]
    return _build(config.model.model_name, num_classes, dtype, params)


def model_names() -> tuple[str, ...]:
    """Return every registered name; for a pattern, the names that it was registered with.

    Example:
        >>> "WideResNet_28_10" in model_names()
        True
    """
    return tuple(sorted(name for entry in _entries for name in entry.examples))


def registered_name(module: nn.Module) -> str:
    """Return the name that makes a model, or its class's where that is not registered.

    Args:
        module: a model.

    Example:
        >>> registered_name(get_model("WideResNet_16_4", num_classes=10, remat=True))
        'WideResNet_16_4'
    """
    for entry in _entries:
        if entry.build is type(module):
            return _FIELD.sub(lambda field: str(getattr(module, field[1])), entry.pattern)
    return type(module).__name__


def _build(name: str, num_classes: int, dtype: Any, params: Mapping[str, Any]) -> nn.Module:
    entry, fields = _find(name)
    allowed = _allowed(entry.build)
    own = {key: kind for key, kind in allowed.items() if key not in fields}
    for key in params:
        if key not in own:
            raise ModelError(
                f"unknown model_params.{key} for {name}{_suggestion(key, tuple(own))} "
                f"Allowed: {', '.join(own) or 'none'}"
            )
    checked = {key: _checked(name, key, value, own[key]) for key, value in params.items()}
    if not _fits(num_classes, int) or num_classes < 1:
        raise ModelError(f"num_classes = {num_classes!r}: choose a whole number of at least 1")
    if "dtype" in inspect.signature(entry.build).parameters:  # a user's own model need not have it
        checked["dtype"] = dtype
    elif jnp.finfo(dtype).bits < 32:
        raise ModelError(f"{name} computes in float32 alone: set precision to float32")
    return entry.build(num_classes=num_classes, **fields, **checked)


def _regex(pattern: str) -> re.Pattern[str]:
    regex, end = "", 0
    for field in _FIELD.finditer(pattern):
        value = r"[1-9]\d{0,5}" if field[2] else "[A-Za-z0-9]+"
        regex += f"{re.escape(pattern[end : field.start()])}(?P<{field[1]}>{value})"
        end = field.end()
    return re.compile(regex + re.escape(pattern[end:]), re.ASCII)


def _find(name: str) -> tuple[Entry, dict[str, Any]]:
    for entry in _entries:
        if match := entry.regex.fullmatch(name):
            ints = {field for field, kind in _FIELD.findall(entry.pattern) if kind}
            fields = match.groupdict()
            return entry, {key: int(v) if key in ints else v for key, v in fields.items()}
    patterns = ", ".join(_FIELD.sub(r"{\1}", entry.pattern) for entry in _entries)
    raise ModelError(
        f"unknown model_name {name!r}{_suggestion(name, model_names())} Allowed: {patterns}, or "
        "one that a config file registers (--config=FILE)"
    )


def _suggestion(word: str, known: tuple[str, ...]) -> str:
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    return f"; did you mean {lower[close[0]]!r}?" if close else "."


def _allowed(build: type[nn.Module]) -> dict[str, Any]:
    kinds = typing.get_type_hints(build)
    names = inspect.signature(build).parameters
    return {name: kinds.get(name, Any) for name in names if name not in _RESERVED}


def _checked(model: str, key: str, value: Any, kind: Any) -> Any:
    """Return the value in the field's type: a list as a tuple, an int as a float."""
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        element = typing.get_args(kind)[0]
        return tuple(_checked(model, key, item, element) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not _fits(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else kind
        raise ModelError(
            f"model_params.{key} = {value!r} for {model}: must be {wanted}, "
            f"is {type(value).__name__}"
        )
    return value


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if kind is Any:
        return True
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, typing.get_origin(kind) or kind)
