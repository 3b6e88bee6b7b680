"""Gradient centralization: each output unit's gradient loses its mean."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._tree import map_present, widen
from .axes import (
    Axes,
    AxesOrFunction,
    axes_of,
    is_axes,
    output_first,
    unknown_axes,
    warn_of_unknown,
)
from .parameters import Where, leaf_name, leaf_path, resolve_mask


def centralize(where: Where = None, axes: AxesOrFunction = None) -> optax.GradientTransformation:
    r"""Subtract from the gradient of each output unit its mean (gradient centralization).

    For a kernel whose last axis is the output, as in Flax's layers,

    .. math::
        g' = g - \frac{1}{n} \sum_{i=1}^{n} g_i,

    where i runs over all n elements that lead to one output unit: (h, w, in) of a convolution, in
    of a dense layer. This is the projection onto the gradients that keep each unit's mean weight.

    Its place in the chain says what is centralized: before the base optimizer the gradient (the
    authors' SGD), after it the update (one of their forms of Adam). An L2 decay goes before it, so
    that it is centralized too, a decoupled decay after it.

    Which axes are inputs and which count layers of a stack is declared by `axes`, or known (see
    `axes_of`). What is not known is left alone, with a warning.

    A unit with a single element (a dense layer with one input) gets the gradient 0, as the formula
    says.

    The mean is taken in float32 (float64 for float64 leaves); dtypes are kept. None stays None.

    Args:
        where: The leaves to centralize, of those whose axes are known. None: all of them. Leaves
          named `weight` that it selects have their output first (see `output_first`). A
          pytree of bool like params, or a function of params that makes one, such as
          `is_convolution`; it is handed the updates where `update` gets no params. Leaves of rank
          <= 1 that it selects pass unchanged. Inside `optax.partition` or `optax.masked` use a
          function: the tree there has holes.
        axes: The axes of each leaf, see `axes_of`: a pytree of `Axes` and None, a function of
          params that makes one, or None for those that are known. (`optax.partition` hides the
          biases that show them: there give `axes_of(params)`.)

    Returns:
        An `optax.GradientTransformation` without state.

    Raises:
        OptimizerError: `where` is no mask of the parameters, or `axes` does not fit them; in `init`
          and `update`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from optimizer import centralize
        >>> opt = optax.chain(centralize(), optax.sgd(1.0))
        >>> params = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
        >>> grads = {"kernel": jnp.array([[1.0, 2.0, 3.0], [5.0, 2.0, 1.0]]), "bias": jnp.ones(3)}
        >>> updates, _ = opt.update(grads, opt.init(params), params)
        >>> print(updates["kernel"])
        [[ 2. -0. -1.]
         [-2. -0.  1.]]
        >>> print(updates["bias"])
        [-1. -1. -1.]

    References:
        Yong et al., `Gradient Centralization: A New Optimization Technique for Deep Neural
        Networks <https://arxiv.org/abs/2004.01461>`_, 2020.
    """

    def chosen_axes(tree: Any) -> Any:
        known = axes_of(tree, axes)
        if axes is not None or where is None:
            return known
        # Whoever selects leaves named `weight` has a model of Equinox's or PyTorch's layout.
        return jax.tree.map(lambda a, b: a or b, known, output_first(tree), is_leaf=is_axes)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        found, mask = chosen_axes(params), resolve_mask(where, params)
        if axes is None:
            left = map_present(lambda selected, its: selected and its is None, mask, found)
            warn_of_unknown("centralize", params, left)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        tree = updates if params is None else params

        def leaf(g: Any, selected: bool, its: Axes | None) -> Any:
            return _centralized(g, its.input) if selected and its is not None else g

        return map_present(leaf, updates, resolve_mask(where, tree), chosen_axes(tree)), state

    return optax.GradientTransformation(init_fn, update_fn)


def is_convolution(params: optax.Params, axes: AxesOrFunction = None) -> Any:
    """Return a mask that is True for the kernels of convolutions.

    Without the axes of its stack a kernel of rank 4 or 5 is one, unless its layer is a dense one by
    its name (`Dense_0`, `DenseGeneral_0`, `Einsum_0`), or it has several output axes (see
    `axes_of`). So is a kernel of rank 3 or more in a layer with `conv` in its name: the rank of a
    1-D convolution alone does not tell it from attention's (in, heads, head_dim).

    Args:
        params: Parameters, gradients or their shapes.
        axes: The axes of each leaf, see `axes_of`; None: those that are known.

    Returns:
        A pytree of bool like `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import is_convolution
        >>> kernels = {"Conv_0": jnp.ones((3, 3, 1, 8)), "Dense_0": jnp.ones((8, 2))}
        >>> is_convolution({name: {"kernel": kernel} for name, kernel in kernels.items()})
        {'Conv_0': {'kernel': True}, 'Dense_0': {'kernel': False}}
    """
    unknown = unknown_axes(params) if axes is None else []

    def leaf(path: Any, x: Any, its: Axes | None) -> bool:
        if its is None and leaf_name(path) not in unknown:
            return False
        layer = "".join(leaf_path(path)[-2:-1]).lower()
        rank = len(x.shape) - (0 if its is None else len(its.stack))
        if "conv" in layer:
            return len(x.shape) > 2
        is_dense = re.search("dense|linear|einsum", layer) or (its and len(its.output) > 1)
        return rank in (4, 5) and not is_dense

    return jax.tree_util.tree_map_with_path(leaf, params, axes_of(params, axes))


def _centralized(g: Any, inputs: tuple[int, ...]) -> jax.Array:
    """Subtract from `g` its mean over the input axes."""
    wide = widen(g)
    return (wide - jnp.mean(wide, inputs, keepdims=True)).astype(jnp.result_type(g))
