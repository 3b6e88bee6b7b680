"""Time of a training step: plain, penalized, and every variant of the penalty.

    python -m gnp.bench.step [--models NAME ...] [--steps NAME ...] [--batch_size N]
        [--dtype float32|bfloat16] [--steps_per_call N] [--runs N] [--first_call [NAME ...]]
        [--tensorflow_python PYTHON] [--out FILE]

The steps of a model are compiled first and then measured in turn, run after run, so that what else
happens on the machine meets all of them alike. Times are medians over the runs, of a step in a
cycle of them: every_5 and looksam_5 are one penalized step and four plain ones, hybrid (p = 0.5) is
one of each. A ratio is the median of those to the plain step within a run. zero_warmup is the plain
step of the penalized chain. m_N has groups of N examples, half of a batch, each with a perturbation
of its own.

"first call s" is the first call of a compiled step, until its result is there: tracing, compilation
without a cache, and the step. Each is measured in a fresh process.

Where the device's peak is known, "used" is the model's FLOPs over the time and the peak. They are
what XLA counts in the program of the plain step before it is optimized, forward, backward and
update, times the gradients of a step: 1, 2 for a penalized one (by hvp too), 1.2 where each fifth
step is penalized.

--steps_per_call=N adds steps plain_N and penalized_N of which one call takes N, in a scan over N
batches. That helps small models on accelerators. On the CPU, where XLA runs convolutions 4 to 8
times slower inside a scan, it is measured all the same.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from tqdm import tqdm

import model
from gnp.bench.measure import (
    ALPHA,
    TUTORIAL,
    AskedProcess,
    Measure,
    R,
    Table,
    Trainer,
    about_this_machine,
    add_models,
    base_optimizer,
    check_models,
    command,
    environment,
    half_spread,
    in_fresh_process,
    measure_in_turn,
    paired_ratio,
    positive,
    step_name,
    write_json,
)
from gnp.bench.peaks import peak_flops
from optimizer import gradient_norm_penalty, looksam

MODELS = ("WideResNet_16_4", "ResNet18", "ViT_TI4", TUTORIAL)
_GNP = functools.partial(gradient_norm_penalty, R, ALPHA)
# What comes before the base optimizer.
_PENALTIES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "none": optax.identity,
    "gnp": _GNP,
    "looksam": lambda: looksam(_GNP(), 0.7),
    "normalize": lambda: _GNP(normalize=True),
    "adaptive": lambda: _GNP(adaptive=True),
    "hvp": lambda: _GNP(method="hvp"),
    "groups": _GNP,
}


class Variant(NamedTuple):
    """A kind of step.

    Attributes:
        penalty: one of those above.
        penalize: of each step of a cycle.
    """

    penalty: str
    penalize: tuple[bool, ...]

    @property
    def gradients(self) -> float:
        """Gradients of a step, on average."""
        return 1 + statistics.fmean(self.penalize)


_ONE_IN_FIVE = (True, False, False, False, False)
VARIANTS = {
    "plain": Variant("none", (False,)),
    "penalized": Variant("gnp", (True,)),
    "zero_warmup": Variant("gnp", (False,)),
    "every_5": Variant("gnp", _ONE_IN_FIVE),
    "looksam_5": Variant("looksam", _ONE_IN_FIVE),
    "hybrid": Variant("gnp", (True, False)),
    "normalize": Variant("normalize", (True,)),
    "adaptive": Variant("adaptive", (True,)),
    "hvp": Variant("hvp", (True,)),
    "m": Variant("groups", (True,)),
}


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        model: the model's name.
        step: what was measured.
        milliseconds: a step, median over the runs.
        spread: half the distance between the quartiles, in milliseconds.
        ratio: to the model's plain step; median over the runs.
        examples_per_second: at the median.
        used: share of the device's peak, or None.
        first_call_seconds: of our own steps, where it was asked for.
    """

    model: str
    step: str
    milliseconds: float
    spread: float
    ratio: float
    examples_per_second: float
    used: float | None = None
    first_call_seconds: float | None = None


class TensorflowStep(AskedProcess):
    """The tutorial CNN's step in TensorFlow, in a process of its own that waits to be asked.

    Args:
        python: interpreter of an environment with TensorFlow.
        batch_size: examples in a batch.

    Raises:
        SystemExit: the process does not start.
    """

    def __init__(self, python: str, batch_size: int) -> None:
        script = Path(__file__).with_name("tensorflow_step.py")
        variables = {"TF_CPP_MIN_LOG_LEVEL": "3"}
        if jax.default_backend() == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        super().__init__(
            [python, str(script), str(batch_size)],
            f"--tensorflow_python: {python}",
            "has this environment TensorFlow?",
            variables,
        )
        self.version = self.answer()

    def measure(self, kind: str) -> Measure:
        """Measure a step of kind "graph" (tf.function) or "eager" (GradientTape as it stands)."""
        return lambda steps: float(self.answer(f"{kind} {steps}"))


