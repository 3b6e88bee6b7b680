"""Several seeds trained as one: their states stacked on a leading axis, their steps by vmap."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gnp.training.gradient import Batch, Metrics
from gnp.training.state import TrainState
from gnp.training.step import TrainStep


def stacked(trees: Sequence[Any]) -> Any:
    """The pytrees of several seeds as one, with a leading axis of seeds; that of one as it is.

    Args:
        trees: of the same structure and shapes; at least one.

    Example:
        >>> stacked([{"w": jnp.ones(3)}, {"w": jnp.ones(3)}])["w"].shape
        (2, 3)
    """
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *trees)


def apart(tree: Any, count: int) -> list[Any]:
    """The pytrees of `count` seeds that `stacked` made one.

    Example:
        >>> [part["w"].shape for part in apart({"w": jnp.ones((2, 3))}, 2)]
        [(3,), (3,)]
    """
    if count == 1:
        return [tree]

    def part(seed: int) -> Any:
        return jax.tree.map(lambda x: x[seed], tree)

    return [part(seed) for seed in range(count)]


def steps_at_once(step: TrainStep, normalizers: Sequence[Callable[..., jax.Array]]) -> TrainStep:
    """One step of several seeds: states, batches and keys with a leading axis, one step number.

    Args:
        step: of one seed, for inputs that are normalised already.
        normalizers: raw inputs [b, ...] -> what the model is given, of each seed's own data.
    """
    of_all = jax.vmap(step, in_axes=(0, 0, 0, None))

    def step_of_all(
        states: TrainState, batches: Batch, keys: jax.Array, number: Any
    ) -> tuple[TrainState, Metrics]:
        inputs = [of_one(x) for of_one, x in zip(normalizers, batches["input"], strict=True)]
        return of_all(states, {**batches, "input": jnp.stack(inputs)}, keys, number)

    return step_of_all
