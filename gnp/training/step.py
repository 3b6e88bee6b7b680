"""One train step and one eval step, as pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnp.training import mesh
from gnp.training.gradients import Batch, Gradient, Metrics
from gnp.training.state import Apply, ModelState, Params, TrainState
from gnp.training.tasks import Objective
from optimizer import perturbed_params

TrainStep = Callable[[TrainState, Batch, jax.Array, Any], tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, ModelState, Batch], Metrics]


def build_train_step(
    gradient_of: Callable[[Any], Gradient],
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    penalize: bool,
    perturbed_of: Callable[[Any, Params], Gradient] | None = None,
    average: Callable[[Params, Params], Params] | None = None,
    skip_nonfinite: bool = False,
    keep_gradients: bool = False,
) -> TrainStep:
    """Return train_step(state, batch, key, step) -> (state, metrics).

    Loss and gradient at θ come first: their numbers are the logged ones, their batch statistics
    the ones that are kept. The optimizer's chain asks for a second gradient of the same batch, with
    the same random masks, through `grad_fn`. A method of one gradient takes that at a point of its
    own, which the optimizer's state says (`optimizer.perturbed_params`).

    Args:
        gradient_of: Step number -> the gradient of a batch at that step.
        optimizer: The chain; its `update` is given `grad_fn`, `penalized` and `penalize`.
        penalize: Whether this is the penalized step or the plain one.
        perturbed_of: (step number, θ) -> the gradient that `grad_fn` gives; None: that of
            `gradient_of`.
        average: (`state.ema`, the new parameters) -> the new `state.ema`; None: there is none.
        skip_nonfinite: Drop the update where loss, gradient or new parameters are not finite.
        keep_gradients: The clean gradient is a metric too, "gradients", with the structure of the
            parameters; NaN where its update was dropped.

    Returns:
        A function of a TrainState, a batch {"input" [b, ...], "label" [b, ...]}, the run's key and
        the step's number from 0. Metrics, float32 scalars: those of the gradient, "gradient_norm"
        (of the clean one, costs included), "param_norm" (of all parameters, after the step), and
        "finite" (1 where loss, gradient and new parameters are).
    """

    def train_step(
        state: TrainState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[TrainState, Metrics]:
        gradient = gradient_of(step)
        perturbed = perturbed_of(step, state.params) if perturbed_of else gradient
        step_key = jax.random.fold_in(key, step)

        def grad_fn(params: Params) -> Params:
            return perturbed(params, state.model_state, batch, step_key)[0].clean

        point = perturbed_params(state.opt_state, state.params) if penalize else state.params
        grads, metrics, model_state = gradient(point, state.model_state, batch, step_key)
        updates, opt_state = optimizer.update(
            grads.clean,
            state.opt_state,
            state.params,
            grad_fn=grad_fn,
            penalized=grads.penalized,
            penalize=penalize,
        )
        params = optax.apply_updates(state.params, updates)
        ema = average(state.ema, params) if average else state.ema
        new = TrainState(params, model_state, opt_state, ema)

        gradient_norm = optax.tree.norm(grads.clean)
        # A perturbed gradient that overflows shows in the new parameters, whose norm is logged
        # anyway; for a norm of its own, XLA would compute the update a second time.
        finite = jnp.isfinite(metrics["loss"] + gradient_norm + optax.tree.norm(params))
        gradients = grads.clean
        if skip_nonfinite:
            new = jax.tree.map(lambda after, before: _keep(finite, after, before), new, state)
            gradients = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), gradients)
        return new, {
            **metrics,
            "gradient_norm": gradient_norm,
            "param_norm": optax.tree.norm(new.params),
            "finite": finite.astype(jnp.float32),
            **({"gradients": gradients} if keep_gradients else {}),
        }

    return train_step


def _keep(finite: jax.Array, after: jax.Array, before: jax.Array) -> jax.Array:
    """Return the value of a finite step. Counters always move: schedules follow the step number."""
    is_counter = jnp.issubdtype(after.dtype, jnp.integer)
    return after if is_counter else jnp.where(finite, after, before)


def build_eval_step(apply: Apply, objective: Objective) -> EvalStep:
    """Return eval_step(params, model_state, batch) -> sums over the batch's unmasked examples.

    Args:
        apply: The model.
        objective: Loss and metrics of each example.

    Returns:
        A function of a batch with "mask" [b] (1 counts, 0 is padding); it returns the sums of
        "loss" and of each metric, and "count".
    """

    def eval_step(params: Params, model_state: ModelState, batch: Batch) -> Metrics:
        outputs, _ = apply(mesh.gather(params), model_state, batch["input"], False, None)
        per_example = {"loss": objective.loss, **objective.metrics}
        mask = batch["mask"]
        sums = {
            name: jnp.sum(jnp.where(mask > 0, value(outputs, batch["label"]), 0.0))
            for name, value in per_example.items()
        }
        return {**sums, "count": mask.sum()}

    return eval_step
