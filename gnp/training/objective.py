"""Losses and their metrics, per example, so that any batch and any mask can be averaged."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

PerExample = Callable[[jax.Array, jax.Array], jax.Array]


class Objective(NamedTuple):
    """The loss that is minimized, and the metrics that are reported.

    Attributes:
        loss: (outputs [b, k], labels) -> loss of each example [b], float32. Labels are classes
            [b], targets [b], or shares of the classes [b, k] as mixup gives them.
        metrics: name -> the same for each metric.
    """

    loss: PerExample
    metrics: Mapping[str, PerExample]


def build_objective(
    loss: str, label_smoothing: float = 0.0, top_5: bool = False, top_k: int | None = None
) -> Objective:
    """Return the objective that a config's `loss` names.

    softmax_cross_entropy: -sum_c y_c log softmax(z)_c, with y smoothed toward 1/C;
    sigmoid_cross_entropy: -y log s(z) - (1 - y) log(1 - s(z)), summed over outputs;
    squared_error: (z - y)^2, averaged over outputs.
    The label is one-hot where there are several outputs, else the number itself; a label that is
    mixed of several classes counts as the largest of them in the error rates.

    Args:
        loss: One of the three names.
        label_smoothing: Share of the uniform label, in [0, 1].
        top_5: Report the top-5 error rate as well (softmax_cross_entropy only).
        top_k: Report that of another k, too; None: of none.

    Raises:
        KeyError: an unknown name.

    Example:
        >>> objective = build_objective("softmax_cross_entropy")
        >>> float(objective.metrics["error_rate"](jnp.eye(2), jnp.array([0, 0])).mean())
        0.5
    """
    losses: dict[str, PerExample] = {
        "softmax_cross_entropy": lambda outputs, labels: optax.softmax_cross_entropy(
            outputs, optax.smooth_labels(targets(outputs, labels), label_smoothing)
        ),
        "sigmoid_cross_entropy": lambda outputs, labels: optax.sigmoid_binary_cross_entropy(
            outputs, (1 - label_smoothing) * targets(outputs, labels) + label_smoothing / 2
        ).sum(-1),
        "squared_error": lambda outputs, labels: jnp.square(
            outputs - targets(outputs, labels)
        ).mean(-1),
    }
    name = "mean_absolute_error" if loss == "squared_error" else "error_rate"
    ranks = {k: partial(top_k_error, k=k) for k in (5 if top_5 else None, top_k) if k}
    ranked = {f"top_{k}_error_rate": error_of for k, error_of in ranks.items()}
    return Objective(losses[loss], {name: METRICS[name], **ranked})


def output_size(loss: str, num_classes: int) -> int:
    """Return the number of a model's outputs: one for a yes-or-no question, else one a class.

    Example:
        >>> output_size("sigmoid_cross_entropy", 2)
        1
    """
    return 1 if loss == "sigmoid_cross_entropy" and num_classes == 2 else max(num_classes, 1)


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


def absolute_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return |z - y| of each example, averaged over outputs."""
    return jnp.abs(outputs - targets(outputs, labels)).mean(-1)


# Means of these are reported; the smaller, the better. One that is named a rate is in percent.
METRICS: dict[str, PerExample] = {
    "error_rate": error,
    "mean_absolute_error": absolute_error,
}
_METRIC = re.compile(rf"(?:top_[0-9]+_error_rate|{'|'.join(METRICS)})$")


def metric(name: str) -> str | None:
    """Return which metric a number of a run is a mean of; None: of none.

    Example:
        >>> metric("test_ema_error_rate"), metric("test_top_3_error_rate"), metric("test_loss")
        ('error_rate', 'top_3_error_rate', None)
    """
    found = _METRIC.search(name)
    return found[0] if found else None
