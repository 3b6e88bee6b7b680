"""Experiment: the parts of a run, each built once from its config.

Below this module nothing sees a ConfigDict, but the builders of `ds_pipeline`, `model` and
`optimizer`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

import ds_pipeline
import model
import optimizer
from config import rules
from gnp.training.files import first_line
from gnp.training.gradients import (
    Batch,
    Gradient,
    Metrics,
    build_functional_gradient,
    build_gradient,
    build_loss,
    gathered,
    grouped,
    micro_batched,
    of_share,
    penalized,
    summed,
)
from gnp.training.mesh import WHOLE, abstract, build_mesh, shard, shard_batch
from gnp.training.regularizer import Regularizer, build_regularizer
from gnp.training.state import Model, Params, TrainState, from_linen
from gnp.training.step import EvalStep, build_eval_step, build_train_step
from gnp.training.tasks import TASKS, Objective
from model import Report

# So many that every fraction of an epoch is a whole step: the real number is known with the data.
_ANY_STEPS_PER_EPOCH = 10**6


class DeviceError(RuntimeError):
    """No device can be used; one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of a run.

    Attributes:
        dataset: Training and evaluation examples.
        steps_per_epoch: Steps in one epoch.
        total_steps: Steps of the whole run.
        model: `initialize` and `apply` as pure functions.
        objective: Loss and metrics of each example.
        regularize: params -> costs that are added to the loss.
        optimizer: The chain.
        scalars: step -> learning_rate, alpha, r as numbers.
        step_rule: step -> whether it is penalized; it takes in the norms of the steps before.
        mesh: The devices.
        abstract_state: Shapes, dtypes and shardings of the state.
        initialize: () -> (the state before the first step, what became of pretrained weights).
        train_batches: (first step, whether a signal is to end the run) -> batches from that step
            on, sent to the devices when asked for.
        train_step: (state, batch, key, step) -> (state, metrics), plain or penalized as the step's
            number says; the state is donated. Does not wait for the device.
        plain_step: The compiled plain step; set the mesh around a call of it.
        penalized_step: The compiled penalized step, likewise.
        eval_batch_size: Examples that are evaluated at once, over all devices.
        eval_batches: (whether a signal is to end the run, source) -> the source's examples once,
            on the devices; without a source those of the evaluation set.
        eval_step: (params, model_state, batch) -> sums over the examples.
        compiled_eval_step: The same, to be called with the mesh set.
    """

    dataset: ds_pipeline.Dataset
    steps_per_epoch: int
    total_steps: int
    model: Model
    objective: Objective
    regularize: Regularizer
    optimizer: optax.GradientTransformationExtraArgs
    scalars: Callable[[int], dict[str, float]]
    step_rule: optimizer.StepRule
    mesh: Mesh
    abstract_state: TrainState
    initialize: Callable[[], tuple[TrainState, Report | None]]
    train_batches: Callable[..., Iterator[Batch]]
    train_step: Callable[[TrainState, Batch, jax.Array, int], tuple[TrainState, Metrics]]
    plain_step: Any
    penalized_step: Any
    eval_batch_size: int
    eval_batches: Callable[..., Iterator[Batch]]
    eval_step: EvalStep
    compiled_eval_step: Any


def device_count() -> int:
    """Return the number of devices, over all processes.

    Raises:
        DeviceError: there are none of the kind that JAX_PLATFORMS asks for.
    """
    try:
        return jax.device_count()
    except (RuntimeError, AssertionError) as error:  # jax asserts that there is a default one
        raise DeviceError(f"jax finds no device to run on: {first_line(error)}") from error


def name_problems(config: ml_collections.ConfigDict, checked: bool = True) -> list[str]:
    """Return what is wrong with a config's model and optimizer, a line each, without any data.

    Args:
        config: Complete.
        checked: Each key is allowed; else names are looked up, and no values that rules speak of.
    """
    problems: list[str] = []
    try:
        model.build_model(config, config.dataset.num_classes or 10)
    except model.ModelError as error:
        problems += str(error).splitlines()
    try:
        optimizer.check_opt_params(config.opt.opt_type, config.opt.opt_params)
        optimizer.gnp_method_params(config.gnp)
        if checked:
            countable = optimizer.MAX_STEPS / max(
                config.total_epochs, config.gnp.warmup_epochs or 0
            )
            steps_per_epoch = max(1, min(_ANY_STEPS_PER_EPOCH, int(countable)))
            optimizer.build_optimizer(config, steps_per_epoch)
            if _penalizes_parts(config):
                optimizer.build_penalized_gradient(config, steps_per_epoch)
    except optimizer.OptimizerError as error:
        problems += str(error).splitlines()
    return problems


def _has_groups(config: ml_collections.ConfigDict) -> bool:
    gnp = config.gnp
    return gnp.r > 0 and not gnp.sync_perturbations and gnp.m != config.batch_size


def _penalizes_parts(config: ml_collections.ConfigDict) -> bool:
    """Return whether each group or micro-batch is penalized on its own, not in the chain.

    A method of one gradient needs no such thing: its perturbation is known before.
    """
    is_micro = config.accumulate_steps > 1 and config.accumulate_penalty == "micro"
    return (_has_groups(config) or is_micro) and optimizer.gnp_gradients(config.gnp) > 1


def build_experiment(
    config: ml_collections.ConfigDict, dataset: ds_pipeline.Dataset, devices: Any = None
) -> Experiment:
    """Build the parts of a run; compile nothing.

    Args:
        config: Checked and complete; for training, with `gnp.m` where each group has its own
            perturbation.
        dataset: As the config asks for it.
        devices: To compile for; None: all that there are.

    Raises:
        ModelError, OptimizerError: one line each.
    """
    batch_size = config.batch_size
    steps_per_epoch = ds_pipeline.count_steps(dataset, batch_size)

    # The optimizer: its chain, what changes with the step, and which steps are penalized.
    chain = optimizer.build_optimizer(config, steps_per_epoch)
    schedules = optimizer.build_schedules(config, steps_per_epoch)
    step_rule = optimizer.build_step_rule(config, steps_per_epoch)
    labels = optimizer.build_labels(config)

    # The model and its loss.
    task = TASKS[dataset.task]
    output_shape = task.output_shape(config.loss, dataset.num_classes, dataset.target_shape)
    module = model.build_model(config, output_shape[0])
    top_k = (5 if config.compute_top_5_error_rate else None, config.top_k)
    objective = task.objective(config.loss, config.label_smoothing, [k for k in top_k if k])
    regularize = build_regularizer(
        l2=lambda params: optimizer.l2_coefficients(config, params),
        labels=labels,
        omega=config.opt.omega,
    )
    linen = partial(
        from_linen,
        normalize=dataset.normalize,
        shape=dataset.shape,
        output_shape=output_shape,
        always_inference=config.train_in_inference_mode,
    )
    net = linen(module)

    # The gradient of a batch: at once, in micro-batches, or in groups with a perturbation each.
    def whole_gradient(net: Model) -> Gradient:
        return build_gradient(
            build_loss(net.apply, objective, regularize, config.log_costs_per_layer)
        )

    gradient = whole_gradient(net)
    # Shake-Shake's noise in the backward pass: a gradient that gives a direction is without.
    is_noisy = getattr(module, "backward_noise", False)
    exact = gradient
    if is_noisy and optimizer.gnp_gradients(config.gnp) > 1:
        exact = whole_gradient(linen(module.clone(backward_noise=False)))
    has_groups = _has_groups(config)
    penalize_at = None  # the penalty stands in the chain
    if _penalizes_parts(config):
        penalize_at = optimizer.build_penalized_gradient(config, steps_per_epoch)
    taken, of = rules.ascent_rows(config.gnp.ascent_share)

    def in_micro_batches(gradient: Gradient) -> Gradient:
        count = config.accumulate_steps
        return micro_batched(gradient, count) if count > 1 else gradient

    def reduced(gradient: Gradient) -> Gradient:
        return summed(gradient) if config.loss_reduction == "sum" else gradient

    def gradient_of(step: Any, penalize: bool) -> Gradient:
        if has_groups and config.gnp.m is None:
            raise ValueError("gnp.m is open: config.with_group_size says it for these devices")
        on_mesh = (lambda gradient: gradient) if has_groups else gathered
        at_step = on_mesh(exact if penalize else gradient)
        if penalize and penalize_at:
            at = partial(penalize_at, step=step)
            at_step = penalized(at_step, at, on_mesh(gradient))
        if penalize and taken < of:
            at_step = of_share(at_step, taken, of)
        at_step = in_micro_batches(at_step)
        return reduced(grouped(at_step, config.gnp.m) if has_groups else at_step)

    # What the chain's second gradient is of, where that is not the function, the noise or the
    # examples of the first.
    perturbed_of = None
    if config.gnp.method == "functional_sam":
        functional = reduced(
            in_micro_batches(gathered(build_functional_gradient(net.apply, objective, regularize)))
        )

        def perturbed_of(step: Any, params: Params) -> Gradient:
            return lambda moved, *rest: functional((moved, params), *rest)

    elif taken < of or is_noisy:

        def perturbed_of(step: Any, params: Params) -> Gradient:
            return reduced(in_micro_batches(gathered(gradient)))

    # The state, and where it lives.
    mesh = build_mesh(config.mesh.data, config.mesh.fsdp, devices)
    whole = NamedSharding(mesh, WHOLE)

    def first_state(key: jax.Array) -> TrainState:
        params, model_state = net.initialize(key)
        params = optimizer.unit_norm(params, labels(params))
        # The average has buffers of its own, as the state is donated.
        ema = None if config.ema_decay is None else jax.tree.map(jnp.copy, params)
        return TrainState(params, model_state, chain.init(params), ema)

    def average(ema: Params, params: Params) -> Params:
        mixed = optax.incremental_update(params, ema, 1 - config.ema_decay)
        return optimizer.unit_norm(mixed, labels(params))  # columns of the Grassmann group

    abstract_state = abstract(first_state, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    first_state_on_mesh = jax.jit(first_state, out_shardings=shardings)

    def initialize() -> tuple[TrainState, Report | None]:
        key = jax.random.key(config.init_seeds)
        if config.model.pretrained is None:
            # Computed where it is to be: no device holds more of it.
            with jax.set_mesh(mesh):
                return first_state_on_mesh(key), None
        params, model_state, report = model.load_pretrained(
            config.model.pretrained,
            *jax.jit(net.initialize)(key),
            strict=config.model.pretrained_strict,
        )
        params = shard(optimizer.unit_norm(params, labels(params)), shardings.params)
        model_state = shard(model_state, shardings.model_state)
        opt_state = jax.jit(chain.init, out_shardings=shardings.opt_state)(params)
        ema = None if config.ema_decay is None else jax.tree.map(jnp.copy, params)
        return TrainState(params, model_state, opt_state, ema), report

    # The compiled steps. Which of the two is taken is decided on the host: model code stays out of
    # XLA's control flow. They put the state where it was, and the metrics where process 0 has them.
    compile_ = partial(
        jax.jit, compiler_options=model.cpu.compiler_options(mesh.devices.flat[0].platform)
    )

    def compiled_train_step(penalize: bool) -> Any:
        step = build_train_step(
            partial(gradient_of, penalize=penalize),
            chain,
            penalize=penalize,
            perturbed_of=perturbed_of,
            average=None if config.ema_decay is None else average,
            skip_nonfinite=config.on_nonfinite == "skip",
            keep_gradients=config.record.steps,
        )
        return compile_(step, donate_argnums=0, out_shardings=(shardings, whole))

    plain_step, penalized_step = compiled_train_step(False), compiled_train_step(True)
    compiled_eval_step = compile_(build_eval_step(net.apply, objective), out_shardings=whole)

    def train_step(
        state: TrainState, batch: Batch, key: jax.Array, step: int
    ) -> tuple[TrainState, Metrics]:
        penalize = step_rule(step)
        take = penalized_step if penalize else plain_step
        with jax.set_mesh(mesh):
            new_state, metrics = take(state, batch, key, np.uint32(step))
        if config.gnp.unusual_norm is not None:  # how often that is nobody knows before
            metrics["penalized"] = np.float32(penalize)
        return new_state, metrics

    def eval_step(params: Params, model_state: Any, batch: Batch) -> Metrics:
        with jax.set_mesh(mesh):
            sums: Metrics = compiled_eval_step(params, model_state, batch)
        return sums

    # The data, each process its share.
    total_steps = steps_per_epoch * config.total_epochs
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    # The same number of examples on each device.
    eval_batch_size = -(-(config.eval_batch_size or batch_size) // mesh.size) * mesh.size

    def train_batches(start_step: int, stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        batches = ds_pipeline.train_batches(
            dataset,
            batch_size,
            seed=config.seeds,
            start_step=start_step,
            total_steps=total_steps,
            stop=stop,
            **process,
        )
        return (shard_batch(batch, mesh) for batch in batches)

    def eval_batches(
        stop: Callable[[], bool] = lambda: False, source: ds_pipeline.Source | None = None
    ) -> Iterator[Batch]:
        batches = ds_pipeline.evaluation_batches(
            dataset.evaluation if source is None else source,
            eval_batch_size,
            workers=dataset.workers,
            stop=stop,
            **process,
        )
        return (shard_batch(batch, mesh) for batch in batches)

    return Experiment(
        dataset=dataset,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        model=net,
        objective=objective,
        regularize=regularize,
        optimizer=chain,
        scalars=lambda step: {
            name: float(schedule(step))
            for name, schedule in schedules._asdict().items()
            if schedule is not None
        },
        step_rule=step_rule,
        mesh=mesh,
        abstract_state=abstract_state,
        initialize=initialize,
        train_batches=train_batches,
        train_step=train_step,
        plain_step=plain_step,
        penalized_step=penalized_step,
        eval_batch_size=eval_batch_size,
        eval_batches=eval_batches,
        eval_step=eval_step,
        compiled_eval_step=compiled_eval_step,
    )
