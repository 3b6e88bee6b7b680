"""Measure how flat the loss is around a checkpoint.

    python -m gnp.analysis.sharpness DIR [--checkpoint=STEP|best] [--examples=N] [--eigenvalues=K]

DIR is a run directory. Results go there, or into --out: sharpness.json, sharpness.npz,
sharpness_spectrum.png, sharpness_curves.png, sharpness_contour.png. docs/sharpness.md says what
they hold. Exit codes: 0 done; 2 the command line or DIR is wrong; 1 anything that data, files or
devices show; 130 Ctrl-C.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import logging as absl_logging
from tqdm import tqdm

import config as configs
import ds_pipeline
import model
import optimizer
from gnp.analysis.command_line import Parser, checkpoint_step, local_path, make_folder, run, whole
from gnp.analysis.results import print_table
from gnp.analysis.sharpness.files import read_results
from gnp.analysis.sharpness.measure import Settings, measure_flatness, measure_sharpness
from gnp.analysis.sharpness.run import BATCH_SIZE, RADIUS, open_checkpoint, write_results
from gnp.analysis.sharpness.surface import SharpnessError
from gnp.experiment import DeviceError
from gnp.terminal import one_line, prepare_streams, warn
from gnp.training.checkpoint import CheckpointError
from gnp.training.run_directory import RunDirectoryError, read_config

_USAGE_ERRORS = (
    configs.ConfigError, model.ModelError, optimizer.OptimizerError, RunDirectoryError,
)  # fmt: skip
_RUN_ERRORS = (ds_pipeline.DataError, CheckpointError, DeviceError, SharpnessError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, None being the process' own, and return the exit code."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return run(lambda: _run(_parse(arguments)), _USAGE_ERRORS, _RUN_ERRORS)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m gnp.analysis.sharpness", description=__doc__)
    add, defaults = parser.add_argument, Settings()
    # fmt: off
    add("directory", metavar="DIR", type=local_path, help="run directory")
    add("--checkpoint", type=checkpoint_step, metavar="STEP", help="or best; default: the newest")
    add("--examples", type=whole(1), metavar="N",
        help="training examples, drawn at random (default: 2000, or all where there are fewer)")
    add("--eigenvalues", type=whole(1), metavar="K", default=defaults.eigenvalues,
        help="largest eigenvalues (default: %(default)s)")
    add("--steps", type=whole(2), metavar="N", default=defaults.eigenvalue_steps,
        help="Lanczos steps at most; each keeps a vector in memory (default: %(default)s)")
    add("--trace_samples", type=whole(2), metavar="N", default=defaults.trace_samples,
        help="random vectors for the trace (default: %(default)s)")
    add("--batch_size", type=whole(1), metavar="B", default=BATCH_SIZE,
        help="examples at a time; results do not depend on it (default: %(default)s)")
    add("--radius", type=_positive, metavar="R",
        help="of SAM's ball (default: the run's gnp.r, else 0.05)")
    add("--seed", type=whole(0), default=0, help="of the examples and of every random vector")
    add("--no_regularization", action="store_true",
        help="the data's loss alone, without l2_regularization and the like")
    add("--no_curves", action="store_true", help="numbers alone: no density, curves or pictures")
    add("--out", type=local_path, metavar="DIR", help="folder for the results")
    # fmt: on
    options = parser.parse_args(arguments)
    if options.eigenvalues > options.steps:
        parser.error(
            f"--eigenvalues={options.eigenvalues} needs as many --steps, not {options.steps}"
        )
    return options


def _run(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    out = options.out or options.directory
    config = read_config(options.directory)
    make_folder(out)
    read_results(out / "sharpness.json")
    step, surface, warnings = open_checkpoint(
        options.directory,
        options.checkpoint,
        options.examples,
        options.batch_size,
        options.seed,
        regularized=not options.no_regularization,
    )
    radius = options.radius or float(config.get("gnp.r") or RADIUS)
    settings = Settings(
        options.eigenvalues, radius, options.seed, options.steps, options.trace_samples
    )
    for warning in warnings:
        warn(warning)
    bar = tqdm(unit="pass", disable=None, dynamic_ncols=True, leave=False)
    surface = surface._replace(passed=bar.update)
    with bar:
        if options.no_curves:
            found, arrays = measure_flatness(surface, settings, bar.set_description)[0], None
        else:
            found, arrays = measure_sharpness(surface, settings, bar.set_description)
    values = {
        "step": step,
        "regularized": not options.no_regularization,
        "seed": options.seed,
        **found,
        "seconds": round(time.perf_counter() - started, 1),
    }
    written = write_results(values, out, arrays)
    print_table(f"{options.directory}, step {step}", _rows(values))
    if not values["hessian_eigenvalues_converged"]:
        warn(
            f"not all eigenvalues have converged after {values['hessian_products']} products (see "
            "the +- in the table); give more --steps"
        )
    print(f"in {one_line(out)}: {', '.join(written)}")


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    def show(name: str, error: str) -> list[str]:
        found, errors = np.atleast_1d(values[name]), np.atleast_1d(values[error])
        return [f"{value:.5g} ± {e:.2g}" for value, e in zip(found, errors, strict=True)]

    def finite(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.4g}"

    costs = "with the costs of the parameters" if values["regularized"] else "of the data alone"
    largest = show("hessian_eigenvalues", "hessian_eigenvalue_residuals")
    (smallest,) = show("hessian_smallest_eigenvalue", "hessian_smallest_eigenvalue_residual")
    (trace,) = show("hessian_trace", "hessian_trace_error")
    return [
        ("examples", f"{values['examples']:,}"),
        ("parameters", f"{values['parameters']:,}"),
        (f"loss {costs}", f"{values['loss']:.6g}"),
        ("gradient norm", f"{values['gradient_norm']:.4g}"),
        *((f"eigenvalue {number}", shown) for number, shown in enumerate(largest, start=1)),
        ("smallest eigenvalue", smallest),
        ("trace", trace),
        (f"SAM sharpness, r = {values['sam_radius']:g}", finite(values["sam_sharpness"])),
        ("  of its first-order step", finite(values["sam_sharpness_first_order"])),
        ("seconds", f"{values['seconds']:,}"),
    ]


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a number > 0 is needed")
    return value


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main())
