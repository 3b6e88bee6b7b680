"""The axes of a parameter: which count layers, which are inputs, which are output units.

They are declared, by `axes=` of whatever reads them, or known for certain. What is not known is
left alone, and said.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError
from ._tree import is_differentiable
from .parameters import (
    BIASES,
    OFFSETS,
    SCALES,
    Where,
    broadcast,
    leaf_name,
    leaf_path,
    resolve_function,
    resolve_mask,
)

Path: TypeAlias = tuple[str, ...]
Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[Path, Shape]

_UNKNOWN = "unknown"  # beside None, which is: no kernel

# Leaves that have no output units: tables looked up by an index, and what is added or multiplied.
_TABLE = re.compile(r"embed|position|(^|_)(pos|cls|tokens?|table|wte|wpe)(_|$)")
_AFFINE = re.compile(rf"(^|[_/])({'|'.join((*SCALES, *OFFSETS, 'bias'))})(_|$)|^b$")

_TO_HEADS = ("query", "key", "value")


class Axes(NamedTuple):
    """The axes of a kernel, counted from 0; each of its axes is in one of the three.

    A column is what one output unit of one layer reads: it runs over the input axes.
    """

    stack: tuple[int, ...]  # what nn.scan and nn.vmap stack, experts: each a kernel of its own
    input: tuple[int, ...]
    output: tuple[int, ...]


AxesOrFunction: TypeAlias = Callable[[Any], Any] | Any | None


def axes_of(params: optax.Params, axes: AxesOrFunction = None) -> Any:
    """Return the axes of each parameter.

    Without `axes` they are told by names, shapes and what is beside a leaf, where that is certain:

    - Tables, biases, scales and leaves of rank <= 1 are no kernels; nor are integers, bools, keys.
    - Two axes are (in, out), as in Flax; three are (window, in, out) in a layer with `conv` in its
      name, four (height, width, in, out) unless the layer is a dense one by its name.
    - A bias beside a `kernel` shows the output axes, and what is stacked in front. So do the scales
      of a normalization nearby, and the names that Flax gives, as `Dense_0`.
    - A transposed convolution needs a bias, and inputs and outputs that differ in number.
    - query, key, value (in, heads, head_dim) and out (heads, head_dim, out) are known together.

    Not known are leaves named `weight`, which in Equinox and PyTorch are kernels, tables and scales
    alike, and kernels that can be read in two ways, such as (experts, in, out).

    Args:
        params: Parameters, gradients or their shapes.
        axes: Declared axes: a pytree like params, or a prefix of it, of `Axes` and None, which
          stands for a leaf that is no kernel, or a function params -> such a pytree, such as
          `output_first`. None: those that are known.

    Returns:
        A pytree like `params` of `Axes`, and None where a leaf is no kernel or is not known.

    Raises:
        OptimizerError: `axes` has another structure than params, or its axes are not those of a
          leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import axes_of
        >>> axes_of({"Conv_0": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}})
        {'Conv_0': {'bias': None, 'kernel': Axes(stack=(), input=(0, 1, 2), output=(3,))}}
    """
    if axes is None:
        return jax.tree.map(lambda a: None if a == _UNKNOWN else a, _known(params), is_leaf=is_axes)
    tree = resolve_function(axes, params, lambda leaf: isinstance(leaf, int))
    expected = "a pytree of Axes and None, like params or a prefix, or a function that makes one"
    whole = broadcast("axes", tree, params, expected, lambda _, a: a, is_leaf=is_axes)
    return jax.tree_util.tree_map_with_path(_checked, params, whole)


def unknown_axes(params: optax.Params, where: Where = None) -> list[str]:
    """Return the paths of the kernels whose axes `axes_of` does not know.

    Args:
        params: Parameters or their shapes.
        where: The leaves to look at: a mask as `optax.masked` takes it. None: all.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import unknown_axes
        >>> unknown_axes({"experts": {"kernel": jnp.ones((4, 8, 8))}, "bias": jnp.ones(8)})
        ['experts.kernel']
    """
    names = []

    def leaf(path: Any, _: Any, axes: Any, selected: bool) -> None:
        if selected and axes == _UNKNOWN:
            names.append(leaf_name(path))

    jax.tree_util.tree_map_with_path(leaf, params, _known(params), resolve_mask(where, params))
    return names


def output_first(params: optax.Params, stack: int = 0) -> Any:
    """Return the axes of leaves named `weight` whose first axis is the output.

    For Equinox and PyTorch's layers: (out, in) and (out, in, height, width). Layers with `embed`,
    `norm` or `transpose` in their name, and `emb`, `wte`, `wpe` and `bn...`, are left out: tables,
    scales, and PyTorch's transposed convolutions, whose output is second.

    Args:
        params: Parameters or their shapes.
        stack: How many axes before the output count layers, as those of `eqx.filter_vmap` do.

    Returns:
        A pytree like `params` of `Axes` and None.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import output_first
        >>> output_first({"linear": {"weight": jnp.ones((8, 3)), "bias": jnp.ones(8)}})
        {'linear': {'bias': None, 'weight': Axes(stack=(), input=(1,), output=(0,))}}
    """

    def leaf(path: Any, x: Any) -> Axes | None:
        *layers, name = leaf_path(path) or ("",)
        rank = len(_shape(x))
        if name != "weight" or rank < stack + 2 or not is_differentiable(x):
            return None
        left_out = r"embed|norm|transpose|(\b|_)(bn|(emb|wte|wpe)\b)"
        if re.search(left_out, "/".join(layers[-2:]).lower()):
            return None
        return Axes(tuple(range(stack)), tuple(range(stack + 1, rank)), (stack,))

    return jax.tree_util.tree_map_with_path(leaf, params)


def flax_axes(module: Any, *inputs: Any, **options: Any) -> Any:
    """Return the axes of a Flax module's parameters, by asking the layers that make them.

    That is certain where names and shapes are not: Dense, DenseGeneral, Conv, ConvLocal and
    ConvTranspose in both layouts, attention, and what `nn.scan` and `nn.vmap` stack in front (as
    with `variable_axes={'params': 0}`). Declare what is stacked elsewhere: such a kernel is None,
    or taken as stacked in front where its shape does not show it, with as many layers as inputs and
    outputs. Parameters of other layers are told as by `axes_of`.

    Args:
        module: A linen module, which is traced with the inputs and computes nothing, or an NNX one.
        inputs: The arguments of a linen module's call, arrays or their shapes.
        options: Its keyword arguments, which are not traced, such as `train=False`.

    Returns:
        A pytree like `module.init(key, *inputs)["params"]`, or `nnx.state(module, nnx.Param)`, of
        `Axes` and None.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from optimizer import flax_axes
        >>> flax_axes(nn.ConvTranspose(5, (2, 2), transpose_kernel=True), jnp.ones((1, 4, 4, 3)))
        {'bias': None, 'kernel': Axes(stack=(), input=(0, 1, 3), output=(2,))}
    """
    from flax import linen, nnx

    layers: dict[Path, tuple[Any, Shape]] = {}  # each with its kernel's shape inside of a scan
    if isinstance(module, nnx.Module):
        params = nnx.state(module, nnx.Param)
        layers = {tuple(map(str, path)): (each, ()) for path, each in nnx.iter_modules(module)}
    else:

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result, layer = call(*args, **kwargs), context.module
            if layer.scope is not None and layer.scope.has_variable("params", "kernel"):
                kernel = linen.meta.unbox(layer.scope.get_variable("params", "kernel"))
                layers.setdefault(layer.path, (layer, jnp.shape(kernel)))  # the innermost first
            return result

        def init(key: jax.Array, *inputs: Any) -> Any:
            with linen.intercept_methods(record):
                return module.init({"params": key, "dropout": key}, *inputs, **options)

        params = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]

    def leaf(path: Any, x: Any, known: Axes | str | None) -> Axes | None:
        *layer, name = leaf_path(path)
        asked, inner = layers.get(tuple(layer), (None, ()))
        axes = _of_layer(asked, len(_shape(x))) if name == "kernel" else None
        if axes is None:
            return None if isinstance(known, str) else known
        return axes if _shape(x)[len(_shape(x)) - len(inner) :] == inner else None

    return jax.tree_util.tree_map_with_path(leaf, params, _known(params))


def warn_of_unknown(who: str, params: Any, where: Where) -> None:
    """Warn of the kernels that are left alone; Python shows the same warning once."""
    names = unknown_axes(params, where)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.warn(
            f"{who} leaves alone, as their axes are not known: {', '.join(names[:5])}{more}; "
            "declare them by axes=, such as flax_axes(module, inputs), output_first, or a pytree "
            "of Axes and None",
            stacklevel=3,
        )


def is_axes(x: Any) -> bool:
    """Return whether a node of a pytree of axes is one leaf."""
    return x is None or isinstance(x, Axes)


def _checked(path: Any, x: Any, axes: Any) -> Axes | None:
    """Return declared axes; raise unless they are those of the leaf."""
    if axes is None or not is_differentiable(x):
        return None
    rank = len(_shape(x))
    is_of_tuples = isinstance(axes, Axes) and all(isinstance(each, tuple) for each in axes)
    if not is_of_tuples or sorted(sum(axes, ())) != list(range(rank)) or not axes.input:
        raise OptimizerError(
            f"axes={axes!r} of {leaf_name(path)}, of shape {_shape(x)}, must be None or Axes that "
            f"name, in tuples, each of 0 to {rank - 1} once, one of them as input"
        )
    return axes


def _shape(x: Any) -> Shape:
    return tuple(getattr(x, "shape", ()))


def _last(rank: int, stack: int = 0, outputs: int = 1, transposed: bool = False) -> Axes:
    """Return the axes of (*stack, *inputs, *outputs), transposed of (*stack, *window, out, in)."""
    inputs, output = tuple(range(stack, rank - outputs)), tuple(range(rank - outputs, rank))
    if transposed:
        inputs, output = (*inputs[:-1], rank - 1), inputs[-1:]
    return Axes(tuple(range(stack)), inputs, output)


def _of_layer(layer: Any, rank: int) -> Axes | None:
    """Return the axes of a Flax layer's kernel, by the layer's class and fields."""
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    count = lambda x: len(x) if isinstance(x, Sequence) else 1  # noqa: E731
    if kinds & {"Dense", "Linear", "DenseParams", "ConvLocal"}:
        inputs, outputs = 1, 1
    elif kinds & {"DenseGeneral", "LinearGeneral"}:
        features = layer.features if "DenseGeneral" in kinds else layer.out_features
        inputs, outputs = count(layer.axis), count(features)
    elif kinds & {"Conv", "ConvTranspose"} and hasattr(layer, "kernel_size"):
        inputs, outputs = count(layer.kernel_size) + 1, 1
    else:
        return None
    stack = rank - inputs - outputs
    transposed = getattr(layer, "transpose_kernel", False)
    return None if stack < 0 else _last(rank, stack, outputs, transposed)


def _known(params: Any) -> Any:
    """Return a pytree of the axes that names and shapes tell: Axes, None or unknown."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {leaf_path(path): _shape(leaf) for path, leaf in leaves}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _of_leaf(leaf_path(path), shapes) if is_differentiable(x) else None, params
    )


