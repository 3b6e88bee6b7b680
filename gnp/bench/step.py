"""Time of a training step: plain, penalized, every variant of the penalty, and other programs'.

    python -m gnp.bench.step [--models NAME ...] [--steps NAME ...] [--batch_size N]
        [--dtype float32|bfloat16] [--runs N] [--torch_python PYTHON] [--torch_threads N]
        [--out FILE]

The steps of a model are compiled first and then measured in turn, run after run, so that what else
happens on the machine meets all of them alike. They are those of a run on one batch of noise, over
all devices that jax finds. Times are medians over the runs, "+-" is half the distance between the
quartiles, and a ratio is the median of those within a run. "compile s" is tracing and compilation;
with JAX_COMPILATION_CACHE_DIR set, a program that is there already is only read.

    plain        the optimizer alone
    penalized    gnp.r=0.05, gnp.alpha=0.8
    zero_warmup  the plain step of the penalized chain
    every_5      one penalized step, four plain ones; the mean over them
    looksam_5    the same with LookSAM's reused direction in the plain ones
    hybrid       one penalized step, one plain one (p = 0.5)
    normalize, adaptive, hvp    gnp.norm_perturbations, gnp.adaptive, gnp.method=hvp
    m_32         groups of 32 examples with a perturbation each
    sam          gnp.alpha=1
    asam, wsam, gsam, ...       any other gnp.method, where --steps names it
    optax_sam    optax.contrib.sam around the same optimizer, in the same training step

With --torch_python, an interpreter that has PyTorch, there are torch_plain and torch_sam of
WideResNet_* and ResNet18 or 34, in a process of its own that waits while others are measured. It
loads our parameters, and nothing is timed before its logits are ours. "ours over it" is the time
of our step of that kind (plain or sam) over that of optax or PyTorch.
"""

import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from tqdm import tqdm

import model
from config import default
from gnp.analysis.command_line import whole
from gnp.bench.measure import (
    PENALTY,
    BenchError,
    Measure,
    Steps,
    add_models,
    build_steps,
    half_spread,
    measure_in_turn,
    paired_ratio,
    parser,
    report,
    run,
    step_config,
)
from gnp.experiment import Experiment
from gnp.training.gradients import build_gradient, build_loss
from gnp.training.mesh import WHOLE
from gnp.training.step import build_train_step

_ONE_IN_FIVE = (True, False, False, False, False)
# What changes in the config, and which steps of a cycle are penalized.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[bool, ...]]] = {
    "plain": ({}, (False,)),
    "penalized": (PENALTY, (True,)),
    "zero_warmup": (PENALTY, (False,)),
    "every_5": (PENALTY, _ONE_IN_FIVE),
    "looksam_5": ({**PENALTY, "gnp.every": 5, "gnp.reuse": 0.7}, _ONE_IN_FIVE),
    "hybrid": (PENALTY, (True, False)),
    "normalize": ({**PENALTY, "gnp.norm_perturbations": True}, (True,)),
    "adaptive": ({**PENALTY, "gnp.adaptive": True}, (True,)),
    "hvp": ({**PENALTY, "gnp.method": "hvp"}, (True,)),
    "m_32": ({**PENALTY, "gnp.sync_perturbations": False, "gnp.m": 32}, (True,)),
    "sam": ({**PENALTY, "gnp.alpha": 1.0}, (True,)),
}
# Measured where they are asked for.
RELATIVES = {
    name: ({"gnp.r": PENALTY["gnp.r"], "gnp.method": name}, (True,))
    for name in default.RELATIVES
    if name not in VARIANTS
}
OPTAX_SAM = "optax_sam"
# Of whom -> what is ours.
PEERS = {OPTAX_SAM: "sam", "torch_plain": "plain", "torch_sam": "sam"}
# Of the logits: 1e-7 (WideResNet_10_1) on the CPU; GPUs may multiply in TF32.
_TOLERANCE = 0.02
COLUMNS = {
    "model": "{}",
    "step": "{}",
    "ms": "{:.2f}",
    "+-": "{:.2f}",
    "over plain": "{:.3f}",
    "examples/s": "{:,.0f}",
    "compile s": "{:.1f}",
    "ours over it": "{:.3f}",
}


