"""The page of performance, from the JSON files of the benchmarks.

    python -m gnp.bench.performance [--results DIR] [--page FILE]

Every *.json that step, peers, scaling, memory and startup have written into DIR is read. Files of
one benchmark that differ in models alone share a table. The tables, and which targets they meet,
are printed, and put between the marks of the page.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gnp.analysis.command_line import local_path
from gnp.bench import memory, peers, scaling, startup, step
from gnp.bench.measure import Table, command, step_name
from gnp.bench.pages import PageError, read_page, write_page

ROOT = Path(__file__).resolve().parents[2]
_BENCHES: dict[str, Any] = {
    "step": step,
    "peers": peers,
    "memory": memory,
    "scaling": scaling,
    "startup": startup,
}
SECTIONS = ("targets", *_BENCHES)
# Seconds of the original code (jax 0.4.28, batch 64, two cores): plain, penalized; its first call.
# What it calls ViT_TI16 has patches of 4 x 4 pixels on these images.
_ORIGINAL = {
    "WideResNet_16_4": (0.90, 1.73, 14.0),
    "ResNet18": (1.44, 2.80, 42.0),
    "ViT_TI4": (2.24, 4.13, 655.0),
}
_FIRST_CALL = {"WideResNet_16_4": 10.0, "ResNet18": 15.0, "ViT_TI4": 30.0}
_RATIOS = {
    "penalized": 1.9, "every_5": 1.3, "looksam_5": 1.3, "hybrid": 1.5, "zero_warmup": 1.02
}  # fmt: skip
_DIGITS = 3


class Result(NamedTuple):
    """A JSON file.

    Attributes:
        bench: which one wrote it.
        about: everything but the rows.
        rows: its lines, of the type that the benchmark has.
    """

    bench: str
    about: dict[str, Any]
    rows: list[Any]


class ResultError(ValueError):
    """A file that no benchmark has written; one line."""


class Target(NamedTuple):
    """Something that a figure should not exceed.

    Attributes:
        what: it is.
        value: as measured.
        limit: the most that it should be.
    """

    what: str
    value: float
    limit: float


def marks(section: str) -> tuple[str, str]:
    """Return the lines around a section's tables on the page.

    Example:
        >>> marks("step")[0]
        '<!-- figures of gnp.bench.performance: step -->'
    """
    return (f"<!-- figures of gnp.bench.performance: {section} -->", f"<!-- end of {section} -->")


def read_results(folder: Path) -> list[Result]:
    """Read the results in a folder, by benchmark, then in the order of the files' names.

    Raises:
        ResultError: there are none, or a file is of no benchmark.
    """
    results = []
    for file in sorted(folder.glob("*.json")):
        try:
            stored = json.loads(step_name(file.read_text()))
            bench = stored.pop("bench")
            rows = [_BENCHES[bench].Row(**row) for row in stored.pop("rows")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(
                f"{file} is not what {', '.join(_BENCHES)} write with --out: measure it again"
            ) from error
        results.append(Result(bench, stored, rows))
    if not results:
        raise ResultError(f"--results={folder}: there is no *.json that a benchmark has written")
    order = list(_BENCHES)
    return sorted(results, key=lambda result: order.index(result.bench))


def sections(results: Sequence[Result]) -> dict[str, str]:
    """Return section -> tables in Markdown, each below a line that says what it depends on."""
    found = {"targets": targets_table(targets(results)).markdown()}
    for name, bench in _BENCHES.items():
        groups: dict[str, list[Any]] = {}
        for result in results:
            if result.bench == name:
                groups.setdefault(caption(result.about), []).extend(result.rows)
        tables = [f"{head}\n\n{bench.table(rows).markdown()}" for head, rows in groups.items()]
        found[name] = "\n\n".join(tables) or "Not measured yet."
    return found


def caption(about: dict[str, Any]) -> str:
    """Say in a line what figures depend on.

    Example:
        >>> caption({"batch_size": 64, "runs": 5, "cores": 2, "machine": "x86_64",
        ...          "device": "cpu", "jax": "0.10.2"})
        'Batch 64, 5 runs; 2 cores (x86_64, cpu), jax 0.10.2.'
    """
    words = {
        "model": "{}", "batch_size": "batch {}", "dtype": "{}", "runs": "{} runs",
    }  # fmt: skip
    parts = [text.format(about[key]) for key, text in words.items() if key in about]
    machine = f"{about['cores']} cores ({about['machine']}, {about['device']})"
    versions = [
        f"{name} {about[name]}"
        for name in ("jax", "optax", "torch", "tensorflow")
        if about.get(name)
    ]
    text = f"{', '.join(parts)}; {machine}, {', '.join(versions)}."
    return text[0].upper() + text[1:]


def targets(results: Sequence[Result]) -> list[Target]:
    """Return what the CPU's figures should not exceed, where they have been measured."""
    on_cpu = [result for result in results if result.about.get("backend") == "cpu"]
    found: list[Target] = []
    for result in on_cpu:
        usual = (result.about.get("batch_size"), result.about.get("dtype")) == (64, "float32")
        if result.bench == "step" and usual:
            found += _step_targets(result.rows)
        if result.bench == "peers" and usual:
            found += _peer_targets(result.rows)
        if result.bench == "memory" and usual:
            found += [
                Target(f"{row.model}: copies of the parameters that a penalized step needs more",
                       row.copies, 2.0)
                for row in result.rows if row.step == "penalized"
            ]  # fmt: skip
        if result.bench == "startup":
            found += [
                Target(f"{result.about['model']}: start with a warm cache over a cold one",
                       row.ratio, 1 / 3)
                for row in result.rows if row.cache == "warm"
            ]  # fmt: skip
    return found


