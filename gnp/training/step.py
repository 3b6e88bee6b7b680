"""One step of training and one of evaluation, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from gnp.training.accumulation import Accumulation, accumulate, micro_batch, state_at
from gnp.training.gradient import Batch, Gradient, Metrics, build_gradient, build_loss
from gnp.training.mesh import AXES, batch_spec, gathered, split
from gnp.training.objective import Objective
from gnp.training.regularizer import Regularizer
from gnp.training.state import Apply, ModelState, Params, TrainState
from optimizer import map_groups, record_gradient_evolution

TrainStep = Callable[[TrainState, Batch, jax.Array, Any], tuple[TrainState, Metrics]]
EvaluationStep = Callable[[Any, Any, Batch], Metrics]


class Groups(NamedTuple):
    """Groups of examples, each with a perturbation and batch statistics of its own.

    Attributes:
        size: examples of a group; a device's share of the batch is a multiple of it.
        penalty: `per_group` over the mesh's axes; its state counts the steps and nothing else.
    """

    size: int
    penalty: optax.GradientTransformationExtraArgs


class _Update(NamedTuple):
    """What the gradients of a step give; the gradient and the metrics are those of theta."""

    grads: Params
    metrics: Metrics
    model_state: ModelState
    updates: Params
    opt_state: optax.OptState


# (state, batch, the step's key, its number) -> _Update
_Updater = Callable[[TrainState, Batch, jax.Array, Any], _Update]
Average = Callable[[Params, Params], Params]


def build_train_step(
    apply: Apply,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    penalize: bool,
    regularize: Regularizer | None = None,
    costs_per_layer: bool = False,
    skip_nonfinite: bool = False,
    groups: Groups | None = None,
    accumulation: Accumulation | None = None,
    average: Average | None = None,
    mesh: Mesh | None = None,
    record: bool = False,
    record_steps: bool = False,
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
        regularize: what the parameters add to the loss.
        costs_per_layer: each parameter's part of that is a metric too.
        skip_nonfinite: drop the update where loss or gradient is not finite.
        record: `state.opt_state` is a pair, the optimizer's and that of
            `record_gradient_evolution`, which sums up the clean gradients.
        record_steps: the clean gradient is a metric too, "gradients", a pytree like the
            parameters; NaN where skip_nonfinite dropped the update.
        groups: None: the batch is one group. Else the chain has `given_penalty` in place of the
            groups' penalty, and there is a mesh.
        accumulation: None: the batch is computed at once. Else in micro-batches, without groups;
            where it has a penalty, the chain has `given_penalty` in its place.
        mesh: the devices, where the state is split over some of them or there are groups.
        average: (`state.ema`, the new parameters) -> the new `state.ema`; None: there is none.

    Returns:
        A function of a TrainState, a batch {"input" [b, ...], "label" [b]}, the run's key and the
        step's number. Metrics: "loss" (of the data alone), the objective's, the costs',
        "gradient_norm" (of the clean gradient, costs included), "finite" (1 where loss, gradient
        and update are), float32 scalars.
    """
    loss = build_loss(apply, objective, regularize, costs_per_layer)
    if groups is not None:
        assert mesh is not None
        update = _update_by_groups(build_gradient(loss), optimizer, penalize, groups, mesh)
    elif accumulation is not None:
        gradient = build_gradient(loss, mesh)
        update = _update_accumulated(gradient, optimizer, penalize, accumulation)
    else:
        update = _update_whole(build_gradient(loss, mesh), optimizer, penalize)
    if record:
        update = _recording(update)

    def step(
        state: TrainState, batch: Batch, key: jax.Array, number: jax.Array
    ) -> tuple[TrainState, Metrics]:
        grads, metrics, model_state, updates, opt_state = update(
            state, batch, jax.random.fold_in(key, number), number
        )
        params = optax.apply_updates(state.params, updates)
        ema = average(state.ema, params) if average else state.ema
        new = TrainState(params, model_state, opt_state, ema)
        gradient_norm = optax.tree.norm(grads)
        # The update's norm too: the perturbed gradient can overflow where the clean one does not.
        finite = jnp.isfinite(metrics["loss"] + gradient_norm + optax.tree.norm(updates))
        if skip_nonfinite:
            new = jax.tree.map(lambda after, before: _keep(finite, after, before), new, state)
            grads = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), grads)
        return new, {
            **metrics,
            "gradient_norm": gradient_norm,
            "finite": finite.astype(jnp.float32),
            **({"gradients": grads} if record_steps else {}),
        }

    return step


def _update_whole(
    gradient: Gradient, optimizer: optax.GradientTransformationExtraArgs, penalize: bool
) -> _Updater:
    def update(state: TrainState, batch: Batch, step_key: jax.Array, _: Any) -> _Update:
        def at(params: Params) -> tuple[Params, Any]:
            return gradient(params, state.model_state, batch, step_key)

        grads, (metrics, model_state) = at(state.params)
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            grad_fn=lambda params: at(params)[0],
            penalize=penalize,
        )
        return _Update(grads, metrics, model_state, updates, opt_state)

    return update