def with_optax_sam(plain: Experiment) -> Experiment:
    """Return an experiment whose plain step is that of optax.contrib.sam.

    Args:
        plain: Without a penalty; its optimizer is the one inside.
    """
    sam = optax.contrib.sam(
        plain.optimizer,
        optax.chain(optax.contrib.normalize(), optax.sgd(PENALTY["gnp.r"])),
        opaque_mode=True,
    )

    def update(
        updates: Any, state: Any, params: Any, *, grad_fn: Callable[[Any], Any], **_: Any
    ) -> tuple[Any, Any]:
        return sam.update(updates, state, params, grad_fn=lambda params, _: grad_fn(params))

    def initialize() -> tuple[Any, None]:
        state, _ = plain.initialize()
        return state._replace(opt_state=sam.init(state.params)), None

    gradient = build_gradient(build_loss(plain.model.apply, plain.objective, plain.regularize))
    chain = optax.GradientTransformationExtraArgs(sam.init, update)
    step = jax.jit(
        build_train_step(lambda _: gradient, chain, penalize=False),
        donate_argnums=0,
        out_shardings=NamedSharding(plain.mesh, WHOLE),
        compiler_options=model.cpu.compiler_options(plain.mesh.devices.flat[0].platform),
    )
    return dataclasses.replace(plain, optimizer=chain, initialize=initialize, plain_step=step)


def our_steps(
    name: str, steps: Sequence[str], batch_size: int, dtype: str
) -> tuple[dict[str, Measure], dict[str, float], Steps]:
    """Return measures of the steps of a model, their seconds of compilation, and the plain ones.

    Args:
        name: Of the model.
        steps: Of VARIANTS or RELATIVES, or optax_sam.
        batch_size: Examples in a batch.
        dtype: Of the model's computation.
    """
    built: dict[str, Steps] = {}  # several variants are steps of one config
    measures, compile_seconds = {}, {}
    for step in tqdm(steps, desc=f"compiling {name}", leave=False, disable=None):
        changes, cycle = (VARIANTS | RELATIVES).get(step, ({}, (False,)))
        key = step if step == OPTAX_SAM else repr(changes)
        if key not in built:
            built[key] = build_steps(step_config(name, batch_size, changes, dtype))
            if step == OPTAX_SAM:
                built[key] = Steps(with_optax_sam(built[key].experiment), batch_size)
        measures[step] = built[key].cycle(*cycle)
        compile_seconds[step] = sum(built[key].compile_seconds[each] for each in {*cycle})
    return measures, compile_seconds, built[repr({})]