def _of_leaf(names: Path, shapes: Shapes) -> Axes | str | None:
    """Return the axes of a leaf, None for no kernel."""
    *layers, name = names or ("",)
    layer, shape = (layers[-1] if layers else ""), shapes[names]
    rank = len(shape)
    # Haiku names a table `w` and its layer `embedding`. A `kernel` in a layer of that name is a
    # convolution or a dense layer, as in many vision transformers.
    is_table = _TABLE.search(name.lower()) or (name == "w" and _TABLE.search(layer) and rank == 2)
    if rank <= 1 or is_table or _AFFINE.search(name.lower()):
        return None
    if name == "weight":
        return _UNKNOWN
    if bias := _bias_beside(names, shapes):
        return _by_bias(layer.lower(), shape, bias) or _of_attention(names, shapes) or _UNKNOWN
    if axes := _of_attention(names, shapes):
        return axes
    stack = rank - 2 if re.fullmatch(r"Dense_\d+", layer) else _stack_of_norms(names, shapes)
    return _last(rank, stack) if _has_one_output(layer.lower(), rank - stack, stack) else _UNKNOWN


def _has_one_output(layer: str, rank: int, stack: int) -> bool:
    """Return whether a kernel without bias must be (*inputs, out), behind its stack."""
    if rank == 2 or "transpose" in layer:
        return rank == 2
    if rank == 3:
        return "conv" in layer
    # Four axes are a convolution's by convention, five are as well a stack of those.
    return not re.search("dense|linear|einsum", layer) and (rank == 4 or (rank == 5 and stack > 0))


