"""Experiment: the parts of a run, each built once from its config.

What this module calls sees no ConfigDict, but for `config` itself and the builders of
`ds_pipeline`, `model` and `optimizer`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
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
from gnp.training.checkpoint import CheckpointError, Checkpoints, Restored
from gnp.training.files import first_line
from gnp.training.gradients import (
    Batch,
    Gradient,
    Metrics,
    build_gradient,
    build_loss,
    gathered,
    grouped,
    micro_batched,
    penalized,
)
from gnp.training.mesh import WHOLE, build_mesh, on_mesh, shard, shard_batch, split_shardings
from gnp.training.objective import Objective, build_objective, output_size
from gnp.training.regularizer import Regularizer, build_regularizer
from gnp.training.state import Model, ModelState, Params, TrainState, from_linen
from gnp.training.step import EvalStep, build_eval_step, build_train_step

# So many that every fraction of an epoch is a whole step: the real number is known with the data.
_ANY_STEPS_PER_EPOCH = 10**6


class DeviceError(RuntimeError):
    """No device can be used; one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of a run.

    Attributes:
        dataset: Training and evaluation examples.
        batch_size: Examples a step, over all devices.
        steps_per_epoch: Steps in one epoch.
        total_steps: Steps of the whole run.
        seed: Of everything but the initial parameters.
        model: As functions; initial parameters of the Grassmann group have unit columns.
        objective: Loss and metrics of each example.
        regularize: params -> costs that are added to the loss.
        optimizer: The chain.
        scalars: step -> learning_rate, alpha, r as numbers.
        mesh: The devices.
        abstract_state: Shapes, dtypes and shardings of the state.
        initialize: key -> the state before the first step, without pretrained weights.
        train_step: (state, batch, key, step) -> (state, metrics), plain or penalized as the step's
            number says; the state is donated. Does not wait for the device.
        eval_step: (params, model_state, batch) -> sums over the examples.
    """

    dataset: ds_pipeline.Dataset
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    seed: int
    model: Model
    objective: Objective
    regularize: Regularizer
    optimizer: optax.GradientTransformationExtraArgs
    scalars: Callable[[int], dict[str, float]]
    mesh: Mesh
    abstract_state: TrainState
    initialize: Callable[[jax.Array], TrainState]
    train_step: Callable[[TrainState, Batch, jax.Array, int], tuple[TrainState, Metrics]]
    eval_step: EvalStep

    @property
    def shardings(self) -> TrainState:
        """Where each array of the state lives."""
        return _shardings(self.abstract_state)


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
    problems = []
    for build in (
        lambda: model.build_model(config, config.dataset.num_classes or 10),
        lambda: (
            optimizer.build_optimizer(config, _ANY_STEPS_PER_EPOCH)
            if checked
            else optimizer.check_opt_params(config.opt.opt_type, config.opt.opt_params)
        ),
    ):
        try:
            build()
        except (model.ModelError, optimizer.OptimizerError) as error:
            problems += str(error).splitlines()
    return problems


def build_experiment(config: ml_collections.ConfigDict, dataset: ds_pipeline.Dataset) -> Experiment:
    """Build the parts of a run; compiles nothing.

    Args:
        config: Checked and complete; for training, with `gnp.m` where each group has its own
            perturbation.
        dataset: As the config asks for it.

    Raises:
        ModelError, OptimizerError: one line each.
    """
    steps_per_epoch = ds_pipeline.count_steps(dataset, config.batch_size)
    mesh = build_mesh(config.mesh.data, config.mesh.fsdp)
    labels = optimizer.build_labels(config)
    net = build_net(config, dataset)
    objective = build_objective(
        config.loss, config.label_smoothing, config.compute_top_5_error_rate
    )
    regularize = build_costs(config)
    chain = optimizer.build_optimizer(config, steps_per_epoch)
    schedules = optimizer.build_schedules(config, steps_per_epoch)

    def initialize(key: jax.Array) -> TrainState:
        params, model_state = net.initialize(key)
        # The average has buffers of its own, as the state is donated.
        ema = None if config.ema_decay is None else jax.tree.map(jnp.copy, params)
        return TrainState(params, model_state, chain.init(params), ema)

    abstract_state = _abstract_state(initialize, mesh)
    shardings = _shardings(abstract_state)
    whole = NamedSharding(mesh, WHOLE)
    compiler_options = model.cpu.compiler_options(mesh.devices.flat[0].platform)
    gradient = build_gradient(
        build_loss(net.apply, objective, regularize, config.log_costs_per_layer)
    )
    gradient_of = _gradient_of(config, gradient, steps_per_epoch)
    average = None if config.ema_decay is None else partial(_average, config.ema_decay, labels)

    def compiled_train_step(penalize: bool) -> Any:
        step = build_train_step(
            partial(gradient_of, penalize=penalize),
            chain,
            penalize=penalize,
            average=average,
            skip_nonfinite=config.on_nonfinite == "skip",
            keep_gradients=config.record.steps,
        )
        compiled = jax.jit(
            step,
            donate_argnums=0,
            # So that the state stays where it is, and process 0 has the metrics whole.
            out_shardings=(shardings, whole),
            compiler_options=compiler_options,
        )
        return on_mesh(mesh, compiled)

    plain_step, penalized_step = compiled_train_step(False), compiled_train_step(True)
    is_penalized = optimizer.build_step_rule(config, steps_per_epoch)

    def train_step(
        state: TrainState, batch: Batch, key: jax.Array, step: int
    ) -> tuple[TrainState, Metrics]:
        # Decided on the host: model code stays out of XLA's control flow.
        take = penalized_step if is_penalized(step) else plain_step
        result: tuple[TrainState, Metrics] = take(state, batch, key, np.uint32(step))
        return result

    return Experiment(
        dataset=dataset,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * config.total_epochs,
        seed=config.seeds,
        model=net,
        objective=objective,
        regularize=regularize,
        optimizer=chain,
        scalars=partial(_scalars, schedules),
        mesh=mesh,
        abstract_state=abstract_state,
        # One function for shapes and values, so that jax traces it once.
        initialize=on_mesh(mesh, jax.jit(initialize, out_shardings=shardings)),
        train_step=train_step,
        eval_step=on_mesh(
            mesh,
            jax.jit(
                build_eval_step(net.apply, objective),
                out_shardings=whole,
                compiler_options=compiler_options,
            ),
        ),
    )


def build_net(config: ml_collections.ConfigDict, dataset: ds_pipeline.Dataset) -> Model:
    """Return the config's model as functions, for the inputs of a data set."""
    module = model.build_model(config, output_size(config.loss, dataset.num_classes))
    net = from_linen(module, dataset.normalize, dataset.shape)
    labels = optimizer.build_labels(config)

    def initialize(key: jax.Array) -> tuple[Params, ModelState]:
        params, model_state = net.initialize(key)
        return optimizer.unit_norm(params, labels(params)), model_state

    return Model(initialize, net.apply)


