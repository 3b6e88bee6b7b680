"""The Grassmann group of the parameters, and the code that `sgdg` and `adamg` share."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import geometry
from ._checks import OptimizerError, check_axis_name, check_choice, check_scalar
from ._tree import is_differentiable, widen
from .axes import Axes, AxesOrFunction, axes_of, warn_of_unknown
from .centralization import is_convolution
from .parameters import Where, broadcast, leaf_name, resolve_function, resolve_mask

LABELS = ("grassmann", "euclidean")


def grassmann_labels(params: optax.Params, where: Where = None, axes: AxesOrFunction = None) -> Any:
    """Label each parameter with its group, for `optax.partition`.

    `'grassmann'` are the convolutions with more inputs than outputs: of shape (height, width, in,
    out) with n = height·width·in > out, as in the paper, each layer of a stack on its own. The
    paper takes convolutions that a batch normalization follows, which makes the length of a column
    irrelevant. The order of layers cannot be told from parameters, so leave other convolutions (one
    that gives the logits, say) out by `where`. Convolutions whose axes are not known (see
    `axes_of`) are not taken, with a warning.

    Args:
        params: Parameters or their shapes.
        where: The leaves of the Grassmann group, such as a dense layer in front of a batch
          normalization: a pytree of bool like params, or a function of params that makes one.
          None: every convolution (see `is_convolution`) with n > out.
        axes: The axes of each leaf, see `axes_of`; None: those that are known.

    Returns:
        A pytree like `params` of `'grassmann'` and `'euclidean'`.

    Raises:
        OptimizerError: `where` is no mask of the parameters, or selects a leaf that is no kernel,
          whose axes are not known, or that has n <= out; or `axes` does not fit.

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
    mask = is_convolution(params, axes) if where is None else resolve_mask(where, params)
    if where is None and axes is None:
        warn_of_unknown("grassmann_labels", params, mask)

    def leaf(path: Any, p: Any, selected: bool, its: Axes | None) -> bool:
        if not selected or is_tall(p, its):
            return selected
        if where is not None:
            raise OptimizerError(
                f"where selects {leaf_name(path)} of shape {jnp.shape(p)}: a kernel of the "
                "Grassmann group has rank > 1, known axes (or declared by axes=), and more inputs "
                "than outputs: the product of its input axes > that of its output axes"
            )
        return False

    mask = jax.tree_util.tree_map_with_path(leaf, params, mask, axes_of(params, axes))
    return jax.tree.map(lambda selected: "grassmann" if selected else "euclidean", mask)


