"""The same training steps elsewhere: optax.contrib.sam, and PyTorch with SAM.

    python -m gnp.bench.peers [--models NAME ...] [--batch_size N] [--torch_python PYTHON]
        [--torch_threads N] [--runs N] [--out FILE]

Model, batch, numbers and update (Nesterov momentum) are the same. alpha = 1 of the penalty is SAM.
optax.contrib.sam takes its steps in this process, in the same training step, so that only the
transformation differs. PyTorch runs in a process of its own, in the interpreter of another
environment, which waits while others are measured; images are channels-last, the optimizer is the
fused one. All are measured in turn; "ours over it" is the median of the ratios of our step of that
kind (plain or SAM) to this one within a run.

Before anything is timed, the parameters after a step of optax.contrib.sam must be ours, the
parameters of PyTorch's network must be as many as ours and its logits ours, and, for models
without dropout, the parameters after one of its steps, plain and SAM.
"""

import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import model
from gnp.bench.measure import (
    CIFAR_SHAPE,
    SHAPES,
    AskedProcess,
    Measure,
    R,
    Table,
    Trainer,
    about_this_machine,
    base_optimizer,
    check_models,
    command,
    half_spread,
    measure_in_turn,
    paired_ratio,
    penalized_optimizer,
    positive,
    random_batch,
    write_json,
)
from gnp.bench.step import python_of

MODELS = ("WideResNet_16_4", "ResNet18", "ViT_TI4")
# Of the logits: 1e-7 (WideResNet_10_1), 1e-6 (ViT_TI4) on the CPU; GPUs may multiply in TF32.
LOGITS_TOLERANCE = 0.02
# Of what a plain step changes; of what SAM changes in a plain step. alpha = 0.8 in place of 1
# would be 0.2 of that. Rounding is large, through batch norm and ReLU: PyTorch's step in
# float32 was 0.07 from its own in float64 (WideResNet_16_4, 32 images).
TOLERANCE = 0.15


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        model: the model's name.
        step: whose step, and which.
        milliseconds: median over the runs.
        spread: half the distance between the quartiles, in milliseconds.
        ratio: our step of that kind over this one; median over the runs.
    """

    model: str
    step: str
    milliseconds: float
    spread: float
    ratio: float


class TorchStep(AskedProcess):
    """PyTorch's steps of a model in a process of their own that waits to be asked.

    Args:
        python: interpreter of an environment with PyTorch.
        name: of the model.
        folder: holds weights.npz and batch.npz.
        threads: that it may use.

    Raises:
        SystemExit: the process does not start, or has another network.
    """

    def __init__(self, python: str, name: str, folder: Path, threads: int) -> None:
        script = Path(__file__).with_name("torch_step.py")
        files = [str(folder / file) for file in ("weights.npz", "batch.npz")]
        variables = {"CUDA_VISIBLE_DEVICES": ""} if jax.default_backend() == "cpu" else {}
        super().__init__(
            [python, str(script), name, *files, str(R), str(threads)],
            f"--torch_python: {python}",
            environment=variables,
        )
        self._folder = folder
        self.version, count = self.answer().split()
        self.parameters = int(count)

    def measure(self, kind: str) -> Measure:
        """Measure a step of kind "plain" or "sam"."""
        return lambda steps: float(self.answer(f"{kind} {steps}"))

    def outputs(self) -> np.ndarray:
        """Return the logits of the batch in evaluation."""
        self.answer(f"outputs {self._folder / 'outputs.npy'}")
        return np.load(self._folder / "outputs.npy")

    def after_step(self, kind: str) -> dict[str, np.ndarray]:
        """Return parameters and batch statistics after one step from the loaded ones, by path."""
        self.answer(f"step {kind} {self._folder / 'after.npz'}")
        return dict(np.load(self._folder / "after.npz"))


def optax_sam(name: str) -> optax.GradientTransformationExtraArgs:
    """Return optax.contrib.sam around a model's optimizer, called as our chain is."""
    inner = optax.contrib.sam(
        base_optimizer(name),
        optax.chain(optax.contrib.normalize(), optax.sgd(R)),
        opaque_mode=True,
    )

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        grad_fn: Callable[[Any], Any],
        penalize: bool = True,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del penalize, extra_args
        return inner.update(updates, state, params, grad_fn=lambda params, _: grad_fn(params))

    return optax.GradientTransformationExtraArgs(inner.init, update)


