"""From a run directory, or a run that goes on, to a surface; and what is kept of it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import numpy.typing as npt

import ds_pipeline
import model
from gnp.analysis.runs import open_run
from gnp.analysis.sharpness.files import read_results
from gnp.analysis.sharpness.measure import Settings, measure_flatness
from gnp.analysis.sharpness.pictures import draw
from gnp.analysis.sharpness.surface import SharpnessError, Surface, build_products, flatten
from gnp.experiment import Experiment, build_experiment
from gnp.training.evolution import write_npz
from gnp.training.files import write_json
from gnp.training.mesh import replicate, shard_batch
from gnp.training.state import TrainState

DEFAULT_EXAMPLES = 2000
BATCH_SIZE = 250
RADIUS = 0.05
_EXAMPLES_TAG = 0x5368
# During training: a fixed small subset, few products.
PROBE_EXAMPLES = 500
_PROBE = Settings(eigenvalues=1, eigenvalue_steps=20, trace_samples=5)


def open_checkpoint(
    directory: Path,
    checkpoint: int | str | None = None,
    examples: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    regularized: bool = True,
) -> tuple[int, Surface, list[str]]:
    """Open the loss around a checkpoint of a run directory.

    Args:
        directory: of a run.
        checkpoint: its step; BEST: that of the best epoch; None: the newest.
        examples: of the training set, drawn at random; None: 2,000, or all where there are fewer.
        batch_size: examples at a time.
        seed: of the draw.
        regularized: add the run's own costs of the parameters (l2_regularization, ...).

    Returns:
        The checkpoint's step; the surface around it; warnings of the data set, and of each newer
        checkpoint that is damaged.

    Raises:
        RunDirectoryError, ConfigError, ModelError, DataError, CheckpointError, SharpnessError:
            one line each.
    """
    _, experiment, restored, warnings = open_run(directory, checkpoint, change=exact)
    surface_of = surfaces(experiment, examples, batch_size, seed, regularized)
    return restored.step, surface_of(restored.state), warnings


def exact(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return a copy that computes in float32: curvature is nothing that bfloat16 resolves."""
    new = config.copy_and_resolve_references()
    new.precision = "float32"
    return new


def surfaces(
    experiment: Experiment,
    examples: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    regularized: bool = True,
) -> Callable[[TrainState], Surface]:
    """Return state -> surface around it, over one draw of training examples, not augmented.

    The experiment is of an `exact` config; the others are as in `open_checkpoint`.

    Raises:
        DataError: there are not so many examples.
    """
    mesh = experiment.mesh
    source = _draw(experiment.dataset, examples, seed)
    count = jax.process_count()
    batch_size = -(-min(batch_size, len(source)) // mesh.size) * mesh.size

    def batches() -> Iterator[Any]:
        host = ds_pipeline.evaluation_batches(source, batch_size, jax.process_index(), count)
        return (shard_batch(batch, mesh) for batch in host)

    products = build_products(
        experiment.model.apply,
        experiment.objective,
        experiment.regularize if regularized else None,
        experiment.abstract_state.params,
        model.cpu.compiler_options(mesh.devices.flat[0].platform),
    )

    def whole(tree: Any) -> Any:
        return replicate(tree, mesh)

    def surface(state: TrainState) -> Surface:
        flat = flatten(whole(state.params))
        return Surface(products, flat, state.model_state, batches, len(source), whole)

    return surface


def build_probe(
    config: ml_collections.ConfigDict, experiment: Experiment
) -> Callable[[TrainState, int], dict[str, float]]:
    """Return (state, epoch) -> the sharpness that a run logs every n epochs of training.

    Args:
        config: Read are record.sharpness_every_n_epochs, gnp.r (the radius of SAM's ball; 0: 0.05)
            and seeds (of the draw of examples, the same ones each time).
        experiment: Of this config.

    Returns:
        A function that gives "sharpness/hessian_eigenvalue" (the largest),
        "sharpness/hessian_trace", "sharpness/sam_sharpness", "sharpness/gradient_norm"; nothing in
        other epochs, nor where these are not finite.
    """
    if config.precision != "float32":
        experiment = build_experiment(exact(config), experiment.dataset)
    every, seed = config.record.sharpness_every_n_epochs, config.seeds
    examples = min(PROBE_EXAMPLES, len(experiment.dataset.train))
    surface_of = surfaces(experiment, examples, seed=seed)
    settings = _PROBE._replace(radius=config.gnp.r or RADIUS, seed=seed)

    def probe(state: TrainState, epoch: int) -> dict[str, float]:
        if epoch % every:
            return {}
        try:
            values, _, _ = measure_flatness(surface_of(state), settings)
        except SharpnessError:  # it is the steps that say what is not finite
            return {}
        found = {
            "hessian_eigenvalue": values["hessian_eigenvalues"][0],
            **{name: values[name] for name in ("hessian_trace", "sam_sharpness", "gradient_norm")},
        }
        return {f"sharpness/{name}": v for name, v in found.items() if v is not None}

    return probe


def write_results(
    values: Mapping[str, Any],
    folder: Path,
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
) -> list[str]:
    """Write a checkpoint's numbers and pictures; return the names of the files.

    Args:
        values: with its step. sharpness.json keeps those of other steps.
        folder: where.
        arrays: for sharpness.npz and the pictures, which hold the checkpoint measured last.

    Raises:
        FileFormatError, OSError: a file cannot be read or written.
    """
    path = folder / "sharpness.json"
    others = [each for each in read_results(path) if each["step"] != values["step"]]
    written = [path.name]
    if arrays is not None:
        write_npz(folder / "sharpness.npz", {"step": np.int64(values["step"]), **arrays})
        written.append("sharpness.npz")
    write_json(path, sorted([*others, dict(values)], key=lambda each: each["step"]))
    return written + (draw(values, arrays, folder) if arrays is not None else [])


def _draw(dataset: ds_pipeline.Dataset, examples: int | None, seed: int) -> ds_pipeline.Source:
    there = len(dataset.train)
    if examples is None:
        examples = min(DEFAULT_EXAMPLES, there)
    if not 1 <= examples <= there:
        raise ds_pipeline.DataError(
            f"--examples={examples}: '{dataset.name}' has {there} training examples here; ask for "
            f"1 to {there}"
        )
    random = np.random.default_rng((seed, _EXAMPLES_TAG))
    chosen = np.sort(random.permutation(there)[:examples])
    return ds_pipeline.SubsetSource(dataset.train_as_evaluated, chosen)