class Case(NamedTuple):
    """A model and its steps that are measured.

    Attributes:
        name: of the model.
        steps: names of VARIANTS.
        batch_size: examples in a batch.
        dtype: "float32" or "bfloat16".
        steps_per_call: 1, or so many for two more steps.
    """

    name: str
    steps: Sequence[str]
    batch_size: int
    dtype: str = "float32"
    steps_per_call: int = 1


def our_steps(case: Case) -> tuple[dict[str, Measure], dict[str, float]]:
    """Return the steps of a model, compiled, and the model's FLOPs in a step of each.

    Args:
        case: which ones; "m" is left out where the batch cannot be halved.
    """
    trainers: dict[tuple[str, int], Trainer] = {}

    def trainer(penalty: str, steps_per_call: int = 1) -> Trainer:
        key = (penalty, steps_per_call)
        if key not in trainers:
            trainers[key] = _trainer(case, penalty, steps_per_call)
        return trainers[key]

    flops = trainer("none").flops()
    steps: dict[str, Measure] = {}
    counts: dict[str, float] = {}
    for step in tqdm(case.steps, desc=f"compiling {case.name}", leave=False):
        if step == "m" and case.batch_size % 2:
            continue
        variant = VARIANTS[step]
        label = f"m_{case.batch_size // 2}" if step == "m" else step
        steps[label] = trainer(variant.penalty).cycle(*variant.penalize)
        counts[label] = flops * variant.gradients
    if case.steps_per_call > 1:
        for step in ("plain", "penalized"):
            variant, label = VARIANTS[step], f"{step}_{case.steps_per_call}"
            several = trainer(variant.penalty, case.steps_per_call)
            steps[label] = several.cycle(*variant.penalize)
            counts[label] = flops * variant.gradients
    return steps, counts


def first_call_seconds(case: Case, step: str) -> float:
    """Measure the first call of each program of a cycle, in a fresh process.

    Args:
        case: of a model.
        step: a name of VARIANTS.
    """
    variant = VARIANTS[step]
    trainer = _trainer(case, variant.penalty)
    jax.block_until_ready(trainer.state)
    start = time.perf_counter()
    programs = dict.fromkeys(variant.penalize)
    trainer.cycle(*programs)
    trainer.run(tuple(programs), 1)
    return time.perf_counter() - start


def _trainer(case: Case, penalty: str, steps_per_call: int = 1) -> Trainer:
    return Trainer(
        case.name,
        case.batch_size,
        optax.chain(_PENALTIES[penalty](), base_optimizer(case.name)),
        dtype=model.PRECISIONS[case.dtype],
        group_size=case.batch_size // 2 if penalty == "groups" else None,
        steps_per_call=steps_per_call,
    )


