"""From a config to the parts of a run. Nothing below here sees a ConfigDict."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import config as configs
import ds_pipeline
import model
import optimizer
from config import rules
from gnp.training.accumulation import Accumulation, given_penalty
from gnp.training.checkpoint import CheckpointError, Checkpoints, Restored
from gnp.training.loop import Plan, Steps
from gnp.training.mesh import (
    AXES,
    build_mesh,
    place,
    replicated,
    seeds_first,
    shard_batch,
    split_shardings,
)
from gnp.training.objective import Objective, build_objective, output_size
from gnp.training.regularizer import Regularizer, build_regularizer
from gnp.training.seeds import steps_at_once
from gnp.training.state import (
    Apply,
    Initialise,
    ModelState,
    Params,
    TrainState,
    from_linen,
)
from gnp.training.step import (
    Average,
    EvaluationStep,
    Groups,
    build_evaluation_step,
    build_train_step,
)

FirstState = Callable[[Params, ModelState], TrainState]
Begin = Callable[[jax.Array], TrainState]
Pretrained = Callable[[Params, ModelState], tuple[Params, ModelState, model.Report]]


class Run(NamedTuple):
    """The parts of a run, built from its config.

    Attributes:
        dataset: where examples come from.
        seed: config.seeds.
        initialise: key -> (params, model_state).
        first_state: (params, model_state) -> the state before the first step.
        begin: key -> that state; one function, so that jax traces it once.
        pretrained: (params, model_state) -> the same with the values of `model.pretrained`, and
            what became of each; reads the file. None where the config names none.
        records: the steps record the gradients.
        scalars: step number -> learning_rate, alpha, r.
        plan: lengths and intervals.
        steps: the two training steps, compiled at their first call; of runs of several seeds, the
            same in all of them, for all seeds at once.
        evaluation_step: likewise.
        mesh: the devices.
        like: shapes, dtypes and places of the state.
    """

    dataset: ds_pipeline.Dataset
    seed: int
    initialise: Initialise
    first_state: FirstState
    begin: Begin
    pretrained: Pretrained | None
    records: bool
    scalars: Callable[[int], dict[str, float]]
    plan: Plan
    steps: Steps
    evaluation_step: EvaluationStep
    mesh: jax.sharding.Mesh
    like: TrainState


class Begun(NamedTuple):
    """The state before the first step, and what became of pretrained weights, if any."""

    state: TrainState
    pretrained: model.Report | None


# So many that every fraction of an epoch is a whole step: the real number is known with the data.
_ANY_STEPS_PER_EPOCH = 10**6


class DeviceError(RuntimeError):
    """No device can be used; one line."""


def name_problems(config: ml_collections.ConfigDict) -> list[str]:
    """What is wrong with the names and keyword arguments of model and optimizer, a line each."""
    return _problems(
        lambda: model.build_model(config, config.dataset.num_classes or 10),
        lambda: optimizer.check_opt_params(config.opt.opt_type, dict(config.opt.opt_params)),
    )


def check_names(config: ml_collections.ConfigDict) -> None:
    """Model, optimizer and schedules of a config, without looking at data or devices.

    Raises:
        ConfigError: a line for each problem.
    """
    wrong = name_problems(config) or _problems(
        lambda: optimizer.build_optimizer(config, _ANY_STEPS_PER_EPOCH)
    )
    if wrong:
        raise configs.ConfigError("\n".join(wrong))


def _problems(*builds: Callable[[], Any]) -> list[str]:
    wrong = []
    for build in builds:
        try:
            build()
        except (optimizer.OptimizerError, model.ModelError) as error:
            wrong += str(error).splitlines()
    return wrong


def check_devices(config: ml_collections.ConfigDict, training: bool = True) -> None:
    """Whether the devices can run a config.

    Args:
        config: checked and complete.
        training: False: for evaluation, which fills its batches up.

    Raises:
        DeviceError: there are none of the kind that JAX_PLATFORMS asks for.
        ConfigError: what does not go with their number.
    """
    try:
        devices = jax.device_count()
    except Exception as error:  # jax raises several types here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(f"jax finds no device to run on: {reason}") from error
    wrong = rules.problems(config, rules.Facts(devices=devices, training=training))
    if wrong:
        raise configs.ConfigError("\n".join(wrong))


def on_these_devices(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of a stored config, with the default mesh where its own is of other devices.

    Args:
        config: of a run that may have been trained elsewhere.
    """
    return configs.on_devices(config, jax.device_count())