def _step_targets(rows: Sequence[step.Row]) -> Iterator[Target]:
    for row in rows:
        if row.model not in _ORIGINAL:
            continue
        if row.step in _RATIOS:
            yield Target(f"{row.model}: {row.step} over plain", row.ratio, _RATIOS[row.step])
        plain, penalized, first_call = _ORIGINAL[row.model]
        original = {"plain": plain, "penalized": penalized}.get(row.step)
        if original:
            ratio = row.milliseconds / 1e3 / original
            yield Target(f"{row.model}: {row.step} over the original's {original:g} s", ratio, 0.8)
        if row.step == "penalized" and row.first_call_seconds is not None:
            yield Target(
                f"{row.model}: first penalized call in s (the original's: {first_call:g})",
                row.first_call_seconds,
                _FIRST_CALL[row.model],
            )


def _peer_targets(rows: Sequence[peers.Row]) -> Iterator[Target]:
    names = {
        "optax": "SAM step over optax.contrib.sam's",
        "torch plain": "plain step over PyTorch's (a goal)",
        "torch sam": "SAM step over PyTorch's (a goal)",
    }
    for row in rows:
        if row.step in names:
            yield Target(f"{row.model}: {names[row.step]}", row.ratio, 1.0)


def targets_table(found: Sequence[Target]) -> Table:
    """Tell whether each is met, as the numbers are written here, with three digits.

    Example:
        >>> print(targets_table([Target("m: penalized over plain", 1.8512, 1.9)]).text())
        figure                   measured  at most  met
        m: penalized over plain      1.85     1.90  yes
    """
    lines = []
    for what, value, limit in found:
        shown, most = _shown(value), _shown(limit)
        lines.append((what, shown, most, "yes" if float(shown) <= float(most) else "no"))
    return Table(("figure", "measured", "at most", "met"), lines)


def _shown(value: float) -> str:
    """Return three digits, among them a zero before the point."""
    whole = len(str(int(abs(value)))) if math.isfinite(value) else 0
    return f"{value:.{max(0, _DIGITS - whole)}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the tables."""
    parser = command("performance", __doc__, out=False)
    parser.add_argument("--results", type=local_path, default=ROOT / "docs" / "performance")
    parser.add_argument("--page", type=local_path, help="Markdown page to put the tables into")
    options = parser.parse_args(arguments)
    try:
        if options.page:
            for section in SECTIONS:
                read_page(options.page, marks(section))
        texts = sections(read_results(options.results))
        for section, text in texts.items():
            if options.page:
                write_page(options.page, marks(section), text)
    except (PageError, ResultError, OSError) as error:
        sys.exit(str(error))
    print("\n\n".join(f"{section}\n\n{text}" for section, text in texts.items()))


if __name__ == "__main__":
    main()
