"""The error of this package, and the checks that raise it."""

import difflib
import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Scalar: TypeAlias = float | jax.Array
ScalarOrSchedule: TypeAlias = float | jax.Array | Callable[[Any], Any]


class OptimizerError(ValueError):
    """A wrong argument or config value; the message is one line that says what is allowed."""


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise unless `value` is one of the `allowed` names."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise OptimizerError(
            f"{name}={value!r} is not one of {', '.join(allowed)}{_nearest(value, allowed)}"
        )


def check_names(name: str, given: Iterable[str], allowed: Iterable[str], hint: str = "") -> None:
    """Raise at the first of the `given` names that is not `allowed`."""
    allowed = tuple(allowed)
    for key in given:
        if key not in allowed:
            raise OptimizerError(
                f"unknown {name}.{key}; allowed: {', '.join(allowed) or 'none'}"
                f"{_nearest(key, allowed)}{hint}"
            )


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, *, below: bool = False
) -> None:
    """Raise unless `value` is a finite number in [low, high], or in [low, high) with `below`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and low <= value <= high and value < math.inf and not (below and value == high):
        return
    bounds = f">= {low:g}"
    if high < math.inf:
        bounds = f"in [{low:g}, {high:g}" + (")" if below else "]")
    raise OptimizerError(f"{name}={value!r} must be a finite number {bounds}")


def check_scalar(
    name: str,
    value: Any,
    *,
    high: float = math.inf,
    below: bool = False,
    positive: bool = False,
    schedule: bool = False,
) -> None:
    """Raise unless `value` is a scalar in [0, high], or, with `schedule`, a function of the step.

    With `below` high itself is not allowed, with `positive` 0 is not. The value of a JAX array is
    not checked, as it may be traced.
    """
    if schedule and callable(value):
        return
    shape = getattr(value, "shape", ())
    if shape != () or (isinstance(value, jax.Array) and not _is_real(value)):
        raise OptimizerError(
            f"{name} must be one number, not an array of shape {shape} and dtype {value.dtype}"
        )
    if isinstance(value, jax.Array):
        return
    scalar = value if isinstance(value, Real) or not hasattr(value, "item") else value.item()
    check_number(name, scalar, high=high, below=below)
    if positive and scalar == 0:
        raise OptimizerError(f"{name}={scalar!r} must be > 0")


def _is_real(value: jax.Array) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)


def check_axis_name(name: str, axis_name: str | tuple[str, ...] | None) -> None:
    """Raise unless the axis is one of a `jax.shard_map` around."""
    if axis_name is None:
        return
    if jax.__version_info__ < (0, 10):
        raise OptimizerError(f"{name} has axis_name={axis_name!r}, which needs jax 0.10 or newer")
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        raise OptimizerError(
            f"{name} has axis_name={axis_name!r}, and update is called outside of jax.shard_map "
            "over a mesh with that axis: call it inside, or make it with axis_name=None"
        ) from None


def check_flag(name: str, value: object) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise OptimizerError(f"{name}={value!r} must be True or False")


def _nearest(value: object, allowed: Iterable[str]) -> str:
    """Return a hint at the allowed name that is nearest to `value`, empty if none is near."""
    names = {name.lower(): name for name in allowed}
    found = difflib.get_close_matches(str(value).lower(), names, n=1)
    return f"; did you mean {names[found[0]]!r}?" if found else ""
