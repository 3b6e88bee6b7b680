"""From a config to the parts of a run. Nothing below here sees a ConfigDict."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import optax

import config as configs
import ds_pipeline
import model
import optimizer
from config import default
from gnp.training.loop import Plan, Steps
from gnp.training.mesh import data_mesh, replicate, shard_batch
from gnp.training.objective import build_objective, output_size
from gnp.training.state import Apply, Initialise, TrainState, from_linen
from gnp.training.step import EvaluationStep, build_evaluation_step, build_train_step


class Run(NamedTuple):
    """The parts of a run, built from its config.

    Attributes:
        dataset: where examples come from.
        initialise: key -> (params, model_state).
        optimizer: the chain.
        scalars: step number -> learning_rate, alpha, r.
        plan: lengths and intervals.
        steps: the two training steps, compiled at their first call.
        evaluation_step: likewise.
        mesh: the devices.
    """

    dataset: ds_pipeline.Dataset
    initialise: Initialise
    optimizer: optax.GradientTransformationExtraArgs
    scalars: Callable[[int], dict[str, float]]
    plan: Plan
    steps: Steps
    evaluation_step: EvaluationStep
    mesh: jax.sharding.Mesh


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


def check_devices(config: ml_collections.ConfigDict) -> None:
    """Whether the devices can run a config.

    Raises:
        DeviceError: there are none of the kind that JAX_PLATFORMS asks for.
        ConfigError: what does not go with their number.
    """
    try:
        devices = jax.device_count()
    except Exception as error:  # jax raises several types here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(f"jax finds no device to run on: {reason}") from error
    if config.batch_size % devices:
        raise configs.ConfigError(
            f"batch_size = {config.batch_size} cannot be split over {devices} devices: "
            f"choose a multiple of {devices}"
        )
    if devices > 1 and config.gnp.r > 0 and not config.gnp.sync_perturbations:
        raise configs.ConfigError(
            f"gnp.sync_perturbations = False needs a perturbation for each of {devices} devices, "
            "which is not supported: use one device, or True"
        )


def build_run(config: ml_collections.ConfigDict) -> Run:
    """Reads the data set and builds everything that a run needs.

    Args:
        config: checked and complete.

    Raises:
        ConfigError, DataError, ModelError, OptimizerError: one line each.
    """
    check_names(config)
    check_devices(config)
    dataset = ds_pipeline.build_dataset(config)
    steps_per_epoch = ds_pipeline.count_steps(dataset, config.batch_size)
    initialise, apply = build_functions(
        config, dataset.normalize, dataset.shape, dataset.num_classes
    )
    objective = build_objective(
        config.loss, config.label_smoothing, config.compute_top_5_error_rate
    )
    chain = optimizer.build_optimizer(config, steps_per_epoch)
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
        return {name: float(value(step)) for name, value in schedules._asdict().items()}

    def train_step(penalize: bool) -> Any:
        step = build_train_step(
            apply,
            objective,
            chain,
            penalize=penalize,
            l2=config.l2_regularization,
            decayed=lambda params: optimizer.decay_mask(params, config.no_weight_decay_on_bn),
            skip_nonfinite=config.on_nonfinite == "skip",
        )
        return jax.jit(step, donate_argnums=0, compiler_options=model.compiler_options())

    return Run(
        dataset,
        initialise,
        chain,
        scalars,
        plan,
        Steps(
            train_step(False),
            train_step(True),
            optimizer.build_step_rule(config, steps_per_epoch),
        ),
        jax.jit(build_evaluation_step(apply, objective), compiler_options=model.compiler_options()),
        data_mesh(),
    )


def build_functions(
    config: ml_collections.ConfigDict,
    normalize: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    num_classes: int,
) -> tuple[Initialise, Apply]:
    """The config's model as `initialise` and `apply`, for inputs of a shape."""
    module = model.build_model(config, output_size(config.loss, num_classes))
    return from_linen(module, normalize, shape)


def initial_state(run: Run, seed: int) -> TrainState:
    """The state before the first step, on every device."""
    return replicate(jax.jit(_initialiser(run))(jax.random.key(seed)), run.mesh)


def abstract_state(run: Run) -> TrainState:
    """Shapes, dtypes and places of the state; computes nothing."""
    shapes = jax.eval_shape(_initialiser(run), jax.random.key(0))
    sharding = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def _initialiser(run: Run) -> Callable[[jax.Array], TrainState]:
    def initialise(key: jax.Array) -> TrainState:
        params, model_state = run.initialise(key)
        return TrainState(params, model_state, run.optimizer.init(params))

    return initialise


def training_batches(run: Run, seed: int, start_step: int) -> Iterator[Any]:
    """Training batches from a step on, each sent to the devices as soon as it is asked for."""
    host = ds_pipeline.train_batches(
        run.dataset,
        run.plan.batch_size,
        seed=seed,
        start_step=start_step,
        total_steps=run.plan.total_steps,
    )
    return (shard_batch(batch, run.mesh) for batch in host)


def evaluation_batches(run: Run) -> Iterator[Any]:
    """The evaluation set once, on the devices."""
    host = ds_pipeline.evaluation_batches(run.dataset.evaluation, run.plan.batch_size)
    return (shard_batch(batch, run.mesh) for batch in host)


def config_as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted key -> JSON value, every key."""
    flat = configs.flatten(config, default.KEYS)
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()
    }
