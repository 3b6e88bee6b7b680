"""Forecasting: a label is what follows an input, labels and outputs are [b, horizon, channels]."""

from collections.abc import Sequence

from gnp.training.tasks.task import Objective, Task, absolute_error, squared_error


def objective(loss: str, label_smoothing: float = 0.0, top_k: Sequence[int] = ()) -> Objective:
    """Return the objective: squared error over horizon and channels, and the absolute one.

    Series are standardized, and so are the errors.

    Example:
        >>> import jax.numpy as jnp
        >>> float(objective("squared_error").loss(jnp.ones((1, 4, 2)), jnp.zeros((1, 4, 2)))[0])
        1.0
    """
    return Objective(squared_error, {"mean_absolute_error": absolute_error})


TASK = Task(
    losses=("squared_error",),
    metrics=("mean_absolute_error",),
    objective=objective,
    output_shape=lambda loss, num_classes, target_shape: target_shape,
)
