"""Common to the benchmarks: compiled steps, measurements in turn, processes, tables, JSON."""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

import model
from gnp.analysis.command_line import local_path
from gnp.training.gradients import build_gradient, build_loss, grouped, penalized
from gnp.training.mesh import WHOLE, build_mesh, replicate, shard_batch
from gnp.training.objective import build_objective
from gnp.training.regularizer import Regularizer
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_train_step
from optimizer import gradient_norm_penalty, penalized_gradient

R, ALPHA = 0.05, 0.8
TUTORIAL = "MnistTutorialCNN"
SHAPES = {TUTORIAL: (28, 28, 1), "DigitsCNN": (8, 8, 1)}
CIFAR_SHAPE = (32, 32, 3)
# A measurement lasts about this long, and at most so many steps.
MEASUREMENT_SECONDS, MOST_STEPS = 0.2, 20

Measure = Callable[[int], float]
P = ParamSpec("P")
T = TypeVar("T")


class Trainer:
    """A model's train steps with a state of their own, each compiled when it is first needed.

    Args:
        name: Of the model.
        batch_size: Examples in a batch, over all devices.
        optimizer: The chain.
        regularize: As in `build_loss`.
        keep_gradients: As in `build_train_step`.
        dtype: Of the model's computation.
        group_size: Examples of a group with a perturbation of its own; None: one for the batch.
        mesh: The devices; None: the first one.
        steps_per_call: Steps that one call of the compiled program takes, a batch each.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        optimizer: optax.GradientTransformationExtraArgs,
        *,
        regularize: Regularizer | None = None,
        keep_gradients: bool = False,
        dtype: Any = jnp.float32,
        group_size: int | None = None,
        mesh: Mesh | None = None,
        steps_per_call: int = 1,
    ) -> None:
        shape = SHAPES.get(name, CIFAR_SHAPE)
        net = from_linen(model.get_model(name, num_classes=10, dtype=dtype), lambda x: x, shape)
        self._mesh = mesh or first_devices(1)

        def initial_state(key: jax.Array) -> TrainState:
            params, model_state = net.initialize(key)
            return TrainState(params, model_state, optimizer.init(params))

        self.state = replicate(jax.jit(initial_state)(jax.random.key(0)), self._mesh)
        batch = shard_batch(_share(random_batch(batch_size, shape)), self._mesh)
        self.steps_per_call = steps_per_call
        self._batch = batch if steps_per_call == 1 else _stacked(batch, steps_per_call)
        self._key, self._step = jax.random.key(1), np.int32(1)
        objective = build_objective("softmax_cross_entropy")
        self._gradient = build_gradient(build_loss(net.apply, objective, regularize))
        self._optimizer, self._group_size = optimizer, group_size
        self._keep_gradients = keep_gradients
        self._programs: dict[bool, Any] = {}

    def cycle(self, *penalize: bool) -> "Cycle":
        """Return steps taken over and over, penalized or plain; compile what is missing.

        Args:
            penalize: of each step of a cycle.
        """
        for each in penalize:
            if each not in self._programs:
                with jax.set_mesh(self._mesh):
                    lowered = self._jitted(each).lower(*self._arguments())
                self._programs[each] = lowered.compile()
        return Cycle(self, penalize)

    def run(self, penalize: Sequence[bool], cycles: int) -> None:
        """Take steps, and wait for the last."""
        programs = [self._programs[each] for each in penalize]
        metrics = None
        for _ in range(cycles):
            for program in programs:
                self.state, metrics = program(self.state, self._batch, self._key, self._step)
        jax.block_until_ready((self.state, metrics))

    def memory(self, penalize: bool) -> Mapping[str, int]:
        """Return what the compiled step holds at most, in bytes, as XLA says.

        "arguments" (state and batch), "outputs" (the new state, metrics), "aliased" (outputs that
        take the place of arguments), "temporaries", and "peak", which is the sum of these.
        """
        sizes: Any = self._programs[penalize].memory_analysis()
        held = {
            "arguments": sizes.argument_size_in_bytes,
            "outputs": sizes.output_size_in_bytes,
            "aliased": -sizes.alias_size_in_bytes,
            "temporaries": sizes.temp_size_in_bytes,
        }
        return {**held, "peak": sum(held.values())}

    def flops(self) -> float:
        """Count the operations of the plain step."""
        return count_flops(self._jitted(False), *self._arguments())

    def _arguments(self) -> tuple[Any, ...]:
        return self.state, self._batch, self._key, self._step

    def _jitted(self, penalize: bool) -> Any:
        gradient = self._gradient
        if self._group_size:
            if penalize:
                gradient = penalized(gradient, partial(penalized_gradient, r=R, alpha=ALPHA))
            gradient = grouped(gradient, self._group_size)
        step = build_train_step(
            lambda _: gradient,
            self._optimizer,
            penalize=penalize,
            keep_gradients=self._keep_gradients,
        )
        if self.steps_per_call > 1:
            step = _several(step, self.steps_per_call)
        options = model.cpu.compiler_options(self._mesh.devices.flat[0].platform)
        # As in a run: the state stays where it is.
        whole = NamedSharding(self._mesh, WHOLE)
        return jax.jit(step, donate_argnums=0, out_shardings=whole, compiler_options=options)


def count_flops(function: Any, *arguments: Any) -> float:
    """Count the operations of a jitted function, by XLA, before its program is optimized.

    Counted for the CPU, whatever device there is, as the plugins of others count nothing
    (https://github.com/jax-ml/jax/issues/22713).

    Args:
        function: what `jax.jit` returned.
        arguments: arrays or their shapes.

    Example:
        >>> x = jax.ShapeDtypeStruct((10, 20), jnp.float32)
        >>> count_flops(jax.jit(lambda x: x @ x.T), x)
        4000.0
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        sys.exit(f"JAX_PLATFORMS={platforms}: add ,cpu to it, as FLOPs are counted there")
    with jax.default_device(cpu):
        return float(function.lower(*shapes).cost_analysis()["flops"])


class Cycle:
    """Steps of a `Trainer` that are taken over and over; called, it measures them.

    Args:
        trainer: has compiled them.
        penalize: of each step of a cycle.
    """

    def __init__(self, trainer: Trainer, penalize: Sequence[bool]) -> None:
        self.trainer, self.penalize = trainer, tuple(penalize)

    def __call__(self, steps: int) -> float:
        """Time a step over whole cycles of at least so many steps, after one not counted."""
        length = len(self.penalize) * self.trainer.steps_per_call
        cycles = math.ceil(steps / length)
        self.trainer.run(self.penalize[:1], 1)
        start = time.perf_counter()
        self.trainer.run(self.penalize, cycles)
        return (time.perf_counter() - start) / (cycles * length)

    @property
    def memory_bytes(self) -> int:
        """The most that the first step of a cycle holds: state, batch, results and temporaries."""
        return self.trainer.memory(self.penalize[0])["peak"]


class AskedProcess:
    """Another process that prints a first line when it is ready and then answers questions.

    Args:
        command: its program and arguments.
        name: what the user knows it by: a flag with its value.
        advice: for the error message, where it ends early.
        environment: variables that are set beside this process' own.

    Raises:
        SystemExit: it does not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        advice: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name, self._advice = name, advice
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            self._errors.close()
            sys.exit(f"{name} does not start: {error.strerror}")

    def ask(self, question: str) -> None:
        """Send a line."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            print(question, file=self._process.stdin, flush=True)

    def answer(self, question: str | None = None) -> str:
        """Send a line, if there is one, and read one.

        Raises:
            SystemExit: the process ended.
        """
        assert self._process.stdout
        if question is not None:
            self.ask(question)
        answer = self._process.stdout.readline().strip()
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            why = [text for text in (said[-1] if said else "", self._advice) if text]
            sys.exit(": ".join([f"{self._name} ended without an answer", *why]))
        return answer

    def leave(self) -> None:
        """Let the process end, and do not wait for it."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self) -> None:
        """End the process, by force where it does not end by itself."""
        assert self._process.stdout
        self.leave()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def first_devices(count: int) -> Mesh:
    """Return a mesh of the first devices.

    Example:
        >>> first_devices(1).size
        1
    """
    return build_mesh(devices=jax.devices()[:count])


def random_batch(batch_size: int, shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Draw noise with labels.

    Args:
        batch_size: number of examples.
        shape: of one image.

    Example:
        >>> random_batch(4, (8, 8, 1))["input"].shape
        (4, 8, 8, 1)
    """
    draw = np.random.default_rng(0)
    return {
        "input": draw.normal(size=(batch_size, *shape)).astype(np.float32),
        "label": draw.integers(0, 10, batch_size).astype(np.int32),
    }


def base_optimizer(name: str) -> optax.GradientTransformationExtraArgs:
    """Return a model's optimizer: the tutorial's CNN has Adam, others Nesterov momentum."""
    base = optax.adam(1e-3) if name == TUTORIAL else optax.sgd(1e-3, 0.9, nesterov=True)
    return optax.with_extra_args_support(base)


def penalized_optimizer(name: str, alpha: float = ALPHA) -> optax.GradientTransformationExtraArgs:
    """Return the same with the penalty before it.

    Args:
        name: of the model.
        alpha: of the penalty; 1 is SAM.
    """
    return optax.chain(gradient_norm_penalty(R, alpha), base_optimizer(name))


def measure_in_turn(steps: Mapping[str, Measure], runs: int) -> dict[str, list[float]]:
    """Return each step's seconds in each run; all are measured once a run, one after another.

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
    return in_turn({name: partial(steps[name], count) for name, count in counts.items()}, runs)


def in_turn(measures: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Return each function's values in each run; all are called once a run, one after another.

    Args:
        measures: name -> function.
        runs: how often; each run starts with another one than the one before.

    Example:
        >>> in_turn({"a": lambda: 1.0, "b": lambda: 2.0}, runs=2)
        {'a': [1.0, 1.0], 'b': [2.0, 2.0]}
    """
    values: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    with tqdm(total=runs * len(names), desc="measuring", leave=False) as bar:
        for run in range(runs):
            first = run % max(len(names), 1)
            for name in names[first:] + names[:first]:
                values[name].append(measures[name]())
                bar.update()
    return values


def paired_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios within a run.

    Example:
        >>> paired_ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def half_spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles.

    Example:
        >>> half_spread([1.0, 2.0, 3.0])
        0.5
    """
    low, high = np.percentile(values, [25, 75])
    return float(high - low) / 2


class Table(NamedTuple):
    """Cells of text.

    Attributes:
        head: names of the columns.
        lines: a text for each column.
        left: columns, from the first on, that are aligned to the left.

    Example:
        >>> table = Table(("model", "ms"), [("DigitsCNN", "1.25")])
        >>> print(table.text())
        model        ms
        DigitsCNN  1.25
        >>> print(table.markdown())
        | model | ms |
        | --- | ---: |
        | DigitsCNN | 1.25 |
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: int = 1

    def text(self) -> str:
        """Return aligned columns."""
        all_lines = [self.head, *self.lines]
        widths = [max(len(line[i]) for line in all_lines) for i in range(len(self.head))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in all_lines
        )

    def markdown(self) -> str:
        """Return a table of Markdown."""
        rule = ["---" if i < self.left else "---:" for i in range(len(self.head))]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.head, rule, *self.lines))


