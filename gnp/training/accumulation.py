"""Gradient accumulation: a batch in micro-batches, one after another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Values = Any
Carry = Any


class Accumulation(NamedTuple):
    """How a step goes through its batch.

    Attributes:
        parts: micro-batches, at least 2; divides the batch.
        penalty: what is applied to each micro-batch's gradient, at penalised steps; its state
            counts the steps and nothing else. None: the optimizer's chain penalises the
            accumulated gradient.
    """

    parts: int
    penalty: optax.GradientTransformationExtraArgs | None = None


def micro_batch(batch: Any, part: Any, count: int) -> Any:
    """Examples part, part + count, part + 2 count, ... of a batch.

    So every device holds its share of each micro-batch, and the same examples are in it on any
    number of devices.

    Args:
        batch: pytree of arrays [b, ...].
        part: 0 to count - 1, an int or a traced one.
        count: divides b.

    Example:
        >>> micro_batch(jnp.arange(6), 1, 2).tolist()
        [1, 3, 5]
    """

    def of(x: jax.Array) -> jax.Array:
        # Each device's rows stay its own: the axis of parts is not the one that is split.
        parts = x.reshape(x.shape[0] // count, count, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(parts, part, axis=1, keepdims=False)

    return jax.tree.map(of, batch)


def accumulate(
    f: Callable[[Any, Carry], tuple[Values, Carry]], carry: Carry, count: int
) -> tuple[Values, Carry]:
    """The mean of what f gives for 0, 1, ..., count - 1, and the last carry.

    On the CPU `f` is traced once for each number, as model code inside XLA's control flow runs 4 to
    8 times slower there. Elsewhere it runs inside a loop, so that memory does not grow with count.

    Args:
        f: (number, carry) -> (pytree of float arrays, carry).
        carry: what goes from one call to the next.
        count: at least 1.

    Example:
        >>> mean, last = accumulate(lambda i, c: (c * jnp.ones(2), c + 1.0), jnp.float32(0), 3)
        >>> mean.tolist(), float(last)
        ([1.0, 1.0], 3.0)
    """

    def add(number: Any, totals: tuple[Values, Carry]) -> tuple[Values, Carry]:
        total, carry = totals
        values, carry = f(number, carry)
        return jax.tree.map(jnp.add, total, values), carry

    if jax.default_backend() == "cpu":
        totals = f(0, carry)
        for number in range(1, count):
            totals = add(number, totals)
    else:
        shapes, _ = jax.eval_shape(f, jnp.int32(0), carry)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        totals = jax.lax.fori_loop(0, count, add, (zeros, carry))
    total, carry = totals
    return jax.tree.map(lambda x: x / count, total), carry


def given_penalty(
    penalty: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Stands in a chain for a penalty that has been applied before, and keeps its state.

    At a penalised step it gives what `grad_fn(params)` returns, else the updates as they are.

    Args:
        penalty: its state counts the steps and nothing else.

    Example:
        >>> from optimizer import gradient_norm_penalty
        >>> chain = given_penalty(gradient_norm_penalty(0.1, 0.8))
        >>> state = chain.init(0.0)
        >>> new, state = chain.update(1.0, state, 0.0, grad_fn=lambda _: 2.0, penalize=True)
        >>> new, int(state.count)
        (2.0, 1)
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[Any], optax.Updates],
        penalize: bool,
        **_: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        _, state = penalty.update(updates, state, params, penalize=False)
        return (grad_fn(params) if penalize else updates), state

    return optax.GradientTransformationExtraArgs(penalty.init, update)


def state_at(penalty: optax.GradientTransformationExtraArgs, params: Any, number: Any) -> Any:
    """The state of a penalty, which counts its steps from 0 and keeps nothing else.

    Args:
        penalty: see `given_penalty`.
        params: pytree.
        number: of the step, from 0.
    """
    return jax.tree.map(lambda count: jnp.asarray(number, count.dtype), penalty.init(params))
