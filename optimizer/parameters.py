"""What a parameter is, told from its place in the tree, and masks over parameters."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

from ._checks import OptimizerError

KINDS = ("weight", "bias", "scale", "offset")

Where: TypeAlias = Callable[[Any], Any] | Any | None


def parameter_kinds(params: optax.Params) -> Any:
    """Which kind each parameter is of: weight, bias, or a normalization's scale or offset.

    A leaf named `scale` is a scale. A leaf named `bias` is an offset beside a scale or in a layer
    with `norm` in its name or `bn` at the start of it, else a bias. All the rest are weights. These
    are the names of Flax's layers.

    Args:
        params: Parameters or their shapes, a pytree of dicts or of attributes.

    Returns:
        A pytree like `params` of `'weight'`, `'bias'`, `'scale'` or `'offset'`.

    Example:
        >>> from optimizer import parameter_kinds
        >>> params = {"conv": {"kernel": 1.0, "bias": 1.0}, "norm": {"scale": 1.0, "bias": 1.0}}
        >>> parameter_kinds(params)
        {'conv': {'bias': 'bias', 'kernel': 'weight'}, 'norm': {'bias': 'offset', 'scale': 'scale'}}
    """
    paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    normalizations = {path[:-1] for path in paths if path[-1:] == ("scale",)}

    def kind(path: Any, _: Any) -> str:
        *parent, name = leaf_path(path) or ("",)
        if name == "scale":
            return "scale"
        if name == "bias":
            layer = parent[-1].lower() if parent else ""
            is_norm = tuple(parent) in normalizations or "norm" in layer or layer.startswith("bn")
            return "offset" if is_norm else "bias"
        return "weight"

    return jax.tree_util.tree_map_with_path(kind, params)


def is_normalization(params: optax.Params) -> Any:
    """True for the scales and offsets of normalization layers, as a mask (see `parameter_kinds`).

    Args:
        params: Parameters or their shapes.

    Example:
        >>> from optimizer import is_normalization
        >>> is_normalization({"dense": {"kernel": 1.0}, "norm": {"scale": 1.0, "bias": 1.0}})
        {'dense': {'kernel': False}, 'norm': {'bias': True, 'scale': True}}
    """
    return jax.tree.map(lambda kind: kind in ("scale", "offset"), parameter_kinds(params))


def resolve_mask(where: Where, params: optax.Params, name: str = "where") -> Any:
    """A pytree of bool like `params`.

    Args:
        where: A pytree of bool like `params`, a function params -> such a pytree, or None: all.
        params: Parameters, gradients or their shapes. None stays None.
        name: What messages call it.

    Raises:
        OptimizerError: the pytree has another structure, or other leaves than True and False.
    """
    if where is None:
        return jax.tree.map(lambda _: True, params)
    mask = where(params) if callable(where) else where
    given: Any = jax.tree.structure(mask)
    wanted: Any = jax.tree.structure(params)
    if given != wanted:
        raise OptimizerError(
            f"{name} must be None, a pytree of bool like params, or a function that makes one: "
            f"its structure is {given}, not {wanted}"
        )
    wrong = [leaf for leaf in jax.tree.leaves(mask) if not isinstance(leaf, bool)]
    if wrong:
        raise OptimizerError(f"{name} must hold True and False, not {wrong[0]!r}")
    return mask


def leaf_path(path: Any) -> tuple[str, ...]:
    """The names on the way to a leaf, as texts.

    Args:
        path: What `jax.tree_util.tree_map_with_path` hands to its function.
    """
    # NNX keeps each array in a node whose only field is the value.
    last_is_node = bool(path) and path[-1] == jax.tree_util.GetAttrKey("value")
    names = path[:-1] if last_is_node else path
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in names)
