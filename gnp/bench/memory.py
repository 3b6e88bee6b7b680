"""Peak memory of a training step: plain, penalized, and the difference in copies of the parameters.

    python -m gnp.bench.memory [--models NAME ...] [--batch_size N] [--dtype float32|bfloat16]
        [--out FILE]

The steps are compiled and not taken. The peak is what XLA says of the program: arguments
(parameters, batch statistics, optimizer's state, batch) and outputs, less those outputs that take
the place of donated arguments, and temporaries. "copies" is how many times the bytes of the
parameters a penalized step takes more than the plain one.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from gnp.bench.measure import PENALTY, add_models, build_steps, parser, report, run, step_config

_MIB = "{:,.1f}"
COLUMNS = {
    "model": "{}",
    "step": "{}",
    "parameters": _MIB,
    "arguments": _MIB,
    "temporaries": _MIB,
    "peak MiB": _MIB,
    "copies": "{:.2f}",
}


def sizes(name: str, batch_size: int, dtype: str) -> list[dict[str, Any]]:
    """Return the rows of a model's plain and penalized step, in MiB.

    Args:
        name: Of the model.
        batch_size: Over all devices.
        dtype: Of the model's computation.
    """
    rows: list[dict[str, Any]] = []
    for step, changes in (("plain", {}), ("penalized", PENALTY)):
        steps = build_steps(step_config(name, batch_size, changes, dtype))
        found = steps.program(penalize=bool(changes)).memory_analysis()
        held = found.argument_size_in_bytes + found.output_size_in_bytes
        peak = held - found.alias_size_in_bytes + found.temp_size_in_bytes
        row = {
            "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(steps.state.params)) / 2**20,
            "arguments": found.argument_size_in_bytes / 2**20,
            "temporaries": found.temp_size_in_bytes / 2**20,
            "peak MiB": peak / 2**20,
        }
        plain = rows[0] if rows else row
        copies = (row["peak MiB"] - plain["peak MiB"]) / row["parameters"]
        rows.append({"model": name, "step": step, **row, "copies": copies})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and measure; return the exit code."""
    return run(lambda: _bench(arguments))


def _bench(arguments: Sequence[str] | None) -> None:
    flags = parser("memory", __doc__)
    add_models(flags)
    options = flags.parse_args(arguments)
    for name in options.models:  # before anything is compiled
        step_config(name, options.batch_size, PENALTY, options.dtype)
    models = tqdm(options.models, desc="compiling", leave=False, disable=None)
    rows = [row for name in models for row in sizes(name, options.batch_size, options.dtype)]
    report(rows, COLUMNS, options.out, batch_size=options.batch_size, dtype=options.dtype)


if __name__ == "__main__":
    sys.exit(main())
