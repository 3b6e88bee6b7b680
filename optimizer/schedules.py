"""Schedules of the step: the learning rate, and the warmup of the penalty's r and alpha."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, check_choice, check_number
from ._tree import mixing_types

SCHEDULES = ("constant", "stepped", "cosine", "cosine_restarts", "exponential", "inverse_time")
STRATEGIES = ("none", "lambda", "r", "zero")
# Optax counts steps in int32.
MAX_STEPS = 2**31 - 1


def learning_rate_schedule(
    name: str,
    base_lr: float,
    *,
    steps_per_epoch: int,
    total_epochs: float,
    warmup_epochs: float = 0.0,
    boundaries: Sequence[float] = (),
    factor: float = 0.1,
    rate: float = 0.97,
    decay: float = 0.0,
    period: int = 1,
) -> optax.Schedule:
    r"""Return a learning rate that decays as `name` says, after a linear warmup from 0.

    At step t = 0, 1, … and with a warmup of W steps the learning rate is
    :math:`\min(1, t / W) \cdot f(t)`, where f(t) is

    - constant: base_lr;
    - stepped: base_lr · factor^k, k boundaries being before t (at a boundary the old rate holds);
    - cosine: base_lr · ½(1 + cos(π·(t - W) / (T - W))) from t = W on, 0 from the last step T on;
    - cosine_restarts: base_lr · ½(1 + cos(π·e / P)), e being the whole epochs since the last
      multiple of P epochs: the rate stays for an epoch, and is base_lr again after P;
    - exponential: base_lr · rate^(t / steps_per_epoch), at every step;
    - inverse_time: base_lr / (1 + decay·t), Keras' `decay`.

    Only the cosine starts when the warmup ends; the others count from step 0.

    Args:
        name: One of `SCHEDULES`.
        base_lr: The learning rate without warmup and decay, >= 0.
        steps_per_epoch: Steps in one epoch.
        total_epochs: Length of the run in epochs; the cosine ends there.
        warmup_epochs: Length of the warmup in epochs, rounded to whole steps; 0 for none.
        boundaries: stepped: increasing epochs, each > 0.
        factor: stepped: the factor at each boundary, >= 0.
        rate: exponential: the factor of one epoch, > 0.
        decay: inverse_time: the decay of one step, >= 0.
        period: cosine_restarts: P, whole epochs, >= 1.

    Returns:
        A schedule: step -> learning rate.

    Raises:
        OptimizerError: the name is unknown, a value is out of range, or the warmup leaves no step
          for the cosine.

    Example:
        >>> from optimizer import learning_rate_schedule
        >>> schedule = learning_rate_schedule(
        ...     "stepped", 0.5, steps_per_epoch=10, total_epochs=3, warmup_epochs=1, boundaries=(2,)
        ... )
        >>> [round(float(schedule(t)), 3) for t in (0, 5, 10, 20, 21)]
        [0.0, 0.25, 0.5, 0.5, 0.05]
    """
    check_choice("lr_schedule_type", name, SCHEDULES)
    check_number("base_lr", base_lr)
    warmup_steps = count_steps("warmup_epochs", warmup_epochs, steps_per_epoch)
    if name == "cosine":
        total_steps = count_steps("total_epochs", total_epochs, steps_per_epoch)
        if warmup_steps >= total_steps:
            raise OptimizerError(
                f"warmup_epochs={warmup_epochs} leaves none of total_epochs={total_epochs} for the "
                "cosine schedule; shorten the warmup or train longer"
            )
        return mixing_types(
            optax.warmup_cosine_decay_schedule(0.0, base_lr, warmup_steps, total_steps)
        )
    if name == "stepped":
        decayed = _stepped(base_lr, boundaries, factor, steps_per_epoch)
    elif name == "cosine_restarts":
        decayed = _cosine_restarts(base_lr, period, steps_per_epoch)
    elif name == "exponential":
        check_number("lr_schedule_params.rate", rate)
        if rate == 0:
            raise OptimizerError("lr_schedule_params.rate=0 must be > 0, the factor of one epoch")
        decayed = mixing_types(optax.exponential_decay(base_lr, steps_per_epoch, rate))
    elif name == "inverse_time":
        check_number("lr_schedule_params.decay", decay)
        decayed = _inverse_time(base_lr, decay)
    else:
        decayed = optax.constant_schedule(base_lr)
    return _warmed_up(decayed, warmup_steps)


def count_steps(name: str, epochs: float, steps_per_epoch: int) -> int:
    """Return how many steps some epochs have, rounded.

    Raises:
        OptimizerError: more than can be counted.
    """
    check_number(name, epochs)
    if epochs * steps_per_epoch > MAX_STEPS:
        raise OptimizerError(
            f"{name}={epochs} of {steps_per_epoch} steps are more steps than the {MAX_STEPS} that "
            "can be counted; choose fewer epochs, or a larger batch_size"
        )
    return round(epochs * steps_per_epoch)


def gnp_warmup(
    strategy: str, r: float, alpha: float, warmup_steps: int
) -> tuple[optax.Schedule, optax.Schedule]:
    r"""Return schedules of r and alpha that bring in the penalty over the first W steps.

    At step t = 0, 1, …, with :math:`w = \min(1, t / W)`:

    - none: r and α from the start;
    - lambda: r and w·α, so that λ = α·r grows at a fixed radius;
    - r: w·r and α, the radius grows (and λ with it);
    - zero: r is 0 while t < W, which makes plain steps; then r and α.

    A transformation decides inside the compiled step, where it has computed the second gradient
    already. To save that gradient during the warmup of `zero`, call
    `update(..., penalize=step >= warmup_steps)`.

    Args:
        strategy: One of `STRATEGIES`.
        r: Radius of the perturbation after the warmup, >= 0.
        alpha: λ / r after the warmup, >= 0.
        warmup_steps: W in steps; 0 for no warmup.

    Returns:
        The schedules of r and of alpha.

    Raises:
        OptimizerError: the strategy is unknown or a value is negative.

    Example:
        >>> from optimizer import gnp_warmup, gradient_norm_penalty
        >>> r, alpha = gnp_warmup("lambda", r=0.1, alpha=0.8, warmup_steps=4)
        >>> [round(float(alpha(t)), 3) for t in range(6)]
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
        >>> penalty = gradient_norm_penalty(r, alpha)

    References:
        Zhao et al., `When Will Gradient Regularization Be Harmful?
        <https://arxiv.org/abs/2406.09723>`_, 2024.
    """
    check_choice("strategy", strategy, STRATEGIES)
    check_number("r", r)
    check_number("alpha", alpha)
    check_number("warmup_steps", warmup_steps, high=MAX_STEPS)
    r_schedule, alpha_schedule = optax.constant_schedule(r), optax.constant_schedule(alpha)
    if strategy == "r":
        r_schedule = _warmed_up(r_schedule, warmup_steps)
    elif strategy == "lambda":
        alpha_schedule = _warmed_up(alpha_schedule, warmup_steps)
    elif strategy == "zero" and warmup_steps > 0:
        r_schedule = _zero_before(r_schedule, warmup_steps)
    return r_schedule, alpha_schedule


def _stepped(
    base_lr: float, boundaries: Sequence[float], factor: float, steps_per_epoch: int
) -> optax.Schedule:
    check_number("lr_schedule_params.factor", factor)
    steps = [round(epoch * steps_per_epoch) for epoch in boundaries]
    if any(later <= earlier for earlier, later in pairwise([0, *steps])):
        raise OptimizerError(
            f"lr_schedule_params.boundaries={tuple(boundaries)} must be epochs that increase from "
            "above 0, at least one step apart"
        )
    reached = [step for step in steps if step <= MAX_STEPS]
    rates = list(accumulate([factor] * len(reached), mul, initial=float(base_lr)))

    def rate(step: Any) -> jax.Array:
        passed = jnp.sum(jnp.asarray(step) > jnp.array(reached, jnp.int32))
        return jnp.array(rates, float)[passed]

    return mixing_types(rate)


def _cosine_restarts(base_lr: float, period: int, steps_per_epoch: int) -> optax.Schedule:
    check_number("lr_schedule_params.period", period, low=1)

    def rate(step: Any) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch % period
        return base_lr * 0.5 * (1 + jnp.cos(jnp.pi * epoch / period))

    return rate


def _inverse_time(base_lr: float, decay: float) -> optax.Schedule:
    return lambda step: base_lr / (1.0 + decay * jnp.asarray(step, jnp.float32))


def _warmed_up(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """Multiply the schedule by min(1, step / warmup_steps)."""
    if warmup_steps == 0:
        return schedule
    ramp = mixing_types(optax.linear_schedule(0.0, 1.0, warmup_steps))
    return lambda step: ramp(step) * schedule(step)


def _zero_before(schedule: optax.Schedule, start: int) -> optax.Schedule:
    return lambda step: jnp.where(jnp.asarray(step) < start, 0.0, schedule(step))
