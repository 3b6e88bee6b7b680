"""Compare a network of ours with the same one of the gradient-norm penalty's authors.

tests/reference/published/gnp_models.npz has what theirs computes; `check` asks ours.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.published import load, thinned, weight

# Their name of a parameter or statistic ("VGGBlock_0/Conv_0/kernel") -> ours.
Names = Callable[[str], str]
# Of an array's largest value.
TOLERANCE = 1e-5


def their_variables(entry: str, shapes: Any = None) -> dict[str, np.ndarray]:
    """Return the weights of an entry, by their paths, "params/..." and "batch_stats/...".

    Their shapes are in the archive, but for those of the largest networks.
    """
    arrays, meta = load("gnp_models")
    stored = f"{entry}/var/"
    if shapes := shapes or meta["models"][entry].get("shapes"):
        return {path: weight(f"{entry}/{path}", tuple(shape)) for path, shape in shapes.items()}
    keys = [key for key in arrays.files if key.startswith(stored)]
    return {key.removeprefix(stored): arrays[key] for key in keys}


def in_ours(path: str, names: Names) -> str:
    """Return our path of a variable: the collection stays, the rest is renamed."""
    collection, _, rest = path.partition("/")
    return f"{collection}/{names(rest)}"


def in_our_names(variables: dict[str, Any], names: Names) -> dict[str, Any]:
    """Return the tree of a module's variables."""
    flat = {in_ours(path, names): value for path, value in variables.items()}
    assert len(flat) == len(variables), "two of their names became one"
    return unflatten_dict(flat, sep="/")


def assert_close(
    actual: Any, expected: Any, name: str, tolerance: float = TOLERANCE, floor: float = 0.0
) -> None:
    """Assert that no element is off by more than the tolerance of the largest, or the floor."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, name
    largest = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, 0, max(tolerance * largest, floor), err_msg=name)


def check(
    entry: str,
    module: Any,
    names: Names,
    suffix: str = "",
    tolerance: float = TOLERANCE,
    paths: Iterable[str] = (),
) -> None:
    """Assert that a module computes what an entry of the archive says.

    That is the number of its parameters and, as far as the entry has them, the logits in both
    modes, the new statistics, and the loss and its gradients in training mode.

    Args:
        entry: name of the network in gnp_models.
        module: ours, called as `module(x, train)`.
        names: their name of a parameter or statistic -> ours.
        suffix: of the training pass, where the entry has two ("_true_gradient").
        tolerance: of logits, loss and gradients of the training pass, relative to the largest
            element of each.
        paths: of their variables, "params/..." and "batch_stats/...", where the archive does not
            list them.
    """
    arrays, meta = load("gnp_models")
    x = jnp.asarray(arrays[f"{entry}/input_int8"] / np.float32(48))
    labels = arrays[f"{entry}/label"]

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    ours = flatten_dict(shapes, sep="/")
    unlisted = {path: ours[in_ours(path, names)].shape for path in paths}
    variables = in_our_names(their_variables(entry, unlisted), names)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert count == meta["models"][entry]["parameters"]

    evaluated = jax.jit(lambda variables: module.apply(variables, x, train=False))(variables)
    assert_close(evaluated, arrays[f"{entry}/logits_eval"], "logits of evaluation")
    if f"{entry}/logits_train{suffix}" not in arrays.files:
        return

    params = variables.pop("params")

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, state = module.apply(
            {"params": params, **variables},
            x,
            train=True,
            mutable=list(variables),
            rngs={"dropout": jax.random.key(0)},
        )
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return cost, (logits, dict(state))

    has_gradients = any(key.startswith(f"{entry}/grad{suffix}/") for key in arrays.files)
    step = jax.value_and_grad(loss, has_aux=True) if has_gradients else lambda p: (loss(p), None)
    (value, (logits, state)), gradients = jax.jit(step)(params)
    assert_close(logits, arrays[f"{entry}/logits_train{suffix}"], "logits of training", tolerance)
    assert_close(value, arrays[f"{entry}/loss_train{suffix}"], "loss", tolerance)
    if not has_gradients:
        return
    # A bias in front of a batch norm has a gradient of zero, but for rounding.
    floor = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    _compare(f"{entry}/grad{suffix}/", gradients, names, 48, tolerance, floor)
    count = 16 if "shapes" in meta["models"][entry] else math.inf
    _compare(f"{entry}/new_stats/", state.get("batch_stats", {}), names, count)


def _compare(prefix: str, tree: Any, names: Names, count: float, *bounds: float) -> None:
    """Compare our leaves with the arrays below a prefix, which are thinned to about `count`."""
    arrays, _ = load("gnp_models")
    ours = flatten_dict(tree, sep="/")
    theirs = {key.removeprefix(prefix): key for key in arrays.files if key.startswith(prefix)}
    assert {names(path) for path in theirs} == set(ours)
    for path, key in theirs.items():
        actual = np.ravel(ours[names(path)])
        actual = thinned(actual, min(count, actual.size))
        assert_close(actual, np.ravel(arrays[key]), key, *bounds)
