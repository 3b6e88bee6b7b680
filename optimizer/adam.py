"""Adam, with its epsilon where PyTorch and Optax have it, or where TensorFlow and Keras do."""

from typing import Any

import jax.numpy as jnp
import optax


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_uncorrected: bool = False,
    **others: Any,
) -> optax.GradientTransformation:
    """Return `optax.adamw`, or the same with epsilon beside the root of the uncorrected v.

    With m_t, v_t the running means of g and g^2 and c_t = sqrt(1 - b2^t):

        -lr m_t / (1 - b1^t) / (sqrt(v_t) / c_t + eps), or
        -lr m_t / (1 - b1^t) / ((sqrt(v_t) + eps) / c_t) where eps_uncorrected,

    the "epsilon hat" of the paper's section 2: at first it is as an epsilon 1 / c_t times larger.

    Args:
        learning_rate: A number, or a schedule.
        b2: Weight of the old v.
        eps: Epsilon.
        eps_uncorrected: As TensorFlow and Keras do, default False.
        others: Of `optax.adamw`.

    Example:
        >>> params = jnp.zeros(1)
        >>> for uncorrected in (False, True):
        ...     base = adam(1.0, eps=1.0, eps_uncorrected=uncorrected, weight_decay=0.0)
        ...     updates, _ = base.update(jnp.ones(1), base.init(params), params)
        ...     print(round(float(updates[0]), 4))
        -0.5
        -0.0307

    References:
        Kingma and Ba, 2015: https://arxiv.org/abs/1412.6980
    """
    if not eps_uncorrected:
        return optax.adamw(learning_rate, b2=b2, eps=eps, **others)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        step = state[0].count + 1  # state[0] is the moments'
        corrected = eps / jnp.sqrt(1 - b2**step)
        return optax.adamw(learning_rate, b2=b2, eps=corrected, **others).update(
            updates, state, params
        )

    return optax.GradientTransformation(optax.adamw(learning_rate, b2=b2, **others).init, update)