def _bias_beside(names: Path, shapes: Shapes) -> Shape:
    """Return the shape of the bias beside a kernel, () where there is none."""
    if names[-1:] not in (("kernel",), ("w",)):
        return ()
    biases = (shapes.get((*names[:-1], name), ()) for name in BIASES)
    return next((bias for bias in biases if bias), ())


def _by_bias(layer: str, shape: Shape, bias: Shape) -> Axes | None:
    """Return the axes that a bias of shape (*stack, *outputs) leaves, None if not just one set."""
    rank, most = len(shape), len(bias)
    if most >= rank:
        return None
    has_one_output = re.match(r"conv|dense_\d+$", layer)
    stacks = range(most - 1, most) if has_one_output else range(most)
    found = [
        _last(rank, s, most - s) for s in stacks if shape[:s] + shape[rank - most + s :] == bias
    ]
    s = most - 1
    if (not found or "transpose" in layer) and shape[:s] + shape[-2:-1] == bias and rank - s > 2:
        found.append(_last(rank, s, transposed=True))
    return found[0] if len(found) == 1 else None


def _stack_of_norms(names: Path, shapes: Shapes) -> int:
    """Return how many axes `nn.scan` has put before the scales of the nearest normalization."""
    shape = shapes[names]
    for depth in range(len(names) - 2, -1, -1):
        for other, scale in shapes.items():
            is_near = len(other) == depth + 2 and other[:depth] == names[:depth]
            if is_near and other[-1] in SCALES:
                stack = len(scale) - 1
                return stack if scale[:stack] == shape[:stack] else 0
    return 0


def _of_attention(names: Path, shapes: Shapes) -> Axes | None:
    """Return the axes of attention's projections to heads and from them, None for other kernels.

    Convolutions have the same names in non-local blocks: (1, 1, in, out), and (1, in, out).
    """
    roles = (*_TO_HEADS, "out", "qkv", "kv")
    at = next((i for i in range(len(names))[-2:] if names[i] in roles), None)
    if at is None:
        return None
    shape, role = shapes[names], names[at]
    rank = len(shape)
    if role in ("qkv", "kv"):
        return _last(4, 0, 3) if rank == 4 and shape[0] != shape[1] else None  # windows are square
    query, out = (shapes.get((*names[:at], r, *names[at + 1 :]), ()) for r in ("query", "out"))
    is_one = rank == len(query) == len(out) > 2 and out[-3:-1] == query[-2:]
    # Dense layers that are stacked have as many layers in all of them.
    if not is_one or query[:-3] != out[:-3] or (rank == 3 and query[0] == out[0]):
        return None
    return _last(rank, rank - 3, 2 if role in _TO_HEADS else 1)