def build_costs(config: ml_collections.ConfigDict) -> Regularizer:
    """Return params -> the costs that a config adds to the loss."""
    return build_regularizer(
        l2=lambda params: optimizer.l2_coefficients(config, params),
        labels=optimizer.build_labels(config),
        omega=config.opt.omega,
    )


def _gradient_of(
    config: ml_collections.ConfigDict, gradient: Gradient, steps_per_epoch: int
) -> Callable[..., Gradient]:
    """Return (step, penalize) -> the gradient of a batch at that step, as the config asks for it.

    Args:
        config: As `build_experiment` takes it.
        gradient: Of the examples that a device is given at once.
        steps_per_epoch: Steps in one epoch.
    """
    has_groups = config.gnp.r > 0 and not config.gnp.sync_perturbations
    has_groups = has_groups and config.gnp.m != config.batch_size
    has_micro_batches = config.accumulate_steps > 1
    penalizes_each = has_groups or (has_micro_batches and config.accumulate_penalty == "micro")
    penalize_at = (
        optimizer.build_penalized_gradient(config, steps_per_epoch) if penalizes_each else None
    )

    def gradient_of(step: Any, penalize: bool) -> Gradient:
        at_step = gradient if has_groups else gathered(gradient)
        if penalize and penalize_at:
            at_step = penalized(at_step, lambda *given: penalize_at(*given, step=step))
        if has_micro_batches:
            at_step = micro_batched(at_step, config.accumulate_steps)
        return grouped(at_step, config.gnp.m) if has_groups else at_step

    return gradient_of


