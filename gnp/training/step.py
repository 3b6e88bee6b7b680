"""One step of training and one of evaluation, as pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnp.training.gradient import Batch, build_loss
from gnp.training.objective import Objective
from gnp.training.state import Apply, Params, TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch, jax.Array, Any], tuple[TrainState, Metrics]]
EvaluationStep = Callable[[Any, Any, Batch], Metrics]


def build_train_step(
    apply: Apply,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    penalize: bool,
    l2: float = 0.0,
    decayed: Callable[[Params], Any] | None = None,
    skip_nonfinite: bool = False,
) -> TrainStep:
    """step(state, batch, key, number) -> (state, metrics).

    Loss and gradient at theta come first; their outputs and batch statistics are the ones that
    are kept. The optimizer chain asks for further gradients of the same batch, with the same
    random masks, through `grad_fn`.

    Args:
        apply: the model.
        objective: loss and metrics.
        optimizer: the chain; its `update` is given `grad_fn` and `penalize`.
        penalize: whether this is the penalised step or the plain one.
        l2: weight of half the squared norm in the loss.
        decayed: params -> pytree of bool, what `l2` counts; None: all.
        skip_nonfinite: drop the update where loss or gradient is not finite.

    Returns:
        A function of a TrainState, a batch {"image" [b, ...], "label" [b]}, the run's key and the
        step's number. Metrics: "loss" (without L2), the objective's, "gradient_norm" (of the clean
        gradient, L2 included), "finite" (1 where loss, gradient and update are), float32 scalars.
    """
    loss = build_loss(apply, objective, l2, decayed)

    def step(
        state: TrainState, batch: Batch, key: jax.Array, number: jax.Array
    ) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, number)

        def gradient(params: Params) -> tuple[Params, Any]:
            return jax.grad(loss, has_aux=True)(params, state.model_state, batch, step_key)

        grads, (data_loss, outputs, model_state) = gradient(state.params)
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            grad_fn=lambda params: gradient(params)[0],
            penalize=penalize,
        )
        new = TrainState(optax.apply_updates(state.params, updates), model_state, opt_state)
        gradient_norm = optax.tree.norm(grads)
        # The update's norm too: the perturbed gradient can overflow where the clean one does not.
        finite = jnp.isfinite(data_loss + gradient_norm + optax.tree.norm(updates))
        if skip_nonfinite:
            new = jax.tree.map(lambda after, before: _keep(finite, after, before), new, state)
        metrics = {
            "loss": data_loss,
            **{
                name: metric(outputs, batch["label"]).mean()
                for name, metric in objective.metrics.items()
            },
            "gradient_norm": gradient_norm,
            "finite": finite.astype(jnp.float32),
        }
        return new, metrics

    return step


def _keep(finite: jax.Array, after: jax.Array, before: jax.Array) -> jax.Array:
    """The new value of a finite step. Counters always move: schedules follow the step number."""
    is_counter = jnp.issubdtype(after.dtype, jnp.integer)
    return after if is_counter else jnp.where(finite, after, before)


def build_evaluation_step(apply: Apply, objective: Objective) -> EvaluationStep:
    """step(params, model_state, batch) -> sums over the batch's unmasked examples.

    Args:
        apply: the model.
        objective: loss and metrics.

    Returns:
        A function of a batch with "mask" [b] (1 counts, 0 is padding); it returns the sums of
        "loss" and of each metric, and "count".
    """

    def step(params: Params, model_state: Any, batch: Batch) -> Metrics:
        outputs, _ = apply(params, model_state, batch["image"], False, None)
        per_example = {"loss": objective.loss, **objective.metrics}
        mask = batch["mask"]
        sums = {
            name: jnp.sum(jnp.where(mask > 0, value(outputs, batch["label"]), 0.0))
            for name, value in per_example.items()
        }
        return {**sums, "count": mask.sum()}

    return step