def unit_norm(
    params: optax.Params,
    labels: Any,
    axes: AxesOrFunction = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Any:
    """Scale the columns of the Grassmann group to length 1.

    For the initialization: the directions that an initializer drew stay. A column of zeros has no
    direction: it stays zeros, and its first step by `sgdg` or `adamg` gives it another length than
    1. Start it at random.

    Args:
        params: Parameters.
        labels: A pytree like `params`, from `grassmann_labels`, or a function of params that makes
          one, such as `grassmann_labels`.
        axes: The axes of each leaf, see `axes_of`; None: those that are known.
        axis_name: The mesh axis (or axes) of `jax.shard_map` that columns are split over, with each
          device's part in params. None: each device has whole columns.

    Returns:
        The parameters, with their dtypes; other groups as they were.

    Raises:
        OptimizerError: the labels have another structure than the parameters, or a value that is
          neither `'grassmann'` nor `'euclidean'`, or a leaf of the group has no known axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import unit_norm
        >>> params = {"a": jnp.array([[3.0], [4.0]]), "b": jnp.array([[3.0], [4.0]])}
        >>> print(unit_norm(params, {"a": "grassmann", "b": "euclidean"})["a"])
        [[0.6]
         [0.8]]
    """
    labels = _resolve_labels(labels, params)

    def leaf(path: Any, p: Any, label: str, its: Axes | None) -> Any:
        if label != "grassmann" or not is_differentiable(p):
            return p
        on = geometry.Columns(_known("unit_norm", path, p, its).input, axis_name)
        return geometry.unit(p, on).astype(jnp.result_type(p))

    return jax.tree_util.tree_map_with_path(leaf, params, labels, axes_of(params, axes))


def orthogonality_penalty(
    params: optax.Params,
    labels: Any,
    omega: float | jax.Array,
    axes: AxesOrFunction = None,
) -> jax.Array:
    r"""Return the penalty :math:`\tfrac{\omega}{2} \sum \|V^\top V - I\|^2` on the Grassmann group.

    Add it to the loss. It makes the columns of each kernel V, as an (n, out) matrix, orthogonal, in
    place of a weight decay; each layer of a stack has a V of its own. See `geometry.orthogonality`
    for that of a single kernel.

    Args:
        params: Parameters.
        labels: A pytree like `params`, from `grassmann_labels`, or a function that makes one.
        omega: ω, no unit; >= 0. The authors' commands have 0.1.
        axes: The axes of each leaf, see `axes_of`; None: those that are known.

    Returns:
        A scalar in float32 or wider.

    Raises:
        OptimizerError: the labels have another structure than the parameters or other values, a
          leaf of the group has no known axes, or ω is negative or no number.

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
    group = []

    def leaf(path: Any, p: Any, label: str, its: Axes | None) -> None:
        if label == "grassmann" and is_differentiable(p):
            its = _known("orthogonality_penalty", path, p, its)
            group.append(geometry.orthogonality(p, geometry.Columns(its.input), its.stack))

    jax.tree_util.tree_map_with_path(leaf, params, labels, axes_of(params, axes))
    total = sum(group, start=jnp.zeros([], jnp.float32))
    return jnp.asarray(omega, total.dtype) * total


def check_points(name: str, params: optax.Params, axes: AxesOrFunction) -> Any:
    """Return the axes of kernels whose columns move; raise unless they have more than one element.

    Leaves of integers, bools and keys have None.
    """

    def leaf(path: Any, p: Any, its: Axes | None) -> Axes | None:
        return _known(name, path, p, its) if is_differentiable(p) else None

    return jax.tree_util.tree_map_with_path(leaf, params, axes_of(params, axes))


def _known(name: str, path: Any, p: Any, its: Axes | None) -> Axes:
    if its is None or _size(p, its.input) < 2:
        raise OptimizerError(
            f"{name} moves columns of kernels, {leaf_name(path)} has shape {jnp.shape(p)}"
            f"{' and no known axes' if its is None else ''}: choose the kernels by "
            "grassmann_labels and optax.partition, or declare their axes by axes="
        )
    return its


def map_columns(
    name: str,
    step: Callable[..., Any],
    axes: AxesOrFunction,
    axis_name: str | tuple[str, ...] | None,
    params: Any,
    updates: Any,
    *state: Any,
) -> list[Any]:
    """Map `step(columns, p, g, *state)` over the leaves to a list of trees.

    Leaves of integers, bools and keys keep g and state, and so do holes in the updates.
    """
    if params is None:
        raise OptimizerError(f"{name} needs params: update(grads, state, params)")
    check_axis_name(name, axis_name)
    is_hole = lambda x: x is None or isinstance(x, optax.MaskedNode)  # noqa: E731
    structure: Any = jax.tree.structure(updates, is_leaf=is_hole)
    trees = (updates, params, axes_of(params, axes), *state)
    results = [
        (g, *rest)
        if is_hole(g) or its is None
        else step(geometry.Columns(its.input, axis_name), p, g, *rest)
        for g, p, its, *rest in zip(*map(structure.flatten_up_to, trees), strict=True)
    ]
    return [structure.unflatten([result[i] for result in results]) for i in range(len(state) + 1)]


def zeros_of_floats(params: Any) -> Any:
    """Return zeros in float32 or wider like params, None for integers, bools and keys."""
    return jax.tree.map(
        lambda p: jnp.zeros_like(widen(p)) if is_differentiable(p) else None, params
    )


def additive_update(p: jax.Array, new: jax.Array) -> jax.Array:
    """Return the update that Optax adds to `p` to get `new`, in the dtype of `p`."""
    return (new - widen(p)).astype(jnp.result_type(p))


def is_tall(p: Any, axes: Axes | None) -> bool:
    """Return whether a leaf is a kernel with more inputs than outputs."""
    return axes is not None and _size(p, axes.input) > _size(p, axes.output)


def _size(p: Any, axes: tuple[int, ...]) -> int:
    return math.prod(jnp.shape(p)[axis] for axis in axes)


def _resolve_labels(labels: Any, params: Any) -> Any:
    """Return a pytree of labels like params, as `optax.partition` takes them."""

    def checked(name: str, label: Any) -> Any:
        check_choice(name, label, LABELS)
        return label

    tree = resolve_function(labels, params, lambda leaf: isinstance(leaf, str))
    expected = "a pytree like params or a function that makes one, such as grassmann_labels"
    return broadcast("labels", tree, params, expected, checked)
