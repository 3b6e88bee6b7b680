"""What the loop adds to its steps: an epoch of gnp.training.loop beside the bare steps.

    python -m gnp.bench.loop [--model NAME] [--batch_size N] [--steps N] [--runs N]

The epoch reads, shuffles and sends its batches, reads metrics, writes TensorBoard points and
shows its bar, as a run does. The bare steps take one batch that is on the device already, and are
waited for once, at the end. Both are measured in turn; the ratio is the median over the pairs.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import model
from ds_pipeline import train_batches
from ds_pipeline.dataset import Dataset, from_arrays
from gnp.bench.measure import CIFAR_SHAPE, SHAPES
from gnp.training.checkpoint import Checkpoints
from gnp.training.distributed import Interrupt
from gnp.training.loop import Member, Plan, Progress, Steps, train
from gnp.training.mesh import build_mesh, replicate, shard_batch
from gnp.training.metrics import Log
from gnp.training.objective import build_objective
from gnp.training.state import TrainState, from_linen
from gnp.training.step import build_train_step
from optimizer import gradient_norm_penalty


class LoopBench:
    """A model, its compiled penalised step, and data in memory.

    Args:
        name: of the model.
        shape: of an image.
        batch_size: examples a step.
        steps: steps an epoch.
    """

    def __init__(self, name: str, shape: tuple[int, ...], batch_size: int, steps: int) -> None:
        self.data = random_data(shape, batch_size * steps)
        self.plan = Plan(batch_size, steps, 1, 1, 1, 50)
        self.mesh = build_mesh()
        self.key = jax.random.key(0)
        initialise, apply = from_linen(
            model.get_model(name, num_classes=10), self.data.normalize, shape
        )
        chain = optax.chain(gradient_norm_penalty(0.05, 0.8), optax.adam(1e-3))
        objective = build_objective("softmax_cross_entropy")

        def initial_state() -> TrainState:
            params, model_state = initialise(self.key)
            return TrainState(params, model_state, chain.init(params))

        self.state = replicate(jax.jit(initial_state)(), self.mesh)
        self.step = jax.jit(
            build_train_step(apply, objective, chain, penalize=True),
            donate_argnums=0,
            compiler_options=model.compiler_options(),
        )

    def bare(self) -> float:
        """Seconds of an epoch's steps alone."""
        batch = next(iter(self._batches()))
        jax.block_until_ready(batch)
        start = time.perf_counter()
        for number in range(self.plan.steps_per_epoch):
            self.state, _ = self.step(self.state, batch, self.key, np.uint32(number))
        jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def epoch(self) -> float:
        """Seconds of an epoch in the loop."""
        with (
            tempfile.TemporaryDirectory() as directory,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            log, checkpoints = Log(Path(directory)), Checkpoints(Path(directory))
            self.state = train(
                self.state,
                [Member(Progress(), lambda state: {}, log, checkpoints)],
                plan=self.plan,
                steps=Steps(self.step, self.step, lambda number: True),
                key=self.key,
                batches=self._batches(),
                scalars=lambda step: {"learning_rate": 1e-3, "alpha": 0.8, "r": 0.05},
                interrupt=Interrupt(),
            )
            log.close()
            checkpoints.close()
            return float(log.rows[-1]["epoch_seconds"])

    def _batches(self) -> Iterator[Any]:
        host = train_batches(self.data, self.plan.batch_size, 0, 0, self.plan.total_steps)
        return (shard_batch(batch, self.mesh) for batch in host)


def random_data(shape: Sequence[int], count: int) -> Dataset:
    """Noise with labels, in memory.

    Args:
        shape: of an image.
        count: training examples.

    Example:
        >>> len(random_data((8, 8, 1), 12).train)
        12
    """
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, *shape), np.uint8)
    labels = np.arange(count) % 10
    return from_arrays("noise", (images, labels), (images[:10], labels[:10]))


def bench(name: str, batch_size: int, steps: int, runs: int) -> float:
    """Prints the medians and returns the ratio of an epoch to its steps.

    Args:
        name: of the model.
        batch_size: examples a step.
        steps: steps an epoch.
        runs: pairs that are measured.
    """
    loop = LoopBench(name, SHAPES.get(name, CIFAR_SHAPE), batch_size, steps)
    loop.bare(), loop.epoch()  # compile, and meet every file for the first time
    pairs = [(loop.bare(), loop.epoch()) for _ in range(runs)]
    ratio = statistics.median(epoch / bare for bare, epoch in pairs)
    bare, epoch = (statistics.median(values) / steps for values in zip(*pairs, strict=True))
    print(
        f"{name}, batch {batch_size}, {steps} steps: {1e3 * bare:.2f} ms a step alone, "
        f"{1e3 * epoch:.2f} ms in the loop, ratio {ratio:.3f} (median of {runs} pairs)"
    )
    return ratio


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.loop", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="MnistTutorialCNN")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    if min(options.batch_size, options.steps, options.runs) < 1:
        parser.error("--batch_size, --steps and --runs must be at least 1")
    try:
        bench(options.model, options.batch_size, options.steps, options.runs)
    except model.ModelError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