def with_group_size(
    config: ml_collections.ConfigDict, stored: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A copy that says the size of its groups, where it has groups and leaves their size open.

    It is that of the run that goes on, whatever devices there are now, else a device's share.

    Args:
        config: checked.
        stored: the directory's config, dotted key -> JSON value; empty: a new run.
    """
    return configs.with_group_size(config, stored, jax.device_count())


def build_run(
    config: ml_collections.ConfigDict, training: bool = True, directory: Path | None = None
) -> Run:
    """Reads the data set and builds everything that a run needs.

    Args:
        config: checked and complete.
        training: False: for evaluation alone, on whatever devices.
        directory: of the run, where the index of an image folder is kept; None: nowhere.

    Raises:
        ConfigError, DataError, ModelError, OptimizerError: one line each.
    """
    _check(config, training)
    return _build(config, ds_pipeline.build_dataset(config, directory), training)


def build_runs(
    members: Sequence[ml_collections.ConfigDict], directories: Sequence[Path | None]
) -> list[Run]:
    """The runs of configs that differ in their seeds alone; several take their steps at once.

    Args:
        members: checked and complete.
        directories: of the runs; None: as in `build_run`.

    Raises:
        ConfigError, DataError, ModelError, OptimizerError: one line each.
    """
    if len(members) == 1:
        return [build_run(members[0], directory=directories[0])]
    _check(members[0], training=True)
    datasets = [
        ds_pipeline.build_dataset(config, directory)
        for config, directory in zip(members, directories, strict=True)
    ]
    _check_alike(datasets, members[0].batch_size)
    # The parts of a data set that depends on the seed are normalised by numbers of their own, so
    # that inputs reach what the seeds share already normalised.
    shared = _build(members[0], _not_normalizing(datasets[0]), True, datasets)
    return [
        shared._replace(
            dataset=dataset,
            seed=config.seeds,
            evaluation_step=_normalizing(shared.evaluation_step, dataset),
        )
        for config, dataset in zip(members, datasets, strict=True)
    ]


def members_of(
    config: ml_collections.ConfigDict, directory: Path
) -> tuple[list[ml_collections.ConfigDict], list[Path]]:
    """The configs of a config's seeds, as each would be on its own, and their run directories.

    Args:
        config: complete.
        directory: of the run; that of a seed, where there are several, is seed-N in it.
    """
    return [config], [directory]


def _check(config: ml_collections.ConfigDict, training: bool) -> None:
    check_names(config)
    check_devices(config, training)


def _check_alike(datasets: Sequence[ds_pipeline.Dataset], batch_size: int) -> None:
    """Whether steps on the data of several seeds can be taken at once."""
    found = {
        (
            f"{ds_pipeline.count_steps(each, batch_size)} steps an epoch with inputs of shape "
            f"{each.shape} and {each.num_classes} classes"
        )
        for each in datasets
    }
    if len(found) > 1:
        raise configs.ConfigError(
            f"num_seeds = {len(datasets)}: the seeds' parts of the data differ, "
            f"{'; '.join(sorted(found))}; train one seed a run"
        )


def _not_normalizing(dataset: ds_pipeline.Dataset) -> ds_pipeline.Dataset:
    return dataclasses.replace(dataset, mean=np.zeros(1, np.float32), std=np.ones(1, np.float32))


def _normalizing(step: EvaluationStep, dataset: ds_pipeline.Dataset) -> EvaluationStep:
    normalize = jax.jit(dataset.normalize)

    def normalizing(params: Params, model_state: ModelState, batch: Any) -> Any:
        return step(params, model_state, {**batch, "input": normalize(batch["input"])})

    return normalizing


def _build(
    config: ml_collections.ConfigDict,
    dataset: ds_pipeline.Dataset,
    training: bool,
    of_seeds: Sequence[ds_pipeline.Dataset] = (),
) -> Run:
    """The parts of a run; with `of_seeds`, the steps are those of several seeds at once.

    Args:
        config: checked and complete.
        dataset: of the run.
        training: False: for evaluation alone.
        of_seeds: the data of each seed; the other one then does not normalise.
    """
    check_objective(config, dataset)
    steps_per_epoch = ds_pipeline.count_steps(dataset, config.batch_size)
    initialise, apply = build_functions(
        config, dataset.normalize, dataset.shape, dataset.num_classes
    )
    objective = build_objective(
        config.loss, config.label_smoothing, config.compute_top_5_error_rate
    )
    mesh = build_mesh(config.mesh.data, config.mesh.fsdp)
    groups = _groups(config, steps_per_epoch) if training else None
    accumulation = _accumulation(config, steps_per_epoch)
    penalty = None
    if groups or (accumulation and accumulation.penalty):
        penalty = given_penalty(optimizer.build_penalty(config, steps_per_epoch))
    chain = optimizer.build_optimizer(config, steps_per_epoch, penalty)
    schedules = optimizer.build_schedules(config, steps_per_epoch)
    plan = Plan(
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_epochs=config.total_epochs,
        evaluate_every=config.evaluate_every_n_epochs,
        save_every=config.save_ckpt_every_n_epochs,
        log_every=config.log_every_n_steps,
    )

    def scalars(step: int) -> dict[str, float]:
        return {
            name: float(value(step))
            for name, value in schedules._asdict().items()
            if value is not None
        }

    labels = optimizer.build_labels(config)
    average = _average(config.ema_decay, labels)
    on_manifold = _on_the_manifold(initialise, labels)
    first = _first_state(chain, config.record.gradients, average is not None)

    def begin(key: jax.Array) -> TrainState:
        return first(*on_manifold(key))

    like = _like(begin, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, like)

    def train_step(penalize: bool) -> Any:
        step = build_train_step(
            apply,
            objective,
            chain,
            penalize=penalize,
            regularize=regularizer(config),
            costs_per_layer=config.log_costs_per_layer,
            skip_nonfinite=config.on_nonfinite == "skip",
            groups=groups,
            accumulation=accumulation,
            average=average,
            mesh=mesh,
            record=config.record.gradients,
            record_steps=config.record.steps,
        )
        if of_seeds:
            step = steps_at_once(step, [each.normalize for each in of_seeds])
        return jax.jit(
            step,
            donate_argnums=0,
            # So that the state stays where it is, and process 0 has the metrics whole.
            out_shardings=(seeds_first(places) if of_seeds else places, replicated(mesh)),
            compiler_options=model.compiler_options(),
        )

    return Run(
        dataset,
        config.seeds,
        on_manifold,
        first,
        begin,
        _pretrained(config, labels),
        config.record.gradients,
        scalars,
        plan,
        Steps(
            train_step(False),
            train_step(True),
            optimizer.build_step_rule(config, steps_per_epoch),
        ),
        jax.jit(
            build_evaluation_step(apply, objective, mesh),
            out_shardings=replicated(mesh),
            compiler_options=model.compiler_options(),
        ),
        mesh,
        like,
    )


def check_objective(config: ml_collections.ConfigDict, dataset: ds_pipeline.Dataset) -> None:
    """Whether the loss and the metrics fit what is predicted.

    Raises:
        ConfigError: real numbers are to be predicted by a loss for classes.
    """
    wrong = rules.problems(config, rules.Facts(is_regression=dataset.is_regression))
    if wrong:
        raise configs.ConfigError("\n".join(wrong))


@contextlib.contextmanager
def inputs_fit(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Says in one line that a model cannot take inputs of a shape.

    Args:
        name: of the model.
        shape: of one input.

    Raises:
        ModelError: instead of whatever the model's layers raised.

    Example:
        >>> with inputs_fit("DigitsCNN", (4,)):
        ...     raise TypeError("no height")
        Traceback (most recent call last):
        ...
        model.registry.ModelError: model.model_name = DigitsCNN cannot take inputs of ...
    """
    try:
        yield
    except (model.ModelError, optimizer.OptimizerError):
        raise
    except Exception as error:  # layers raise several types
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if len(shape) != 3:  # what the layers say of it helps nobody
            reason = "a series, not an image" if len(shape) == 2 else "a vector, not an image"
        raise model.ModelError(
            f"model.model_name = {name} cannot take inputs of shape {shape}: {reason}; "
            "docs/models.md says what each model is for"
        ) from error


def regularizer(config: ml_collections.ConfigDict) -> Regularizer:
    """The costs of the parameters that a config asks for."""
    return build_regularizer(
        l2=lambda params: optimizer.l2_coefficients(config, params),
        labels=optimizer.build_labels(config),
        omega=config.opt.omega,
    )


def _groups(config: ml_collections.ConfigDict, steps_per_epoch: int) -> Groups | None:
    size = rules.group_size(config, jax.device_count())
    if size == config.batch_size:
        return None
    penalty = optimizer.build_penalty(config, steps_per_epoch)
    return Groups(size, optimizer.per_group(penalty, AXES))


def _accumulation(config: ml_collections.ConfigDict, steps_per_epoch: int) -> Accumulation | None:
    if config.accumulate_steps == 1:
        return None
    if config.gnp.r == 0 or config.accumulate_penalty == "batch":
        return Accumulation(config.accumulate_steps)
    return Accumulation(config.accumulate_steps, optimizer.build_penalty(config, steps_per_epoch))


def _average(decay: float | None, labels: Callable[[Params], Any]) -> Average | None:
    """The next average of the parameters; the Grassmann group's columns keep length 1."""
    if decay is None:
        return None

    def average(ema: Params, params: Params) -> Params:
        mixed = optax.incremental_update(params, ema, 1 - decay)
        return optimizer.unit_norm(mixed, labels(params))

    return average


def _on_the_manifold(initialise: Initialise, labels: Callable[[Params], Any]) -> Initialise:
    """With the columns of the Grassmann group at length 1."""

    def initialise_there(key: jax.Array) -> tuple[Params, ModelState]:
        params, model_state = initialise(key)
        return optimizer.unit_norm(params, labels(params)), model_state

    return initialise_there


def _pretrained(
    config: ml_collections.ConfigDict, labels: Callable[[Params], Any]
) -> Pretrained | None:
    """Reads the weights that the config names; the Grassmann group's at length 1 after that."""
    if config.model.pretrained is None:
        return None

    def load(params: Params, model_state: ModelState) -> tuple[Params, ModelState, model.Report]:
        try:
            params, model_state, report = model.load_pretrained(
                config.model.pretrained, params, model_state, strict=config.model.pretrained_strict
            )
        except model.PretrainedError as error:
            if not config.model.pretrained_strict:
                raise
            raise model.ModelError(
                f"{error}\nmodel.pretrained_strict=False goes on without these"
            ) from error
        return optimizer.unit_norm(params, labels(params)), model_state, report

    return load


def build_functions(
    config: ml_collections.ConfigDict,
    normalize: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    num_classes: int,
) -> tuple[Initialise, Apply]:
    """The config's model as `initialise` and `apply`, for inputs of a shape."""
    module = model.build_model(config, output_size(config.loss, num_classes))
    initialise, apply = from_linen(module, normalize, shape)

    def initialise_or_say(key: jax.Array) -> tuple[Params, ModelState]:
        with inputs_fit(config.model.model_name, shape):
            return initialise(key)

    return initialise_or_say, apply


def initial_state(run: Run, seed: int) -> Begun:
    """The state before the first step, computed where it is to be: no device holds more of it."""
    places = jax.tree.map(lambda leaf: leaf.sharding, run.like)
    key = jax.random.key(seed)
    if run.pretrained is None:
        return Begun(jax.jit(run.begin, out_shardings=places)(key), None)
    params, model_state, report = run.pretrained(*jax.jit(run.initialise)(key))
    placed = place((params, model_state), (places.params, places.model_state))
    return Begun(jax.jit(run.first_state, out_shardings=places)(*placed), report)


def abstract_state(run: Run) -> TrainState:
    """Shapes, dtypes and places of the state; computes nothing."""
    return run.like


def _like(begin: Begin, mesh: jax.sharding.Mesh) -> TrainState:
    """Batch statistics are whole on each device, and the rest as `split_shardings` says."""
    shapes = jax.eval_shape(begin, jax.random.key(0))
    places = split_shardings(shapes, mesh)._replace(
        model_state=jax.tree.map(lambda _: replicated(mesh), shapes.model_state)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        places,
    )


def _first_state(
    chain: optax.GradientTransformationExtraArgs, records: bool, averages: bool
) -> FirstState:
    """The state around initial parameters; their average has buffers of its own, being donated."""

    def first_state(params: Params, model_state: ModelState) -> TrainState:
        opt_state = chain.init(params)
        if records:
            opt_state = (opt_state, optimizer.record_gradient_evolution().init(params))
        ema = jax.tree.map(jnp.copy, params) if averages else None
        return TrainState(params, model_state, opt_state, ema)

    return first_state


def restore(
    run: Run, config: ml_collections.ConfigDict, directory: Path, step: int | None
) -> Restored:
    """A checkpoint of a run directory, which is only read.

    Args:
        run: built from the directory's config.
        config: that config.
        directory: of the run.
        step: None: the newest.

    Raises:
        CheckpointError: there is none, or it is damaged or of another model.
    """
    restored = None
    if (directory / "checkpoints").is_dir():
        checkpoints = Checkpoints(directory, config.keep_checkpoints, read_only=True)
        try:
            restored = checkpoints.restore(abstract_state(run), step)
        finally:
            checkpoints.close()
    if restored is None:
        raise CheckpointError(f"no checkpoint in {directory}: train first")
    return restored


class LossParts(NamedTuple):
    """What the loss of a run is made of.

    Attributes:
        apply: the model.
        objective: loss and metrics of each example.
        regularize: costs of the parameters.
    """

    apply: Apply
    objective: Objective
    regularize: Regularizer


def loss_parts(config: ml_collections.ConfigDict, dataset: ds_pipeline.Dataset) -> LossParts:
    """The loss that a config asks for, in float32 whatever its precision.

    Args:
        config: checked and complete.
        dataset: of the run.
    """
    exact = config.copy_and_resolve_references()
    exact.precision = "float32"
    _, apply = build_functions(exact, dataset.normalize, dataset.shape, dataset.num_classes)
    objective = build_objective(
        config.loss, config.label_smoothing, config.compute_top_5_error_rate
    )
    return LossParts(apply, objective, regularizer(config))


def training_batches(runs: Sequence[Run], start_step: int) -> Iterator[Any]:
    """Training batches from a step on, each sent to the devices as soon as it is asked for.

    Args:
        runs: of one seed or of several, whose batches are then stacked.
        start_step: the first step's number.
    """
    hosts = [
        ds_pipeline.train_batches(
            run.dataset,
            run.plan.batch_size,
            seed=run.seed,
            start_step=start_step,
            total_steps=run.plan.total_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for run in runs
    ]
    mesh = runs[0].mesh
    if len(hosts) == 1:
        return (shard_batch(batch, mesh) for batch in hosts[0])
    return (
        shard_batch(jax.tree.map(lambda *x: np.stack(x), *batches), mesh, seeds=True)
        for batches in zip(*hosts, strict=True)
    )


def evaluation_batches(run: Run) -> Iterator[Any]:
    """The evaluation set once, on the devices; the same number of examples on each."""
    host = ds_pipeline.evaluation_batches(
        run.dataset.evaluation,
        -(-run.plan.batch_size // run.mesh.size) * run.mesh.size,
        jax.process_index(),
        jax.process_count(),
        workers=run.dataset.workers,
    )
    return (shard_batch(batch, run.mesh) for batch in host)


def config_as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted key -> JSON value, every key."""
    return configs.as_json(config)