def _update_by_groups(
    gradient: Gradient,
    optimizer: optax.GradientTransformationExtraArgs,
    penalize: bool,
    groups: Groups,
    mesh: Mesh,
) -> _Updater:
    """Each device goes through the groups in its share of the batch; then the means are taken."""
    size, penalty = groups

    def means(
        params: Params, model_state: ModelState, batch: Batch, step_key: jax.Array, number: Any
    ) -> tuple[Params, Metrics, ModelState, Params | None]:
        count = batch["label"].shape[0] // size
        first = jax.lax.axis_index(AXES) * count

        def at(params: Params, group: Any) -> tuple[Params, Any]:
            part = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, group * size, size), batch
            )
            # The masks belong to the group's place in the batch, not to its device.
            group_key = jax.random.fold_in(step_key, first + group)
            return gradient(params, model_state, part, group_key)

        grads, (metrics, new_state) = map_groups(
            lambda i: at(params, i), count, unroll=jax.default_backend() == "cpu"
        )
        penalised = None
        if penalize:
            penalised, _ = penalty.update(
                grads,
                state_at(penalty, params, number),
                params,
                grad_fn=lambda params, group: at(params, group)[0],
                penalize=True,
            )
        return _mean(grads), _mean(metrics), _mean(new_state), penalised

    shared = jax.shard_map(
        means,
        mesh=mesh,
        # Each device needs the parameters whole, and no other part of the state.
        in_specs=(PartitionSpec(), PartitionSpec(), batch_spec(), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
        # With the check, differentiation would add up the devices' gradients: here each keeps its
        # own, and what leaves is a mean over the devices or was computed from one.
        check_vma=False,
    )

    def update(state: TrainState, batch: Batch, step_key: jax.Array, number: Any) -> _Update:
        grads, metrics, model_state, penalised = shared(
            state.params, state.model_state, batch, step_key, number
        )
        updates, opt_state = optimizer.update(
            split(grads, mesh),
            state.opt_state,
            state.params,
            grad_fn=lambda _: split(penalised, mesh),
            penalized=split(penalised, mesh) if penalize else None,
            penalize=penalize,
        )
        return _Update(grads, metrics, model_state, updates, opt_state)

    return update


def _update_accumulated(
    gradient: Gradient,
    optimizer: optax.GradientTransformationExtraArgs,
    penalize: bool,
    accumulation: Accumulation,
) -> _Updater:
    """Sums up gradients and metrics over the micro-batches, and hands their means to the chain."""
    count, penalty = accumulation

    def update(state: TrainState, batch: Batch, step_key: jax.Array, number: Any) -> _Update:
        def at(params: Params, model_state: ModelState, part: Any) -> tuple[Params, Any]:
            # The masks belong to the micro-batch: both passes see the same ones.
            part_key = jax.random.fold_in(step_key, part)
            return gradient(params, model_state, micro_batch(batch, part, count), part_key)

        def clean(part: Any, model_state: ModelState) -> tuple[Any, ModelState]:
            grads, (metrics, new_state) = at(state.params, model_state, part)
            penalised = None
            if penalty is not None and penalize:
                penalised, _ = penalty.update(
                    grads,
                    state_at(penalty, state.params, number),
                    state.params,
                    grad_fn=lambda params: at(params, model_state, part)[0],
                    penalize=True,
                )
            return (grads, metrics, penalised), new_state

        def accumulated(params: Params) -> Params:
            def of_part(part: Any, model_state: ModelState) -> tuple[Params, ModelState]:
                grads, (_, new_state) = at(params, model_state, part)
                return grads, new_state

            return accumulate(of_part, state.model_state, count)[0]

        means, model_state = accumulate(clean, state.model_state, count)
        grads, metrics, penalised = means
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            grad_fn=accumulated if penalty is None else lambda _: penalised,
            penalized=penalised,
            penalize=penalize,
        )
        return _Update(grads, metrics, model_state, updates, opt_state)

    return update


def _recording(update: _Updater) -> _Updater:
    recorder = record_gradient_evolution()

    def update_and_record(
        state: TrainState, batch: Batch, step_key: jax.Array, number: Any
    ) -> _Update:
        opt_state, recorded = state.opt_state
        new = update(state._replace(opt_state=opt_state), batch, step_key, number)
        _, recorded = recorder.update(new.grads, recorded)
        return new._replace(opt_state=(new.opt_state, recorded))

    return update_and_record


def _mean(tree: Any) -> Any:
    """Over the groups of all devices; counters, which are the same in all, stay whole."""

    def mean(x: jax.Array) -> jax.Array:
        is_counter = jnp.issubdtype(x.dtype, jnp.integer)
        return x[0] if is_counter else jax.lax.pmean(x.mean(0), AXES)

    return jax.tree.map(mean, tree)


def _keep(finite: jax.Array, after: jax.Array, before: jax.Array) -> jax.Array:
    """The new value of a finite step. Counters always move: schedules follow the step number."""
    is_counter = jnp.issubdtype(after.dtype, jnp.integer)
    return after if is_counter else jnp.where(finite, after, before)


def build_evaluation_step(
    apply: Apply, objective: Objective, mesh: Mesh | None = None
) -> EvaluationStep:
    """step(params, model_state, batch) -> sums over the batch's unmasked examples.

    Args:
        apply: the model.
        objective: loss and metrics.
        mesh: the devices, where the parameters are split over some of them.

    Returns:
        A function of a batch with "mask" [b] (1 counts, 0 is padding); it returns the sums of
        "loss" and of each metric, and "count".
    """

    def step(params: Params, model_state: Any, batch: Batch) -> Metrics:
        whole = gathered(params, mesh)
        outputs, _ = apply(whole, model_state, batch["input"], False, None)
        per_example = {"loss": objective.loss, **objective.metrics}
        mask = batch["mask"]
        sums = {
            name: jnp.sum(jnp.where(mask > 0, value(outputs, batch["label"]), 0.0))
            for name, value in per_example.items()
        }
        return {**sums, "count": mask.sum()}

    return step
