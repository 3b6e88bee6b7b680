"""Masks of the parameters that a config decays, and labels of the optimizer's groups."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from ._checks import OptimizerError
from .axes import Axes, axes_of
from .grassmann import grassmann_labels, is_tall
from .parameters import leaf_path, parameter_kinds

# Their convolutions live on the Grassmann manifold.
GRASSMANN_OPTIMIZERS = ("SGDG", "AdamG")


def decay_mask(params: optax.Params, no_weight_decay_on_bn: bool) -> Any:
    """Return a mask of the leaves that decay, by L2 in the loss and by AdamW alike.

    Args:
        params: Parameters or their shapes.
        no_weight_decay_on_bn: True: leaves of rank > 1 only, which leaves out the scales and biases
          of batch norm and all other biases. False: every leaf.

    Returns:
        A pytree of bool like `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import decay_mask
        >>> decay_mask({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, True)
        {'bias': False, 'kernel': True}
    """
    return jax.tree.map(
        lambda p: not no_weight_decay_on_bn or len(getattr(p, "shape", ())) > 1, params
    )


def l2_coefficients(config: Any, params: optax.Params) -> Any:
    """Return the factor of half the squared norm of each parameter in the loss.

    That is `l2_by_kind` of its kind (see `parameter_kinds`) where the config gives one, else
    `l2_regularization`, which `no_weight_decay_on_bn` takes from leaves of rank 0 and 1. The
    Grassmann group has none: its columns keep length 1.

    Args:
        config: Read are l2_regularization, l2_by_kind, no_weight_decay_on_bn and opt.
        params: Parameters or their shapes.

    Returns:
        A pytree of float like `params`.

    Example:
        >>> from types import SimpleNamespace as Config
        >>> import jax.numpy as jnp
        >>> from optimizer import l2_coefficients
        >>> config = Config(
        ...     l2_regularization=1e-3, no_weight_decay_on_bn=False, opt=Config(opt_type="SGD"),
        ...     l2_by_kind=Config(weight=None, bias=0.0, scale=None, offset=None),
        ... )
        >>> l2_coefficients(config, {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
        {'bias': 0.0, 'kernel': 0.001}
    """

    def coefficient(kind: str, decays: bool, label: str) -> float:
        if label == "grassmann":
            return 0.0
        own: float | None = getattr(config.l2_by_kind, kind)
        if own is not None:
            return own
        return config.l2_regularization if decays else 0.0

    return jax.tree.map(
        coefficient,
        parameter_kinds(params),
        decay_mask(params, config.no_weight_decay_on_bn),
        build_labels(config)(params),
    )


def build_labels(config: Any) -> Callable[[optax.Params], Any]:
    """Build the function that labels each parameter with its group of the optimizer.

    Args:
        config: Read is opt.

    Returns:
        A function params -> pytree of `'euclidean'` and, for SGDG and AdamG, `'grassmann'`.

    Raises:
        OptimizerError: opt.grassmann_where is no regular expression. In the function: there is no
          parameter for the group, or the expression finds a kernel that cannot be in it.

    Example:
        >>> from types import SimpleNamespace as Config
        >>> import jax.numpy as jnp
        >>> from optimizer import build_labels
        >>> config = Config(opt=Config(opt_type="SGDG", grassmann_where=None))
        >>> build_labels(config)({"conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}})
        {'conv': {'bias': 'euclidean', 'kernel': 'grassmann'}}
    """
    if config.opt.opt_type not in GRASSMANN_OPTIMIZERS:
        return lambda params: jax.tree.map(lambda _: "euclidean", params)
    pattern = config.opt.grassmann_where
    where = None if pattern is None else _found_by(pattern)

    def labels(params: optax.Params) -> Any:
        found = grassmann_labels(params, where)
        if "grassmann" not in jax.tree.leaves(found):
            raise OptimizerError(
                f"opt.opt_type={config.opt.opt_type!r} with opt.grassmann_where={pattern!r} finds "
                "no parameter for the Grassmann group (a convolution with more inputs than "
                "outputs, or what the expression finds); --mode=inspect with another optimizer "
                "lists all parameters"
            )
        return found

    return labels


def _found_by(pattern: str) -> Callable[[optax.Params], Any]:
    """Return the mask of the kernels in whose path (a/b/kernel) an expression is found."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise OptimizerError(
            f"opt.grassmann_where={pattern!r} is no regular expression: {error}"
        ) from error

    def is_found(path: Any, p: Any, axes: Axes | None) -> bool:
        name = "/".join(leaf_path(path))
        if expression.search(name) is None or len(p.shape) < 2:
            return False
        if not is_tall(p, axes):
            tall = "which has not more inputs than outputs"
            reason = "whose axes are not known" if axes is None else tall
            raise OptimizerError(
                f"opt.grassmann_where={pattern!r} finds {name} of shape {p.shape}, {reason} and so "
                "cannot be in the group: choose an expression that leaves it out"
            )
        return True

    return lambda params: jax.tree_util.tree_map_with_path(is_found, params, axes_of(params))
