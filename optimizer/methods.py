"""The methods that a config names: what each takes, what it costs, and how it is made."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from ._checks import OptimizerError, check_choice, check_flag, check_names, check_number
from .ahead import momentum_sam, random_weight_perturbation
from .parameters import is_normalization, parameter_kinds
from .perturbation import METHODS, Penalty, Values, mix, sharpness_aware
from .sam_family import (
    asam,
    cr_sam,
    friendly_sam,
    gam,
    gsam,
    sam,
    sam_on,
    stable_sam,
    unnormalized_sam,
    vasso,
    wsam,
)


class _Method(NamedTuple):
    """How a method is made.

    Attributes:
        make: (radius, **method_params, **parts) -> the transformation.
        more: What `gnp.method_params` may hold besides the arguments of `make`, with defaults; read
            elsewhere in `optimizer.build`.
        parts: The arguments of `sharpness_aware` that a config may choose for it.
        gradients: Of a penalized step.
    """

    make: Callable[..., Penalty]
    more: Mapping[str, Any] = {}
    parts: tuple[str, ...] = ("metric", "where", "direction")
    gradients: int = 2


def _asam(rho: Values, eta: float = 0.0, but_biases: bool = False, **parts: Any) -> Penalty:
    return asam(rho, eta, _no_biases if but_biases else None, **parts)


def _no_biases(params: optax.Params) -> Any:
    kinds = parameter_kinds(params)
    return jax.tree.map(lambda kind: kind not in ("bias", "offset"), kinds)


def _sam_on(rho: Values, **parts: Any) -> Penalty:
    def where(params: optax.Params) -> Any:
        mask = is_normalization(params)
        if not any(jax.tree.leaves(mask)):
            raise OptimizerError(
                "gnp.method='sam_on' perturbs normalization layers, and this model has none"
            )
        return mask

    return sam_on(rho, where=where, **parts)


_FAMILY: Mapping[str, _Method] = {
    "sam": _Method(sam),
    "asam": _Method(_asam, parts=("where", "direction")),
    "sam_on": _Method(_sam_on, parts=("metric", "direction")),
    "wsam": _Method(wsam, {"decouple": False}),
    "gsam": _Method(gsam, {"rho_min": None}),
    "stable_sam": _Method(stable_sam),
    "friendly_sam": _Method(friendly_sam),
    "vasso": _Method(vasso),
    "unnormalized_sam": _Method(unnormalized_sam, parts=("where", "direction")),
    "momentum_sam": _Method(momentum_sam, parts=(), gradients=1),
    "cr_sam": _Method(cr_sam, gradients=3),
    "gam": _Method(gam, parts=("metric", "where"), gradients=4),
    "random_weight_perturbation": _Method(random_weight_perturbation, parts=("where",)),
    # SAM whose second gradient the train step takes of another function.
    "functional_sam": _Method(sam),
}
# All that `gnp.method` may be: the penalty by either of its formulas, and its relatives.
GNP_METHODS = (*METHODS, *_FAMILY)

# Arguments of methods that no config can hold.
_NOT_OF_A_CONFIG = ("axes", "axis_name")

# What a config chooses a part by.
_CHOSEN_BY = {
    "metric": "gnp.adaptive=True",
    "where": "gnp.where",
    "direction": "opt.centralize_at='perturbation'",
}


def gnp_method_params(gnp: Any) -> dict[str, Any]:
    """Return what `gnp.method_params` may hold for `gnp.method`, with the values that it has.

    Args:
        gnp: Read are method and method_params, which may be missing.

    Raises:
        OptimizerError: the method or a name is unknown, or a value is out of range.

    Example:
        >>> from types import SimpleNamespace as Config
        >>> from optimizer import gnp_method_params
        >>> gnp_method_params(Config(method="wsam", method_params={"gamma": 0.8}))
        {'gamma': 0.8, 'decouple': False}
    """
    check_choice("gnp.method", gnp.method, GNP_METHODS)
    given = dict(getattr(gnp, "method_params", {}))
    method = _FAMILY.get(gnp.method)
    if method is None:
        check_names("gnp.method_params", given, (), f" (gnp.method={gnp.method!r})")
        return {}
    _, *further = inspect.signature(method.make).parameters.values()
    further = [p for p in further if p.name not in _NOT_OF_A_CONFIG]
    defaults = {p.name: p.default for p in further if p.kind is not p.VAR_KEYWORD}
    defaults |= method.more
    check_names("gnp.method_params", given, defaults, f" (gnp.method={gnp.method!r})")
    for key, value in given.items():
        _check_value(f"gnp.method_params.{key}", value, defaults[key])
    params = defaults | given
    try:
        method.make(0.0, **_without(params, method.more))
    except OptimizerError as error:  # out of the range that the method itself knows
        raise OptimizerError(f"gnp.method_params: {error}") from None
    return params


def gnp_gradients(gnp: Any) -> int:
    """Return how many gradients a penalized step of a config's method takes.

    Example:
        >>> from types import SimpleNamespace as Config
        >>> from optimizer import gnp_gradients
        >>> [gnp_gradients(Config(method=name)) for name in ("hvp", "momentum_sam", "gam")]
        [2, 1, 4]
    """
    if gnp.method == "random_weight_perturbation":
        return 1 if gnp_method_params(gnp)["lmbda"] is None else 2
    return _FAMILY[gnp.method].gradients if gnp.method in _FAMILY else 2


def build_method(gnp: Any, r: Values, alpha: Values, parts: Mapping[str, Any]) -> Penalty:
    """Build the method that a config names.

    Args:
        gnp: Read are method, method_params and norm_perturbations.
        r: Radius, see `sharpness_aware`.
        alpha: Of the penalty alone, likewise.
        parts: `metric`, `where` and `direction`, where the config chooses them.

    Raises:
        OptimizerError: a value is out of range, or a part does not go with the method.
    """
    params = gnp_method_params(gnp)
    if gnp.method in METHODS:
        return sharpness_aware(r, mix(alpha, gnp.norm_perturbations, gnp.method), **parts)
    method = _FAMILY[gnp.method]
    taken = method.parts if gnp_gradients(gnp) > 1 else ()
    for part in parts:
        if part not in taken:
            raise OptimizerError(
                f"{_CHOSEN_BY[part]} does not go with gnp.method={gnp.method!r}, whose {part} is "
                "given by its formula"
            )
    return method.make(r, **_without(params, method.more), **parts)


def _without(params: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in more}


def _check_value(name: str, value: Any, default: Any) -> None:
    """Raise unless a value is of the kind of a parameter's default; ranges are the method's own."""
    if isinstance(default, bool):
        check_flag(name, value)
    elif isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(default):
            raise OptimizerError(f"{name}={value!r} must be {len(default)} numbers, as {default}")
        for each in value:
            check_number(name, each)
    elif default is not None or value is not None:
        check_number(name, value)
        if isinstance(default, int) and value != int(value):
            raise OptimizerError(f"{name}={value!r} must be a whole number")
