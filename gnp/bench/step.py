"""Seconds of a training step: plain, penalised, in zero warmup, and TensorFlow's beside them.

    python -m gnp.bench.step [--models NAME ...] [--batch_size N] [--runs N] [--out FILE]
        [--tensorflow_python PYTHON]

All steps of a model are compiled first and then measured in turn, run after run, so that what
else happens on the machine meets all of them alike. Times are medians over the runs; a ratio is
the median of the ratios within a run.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import model
from gnp.training.objective import build_objective
from gnp.training.regularizer import Regularizer
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_train_step
from optimizer import gradient_norm_penalty, record_gradient_evolution

R, ALPHA = 0.05, 0.8
TUTORIAL = "MnistTutorialCNN"
SHAPES = {TUTORIAL: (28, 28, 1), "DigitsCNN": (8, 8, 1)}
CIFAR_SHAPE = (32, 32, 3)
# A measurement lasts about this long, and at most so many steps.
MEASUREMENT_SECONDS, MOST_STEPS = 0.2, 20

Measure = Callable[[int], float]


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        model: the model's name.
        step: what was measured.
        milliseconds: median over the runs.
        spread: half the distance between the quartiles, in milliseconds.
        ratio: to the model's plain step; median over the runs.
        compile_seconds: of our own steps.
    """

    model: str
    step: str
    milliseconds: float
    spread: float
    ratio: float
    compile_seconds: float | None


class CompiledStep:
    """A compiled training step with its own state, and how long it took to compile.

    Args:
        name: of the model.
        batch_size: examples in a batch.
        optimizer: the chain.
        penalize: as in `build_train_step`.
        regularize: likewise.
        record: likewise.
        record_steps: likewise.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        optimizer: optax.GradientTransformationExtraArgs,
        penalize: bool,
        regularize: Regularizer | None = None,
        record: bool = False,
        record_steps: bool = False,
    ) -> None:
        shape = SHAPES.get(name, CIFAR_SHAPE)
        initialise, apply = from_linen(model.get_model(name, num_classes=10), lambda x: x, shape)
        objective = build_objective("softmax_cross_entropy")

        def initial_state(key: jax.Array) -> TrainState:
            params, model_state = initialise(key)
            opt_state = optimizer.init(params)
            if record:
                opt_state = (opt_state, record_gradient_evolution().init(params))
            return TrainState(params, model_state, opt_state)

        self._state = jax.jit(initial_state)(jax.random.key(0))
        self._batch = random_batch(batch_size, shape)
        self._key, self._number = jax.random.key(1), jnp.int32(1)
        step = build_train_step(
            apply,
            objective,
            optimizer,
            penalize=penalize,
            regularize=regularize,
            record=record,
            record_steps=record_steps,
        )
        start = time.perf_counter()
        compiled = jax.jit(step, donate_argnums=0, compiler_options=model.compiler_options())
        self._step = compiled.lower(self._state, self._batch, self._key, self._number).compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self, steps: int) -> float:
        """Seconds a step, over a number of steps after one that is not counted."""
        self._run(1)
        start = time.perf_counter()
        self._run(steps)
        return (time.perf_counter() - start) / steps

    @property
    def memory_bytes(self) -> int:
        """What the step holds at most: state, batch, results and what it needs in between."""
        sizes: Any = self._step.memory_analysis()
        held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        return held - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch, self._key, self._number)
            jax.block_until_ready(metrics)


class TensorflowStep:
    """The tutorial CNN's step in TensorFlow, in a process of its own that waits to be asked.

    Args:
        python: interpreter of an environment with TensorFlow.
        batch_size: examples in a batch.

    Raises:
        SystemExit: the process does not start.
    """

    def __init__(self, python: str, batch_size: int) -> None:
        self._python = python
        script = Path(__file__).with_name("tensorflow_step.py")
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        if jax.default_backend() == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        try:
            self._process = subprocess.Popen(
                [python, str(script), str(batch_size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
        except OSError as error:
            sys.exit(f"--tensorflow_python: {python} does not start: {error.strerror}")
        self.version = self._answer()

    def measure(self, kind: str) -> Measure:
        """Seconds a step of kind "graph" (tf.function) or "eager" (GradientTape as it stands)."""
        return lambda steps: float(self._answer(f"{kind} {steps}"))

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self, question: str | None = None) -> str:
        assert self._process.stdin and self._process.stdout
        try:
            if question is not None:
                print(question, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            sys.exit(
                f"--tensorflow_python: {self._python} ended without an answer: "
                "has this environment TensorFlow?"
            )
        return answer


def random_batch(batch_size: int, shape: Sequence[int]) -> dict[str, jax.Array]:
    """Noise with labels.

    Args:
        batch_size: number of examples.
        shape: of one image.

    Example:
        >>> random_batch(4, (8, 8, 1))["input"].shape
        (4, 8, 8, 1)
    """
    draw = np.random.default_rng(0)
    return {
        "input": jnp.asarray(draw.normal(size=(batch_size, *shape)), jnp.float32),
        "label": jnp.asarray(draw.integers(0, 10, batch_size), jnp.int32),
    }


def our_steps(name: str, batch_size: int) -> dict[str, CompiledStep]:
    """The steps of a model: without a penalty in the chain, with it, and with it in zero warmup.

    Args:
        name: of the model; the tutorial's CNN is trained by Adam, others by Nesterov momentum.
        batch_size: examples in a batch.
    """
    base = optax.adam(1e-3) if name == TUTORIAL else optax.sgd(1e-3, 0.9, nesterov=True)
    plain = optax.with_extra_args_support(base)
    penalised = optax.chain(gradient_norm_penalty(R, ALPHA), base)
    return {
        "plain": CompiledStep(name, batch_size, plain, penalize=False),
        "penalised": CompiledStep(name, batch_size, penalised, penalize=True),
        "zero warmup": CompiledStep(name, batch_size, penalised, penalize=False),
    }


def measure_in_turn(steps: Mapping[str, Measure], runs: int) -> dict[str, list[float]]:
    """Seconds of each step in each run; all are measured once a run, one after the other.

    Args:
        steps: name -> function of a number of steps that returns seconds a step.
        runs: how often; each run starts with another step than the one before.

    Example:
        >>> times = measure_in_turn({"a": lambda steps: 1.0, "b": lambda steps: 2.0}, runs=3)
        >>> times["b"]
        [2.0, 2.0, 2.0]
    """
    counts = {
        name: max(1, min(MOST_STEPS, round(MEASUREMENT_SECONDS / measure(1))))
        for name, measure in steps.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for run in range(runs):
        first = run % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(steps[name](counts[name]))
    return seconds


def summarise(
    name: str, seconds: Mapping[str, Sequence[float]], compile_seconds: Mapping[str, float]
) -> list[Row]:
    """Medians, spreads and paired ratios to the plain step.

    Args:
        name: of the model.
        seconds: step -> seconds in each run; "plain" is among them.
        compile_seconds: step -> seconds, for those that were compiled here.

    Example:
        >>> summarise("m", {"plain": [1.0, 2.0], "penalised": [2.0, 4.0]}, {})[1].ratio
        2.0
    """
    rows = []
    for step, values in seconds.items():
        quartiles = np.percentile(values, [25, 75])
        rows.append(
            Row(
                name,
                step,
                1e3 * statistics.median(values),
                1e3 * float(quartiles[1] - quartiles[0]) / 2,
                statistics.median(
                    value / plain for value, plain in zip(values, seconds["plain"], strict=True)
                ),
                compile_seconds.get(step),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text.

    Example:
        >>> print(table([Row("DigitsCNN", "plain", 1.25, 0.1, 1.0, None)]))
        model      step      ms    +-  ratio  compile s
        DigitsCNN  plain   1.25  0.10  1.000          -
    """
    head = ("model", "step", "ms", "+-", "ratio", "compile s")
    lines = [
        (
            row.model,
            row.step,
            f"{row.milliseconds:.2f}",
            f"{row.spread:.2f}",
            f"{row.ratio:.3f}",
            "-" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    widths[2] = max(widths[2], 6)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *lines]
    )


