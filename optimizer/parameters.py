"""Kinds of parameters, told from their paths in the tree, and masks over parameters."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

from ._checks import OptimizerError
from ._tree import extend_prefix

# The names of leaves that are multiplied or added, in Flax, Haiku and Keras.
SCALES = ("scale", "gamma")
OFFSETS = ("offset", "beta")
BIASES = ("bias", "b")

# What `parameter_kinds` tells apart.
KINDS = ("weight", "bias", "scale", "offset")

Where: TypeAlias = Callable[[Any], Any] | Any | None


def parameter_kinds(params: optax.Params) -> Any:
    """Return the kind of each parameter: weight, bias, or a normalization's scale or offset.

    A layer is a normalization if it has a leaf `scale`, or `gamma` with `beta` or `offset` beside
    it, or a name with `norm` in it or `bn` at the start. In it `scale` and `gamma` are scales, and
    `offset`, `beta`, `bias` and `b` are offsets. In other layers `bias` and `b` are biases. All the
    rest are weights: so are a transformer's layer scales (`gamma` alone, `gamma_1`, `layer_scale`,
    and any leaf of a layer with `layer_scale` or `LayerScale` in its name).

    These are the names of Flax, Haiku and Keras. Equinox and PyTorch name the two parameters of a
    normalization `weight` and `bias`, as those of any layer: a weight and a bias (an offset, where
    the layer's name says so). There give an explicit `where` to what takes one.

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
    paths = {leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}

    def is_norm(layer: tuple[str, ...]) -> bool:
        name = layer[-1].lower() if layer else ""
        if "layer_scale" in name or "layerscale" in name:
            return False
        if "norm" in name or name.startswith("bn") or (*layer, "scale") in paths:
            return True
        return (*layer, "gamma") in paths and any((*layer, leaf) in paths for leaf in OFFSETS)

    def kind(path: Any, _: Any) -> str:
        *parents, name = leaf_path(path) or ("",)
        if name in SCALES and is_norm((*parents,)):
            return "scale"
        if name in (*OFFSETS, *BIASES) and is_norm((*parents,)):
            return "offset"
        return "bias" if name in BIASES else "weight"

    return jax.tree_util.tree_map_with_path(kind, params)


def is_normalization(params: optax.Params) -> Any:
    """Return the mask of the scales and offsets of normalizations (see `parameter_kinds`).

    Args:
        params: Parameters or their shapes.

    Example:
        >>> from optimizer import is_normalization
        >>> is_normalization({"dense": {"kernel": 1.0}, "norm": {"scale": 1.0, "bias": 1.0}})
        {'dense': {'kernel': False}, 'norm': {'bias': True, 'scale': True}}
    """
    return jax.tree.map(lambda kind: kind in ("scale", "offset"), parameter_kinds(params))


def resolve_mask(where: Where, params: optax.Params, name: str = "where") -> Any:
    """Return a pytree of bool like `params`.

    Args:
        where: A pytree of bool like `params` or a prefix of it, as `optax.masked` takes them, a
          function params -> such a pytree, or None: all. A pytree of bool that can be called, as
          modules can, is not.
        params: Parameters, gradients or their shapes. None stays None.
        name: The argument's name, for messages.

    Raises:
        OptimizerError: the pytree has another structure, or other leaves than True and False.
    """
    if where is None:
        return jax.tree.map(lambda _: True, params)
    expected = "None, a pytree of bool like params or a prefix of it, or a function that makes one"
    return broadcast(name, resolve_function(where, params, _is_bool), params, expected, _to_bool)


def resolve_function(tree: Any, params: Any, is_value: Callable[[Any], bool]) -> Any:
    """Return `tree(params)` if `tree` is a function, not a pytree of values that can be called."""
    if not callable(tree) or any(is_value(leaf) for leaf in jax.tree.leaves(tree)):
        return tree
    return tree(params)


def broadcast(
    name: str,
    tree: Any,
    params: Any,
    expected: str,
    convert: Callable[[str, Any], Any],
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """Extend a tree, like params or a prefix of it, to one like params, and convert its leaves.

    `convert(name, leaf)` raises where a leaf is no value. Where `tree` is no prefix of params, the
    message says that `name` must be `expected`, and where the first difference is.
    """
    try:
        whole = extend_prefix(tree, params, is_leaf)
    except ValueError:
        values = jax.tree.map(lambda leaf: name, tree, is_leaf=is_leaf)
        raise OptimizerError(f"{name} must be {expected}: {_difference(values, params)}") from None
    return jax.tree.map(lambda leaf: convert(name, leaf), whole, is_leaf=is_leaf)


def _is_bool(leaf: Any) -> bool:
    """Return whether a leaf is a Python bool, or NumPy's or JAX's of no axes."""
    return isinstance(leaf, bool) or (
        str(getattr(leaf, "dtype", "")) == "bool" and getattr(leaf, "shape", None) == ()
    )


def _to_bool(name: str, leaf: Any) -> bool:
    if not _is_bool(leaf):
        raise OptimizerError(f"{name} must hold True and False, not {_short(leaf)}")
    if isinstance(leaf, jax.core.Tracer):
        raise OptimizerError(f"{name} must be known when a step is traced: give Python bools")
    return bool(leaf)


def _short(leaf: Any) -> str:
    if hasattr(leaf, "dtype"):
        return f"an array of shape {leaf.shape} and dtype {leaf.dtype}"
    return repr(leaf)


def _difference(tree: Any, params: Any) -> str:
    """Describe the first path at which a tree is no prefix of params."""
    given, wanted = (
        dict(jax.tree_util.tree_leaves_with_path(t, is_leaf=lambda x: x is None))
        for t in (tree, params)
    )
    for path, leaf in wanted.items():
        above = (path[:depth] for depth in range(len(path) + 1))
        if not any(p in given and (given[p] is not None or leaf is None) for p in above):
            return f"it has nothing for {leaf_name(path)}"
    below = {path[:depth] for path in wanted for depth in range(len(path) + 1)}
    for path in given:
        if path not in below:
            return f"params have no {leaf_name(path)}"
    return "its containers are of other types than those of params"


def leaf_name(path: Any) -> str:
    """Return the path of a leaf, for messages."""
    return ".".join(leaf_path(path)) or "the array"


def leaf_path(path: Any) -> tuple[str, ...]:
    """Return the names in a path of `jax.tree_util.tree_map_with_path`, as strings.

    A key with dots is a path of its own, as in a state dict of PyTorch.
    """
    # NNX keeps each array in a node whose only field is the value.
    last_is_node = bool(path) and path[-1] == jax.tree_util.GetAttrKey("value")
    names = path[:-1] if last_is_node else path
    return tuple(name for key in names for name in _key_name(key).split("."))


def _key_name(key: Any) -> str:
    """Return the name in one key of a path (`jax.tree_util.keystr` of old jax has no `simple`)."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