def by_path(*trees: Any) -> dict[str, np.ndarray]:
    """Return the arrays of pytrees of dicts by their paths.

    Example:
        >>> list(by_path({"head": {"bias": jnp.zeros(2)}}))
        ['head/bias']
    """
    return {
        "/".join(str(key.key) for key in path): np.array(leaf)  # a copy: steps donate
        for tree in trees
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def difference(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
) -> float:
    """Return the distance to parameters after a step, over that to those of another step.

    The difference is the root of the sum of squares over all arrays.

    Args:
        ours: path -> array after our step.
        theirs: path -> array after theirs; these arrays are compared.
        other: path -> array after a step that theirs must not be confused with.

    Example:
        >>> difference({"a": np.array(3.0)}, {"a": np.array(3.5)}, {"a": np.array(1.0)})
        0.25
    """

    def between(values: Mapping[str, np.ndarray]) -> float:
        squares = (float(np.square(ours[path] - values[path]).sum()) for path in theirs)
        return math.sqrt(sum(squares))

    return between(theirs) / between(other)


class Ours(NamedTuple):
    """Our steps of a model, optax's among them, and their numbers before anything is measured.

    Attributes:
        measures: step -> measure.
        before: path -> array of the parameters.
        statistics: path -> array of the batch statistics, before too.
        after: "plain", "sam" and "optax" -> the parameters after a step.
    """

    measures: dict[str, Measure]
    before: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    after: dict[str, dict[str, np.ndarray]]

    def variables(self) -> dict[str, Any]:
        """Return what the module is applied to."""
        kinds = {"params": self.before, "batch_stats": self.statistics}
        return {
            kind: traverse_util.unflatten_dict(values, sep="/") for kind, values in kinds.items()
        }


def our_steps(name: str, batch_size: int) -> Ours:
    """Compile and take a step of each kind.

    Args:
        name: of the model.
        batch_size: examples in a batch.
    """
    trainers = {
        "plain": Trainer(name, batch_size, base_optimizer(name)),
        "sam": Trainer(name, batch_size, penalized_optimizer(name, alpha=1.0)),
        "optax": Trainer(name, batch_size, optax_sam(name)),
    }
    state = trainers["plain"].state
    before, statistics = by_path(state.params), by_path(*state.model_state.values())
    measures: dict[str, Measure] = {}
    after = {}
    for kind, trainer in trainers.items():
        measures[kind] = trainer.cycle(kind != "plain")
        trainer.run((kind != "plain",), 1)
        after[kind] = by_path(trainer.state.params)
    return Ours(measures, before, statistics, after)


def check_optax(name: str, ours: Ours) -> None:
    """Check that optax's SAM takes our step.

    Raises:
        SystemExit: it does not.
    """
    _check(
        f"{name}: the parameters after a step of optax.contrib.sam",
        difference(ours.after["sam"], ours.after["optax"], ours.after["plain"]),
    )


def check_torch(name: str, batch_size: int, torch: TorchStep, ours: Ours) -> None:
    """Check that PyTorch's network is ours, and takes our steps.

    Raises:
        SystemExit: it is not, or does not.
    """
    count = sum(value.size for value in ours.before.values())
    if torch.parameters != count:
        sys.exit(f"{name} has {count:,} parameters, in PyTorch {torch.parameters:,}")
    module = model.get_model(name, num_classes=10)
    images = random_batch(batch_size, SHAPES.get(name, CIFAR_SHAPE))["input"]
    logits = np.asarray(jax.jit(partial(module.apply, train=False))(ours.variables(), images))
    nothing = {"": np.zeros_like(logits)}
    _check(
        f"{name}: the logits of PyTorch's network",
        difference({"": logits}, {"": torch.outputs()}, nothing),
        LOGITS_TOLERANCE,
    )
    if getattr(module, "dropout_rate", 0.0) > 0:
        return
    for kind, other in (("plain", ours.before), ("sam", ours.after["plain"])):
        after = torch.after_step(kind)
        _check(
            f"{name}: the parameters after a {kind} step of PyTorch",
            difference(ours.after[kind], {path: after[path] for path in other}, other),
        )


def _check(what: str, found: float, tolerance: float = TOLERANCE) -> None:
    if not found < tolerance:
        sys.exit(f"{what} differ from ours by {found:.2g}, above {tolerance:g}")


def measure(
    name: str, batch_size: int, runs: int, python: str | None, threads: int
) -> tuple[list[Row], str | None]:
    """Return the lines of a model, and PyTorch's version.

    Args:
        name: of the model.
        batch_size: examples in a batch.
        runs: measurements of each step.
        python: interpreter with PyTorch; None: without it.
        threads: that PyTorch may use.

    Raises:
        SystemExit: the steps are not the same.
    """
    ours = our_steps(name, batch_size)
    check_optax(name, ours)
    if python is None:
        return _rows(name, measure_in_turn(ours.measures, runs)), None
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        np.savez(folder / "weights.npz", **ours.before, **ours.statistics)  # type: ignore[arg-type]
        np.savez(folder / "batch.npz", **random_batch(batch_size, SHAPES.get(name, CIFAR_SHAPE)))  # type: ignore[arg-type]
        torch = TorchStep(python, name, folder, threads)
        check_torch(name, batch_size, torch, ours)
        theirs = {f"torch {kind}": torch.measure(kind) for kind in ("plain", "sam")}
        seconds = measure_in_turn({**ours.measures, **theirs}, runs)
        torch.close()
    return _rows(name, seconds), torch.version


def _rows(name: str, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    return [
        Row(
            name,
            step,
            1e3 * statistics.median(values),
            1e3 * half_spread(values),
            paired_ratio(seconds["plain" if step.endswith("plain") else "sam"], values),
        )
        for step, values in seconds.items()
    ]


def table(rows: Sequence[Row]) -> Table:
    """Return the rows.

    Example:
        >>> print(table([Row("ResNet18", "torch sam", 800.0, 4.0, 1.25)]).text())
        model     step          ms   +-  ours over it
        ResNet18  torch sam  800.0  4.0         1.250
    """
    head = ("model", "step", "ms", "+-", "ours over it")
    lines = [
        (r.model, r.step, f"{r.milliseconds:.1f}", f"{r.spread:.1f}", f"{r.ratio:.3f}")
        for r in rows
    ]
    return Table(head, lines, 2)


def bench(
    names: Sequence[str], batch_size: int, runs: int, python: str | None, threads: int
) -> dict[str, Any]:
    """Measure every model, print the table, and return what --out holds.

    Args:
        names: models.
        batch_size: examples in a batch.
        runs: measurements of each step.
        python: interpreter with PyTorch; None: without it.
        threads: that PyTorch may use.
    """
    rows: list[Row] = []
    version = None
    for name in names:
        lines, version = measure(name, batch_size, runs, python, threads)
        rows += lines
    print(table(rows).text())
    if not python:
        print("PyTorch was not measured: give --torch_python or set GNP_TORCH_VENV")
    return {
        **about_this_machine(),
        "optax": optax.__version__,
        "torch": version,
        "torch_threads": threads,
        "batch_size": batch_size,
        "dtype": "float32",
        "runs": runs,
        "r": R,
        "rows": [row._asdict() for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the JSON file."""
    parser = command("peers", __doc__, runs=15)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch_size", type=positive, default=64)
    parser.add_argument(
        "--torch_python",
        default=python_of(os.environ.get("GNP_TORCH_VENV")),
        help="interpreter of an environment with PyTorch (default: GNP_TORCH_VENV's)",
    )
    parser.add_argument("--torch_threads", type=positive, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    check_models(parser, options.models, jnp.float32)
    result = bench(
        options.models,
        options.batch_size,
        options.runs,
        options.torch_python,
        options.torch_threads,
    )
    write_json(options.out, "peers", result)


if __name__ == "__main__":
    main()