def about_this_machine() -> dict[str, Any]:
    """What figures depend on: backend, device, cores and jax's version.

    Example:
        >>> sorted(about_this_machine())
        ['backend', 'cores', 'device', 'jax', 'machine']
    """
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def bench(names: Sequence[str], batch_size: int, runs: int, python: str | None) -> dict[str, Any]:
    """Measures every step of every model, prints the table, and returns what --out holds.

    Args:
        names: models.
        batch_size: examples in a batch.
        runs: measurements of each step.
        python: interpreter with TensorFlow, for the tutorial's CNN; None: without it.
    """
    about = {
        **about_this_machine(),
        "tensorflow": None,
        "batch_size": batch_size,
        "runs": runs,
        "r": R,
        "alpha": ALPHA,
    }
    rows: list[Row] = []
    for name in names:
        ours = our_steps(name, batch_size)
        measures: dict[str, Measure] = dict(ours)
        tensorflow = TensorflowStep(python, batch_size) if python and name == TUTORIAL else None
        if tensorflow:
            about["tensorflow"] = tensorflow.version
            measures["TensorFlow tf.function"] = tensorflow.measure("graph")
            measures["TensorFlow eager"] = tensorflow.measure("eager")
        seconds = measure_in_turn(measures, runs)
        if tensorflow:
            tensorflow.close()
        rows += summarise(
            name, seconds, {step: compiled.compile_seconds for step, compiled in ours.items()}
        )
    print(table(rows))
    if TUTORIAL in names and not python:
        print("TensorFlow was not measured: give --tensorflow_python or set GNP_TF_VENV")
    return {**about, "rows": [row._asdict() for row in rows]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures, writes the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", default=["WideResNet_16_4", TUTORIAL])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--tensorflow_python",
        default=_python_of(os.environ.get("GNP_TF_VENV")),
        help="interpreter of an environment with TensorFlow (default: GNP_TF_VENV's)",
    )
    options = parser.parse_args(arguments)
    if min(options.batch_size, options.runs) < 1:
        parser.error("--batch_size and --runs must be at least 1")
    try:
        result = bench(options.models, options.batch_size, options.runs, options.tensorflow_python)
    except model.ModelError as error:
        parser.error(str(error))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def _python_of(environment: str | None) -> str | None:
    return str(Path(environment) / "bin" / "python") if environment else None


if __name__ == "__main__":
    main()