def about_this_machine() -> dict[str, Any]:
    """Return what figures depend on: backend, device, cores and jax's version.

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


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a new Python, which has compiled nothing yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        try:
            return alone.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            sys.exit(f"the process that measures {args} ended early: is there memory enough?")


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables that processes started inside have, and this one again has not."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def command(
    name: str, doc: str | None, runs: int | None = None, out: bool = True
) -> argparse.ArgumentParser:
    """Build a benchmark's command line, with the flags --runs and --out.

    Args:
        name: of the module in gnp.bench.
        doc: its docstring.
        runs: default of --runs; None: there is no such flag.
        out: whether there is --out.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m gnp.bench.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if runs is not None:
        parser.add_argument("--runs", type=positive, default=runs, help="measurements of each")
    if out:
        parser.add_argument("--out", type=local_path, help="JSON file to write")
    return parser


def add_models(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add the flags --models, --batch_size and --dtype.

    Args:
        parser: of a benchmark.
        names: the default of --models.
    """
    parser.add_argument("--models", nargs="+", default=list(names))
    parser.add_argument("--batch_size", type=positive, default=64)
    parser.add_argument("--dtype", choices=model.PRECISIONS, default="float32")


def positive(text: str) -> int:
    """Parse a whole number of at least 1, for argparse.

    Example:
        >>> positive("3")
        3
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def step_name(text: str) -> str:
    """Return text with steps named as they are now; earlier versions spelled "penalised"."""
    return text.replace("penalised", "penalized")


def write_json(out: Path | None, bench: str, result: Mapping[str, Any]) -> None:
    """Write a benchmark's result, with its name, where a file is asked for.

    Raises:
        SystemExit: the file cannot be written.
    """
    if out is None:
        return
    try:
        out.write_text(json.dumps({"bench": bench, **result}, indent=2) + "\n")
    except OSError as error:
        sys.exit(f"--out={out}: {error.strerror}")


def check_models(parser: argparse.ArgumentParser, names: Sequence[str], dtype: Any) -> None:
    """End the command where a name is of no model, or not of one in this dtype."""
    for name in names:
        try:
            model.get_model(name, num_classes=10, dtype=dtype)
        except model.ModelError as error:
            parser.error(str(error))


def _share(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return this process' rows of a batch."""
    count, index = jax.process_count(), jax.process_index()
    return {key: np.split(value, count)[index] for key, value in batch.items()}


def _stacked(batch: Any, count: int) -> Any:
    return jax.jit(lambda batch: jax.tree.map(lambda x: jnp.stack([x] * count), batch))(batch)


def _several(step: Any, count: int) -> Any:
    """Scan so many steps over stacked batches; the metrics are the last one's."""

    def call(state: Any, batches: Any, key: jax.Array, number: jax.Array) -> tuple[Any, Any]:
        def body(state: Any, each: Any) -> tuple[Any, Any]:
            batch, offset = each
            return step(state, batch, key, number + offset)

        state, metrics = jax.lax.scan(body, state, (batches, jnp.arange(count)))
        return state, jax.tree.map(lambda x: x[-1], metrics)

    return call
