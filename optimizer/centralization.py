"""Gradient centralization: each output unit's gradient loses its mean."""

import re
from itertools import combinations
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ._tree import widen
from .parameters import BIASES, OFFSETS, SCALES, Where, leaf_path, resolve_mask

Path: TypeAlias = tuple[str, ...]
Shapes: TypeAlias = dict[Path, tuple[int, ...]]

# Leaves that have no output units: tables looked up by an index, and what is added or multiplied.
_TABLE = re.compile(r"embed|position|(^|_)(pos|cls|tokens?|table|wte|wpe)(_|$)")
_AFFINE = re.compile(rf"(^|[_/])({'|'.join((*SCALES, *OFFSETS, 'bias'))})(_|$)|^b$")

# The outputs of these layers of Flax's attention are heads and the elements of a head.
_HEADS = ("query", "key", "value")
_ROLES = (*_HEADS, "out", "qkv", "kv")


def centralize(where: Where = None) -> optax.GradientTransformation:
    r"""Subtract from the gradient of each output unit its mean (gradient centralization).

    For a kernel whose last axis is the output, as in Flax's layers,

    .. math::
        g' = g - \frac{1}{n} \sum_{i=1}^{n} g_i,

    where i runs over all n elements that lead to one output unit: (h, w, in) of a convolution, in
    of a dense layer. This is the projection onto the gradients that keep each unit's mean weight.

    Its place in the chain says what is centralized: before the base optimizer the gradient (the
    authors' SGD), after it the update (one of their forms of Adam). An L2 decay goes before it, so
    that it is centralized too, a decoupled decay after it.

    Output axes are found from the names on the way to a leaf and from its shape:

    - The last axis in general: (h, w, in, out), depthwise (h, w, 1, c), (in, out), attention's
      (heads, head_dim, out), and trees without names.
    - For a `kernel` with a `bias` beside it, the axes of the bias: the last two of attention's
      query, key and value (in, heads, head_dim), all features of a DenseGeneral, the positions of
      a ConvLocal, and the layer of kernels stacked by `nn.scan`. Where sizes coincide, the last
      axes are taken, or else the first with the last. (`optax.partition` hides the bias from a
      group without it.)
    - For query, key and value without bias (in, heads, head_dim) the last two. Where their rank is
      more than 3, only if the `out` beside `query` takes its last two axes (`nn.scan` has stacked
      them then, and the stack's axis is an output too); else they are convolutions, as in non-local
      blocks. For a fused qkv (in, 3, heads, head_dim) all but the first, unless the first two sizes
      are the same, as those of a window are.
    - For a leaf named `weight` the first axis, as in Equinox and PyTorch.

    Without a bias beside them, kernels of several output axes are averaged over all axes but the
    last: over the stack too where `nn.scan` stacks layers, over the other features of a
    DenseGeneral, over the positions of a ConvLocal. Their shape does not tell them from others:
    leave them out by `where`.

    Convolutions with `transpose_kernel=True` are recognized by their bias only, and not where
    in = out: leave them out by `where`. A unit with a single element (a dense layer with one
    input) gets the gradient 0, as the formula says.

    The mean is taken in float32 (float64 for float64 leaves); dtypes are kept. None stays None.

    Args:
        where: The leaves to centralize. None: every leaf of rank > 1 except embeddings, position
          tables and class tokens, biases and scales (told by names such as `embedding`,
          `pos_embedding`, `bias`), and leaves named `weight`: in Equinox and PyTorch that is the
          name of kernels, embeddings and the scales of norms alike. Else a pytree of bool like
          params, or a function of params that makes one, such as `is_convolution`; it is handed
          the updates where `update` gets no params. Leaves of rank <= 1 that it selects pass
          unchanged. Inside `optax.partition` or `optax.masked` use a function: the tree there has
          holes.

    Returns:
        An `optax.GradientTransformation` without state.

    Raises:
        OptimizerError: `where` is no mask of the parameters; in `init` and `update`.

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
    where = _has_output_units if where is None else where

    def init_fn(params: optax.Params) -> optax.EmptyState:
        resolve_mask(where, params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        mask = resolve_mask(where, updates if params is None else params)
        shapes = _shapes(updates)

        def leaf(path: Any, g: Any, selected: bool) -> Any:
            if g is None or not selected or jnp.ndim(g) <= 1:
                return g
            return _centralized(g, _output_axes(leaf_path(path), jnp.shape(g), shapes))

        centralized = jax.tree_util.tree_map_with_path(
            leaf, updates, mask, is_leaf=lambda x: x is None
        )
        return centralized, state

    return optax.GradientTransformation(init_fn, update_fn)


def is_convolution(params: optax.Params) -> Any:
    """Return a mask that is True for the kernels of convolutions.

    A kernel of rank 4 or 5 is one, unless its layer is a dense one by its name (`Dense_0`,
    `DenseGeneral_0`, `Einsum_0`), or an attention's by names and shapes (see `centralize`), or its
    bias has several axes. So is a kernel of rank 3 or more in a layer with `conv` in its name: the
    rank of a 1-D convolution alone does not tell it from attention's (in, heads, head_dim). Leaves
    named `weight` count, with their output first.

    Args:
        params: Parameters, gradients or their shapes.

    Returns:
        A pytree of bool like `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import is_convolution
        >>> kernels = {"Conv_0": jnp.ones((3, 3, 1, 8)), "Dense_0": jnp.ones((8, 2))}
        >>> is_convolution({name: {"kernel": kernel} for name, kernel in kernels.items()})
        {'Conv_0': {'kernel': True}, 'Dense_0': {'kernel': False}}
    """
    shapes = _shapes(params)

    def leaf(path: Any, x: Any, is_kernel: bool) -> bool:
        names, shape = leaf_path(path), jnp.shape(x)
        layer = names[-2].lower() if len(names) > 1 else ""
        if not is_kernel or len(shape) < 3:
            return False
        if "conv" in layer:
            return True
        if len(shape) > 5 or len(shape) < 4 or re.search("dense|linear|einsum", layer):
            return False
        has_bias_of_a_layer = names[-1:] == ("weight",) or len(_bias(names, shapes)) <= 1
        return has_bias_of_a_layer and not _is_attention(names, shape, shapes)

    return jax.tree_util.tree_map_with_path(leaf, params, _is_kernel(params))


def _has_output_units(params: Any) -> Any:
    """Return the mask of the leaves that `centralize` takes unless told otherwise."""

    def leaf(path: Any, is_kernel: bool) -> bool:
        return is_kernel and leaf_path(path)[-1:] != ("weight",)

    return jax.tree_util.tree_map_with_path(leaf, _is_kernel(params))


def _is_kernel(params: Any) -> Any:
    """Return the mask of the leaves of rank > 1 that are kernels."""

    def leaf(path: Any, x: Any) -> bool:
        *parents, name = leaf_path(path) or ("",)
        name = name.lower()
        if jnp.ndim(x) <= 1 or _TABLE.search(name) or _AFFINE.search(name):
            return False
        # Haiku names a table `w` and its layer `embedding`. A `kernel` in a layer of that name is a
        # convolution or a dense layer, as in many vision transformers.
        return not (name == "w" and parents and _TABLE.search(parents[-1]) and jnp.ndim(x) == 2)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _shapes(tree: Any) -> Shapes:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_path(path): jnp.shape(leaf) for path, leaf in leaves}


def _bias(names: Path, shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the bias beside a leaf, () where there is none."""
    biases = (shapes.get((*names[:-1], name), ()) for name in BIASES)
    return next((bias for bias in biases if bias), ())


def _is_attention(names: Path, shape: tuple[int, ...], shapes: Shapes) -> bool:
    """Return whether a kernel without bias is of attention's projections to heads or from them.

    Convolutions have the same names in non-local blocks: (1, 1, in, out), and (1, in, out).
    """
    at = next((i for i in (len(names) - 1, len(names) - 2) if i >= 0 and names[i] in _ROLES), None)
    if at is None or len(shape) < 3 or len(_bias(names, shapes)) == 1:
        return False
    if names[at] in ("qkv", "kv"):
        return shape[0] > 1 if len(shape) == 3 else shape[0] != shape[1]  # windows are square
    if len(shape) == 3:
        return names[at] in _HEADS and shape[0] > 1
    query, out = (
        shapes.get((*names[:at], name, *names[at + 1 :]), ()) for name in ("query", "out")
    )
    return len(query) == len(out) > 2 and out[-3:-1] == query[-2:]


def _output_axes(names: Path, shape: tuple[int, ...], shapes: Shapes) -> tuple[int, ...]:
    """Return the axes of a leaf that count output units."""
    rank = len(shape)
    if names[-1:] == ("weight",):
        return (0,)
    bias = _bias(names, shapes) if names[-1:] == ("kernel",) else ()
    if 0 < len(bias) < rank:
        suffix = tuple(range(rank - len(bias), rank))
        stacked = (0, *suffix[1:])
        first = (suffix, stacked) if len(bias) > 1 else (suffix,)
        for axes in (*first, *reversed([*combinations(range(rank), len(bias))])):
            if tuple(shape[axis] for axis in axes) == bias:
                return axes
    if _is_attention(names, shape, shapes):
        if any(name in ("qkv", "kv") for name in names[-2:]):
            return tuple(range(1, rank))
        to_heads = any(name in _HEADS for name in names[-2:])
        return (*range(rank - 3), *((rank - 2,) if to_heads else ()), rank - 1)
    return (rank - 1,)


def _centralized(g: Any, outputs: tuple[int, ...]) -> jax.Array:
    """Subtract from `g` its mean over all axes but the `outputs`."""
    wide = widen(g)
    inputs = tuple(axis for axis in range(wide.ndim) if axis not in outputs)
    return (wide - jnp.mean(wide, inputs, keepdims=True)).astype(jnp.result_type(g))