class Torch:
    """PyTorch's steps of a model in a process of their own that waits to be asked.

    Args:
        python: Interpreter of an environment with PyTorch.
        name: Of the model.
        ours: Whose state before any step, and batch, it takes.
        threads: That it may use.

    Raises:
        BenchError: the process does not start, or its logits are not ours.
    """

    def __init__(self, python: str, name: str, ours: Steps, threads: int) -> None:
        self._python = python
        experiment, state = ours.experiment, ours.experiment.initialize()[0]
        batch = jax.device_get(ours.batch)
        inputs = np.asarray(experiment.dataset.normalize(batch["input"]))
        with tempfile.TemporaryDirectory() as folder:
            given, logits = Path(folder) / "ours.npz", Path(folder) / "logits.npy"
            weights = by_path(state.params, *state.model_state.values())
            np.savez(given, **weights, **{"/input": inputs, "/label": batch["label"]})  # type: ignore[arg-type]
            script = Path(__file__).with_name("torch_step.py")
            words = [name, given, logits, PENALTY["gnp.r"], threads]
            platform = experiment.mesh.devices.flat[0].platform
            device = {"CUDA_VISIBLE_DEVICES": ""} if platform == "cpu" else {}
            try:
                self._process = subprocess.Popen(
                    [python, script, *map(str, words)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | device,
                )
            except OSError as error:
                raise BenchError(f"--torch_python={python}: {error.strerror}") from error
            self.version = self._answer()
            theirs = np.load(logits)
        apply = jax.jit(experiment.model.apply, static_argnums=(3, 4))
        own = np.asarray(apply(state.params, state.model_state, batch["input"], False, None)[0])
        difference = np.linalg.norm(own - theirs) / np.linalg.norm(own)
        if not difference < _TOLERANCE:
            self.close()
            raise BenchError(f"{name}: PyTorch's logits differ from ours by {difference:.2g}")

    def measure(self, kind: str) -> Measure:
        """Return a measure of the step of kind "plain" or "sam"."""
        return lambda steps: float(self._answer(f"{kind} {steps}"))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self, question: str = "") -> str:
        assert self._process.stdin and self._process.stdout
        if question:
            print(question, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if not answer:
            self.close()
            raise BenchError(f"--torch_python={self._python} ended early; see above")
        return answer


def by_path(*trees: Any) -> dict[str, np.ndarray]:
    """Return the arrays of pytrees of dicts by their paths.

    Example:
        >>> list(by_path({"head": {"bias": np.zeros(2)}}))
        ['head/bias']
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf)
        for tree in trees
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def summarize(
    seconds: Mapping[str, Sequence[float]], batch_size: int, compile_seconds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the rows of a model.

    Args:
        seconds: Step -> seconds in each run; "plain" is among them.
        batch_size: Examples in a batch.
        compile_seconds: Step -> seconds, of those that have been compiled.

    Example:
        >>> rows = summarize({"plain": [1.0, 2.0], "torch_plain": [2.0, 4.0]}, 6, {})
        >>> rows[1]["over plain"], rows[1]["examples/s"], rows[1]["ours over it"]
        (2.0, 2.0, 0.5)
    """
    rows = []
    for step, values in seconds.items():
        own = seconds.get(PEERS.get(step, ""))
        rows.append(
            {
                "step": step,
                "ms": 1e3 * statistics.median(values),
                "+-": 1e3 * half_spread(values),
                "over plain": paired_ratio(values, seconds["plain"]),
                "examples/s": batch_size / statistics.median(values),
                "compile s": compile_seconds.get(step),
                "ours over it": paired_ratio(own, values) if own else None,
                "seconds": values,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and measure; return the exit code."""
    return run(lambda: _bench(arguments))


def _bench(arguments: Sequence[str] | None) -> None:
    flags = parser("step", __doc__)
    add_models(flags)
    names = [*VARIANTS, OPTAX_SAM]
    flags.add_argument("--steps", nargs="+", choices=[*names, *RELATIVES], default=names)
    flags.add_argument("--runs", type=whole(1), default=15, help="measurements of each")
    flags.add_argument("--torch_python", help="interpreter of an environment with PyTorch")
    flags.add_argument("--torch_threads", type=whole(1), default=os.cpu_count() or 1)
    options = flags.parse_args(arguments)
    if options.torch_python and options.dtype != "float32":
        flags.error("--torch_python measures float32 alone")
    steps = list(dict.fromkeys(["plain", *options.steps]))
    for name in options.models:  # before anything is compiled
        for step in steps:
            changes, _ = (VARIANTS | RELATIVES).get(step, ({}, ()))
            step_config(name, options.batch_size, changes, options.dtype)
    rows, version = [], None
    for name in options.models:
        measures, compile_seconds, plain = our_steps(name, steps, options.batch_size, options.dtype)
        with ExitStack() as stack:
            if options.torch_python and re.fullmatch(r"WideResNet_\d+_\d+|ResNet(18|34)", name):
                torch = Torch(options.torch_python, name, plain, options.torch_threads)
                stack.callback(torch.close)
                version = torch.version
                measures |= {f"torch_{kind}": torch.measure(kind) for kind in ("plain", "sam")}
            seconds = measure_in_turn(measures, options.runs)
        found = summarize(seconds, options.batch_size, compile_seconds)
        rows += [{"model": name, **row} for row in found]
    report(
        rows, COLUMNS, options.out,
        batch_size=options.batch_size, dtype=options.dtype, runs=options.runs,
        optax=optax.__version__, torch=version, torch_threads=options.torch_threads,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
