"""Flatness of the minima that the methods find, in one table.

    python -m gnp.bench.flatness --data_dir=DIR --out=runs/flatness [--page=docs/sharpness.md]

Trains config/methods.py:mnist (2,000 examples of MNIST, the tutorial's CNN, 20 epochs) with each
method and seed, as gnp.bench.methods does and in folders of the same names, so that its --out can
be given; then measures the last checkpoint of each on the 2,000 examples. Runs and measurements
that are in --out are only read: the command can be stopped, and goes on when it is repeated.
--page puts the table between the marks of a Markdown page.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging as absl_logging
from tqdm import tqdm

from ds_pipeline import DataError
from gnp.analysis.command_line import local_path
from gnp.analysis.sharpness.files import read_results
from gnp.analysis.sharpness.measure import Settings, measure_flatness
from gnp.analysis.sharpness.run import open_checkpoint, write_results
from gnp.analysis.sharpness.surface import SharpnessError
from gnp.bench.measure import about_this_machine
from gnp.bench.methods import error_cell, run_directory, run_to_end, train_all
from gnp.bench.pages import write_page
from gnp.training.checkpoint import CheckpointError
from gnp.training.files import FileFormatError

METHODS = ("SGD", "SGD + GC", "SGD + GNP", "SGD + GNP + GC", "SAM")
MARKS = ("<!-- table of gnp.bench.flatness -->", "<!-- end of the table -->")
# One ball for all methods, whatever they were trained with.
SETTINGS = Settings(radius=0.05)
# Heading -> what of a measurement.
COLUMNS = {
    "λmax": lambda values: values["hessian_eigenvalues"][0],
    "trace": lambda values: values["hessian_trace"],
    "SAM sharpness": lambda values: values["sam_sharpness"],
    "gradient norm": lambda values: values["gradient_norm"],
    "train loss": lambda values: values["loss"],
}

Measurement = Mapping[str, Any]


def measure(directory: Path) -> Measurement:
    """Return the flatness of a run's last checkpoint; from its sharpness.json where it is there.

    Args:
        directory: of a run that is whole.

    Raises:
        DataError, CheckpointError, FileFormatError, SharpnessError: one line.
    """
    opened = open_checkpoint(directory)
    asked = {"examples": opened.surface.examples, **_settings()}
    for values in read_results(directory / "sharpness.json"):
        if values["step"] == opened.step and asked.items() <= values.items():
            return values
    found, _, _ = measure_flatness(opened.surface, SETTINGS)
    values = {"step": opened.step, "regularized": True, **found, **asked}
    write_results(values, directory)
    return values


def table(
    errors: Mapping[str, Sequence[float | None]], found: Mapping[str, Sequence[Measurement]]
) -> str:
    """Return mean and standard deviation over the seeds, a method a row, as Markdown.

    Args:
        errors: method -> test error of each seed, as a share; None: that run failed.
        found: method -> measurements, one a run that did not fail.

    Example:
        >>> values = {"hessian_eigenvalues": [2.5], "hessian_trace": 9.0, "sam_sharpness": 0.25,
        ...           "gradient_norm": 0.125, "loss": 0.5}
        >>> print(table({"SAM": [0.02, 0.04]}, {"SAM": [values]}).splitlines()[-1])
        | SAM | 2.5 | 9 | 0.25 | 0.125 | 0.5 | 3.00 ± 1.41% |
    """
    lines = [
        f"| method | {' | '.join(COLUMNS)} | test error |",
        f"| --- |{' ---: |' * (len(COLUMNS) + 1)}",
    ]
    for method, measured in found.items():
        cells = [_mean([value(values) for values in measured]) for value in COLUMNS.values()]
        cells.append(error_cell(errors[method]))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(found: Mapping[str, Sequence[Measurement]]) -> str:
    """Say whether each method's minima are flatter than plain training's, from the numbers.

    Args:
        found: as in `table`, SGD among them.
    """
    lines = []
    plain = found.get("SGD", [])
    for method, measured in found.items():
        if method == "SGD" or not measured or not plain:
            continue
        ratios = []
        for name in ("λmax", "trace"):
            value = COLUMNS[name]
            mean, of_plain = (
                statistics.fmean(value(each) for each in both) for both in (measured, plain)
            )
            below = max(map(value, measured)) < min(map(value, plain))
            above = min(map(value, measured)) > max(map(value, plain))
            how = "below in every run" if below else "above in every run" if above else "overlap"
            ratios.append(f"{name} {mean / of_plain:.2f} times that of SGD ({how})")
        lines.append(f"- {method}: {', '.join(ratios)}.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; exit with 1 where a run failed, with 130 where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m gnp.bench.flatness", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data_dir", required=True, help="folder with MNIST as TFDS prepares it")
    parser.add_argument("--out", type=local_path, required=True, help="folder for runs and results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--page", type=local_path, help="Markdown page to put the table into")
    options = parser.parse_args(arguments)
    if min(options.seeds, options.jobs) < 1:
        parser.error("--seeds and --jobs must be at least 1")
    if options.page and list(options.methods) != list(METHODS):
        parser.error("--page takes the table of all methods: leave --methods out")
    absl_logging.set_verbosity(absl_logging.FATAL)
    run_to_end(lambda: _compare(options), options.out, options.page, MARKS)


def _compare(options: argparse.Namespace) -> list[str]:
    """Train, measure, write the results; return a line for each run that failed."""
    errors, failures = train_all(
        options.methods, options.seeds, options.data_dir, options.out, options.jobs
    )
    whole = [
        (method, seed)
        for method in options.methods
        for seed, error in enumerate(errors[method])
        if error is not None
    ]
    found: dict[str, list[Measurement]] = {method: [] for method in options.methods}
    for method, seed in tqdm(whole, desc="measuring", unit="run"):
        try:
            found[method].append(measure(run_directory(options.out, method, seed)))
        except (DataError, CheckpointError, FileFormatError, SharpnessError) as error:
            failures.append(f"{method}, seed {seed}: {error}")
    about = about_this_machine()
    result = {**about, "seeds": options.seeds, "errors": errors, "measured": found}
    (options.out / "flatness.json").write_text(json.dumps(result, indent=2) + "\n")
    text = (
        f"{table(errors, found)}\n\nMean ± standard deviation of {options.seeds} seeds, over the "
        f"2,000 training examples; SAM sharpness in a ball of radius {SETTINGS.radius:g}; "
        f"{about['cores']} cores ({about['machine']}, {about['device']}), jax {about['jax']}."
        f"\n\n{verdict(found)}".rstrip()
    )
    (options.out / "flatness.md").write_text(text + "\n")
    print(text)
    print(f"in {options.out}: flatness.md, flatness.json, a run directory for each method and seed")
    if options.page:
        write_page(options.page, MARKS, text)
    return failures


def _settings() -> dict[str, Any]:
    return {
        "sam_radius": SETTINGS.radius,
        "seed": SETTINGS.seed,
        "hessian_trace_samples": SETTINGS.trace_samples,
        "regularized": True,
    }


def _mean(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    text = f"{statistics.fmean(there):.3g}"
    return f"{text} ± {statistics.stdev(there):.2g}" if len(there) > 1 else text


if __name__ == "__main__":
    main()
