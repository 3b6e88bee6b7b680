"""Define what a task is, and the errors of numbers that several tasks share."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

PerExample = Callable[[jax.Array, jax.Array], jax.Array]


class Objective(NamedTuple):
    """The loss that is minimized, and the metrics that are reported.

    They are of each example, so that any batch and any mask can be averaged.

    Attributes:
        loss: (outputs [b, ...], labels) -> loss of each example [b], float32.
        metrics: name -> the same for each metric; the smaller, the better.
    """

    loss: PerExample
    metrics: Mapping[str, PerExample]


class Task(NamedTuple):
    """Describe what is learned.

    Attributes:
        losses: The names that a config's `loss` may have.
        metrics: Regular expressions of the names of its metrics. One that ends in `_rate` is shown
            in percent.
        objective: (loss, label smoothing, each k of a top-k error rate) -> the objective. The last
            two are of classes; other tasks have no use for them.
        output_shape: (loss, number of classes, shape of a label) -> shape of a model's outputs for
            one example. A model is built with the first of its sizes.
    """

    losses: tuple[str, ...]
    metrics: tuple[str, ...]
    objective: Callable[[str, float, Sequence[int]], Objective]
    output_shape: Callable[[str, int, tuple[int, ...]], tuple[int, ...]]


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return (z - y)^2 of each example, averaged over its outputs: [b, ...] -> [b]."""
    return jnp.square(outputs - targets).reshape(len(outputs), -1).mean(-1)


def absolute_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return |z - y| of each example, averaged over its outputs: [b, ...] -> [b]."""
    return jnp.abs(outputs - targets).reshape(len(outputs), -1).mean(-1)
