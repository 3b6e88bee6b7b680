"""The page of all models: name, source, input, parameters and FLOPs, from the registry.

    python -m gnp.bench.models [--page FILE] [--models NAME ...]

Nothing is trained or run: parameters are counted from shapes, FLOPs by XLA from the program of the
forward pass for one input (a multiplication and an addition are two; products with padding are not
counted). --page puts the table between the marks of a Markdown page.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

import model
from gnp.analysis.command_line import local_path
from gnp.bench.measure import count_flops
from gnp.bench.pages import PageError, read_page, write_page

MARKS = ("<!-- table of gnp.bench.models -->", "<!-- end of the table -->")

# The published input and number of classes of each name, the first that matches.
_INPUTS: tuple[tuple[str, tuple[int, ...], int], ...] = (
    ("EvolutionBostonMLP", (13,), 1),
    ("EvolutionIrisMLP", (4,), 3),
    ("EvolutionFordACNN", (500, 1), 2),
    ("EvolutionMnistCNN|MnistTutorialCNN|MLP", (28, 28, 1), 10),
    ("EvolutionCifarCNN|WideResNet_.*|PyramidNet_.*|VGG.*Riemannian|ViT_S4", (32, 32, 3), 10),
    ("DigitsCNN", (8, 8, 1), 10),
    ("HorsesOrHumansCNN", (300, 300, 3), 1),
    ("ResNet.*|VGG.*|ViT_.*|Swin_.*|CaiT_.*", (224, 224, 3), 1000),
)
_SOURCE = re.compile(r"(\S[^:]*?)(?:(, \d{4})[^:]*)?:\s+(https?://\S+)")


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: of the model.
        source: who published it, as a Markdown link; empty: the project's own.
        shape: of one input.
        classes: number of logits.
        parameters: how many.
        flops: of the forward pass of one input.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    classes: int
    parameters: int
    flops: float


def describe(name: str) -> Row:
    """Return the line of a registered name.

    Raises:
        ModelError: an unknown name, or one without a published input here.

    Example:
        >>> describe("EvolutionIrisMLP").parameters
        193
    """
    shape, classes = _published_input(name)
    module = model.get_model(name, classes)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def forward(variables: Any, x: jax.Array) -> Any:
        return module.apply(variables, x, train=False)

    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: module.init(key, x, train=False), x)
    flops = count_flops(jax.jit(forward), variables, x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Row(name, _source(type(module)), shape, classes, parameters, flops)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table.

    Example:
        >>> print(table([Row("MLP", "", (28, 28, 1), 10, 1234, 2.5e9)]))
        | name | source | input | classes | parameters | FLOPs |
        | --- | --- | --- | ---: | ---: | ---: |
        | `MLP` |  | 28 × 28 × 1 | 10 | 1,234 | 2.5 G |
    """
    lines = ["| name | source | input | classes | parameters | FLOPs |",
             "| --- | --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        shape = " × ".join(map(str, row.shape))
        lines.append(
            f"| `{row.name}` | {row.source} | {shape} | {row.classes:,} | {row.parameters:,} "
            f"| {_with_unit(row.flops)} |"
        )
    return "\n".join(lines)


def _with_unit(flops: float) -> str:
    """Return two digits and a unit: 3.4 G, 570 M."""
    exponent = 3 * min(3, max(0, len(f"{flops:.0f}") - 1) // 3)
    rounded = float(f"{flops:.2g}") / 10**exponent
    return f"{rounded:g} {('', 'k', 'M', 'G')[exponent // 3]}".strip()


def _published_input(name: str) -> tuple[tuple[int, ...], int]:
    for pattern, shape, classes in _INPUTS:
        if re.fullmatch(pattern, name):
            return shape, classes
    raise model.ModelError(
        f"no published input of {name!r} is known: add it to gnp/bench/models.py"
    )


def _source(build: type) -> str:
    """Return the first reference of a class's docstring, or of its nearest base that has one."""
    for each in build.__mro__:
        _, _, references = (each.__doc__ or "").partition("References:")
        if found := _SOURCE.search(references):
            return f"[{found[1]}{found[2] or ''}]({found[3]})"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the table."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.models", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="+", default=list(model.model_names()))
    parser.add_argument("--page", type=local_path, help="Markdown page to put the table into")
    options = parser.parse_args(arguments)
    try:
        if options.page:
            read_page(options.page, MARKS)
        rows = [describe(name) for name in tqdm(options.models, unit="model")]
        if options.page:
            write_page(options.page, MARKS, table(rows))
    except model.ModelError as error:
        parser.error(str(error))
    except (PageError, OSError) as error:
        sys.exit(str(error))
    print(table(rows))


if __name__ == "__main__":
    main()
