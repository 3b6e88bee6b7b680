"""Several seeds at once beside one after another: the time of a training step.

    python -m gnp.bench.seeds [--config FILE ...] [--num_seeds N] [--runs N] [--out FILE]

A step of one seed and one of N seeds by vmap (config.num_seeds) are measured in turn, each on one
batch of the config's data set. "a seed" is the time of the second one over N times that of the
first: below 1, several at once are faster than one after another.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from config import ConfigError, load_config
from gnp import build
from gnp.bench.measure import about_this_machine, measure_in_turn, paired_ratio
from gnp.training.seeds import stacked

CONFIGS = ("config/iris.py", "config/digits.py")


class SeedSteps:
    """Training steps of a config's seeds; called, it measures them.

    Args:
        file: the config.
        num_seeds: how many at once.
    """

    def __init__(self, file: str, num_seeds: int) -> None:
        config = load_config(file, [("num_seeds", str(num_seeds))])
        members, _ = build.members_of(config, Path("unused"))
        runs = build.build_runs(members, [None] * num_seeds)
        self._steps = runs[0].steps
        self._key = stacked([jax.random.key(member.seeds) for member in members])
        self._batch = next(iter(build.training_batches(runs, 0)))
        states = [
            build.initial_state(run, member.init_seeds).state
            for run, member in zip(runs, members, strict=True)
        ]
        self._state = stacked(states)
        self(1)  # compiles

    def __call__(self, steps: int) -> float:
        """Seconds a step."""
        start = time.perf_counter()
        for number in range(steps):
            self._state, _ = self._steps(self._state, self._batch, self._key, number)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / steps


def bench(file: str, num_seeds: int, runs: int) -> dict[str, Any]:
    """Measures, prints a line, and returns a row of --out.

    Args:
        file: a config whose data come with scikit-learn, or that names its `data_dir`.
        num_seeds: how many at once.
        runs: measurements of each step.
    """
    steps = {"one": SeedSteps(file, 1), "at once": SeedSteps(file, num_seeds)}
    seconds = measure_in_turn(steps, runs)
    one, at_once = (1e3 * statistics.median(seconds[name]) for name in steps)
    ratio = paired_ratio(seconds["at once"], seconds["one"]) / num_seeds
    print(
        f"{file}: {one:.2f} ms of one seed, {at_once:.2f} ms of {num_seeds} at once, "
        f"a seed {ratio:.2f} (median of {runs} runs)"
    )
    return {"config": file, "one_ms": one, "at_once_ms": at_once, "a_seed": ratio}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures, writes the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.seeds", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", nargs="+", default=CONFIGS, help="config files")
    parser.add_argument("--num_seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.num_seeds < 2 or options.runs < 1:
        parser.error("--num_seeds must be at least 2, --runs at least 1")
    try:
        rows = [bench(file, options.num_seeds, options.runs) for file in options.config]
    except ConfigError as error:
        parser.error(str(error))
    if options.out:
        result = {**about_this_machine(), "num_seeds": options.num_seeds, "rows": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
