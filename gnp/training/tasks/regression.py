"""Regression: a label is a number, labels are [b], outputs [b, 1]."""

from collections.abc import Sequence

import jax

from gnp.training.tasks.task import Objective, Task, absolute_error, squared_error


def objective(loss: str, label_smoothing: float = 0.0, top_k: Sequence[int] = ()) -> Objective:
    """Return the objective: the squared error, and the absolute one as its metric.

    Example:
        >>> import jax.numpy as jnp
        >>> float(objective("squared_error").loss(jnp.array([[1.5]]), jnp.array([1.0]))[0])
        0.25
    """
    return Objective(_squared_error, {"mean_absolute_error": _absolute_error})


def _squared_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return squared_error(outputs, labels[:, None])


def _absolute_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return absolute_error(outputs, labels[:, None])


TASK = Task(
    losses=("squared_error",),
    metrics=("mean_absolute_error",),
    objective=objective,
    output_shape=lambda loss, num_classes, target_shape: (1,),
)
