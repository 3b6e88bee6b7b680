"""Classification: labels are classes [b], or shares of the classes [b, k] as mixup gives them."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from gnp.training.tasks.task import Objective, PerExample, Task, absolute_error, squared_error


def objective(loss: str, label_smoothing: float = 0.0, top_k: Sequence[int] = ()) -> Objective:
    """Return the objective that a config's `loss` names.

    softmax_cross_entropy: -sum_c y_c log softmax(z)_c, with y smoothed toward 1/C;
    sigmoid_cross_entropy: -y log s(z) - (1 - y) log(1 - s(z)), summed over outputs;
    squared_error: (z - y)^2, averaged over outputs.
    y is one-hot where there are several outputs, else the class itself; a label that is mixed of
    several classes counts as the largest of them in the error rates.

    Args:
        loss: One of the three names.
        label_smoothing: Share of the uniform label, in [0, 1].
        top_k: Report the top-k error rate of each of these, too.

    Raises:
        KeyError: an unknown name.

    Example:
        >>> wrong = objective("softmax_cross_entropy").metrics["error_rate"]
        >>> float(wrong(jnp.eye(2), jnp.array([0, 0])).mean())
        0.5
    """
    losses: dict[str, PerExample] = {
        "softmax_cross_entropy": lambda outputs, labels: optax.softmax_cross_entropy(
            outputs, optax.smooth_labels(targets(outputs, labels), label_smoothing)
        ),
        "sigmoid_cross_entropy": lambda outputs, labels: optax.sigmoid_binary_cross_entropy(
            outputs, (1 - label_smoothing) * targets(outputs, labels) + label_smoothing / 2
        ).sum(-1),
        "squared_error": lambda z, labels: squared_error(z, targets(z, labels)),
    }
    metrics: dict[str, PerExample] = {"error_rate": error}
    if loss == "squared_error":
        metrics = {"mean_absolute_error": lambda z, labels: absolute_error(z, targets(z, labels))}
    ranked = {f"top_{k}_error_rate": partial(top_k_error, k=k) for k in top_k}
    return Objective(losses[loss], metrics | ranked)


def output_shape(loss: str, num_classes: int, target_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an example's outputs: one for a yes-or-no question, else one a class.

    Example:
        >>> output_shape("sigmoid_cross_entropy", 2, ())
        (1,)
    """
    return (1 if loss == "sigmoid_cross_entropy" and num_classes == 2 else num_classes,)


def targets(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return labels [b] or [b, classes] in the outputs' shape [b, k]: one-hot for k > 1.

    Example:
        >>> targets(jnp.zeros((1, 3)), jnp.array([2])).tolist()
        [[0.0, 0.0, 1.0]]
        >>> targets(jnp.zeros((1, 1)), jnp.array([[0.25, 0.75]])).tolist()
        [[0.75]]
    """
    single = outputs.shape[-1] == 1
    if labels.ndim == 2:
        return (labels[:, 1:] if single else labels).astype(outputs.dtype)
    if single:
        return labels.astype(outputs.dtype)[:, None]
    return jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)


def _classes(labels: jax.Array) -> jax.Array:
    """Return the class [b] of labels [b], or the largest share's of labels [b, classes]."""
    return labels.argmax(-1) if labels.ndim == 2 else labels


def error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return 1 for each example that is classified wrongly, else 0. Ties go to the first class."""
    classes = _classes(labels)
    single = outputs.shape[-1] == 1
    guess = (outputs[:, 0] > 0).astype(classes.dtype) if single else outputs.argmax(-1)
    return (guess != classes).astype(jnp.float32)


def top_k_error(outputs: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Return 1 for each example whose class is not among the k largest outputs, else 0."""
    _, best = jax.lax.top_k(outputs, min(k, outputs.shape[-1]))
    return 1.0 - (best == _classes(labels)[:, None]).any(-1).astype(jnp.float32)


TASK = Task(
    losses=("softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"),
    metrics=("error_rate", "top_[0-9]+_error_rate", "mean_absolute_error"),
    objective=objective,
    output_shape=output_shape,
)
