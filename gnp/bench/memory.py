"""Peak memory of a training step: plain, penalized, and the difference in copies of the parameters.

    python -m gnp.bench.memory [--models NAME ...] [--batch_size N] [--dtype float32|bfloat16]
        [--out FILE]

Each step is compiled in a process of its own. The peak is what XLA says of the program: arguments
(parameters, batch statistics, optimizer's state, batch) and outputs, less those outputs that take
the place of donated arguments, and temporaries. "copies" is how many times the bytes of the
parameters a penalized step takes more than the plain one; the penalty needs the first gradient and
the perturbed parameters at once, so the target is at most 2. On accelerators the allocator's own
peak after a step (peak_bytes_in_use) stands beside it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

import model
from gnp.bench.measure import (
    Table,
    Trainer,
    about_this_machine,
    add_models,
    base_optimizer,
    check_models,
    command,
    in_fresh_process,
    penalized_optimizer,
    write_json,
)
from gnp.bench.step import MODELS


class Row(NamedTuple):
    """A line of the table, all in bytes but `copies`.

    Attributes:
        model: the model's name.
        step: "plain" or "penalized".
        peak: what XLA says.
        arguments: part of it: state and batch.
        temporaries: part of it.
        parameters: of the model.
        copies: (peak - plain step's peak) / parameters.
        in_use: peak of the device's allocator after a step; None: it keeps no account.
    """

    model: str
    step: str
    peak: int
    arguments: int
    temporaries: int
    parameters: int
    copies: float
    in_use: int | None


class Sizes(NamedTuple):
    """Of one step, in bytes; see `Row`."""

    peak: int
    arguments: int
    temporaries: int
    parameters: int
    in_use: int | None


def sizes(name: str, penalize: bool, batch_size: int, dtype: str) -> Sizes:
    """Measure a step; on accelerators in a fresh process, whose peak is then the step's.

    Args:
        name: of the model.
        penalize: the penalized step or the plain one.
        batch_size: examples in a batch.
        dtype: of the model's computation.

    Example:
        >>> sizes("MLP", False, 2, "float32").parameters
        1644584
    """
    chain = penalized_optimizer(name) if penalize else base_optimizer(name)
    trainer = Trainer(name, batch_size, chain, dtype=model.PRECISIONS[dtype])
    trainer.cycle(penalize)
    found = trainer.memory(penalize)
    in_use = None
    if jax.default_backend() != "cpu":
        trainer.run((penalize,), 1)
        in_use = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.state.params))
    return Sizes(found["peak"], found["arguments"], found["temporaries"], parameters, in_use)


def rows_of(name: str, plain: Sizes, penalized: Sizes) -> list[Row]:
    """Return the two lines of a model.

    Example:
        >>> rows_of("m", Sizes(100, 60, 40, 20, None), Sizes(130, 60, 70, 20, None))[1].copies
        1.5
    """
    return [
        Row(
            name,
            step,
            of.peak,
            of.arguments,
            of.temporaries,
            of.parameters,
            (of.peak - plain.peak) / of.parameters,
            of.in_use,
        )
        for step, of in (("plain", plain), ("penalized", penalized))
    ]


def table(rows: Sequence[Row]) -> Table:
    """Return the rows in MiB.

    Example:
        >>> print(table([Row("m", "plain", 3 << 20, 1 << 20, 2 << 20, 1 << 19, 0.0, None)]).text())
        model  step   parameters  arguments  temporaries  peak MiB  copies
        m      plain         0.5        1.0          2.0       3.0    0.00
    """
    has_account = any(row.in_use is not None for row in rows)
    head = ["model", "step", "parameters", "arguments", "temporaries", "peak MiB", "copies"]
    lines = []
    for row in rows:
        held = (row.parameters, row.arguments, row.temporaries, row.peak)
        line = [row.model, row.step, *(f"{each / 2**20:.1f}" for each in held)]
        line.append(f"{row.copies:.2f}")
        if has_account:
            line.append("-" if row.in_use is None else f"{row.in_use / 2**20:.1f}")
        lines.append(line)
    return Table([*head, "in use MiB"] if has_account else head, lines, 2)


def bench(names: Sequence[str], batch_size: int, dtype: str) -> dict[str, Any]:
    """Compile both steps of every model, print the table, and return what --out holds.

    Args:
        names: models.
        batch_size: examples in a batch.
        dtype: of the models' computation.
    """
    rows: list[Row] = []
    for name in tqdm(names, desc="compiling", leave=False):
        plain, penalized = (
            in_fresh_process(sizes, name, penalize, batch_size, dtype) for penalize in (False, True)
        )
        rows += rows_of(name, plain, penalized)
    print(table(rows).text())
    return {
        **about_this_machine(),
        "batch_size": batch_size,
        "dtype": dtype,
        "rows": [row._asdict() for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the JSON file."""
    parser = command("memory", __doc__)
    add_models(parser, MODELS)
    options = parser.parse_args(arguments)
    check_models(parser, options.models, model.PRECISIONS[options.dtype])
    write_json(options.out, "memory", bench(options.models, options.batch_size, options.dtype))


if __name__ == "__main__":
    main()
