"""Gradients of a batch, and the functions from a gradient to a gradient that a step is made of.

A `Gradient` is a pure function (params, model_state, batch, key) -> (grads, metrics, model_state).
Micro-batches, groups of examples, and a penalty that stands inside either of them, each take one
and return another one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp.training import mesh
from gnp.training.regularizer import Regularizer, summarize, total
from gnp.training.state import Apply, ModelState, Params
from gnp.training.tasks import Objective
from model import cpu

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[
    [Params, ModelState, Batch, jax.Array], tuple[jax.Array, tuple[Metrics, ModelState]]
]


class Grads(NamedTuple):
    """Gradients of a batch, with the structure of the parameters.

    Attributes:
        clean: At the parameters themselves.
        penalized: With the penalty that each micro-batch or group computed for itself; None: the
            penalty, if any, stands in the optimizer's chain.
    """

    clean: Params
    penalized: Params | None = None


Gradient = Callable[[Params, ModelState, Batch, jax.Array], tuple[Grads, Metrics, ModelState]]
# (grad_fn, params, grads) -> penalized grads; see `optimizer.penalized_gradient`.
Penalize = Callable[[Callable[[Params], Params], Params, Params], Params]


def build_loss(
    apply: Apply,
    objective: Objective,
    regularize: Regularizer | None = None,
    costs_per_layer: bool = False,
) -> Loss:
    """Return loss(params, model_state, batch, key) -> (L + costs, (metrics, new model_state)).

    The metrics are means over the batch: "loss" (L alone), the objective's, and the costs'.

    Args:
        apply: The model.
        objective: Loss and metrics of each example.
        regularize: Costs of the parameters; inside the loss, so that the penalty sees them.
        costs_per_layer: Each parameter's part of the costs is a metric too.
    """

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, ModelState]]:
        outputs, new_state = apply(params, model_state, batch["input"], True, key)
        data_loss = objective.loss(outputs, batch["label"]).mean()
        costs = regularize(params) if regularize else {}
        metrics = {
            "loss": data_loss,
            **{
                name: metric(outputs, batch["label"]).mean()
                for name, metric in objective.metrics.items()
            },
            **summarize(costs, costs_per_layer),
        }
        return (data_loss + total(costs) if costs else data_loss), (metrics, new_state)

    return loss


def build_gradient(loss: Loss) -> Gradient:
    """Return the gradient of a loss, for parameters that are whole on each device."""

    def gradient(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Grads, Metrics, ModelState]:
        grads, (metrics, new_state) = jax.grad(loss, has_aux=True)(params, model_state, batch, key)
        return Grads(grads), metrics, new_state

    # A step takes two gradients of one function: the model is traced once.
    return jax.jit(gradient, inline=True)


def build_functional_gradient(
    apply: Apply, objective: Objective, regularize: Regularizer | None = None
) -> Gradient:
    """Return the perturbed gradient of functional SAM, for a pair of parameters (p, θ).

    It is that of <z(p), dL/dz(θ)> + costs(p) in p, with z the outputs: the perturbed pass moves the
    model's function alone, and keeps the loss's slope at the outputs.
    """

    def gradient(
        params: tuple[Params, Params], model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Grads, Metrics, ModelState]:
        moved, here = params
        # What the clean pass computes too: XLA does so once.
        outputs, _ = apply(here, model_state, batch["input"], True, key)
        slope = jax.grad(lambda z: objective.loss(z, batch["label"]).mean())(outputs)

        def loss(moved: Params) -> tuple[jax.Array, ModelState]:
            outputs, new_state = apply(moved, model_state, batch["input"], True, key)
            costs = regularize(moved) if regularize else {}
            return jnp.vdot(outputs, slope) + (total(costs) if costs else 0.0), new_state

        grads, new_state = jax.grad(loss, has_aux=True)(moved)
        return Grads(grads), {}, new_state

    return jax.jit(gradient, inline=True)


def of_share(gradient: Gradient, taken: int, of: int) -> Gradient:
    """Take the gradient of `taken` of every `of` consecutive examples; gradient, metrics and all.

    Every device has its part of them, and they are the same on any number of devices.
    """

    def gradient_of_share(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Grads, Metrics, ModelState]:
        def share(x: jax.Array) -> jax.Array:
            rows = x.reshape(-1, of, *x.shape[1:])[:, :taken]
            return rows.reshape(-1, *x.shape[1:])

        return gradient(params, model_state, jax.tree.map(share, batch), key)

    return gradient_of_share


def summed(gradient: Gradient) -> Gradient:
    """Multiply the gradients by the number of examples: of losses that are added up, not averaged.

    The metrics stay means.
    """

    def summed_gradient(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Grads, Metrics, ModelState]:
        grads, metrics, new_state = gradient(params, model_state, batch, key)
        examples = batch["label"].shape[0]
        return jax.tree.map(lambda g: g * examples, grads), metrics, new_state

    return summed_gradient


def gathered(gradient: Gradient) -> Gradient:
    """Gather parameters that are split over the mesh, and split their gradients alike."""

    def gathered_gradient(params: Params, *rest: Any) -> tuple[Grads, Metrics, ModelState]:
        # Not differentiated through: the devices' shares of a gradient are added up where they
        # stay.
        grads, metrics, new_state = gradient(mesh.gather(params), *rest)
        return mesh.split(grads), metrics, new_state

    return gathered_gradient


def penalized(
    gradient: Gradient, penalize: Penalize, perturbed: Gradient | None = None
) -> Gradient:
    """Compute the penalized gradient beside the clean one, from one more gradient of the batch.

    Both passes see the same batch statistics to begin with and the same random masks; what the
    perturbed pass says of metrics and batch statistics is dropped.

    Args:
        gradient: The clean one.
        penalize: See `Penalize`.
        perturbed: The gradient of the perturbed pass; None: as the clean one.
    """
    second = perturbed or gradient

    def penalized_gradient(params: Params, *rest: Any) -> tuple[Grads, Metrics, ModelState]:
        def grad_fn(params: Params) -> Params:
            return second(params, *rest)[0].clean

        grads, metrics, new_state = gradient(params, *rest)
        return Grads(grads.clean, penalize(grad_fn, params, grads.clean)), metrics, new_state

    return penalized_gradient


def micro_batched(gradient: Gradient, count: int) -> Gradient:
    """Take the mean over `count` micro-batches, one after another, with less memory.

    Micro-batch i holds the examples i, i + count, i + 2 count, ... of the batch: every device has
    its share of each, and the same examples are in it on any number of devices. Batch statistics go
    from one to the next; random masks belong to the micro-batch.
    """

    def micro_batched_gradient(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Grads, Metrics, ModelState]:
        # Each device's rows stay its own: the axis of micro-batches is not the one that is split.
        rows = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), batch)

        def micro_gradient(index: Any, model_state: ModelState) -> tuple[Any, ModelState]:
            micro_batch = jax.tree.map(
                lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False), rows
            )
            micro_key = jax.random.fold_in(key, index)
            grads, metrics, new_state = gradient(params, model_state, micro_batch, micro_key)
            return (grads, metrics), new_state

        (grads, metrics), new_state = mean_in_turn(micro_gradient, count, model_state)
        return grads, metrics, new_state

    return micro_batched_gradient


def grouped(gradient: Gradient, size: int) -> Gradient:
    """Take the mean over groups of `size` examples, each with its own batch statistics and masks.

    Each device goes through the groups in its share of the batch; then the means over the devices
    are taken, of the new batch statistics too. `gradient` is that of one group on one device.
    """

    def on_each_device(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Grads, Metrics, ModelState]:
        count = batch["label"].shape[0] // size
        first = jax.lax.axis_index(mesh.AXES) * count

        def group_gradient(index: Any, carry: None) -> tuple[Any, None]:
            group = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), batch
            )
            # The masks belong to the group's position in the batch, not to its device.
            group_key = jax.random.fold_in(key, first + index)
            return gradient(params, model_state, group, group_key), carry

        means, _ = mean_in_turn(group_gradient, count, None)
        return jax.tree.map(lambda x: x if _is_counter(x) else jax.lax.pmean(x, mesh.AXES), means)

    def grouped_gradient(*args: Any) -> tuple[Grads, Metrics, ModelState]:
        shared = jax.shard_map(
            on_each_device,
            in_specs=(mesh.WHOLE, mesh.WHOLE, mesh.BATCH, mesh.WHOLE),
            out_specs=mesh.WHOLE,
            # With the check, differentiation would add up the devices' gradients: here each keeps
            # its own, and what leaves is a mean over the devices or was computed from one.
            check_vma=False,
        )
        grads, metrics, new_state = shared(*args)
        return mesh.split(grads), metrics, new_state

    return grouped_gradient


def mean_in_turn(
    f: Callable[[Any, Any], tuple[Any, Any]], count: int, carry: Any
) -> tuple[Any, Any]:
    """Return the mean of f's values for 0, 1, ..., count - 1, and the last carry.

    Integer arrays (counters, which are the same in all) are not averaged: the last one is kept.

    Args:
        f: (index, carry) -> (pytree of arrays, carry).
        count: At least 1.
        carry: Goes from one call to the next.

    Example:
        >>> mean, last = mean_in_turn(lambda i, c: (c * jnp.ones(2), c + 1.0), 3, jnp.float32(0))
        >>> mean.tolist(), float(last)
        ([1.0, 1.0], 3.0)
    """

    def add(index: Any, sums: tuple[Any, Any]) -> tuple[Any, Any]:
        total, carry = sums
        values, carry = f(index, carry)
        total = jax.tree.map(
            lambda sum_, value: value if _is_counter(value) else sum_ + value, total, values
        )
        return total, carry

    values, _ = jax.eval_shape(f, 0, carry)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), values)
    sums, carry = cpu.fori_loop(count, add, (zeros, carry))
    return jax.tree.map(lambda x: x if _is_counter(x) else x / count, sums), carry


def _is_counter(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)
