"""Compare pytrees leaf by leaf; what differs is named by its path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_trees_equal(actual: Any, expected: Any) -> None:
    """Assert that two trees have one structure, one type a leaf, and equal leaves."""
    _compare(actual, expected, np.testing.assert_array_equal)


def assert_trees_close(actual: Any, expected: Any, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    """Assert the same of leaves that may differ by `atol + rtol * abs(expected)`."""

    def close(a: Any, e: Any, err_msg: str) -> None:
        np.testing.assert_allclose(a, e, rtol, atol, err_msg=err_msg)

    _compare(actual, expected, close)


def differ(one: Any, other: Any) -> bool:
    """Return whether some number of two trees differs."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(bool(jnp.any(a != b)) for a, b in leaves)


def _compare(actual: Any, expected: Any, assert_same: Callable[..., None]) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)

    def compare(path: Any, a: Any, e: Any) -> None:
        where = jax.tree_util.keystr(path)
        assert jnp.result_type(a) == jnp.result_type(e), where
        assert_same(a, e, err_msg=where)

    jax.tree.map_with_path(compare, actual, expected)
