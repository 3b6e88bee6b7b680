"""Cost of the loop around its steps: an epoch of gnp.main.train beside the bare steps.

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
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import model
from config import default
from ds_pipeline.dataset import Dataset, from_arrays
from gnp.bench.measure import CIFAR_SHAPE, SHAPES
from gnp.experiment import build_experiment
from gnp.main.recording import Recording
from gnp.main.train import train
from gnp.training.checkpoint import Checkpoints
from gnp.training.distributed import catch_signals
from gnp.training.log import Log
from gnp.training.metrics import Progress


class LoopBench:
    """A run on data in memory, every step penalized.

    Args:
        name: Of the model.
        shape: Of an image.
        batch_size: Examples a step.
        steps: Steps an epoch.
    """

    def __init__(self, name: str, shape: tuple[int, ...], batch_size: int, steps: int) -> None:
        self.config = default.get_config()
        self.config.model.model_name = name
        self.config.batch_size = batch_size
        self.config.total_epochs = 1
        self.config.opt.opt_type = "Adam"
        self.config.base_lr = 1e-3
        self.config.lr_schedule_type = "constant"
        self.config.gnp.r, self.config.gnp.alpha = 0.05, 0.8
        data = random_data(shape, batch_size * steps)
        self.experiment = build_experiment(self.config, data)

    def bare(self) -> float:
        """Return the seconds of an epoch's steps alone."""
        batch, key = next(self.experiment.train_batches(0)), jax.random.key(0)
        jax.block_until_ready(batch)
        state, _ = self.experiment.initialize()
        start = time.perf_counter()
        for step in range(self.experiment.steps_per_epoch):
            state, _ = self.experiment.train_step(state, batch, key, step)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    def epoch(self) -> float:
        """Return the seconds of an epoch in the loop."""
        state, _ = self.experiment.initialize()
        with (
            tempfile.TemporaryDirectory() as directory,
            contextlib.redirect_stdout(io.StringIO()),
            Checkpoints(Path(directory)) as checkpoints,
            Log(Path(directory)) as log,
            Recording(self.config, self.experiment, Path(directory)) as recording,
            catch_signals() as interrupt,
        ):
            recording.start(0, log)
            train(
                self.config, self.experiment, state, Progress(), log=log, recording=recording,
                checkpoints=checkpoints, interrupt=interrupt,
            )  # fmt: skip
            return float(log.rows[-1]["epoch_seconds"])


def random_data(shape: Sequence[int], count: int) -> Dataset:
    """Return noise with labels, in memory.

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
    """Print the medians and return the ratio of an epoch to its steps.

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
    """Parse the command line and measure."""
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
