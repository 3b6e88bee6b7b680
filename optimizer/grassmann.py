"""The Grassmann group of the parameters, and the code that `sgdg` and `adamg` share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import geometry
from ._checks import OptimizerError, check_choice, check_scalar
from ._tree import widen
from .centralization import is_convolution
from .parameters import Where, broadcast, leaf_name, leaf_path, resolve_function, resolve_mask

LABELS = ("grassmann", "euclidean")


def grassmann_labels(params: optax.Params, where: Where = None) -> Any:
    """Label each parameter with its group, for `optax.partition`.

    `'grassmann'` are the convolutions with more inputs than outputs: of shape (..., in, out) with
    n = product of all axes but the last > out, as in the paper. The paper takes convolutions that a
    batch normalization follows, which makes the length of a column irrelevant. The order of layers
    cannot be told from parameters, so leave other convolutions (one that gives the logits, say) out
    by `where`. The last axis must be the output, as in Flax; leaves that are named `weight`, whose
    first axis is the output in PyTorch and Equinox, are not taken.

    Args:
        params: Parameters or their shapes.
        where: The leaves of the Grassmann group, such as a dense layer in front of a batch
          normalization: a pytree of bool like params, or a function of params that makes one.
          None: every convolution (see `is_convolution`) with n > out.

    Returns:
        A pytree like `params` of `'grassmann'` and `'euclidean'`.

    Raises:
        OptimizerError: `where` is no mask of the parameters, or selects a leaf that is no kernel or
          has n <= out.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import grassmann_labels
        >>> kernels = {"Conv_0": jnp.ones((3, 3, 1, 8)), "Conv_1": jnp.ones((1, 1, 8, 16))}
        >>> grassmann_labels(kernels)
        {'Conv_0': 'grassmann', 'Conv_1': 'euclidean'}

    References:
        Cho and Lee, `Riemannian approach to batch normalization
        <https://arxiv.org/abs/1709.09603>`_, 2017.
    """
    if where is None:
        mask = jax.tree_util.tree_map_with_path(
            lambda path, p, selected: (
                selected and leaf_path(path)[-1:] != ("weight",) and is_tall(p)
            ),
            params,
            is_convolution(params),
        )
    else:
        mask = resolve_mask(where, params)
        for (path, p), selected in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mask), strict=True
        ):
            if selected and not is_tall(p):
                raise OptimizerError(
                    f"where selects {leaf_name(path)} of shape {jnp.shape(p)}: a kernel of the "
                    "Grassmann group has rank > 1 and more inputs than outputs: the product of all "
                    "axes but the last > the last"
                )
    return jax.tree.map(lambda selected: "grassmann" if selected else "euclidean", mask)


def unit_norm(params: optax.Params, labels: Any) -> Any:
    """Scale the columns of the Grassmann group to length 1.

    For the initialization: the directions that an initializer drew stay. A column of zeros has no
    direction: it stays zeros, and its first step by `sgdg` or `adamg` gives it another length than
    1. Start it at random.

    Args:
        params: Parameters.
        labels: A pytree like `params`, from `grassmann_labels`, or a function of params that makes
          one, such as `grassmann_labels`.

    Returns:
        The parameters, with their dtypes; other groups as they were.

    Raises:
        OptimizerError: the labels have another structure than the parameters, or a value that is
          neither `'grassmann'` nor `'euclidean'`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import unit_norm
        >>> params = {"a": jnp.array([[3.0], [4.0]]), "b": jnp.array([[3.0], [4.0]])}
        >>> print(unit_norm(params, {"a": "grassmann", "b": "euclidean"})["a"])
        [[0.6]
         [0.8]]
    """
    labels = _resolve_labels(labels, params)

    def leaf(p: Any, label: str) -> Any:
        return geometry.unit(p).astype(jnp.result_type(p)) if label == "grassmann" else p

    return jax.tree.map(leaf, params, labels)


def orthogonality_penalty(params: optax.Params, labels: Any, omega: float | jax.Array) -> jax.Array:
    r"""Return the penalty :math:`\tfrac{\omega}{2} \sum \|V^\top V - I\|^2` on the Grassmann group.

    Add it to the loss. It makes the columns of each kernel V, as an (n, out) matrix, orthogonal, in
    place of a weight decay. See `geometry.orthogonality` for that of a single kernel.

    Args:
        params: Parameters.
        labels: A pytree like `params`, from `grassmann_labels`, or a function that makes one.
        omega: ω, no unit; >= 0. The authors' commands have 0.1.

    Returns:
        A scalar in float32 or wider.

    Raises:
        OptimizerError: the labels have another structure than the parameters or other values, or
          ω is negative or no number.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import orthogonality_penalty
        >>> params = {"kernel": jnp.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])}
        >>> print(orthogonality_penalty(params, {"kernel": "grassmann"}, omega=0.5))
        0.5

    References:
        Cho and Lee, `Riemannian approach to batch normalization
        <https://arxiv.org/abs/1709.09603>`_, 2017.
    """
    check_scalar("omega", omega)
    labels = _resolve_labels(labels, params)
    group = [
        geometry.orthogonality(p)
        for p, label in zip(jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
        if label == "grassmann"
    ]
    total = sum(group, start=jnp.zeros([], jnp.float32))
    return jnp.asarray(omega, total.dtype) * total


def check_points(name: str, params: optax.Params) -> None:
    """Raise unless each leaf is a kernel whose columns have more than one element."""
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        shape = jnp.shape(p)
        if len(shape) < 2 or math.prod(shape[:-1]) < 2:
            raise OptimizerError(
                f"{name} moves columns of kernels (..., out), {leaf_name(path)} has shape {shape}:"
                " choose the kernels by grassmann_labels and optax.partition"
            )


def map_leaves(
    name: str, step: Callable[..., Any], params: Any, updates: Any, *state: Any
) -> list[Any]:
    """Map `step(p, g, *state)` over the leaves to a list of trees; None as g keeps the state."""
    if params is None:
        raise OptimizerError(f"{name} needs params: update(grads, state, params)")
    structure: Any = jax.tree.structure(updates, is_leaf=lambda x: x is None)
    gradients = structure.flatten_up_to(updates)
    columns = [structure.flatten_up_to(tree) for tree in (params, *state)]
    results = [
        (None, *rest) if g is None else step(p, g, *rest)
        for g, p, *rest in zip(gradients, *columns, strict=True)
    ]
    return [structure.unflatten([result[i] for result in results]) for i in range(len(state) + 1)]


def additive_update(p: jax.Array, new: jax.Array) -> jax.Array:
    """Return the update that Optax adds to `p` to get `new`, in the dtype of `p`."""
    return (new - widen(p)).astype(jnp.result_type(p))


def is_tall(p: Any) -> bool:
    """Return whether a leaf has rank > 1 and more inputs than outputs."""
    shape = jnp.shape(p)
    return len(shape) > 1 and math.prod(shape[:-1]) > shape[-1]


def _resolve_labels(labels: Any, params: Any) -> Any:
    """Return a pytree of labels like params, as `optax.partition` takes them."""

    def checked(name: str, label: Any) -> Any:
        check_choice(name, label, LABELS)
        return label

    tree = resolve_function(labels, params, lambda leaf: isinstance(leaf, str))
    expected = "a pytree like params or a function that makes one, such as grassmann_labels"
    return broadcast("labels", tree, params, expected, checked)