def _average(decay: float, labels: Callable[[Params], Any], ema: Params, params: Params) -> Params:
    """Return the next average of the parameters; the Grassmann group's columns keep length 1."""
    mixed = optax.incremental_update(params, ema, 1 - decay)
    return optimizer.unit_norm(mixed, labels(params))


def _scalars(schedules: optimizer.Schedules, step: int) -> dict[str, float]:
    return {
        name: float(schedule(step))
        for name, schedule in schedules._asdict().items()
        if schedule is not None
    }


def _abstract_state(initialize: Callable[[jax.Array], TrainState], mesh: Mesh) -> TrainState:
    """Batch statistics are whole on each device, the rest is split as `split_shardings` says."""
    shapes = on_mesh(mesh, jax.eval_shape)(initialize, jax.random.key(0))
    shardings = split_shardings(shapes, mesh)._replace(
        model_state=jax.tree.map(lambda _: NamedSharding(mesh, WHOLE), shapes.model_state)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _shardings(abstract_state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state)


def initial_state(
    experiment: Experiment, config: ml_collections.ConfigDict
) -> tuple[TrainState, model.Report | None]:
    """Return the state before the first step, and what became of pretrained weights, if any.

    It is computed where it is to be: no device holds more of it.

    Raises:
        ModelError, PretrainedError: the file of `model.pretrained` cannot be used.
    """
    state = experiment.initialize(jax.random.key(config.init_seeds))
    if config.model.pretrained is None:
        return state, None
    params, model_state, report = _load_pretrained(config, state.params, state.model_state)
    shardings = experiment.shardings
    params, model_state = shard((params, model_state), (shardings.params, shardings.model_state))
    opt_state = jax.jit(experiment.optimizer.init, out_shardings=shardings.opt_state)(params)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return TrainState(params, model_state, opt_state, ema), report


def _load_pretrained(
    config: ml_collections.ConfigDict, params: Params, model_state: ModelState
) -> tuple[Params, ModelState, model.Report]:
    """Read the weights that the config names; the Grassmann group's columns get length 1."""
    strict = config.model.pretrained_strict
    try:
        params, model_state, report = model.load_pretrained(
            config.model.pretrained, params, model_state, strict=strict
        )
    except model.PretrainedError as error:
        if not strict:
            raise
        raise model.ModelError(
            f"{error}\nmodel.pretrained_strict=False goes on without these"
        ) from error
    labels = optimizer.build_labels(config)
    return optimizer.unit_norm(params, labels(params)), model_state, report


def restore(experiment: Experiment, directory: Path, step: int | None = None) -> Restored:
    """Read a checkpoint of a run directory, which is left as it is.

    Args:
        experiment: Built from the directory's config.
        directory: Of the run.
        step: None: the newest.

    Raises:
        CheckpointError: there is none, or it is damaged or of another model.
    """
    restored = None
    if (directory / "checkpoints").is_dir():
        with Checkpoints(directory, read_only=True) as checkpoints:
            restored = checkpoints.restore(experiment.abstract_state, step)
    if restored is None:
        raise CheckpointError(f"no checkpoint in {directory}: train first")
    return restored


def train_batches(experiment: Experiment, start_step: int) -> Iterator[Batch]:
    """Yield training batches from a step on, each sent to the devices when it is asked for."""
    batches = ds_pipeline.train_batches(
        experiment.dataset,
        experiment.batch_size,
        seed=experiment.seed,
        start_step=start_step,
        total_steps=experiment.total_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return (shard_batch(batch, experiment.mesh) for batch in batches)


def eval_batches(experiment: Experiment) -> Iterator[Batch]:
    """Yield the evaluation set once, on the devices; the same number of examples on each."""
    batches = ds_pipeline.evaluation_batches(
        experiment.dataset.evaluation,
        -(-experiment.batch_size // experiment.mesh.size) * experiment.mesh.size,
        jax.process_index(),
        jax.process_count(),
        workers=experiment.dataset.workers,
    )
    return (shard_batch(batch, experiment.mesh) for batch in batches)
