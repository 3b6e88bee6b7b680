"""Cost of recording gradients: time and memory of a step, and the end of an epoch.

    python -m gnp.bench.recording [--model NAME] [--batch_size N] [--runs N] [--out FILE]

The plain step, the step that records, and the one that also hands out its gradient (record.steps;
without the disk) are measured in turn. Memory is what XLA says of the compiled step: state, batch,
results and temporaries; "parameters" is how many times that of the parameters a step takes more
than the plain one. The end of an epoch is the summary and its file.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax

import model
from gnp.analysis.command_line import local_path
from gnp.bench.measure import (
    TUTORIAL,
    Trainer,
    about_this_machine,
    measure_in_turn,
    paired_ratio,
)
from gnp.training.evolution import EvolutionWriter
from gnp.training.state import TrainState
from optimizer import record_gradient_evolution


def end_of_epoch_seconds(state: TrainState, runs: int) -> float:
    """Return the median seconds of an epoch's summary and file, after a first one.

    Args:
        state: of a recorded run; its optimizer's state is donated.
        runs: how often.
    """
    seconds = []
    with tempfile.TemporaryDirectory() as directory:
        write = EvolutionWriter(Path(directory), state)
        for epoch in range(runs + 1):
            start = time.perf_counter()
            state = write(state, epoch + 1)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def bench(name: str, batch_size: int, runs: int) -> dict[str, Any]:
    """Measure, print a table, and return what --out holds.

    Args:
        name: of the model; it is trained by Adam.
        batch_size: examples in a batch.
        runs: measurements of each step.
    """
    adam = optax.with_extra_args_support(optax.adam(1e-3))
    recorded = optax.with_extra_args_support(optax.chain(record_gradient_evolution(), adam))
    trainers = {
        "plain": Trainer(name, batch_size, adam),
        "recorded": Trainer(name, batch_size, recorded),
        "and handed out": Trainer(name, batch_size, recorded, keep_gradients=True),
    }
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(trainers["plain"].state.params))
    steps = {step: trainer.cycle(False) for step, trainer in trainers.items()}
    seconds = measure_in_turn(steps, runs)
    plain = steps["plain"].memory_bytes
    rows = [
        {
            "step": step,
            "milliseconds": 1e3 * statistics.median(values),
            "ratio": paired_ratio(values, seconds["plain"]),
            "mebibytes": steps[step].memory_bytes / 2**20,
            "parameters": (steps[step].memory_bytes - plain) / size,
        }
        for step, values in seconds.items()
    ]
    end = end_of_epoch_seconds(trainers["recorded"].state, runs)
    print(f"{'step':<15} {'ms':>8} {'ratio':>7} {'MiB':>8} {'parameters':>11}")
    for row in rows:
        print("{step:<15} {milliseconds:8.2f} {ratio:7.3f} {mebibytes:8.1f} {parameters:11.2f}"
              .format(**row))  # fmt: skip
    print(f"{name}, batch {batch_size}, median of {runs} runs")
    print(f"the end of an epoch: {1e3 * end:.0f} ms")
    about = {"model": name, "batch_size": batch_size, "runs": runs}
    return {**about_this_machine(), **about, "rows": rows, "end_of_epoch_seconds": end}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.recording", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default=TUTORIAL)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=local_path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if min(options.batch_size, options.runs) < 1:
        parser.error("--batch_size and --runs must be at least 1")
    try:
        result = bench(options.model, options.batch_size, options.runs)
    except model.ModelError as error:
        parser.error(str(error))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