def summarize(
    name: str,
    seconds: Mapping[str, Sequence[float]],
    batch_size: int,
    first_calls: Mapping[str, float],
    used_a_second: Mapping[str, float],
) -> list[Row]:
    """Return medians, spreads and paired ratios to the plain step.

    Args:
        name: of the model.
        seconds: step -> seconds in each run; "plain" is among them.
        batch_size: examples in a batch.
        first_calls: step -> seconds, for those that were measured.
        used_a_second: step -> share of the peak that a step of one second would use.

    Example:
        >>> summarize("m", {"plain": [1.0, 2.0], "penalized": [2.0, 4.0]}, 6, {}, {})[1].ratio
        2.0
    """
    rows = []
    for step, values in seconds.items():
        median = statistics.median(values)
        rows.append(
            Row(
                name,
                step,
                1e3 * median,
                1e3 * half_spread(values),
                paired_ratio(values, seconds["plain"]),
                batch_size / median,
                used_a_second[step] / median if step in used_a_second else None,
                first_calls.get(step),
            )
        )
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Return the rows; columns without a number are left out.

    Example:
        >>> print(table([Row("DigitsCNN", "plain", 1.25, 0.1, 1.0, 800.0)]).text())
        model      step     ms    +-  ratio  examples/s
        DigitsCNN  plain  1.25  0.10  1.000         800
    """
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("model", lambda row: row.model),
        ("step", lambda row: row.step),
        ("ms", lambda row: f"{row.milliseconds:.2f}"),
        ("+-", lambda row: f"{row.spread:.2f}"),
        ("ratio", lambda row: f"{row.ratio:.3f}"),
        ("examples/s", lambda row: f"{row.examples_per_second:,.0f}"),
    ]
    if any(row.used is not None for row in rows):
        columns.append(("used", lambda row: "-" if row.used is None else f"{row.used:.1%}"))
    if any(row.first_call_seconds is not None for row in rows):
        columns.append(("first call s", _first_call))
    return Table([n for n, _ in columns], [[f(row) for _, f in columns] for row in rows], 2)


def _first_call(row: Row) -> str:
    return "-" if row.first_call_seconds is None else f"{row.first_call_seconds:.1f}"


def bench(
    cases: Sequence[Case], runs: int, first_calls: Sequence[str], python: str | None
) -> dict[str, Any]:
    """Measure every step of every model, print the table, and return what --out holds.

    Args:
        cases: a model each, of the same dtype and batch size.
        runs: measurements of each step.
        first_calls: the steps whose first call is measured.
        python: interpreter with TensorFlow, for the tutorial's CNN; None: without it.
    """
    # Before this process has a device: it may take all of its memory.
    with environment(JAX_ENABLE_COMPILATION_CACHE="0"):
        wanted = [(case, step) for case in cases for step in first_calls]
        calls = {
            (case.name, step): in_fresh_process(first_call_seconds, case, step)
            for case, step in tqdm(wanted, desc="first calls", leave=False)
        }
    tensorflow_version = None
    about = about_this_machine()
    peak = peak_flops(about["device"], cases[0].dtype)
    rows: list[Row] = []
    for case in cases:
        measures, flops = our_steps(case)
        tensorflow = None
        if python and case.name == TUTORIAL:
            tensorflow = TensorflowStep(python, case.batch_size)
            tensorflow_version = tensorflow.version
            measures["TensorFlow tf.function"] = tensorflow.measure("graph")
            measures["TensorFlow eager"] = tensorflow.measure("eager")
        seconds = measure_in_turn(measures, runs)
        if tensorflow:
            tensorflow.close()
        rows += summarize(
            case.name,
            seconds,
            case.batch_size,
            {step: calls[case.name, step] for step in first_calls},
            {step: count / peak for step, count in flops.items()} if peak else {},
        )
    print(table(rows).text())
    if TUTORIAL in [case.name for case in cases] and not python:
        print("TensorFlow was not measured: give --tensorflow_python or set GNP_TF_VENV")
    return {
        **about,
        "tensorflow": tensorflow_version,
        "batch_size": cases[0].batch_size,
        "dtype": cases[0].dtype,
        "runs": runs,
        "r": R,
        "alpha": ALPHA,
        "rows": [row._asdict() for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the JSON file."""
    parser = command("step", __doc__, runs=15)
    add_models(parser, MODELS)
    parser.add_argument(
        "--steps", nargs="+", type=step_name, choices=VARIANTS, default=list(VARIANTS)
    )
    parser.add_argument("--steps_per_call", type=positive, default=1)
    parser.add_argument(
        "--first_call",
        nargs="*",
        type=step_name,
        choices=VARIANTS,
        default=["plain", "penalized"],
        help="steps whose first call is measured; none: --first_call alone",
    )
    parser.add_argument(
        "--tensorflow_python",
        default=python_of(os.environ.get("GNP_TF_VENV")),
        help="interpreter of an environment with TensorFlow (default: GNP_TF_VENV's)",
    )
    options = parser.parse_args(arguments)
    check_models(parser, options.models, model.PRECISIONS[options.dtype])
    steps = list(dict.fromkeys(["plain", *options.steps]))
    if "m" in options.first_call and options.batch_size % 2:
        parser.error("--first_call m: the batch cannot be halved")
    cases = [
        Case(name, steps, options.batch_size, options.dtype, options.steps_per_call)
        for name in options.models
    ]
    first_calls = [step for step in options.first_call if step in steps]
    result = bench(cases, options.runs, first_calls, options.tensorflow_python)
    write_json(options.out, "step", result)


def python_of(environment: str | None) -> str | None:
    """Return the interpreter of an environment's folder.

    Example:
        >>> python_of("venv")
        'venv/bin/python'
    """
    return str(Path(environment) / "bin" / "python") if environment else None


if __name__ == "__main__":
    main()
