"""Draw what runs forecast, and how their channels attend to one another.

    python -m gnp.analysis.forecast RUN [RUN ...] [--windows=N] [--channels=N] [--out=DIR]

RUN is a run directory of forecasts; several are drawn side by side, such as with and without the
penalty. Each gives its best checkpoint, where it has one, else its newest. Into --out, or the first
RUN, go

    forecasts.png  windows of the evaluation set, at even distances: the past, what followed, and
                   each run's forecast of it, in the units of the file
    attention.png  of models with attention between the channels: its mean over the evaluation
                   set, a row for each channel that attends

Exit codes: 0 done; 2 the command line or a RUN is wrong; 1 anything that data, files or devices
show; 130 Ctrl-C.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import numpy.typing as npt
from absl import logging as absl_logging

import config as configs
import ds_pipeline
import model
import optimizer
from ds_pipeline.source import CONSTANT
from gnp.analysis.command_line import Parser, UsageError, local_path, make_folder, run, whole
from gnp.analysis.figure_files import COLORS, GRAY, drawn, picture
from gnp.analysis.names import names_of
from gnp.analysis.results import print_table
from gnp.analysis.runs import open_run
from gnp.experiment import DeviceError
from gnp.terminal import one_line, prepare_streams, warn
from gnp.training.checkpoint import CheckpointError
from gnp.training.early_stopping import BEST
from gnp.training.metrics import evaluate, number
from gnp.training.run_directory import RunDirectoryError, read_config

FORECASTS, ATTENTION = "forecasts.png", "attention.png"
_MOST_RUNS = 6  # of which each has a color
_USAGE_ERRORS = (
    configs.ConfigError, model.ModelError, optimizer.OptimizerError, RunDirectoryError,
)  # fmt: skip
_RUN_ERRORS = (ds_pipeline.DataError, CheckpointError, DeviceError)


class Forecasts(NamedTuple):
    """Hold what a run forecasts of the evaluation set.

    Attributes:
        name: Of the run.
        step: Of its checkpoint.
        columns: Names of the channels.
        metrics: Means over the set.
        past, truth, forecast: Of the chosen windows, [windows, time, channels], in the units of
            the file.
        attention: Mean over the set, [channels, channels]; None: the model has none.
    """

    name: str
    step: int
    columns: tuple[str, ...]
    metrics: dict[str, float]
    past: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float64]
    forecast: npt.NDArray[np.float64]
    attention: npt.NDArray[np.float64] | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, None being the process' own, and return the exit code."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return run(lambda: _run(_parse(arguments)), _USAGE_ERRORS, _RUN_ERRORS)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m gnp.analysis.forecast", description=__doc__)
    add = parser.add_argument
    add("runs", metavar="RUN", type=local_path, nargs="+", help="run directory")
    add("--windows", type=whole(1), metavar="N", default=3, help="to draw (default: %(default)s)")
    add("--channels", type=whole(1), metavar="N", default=4,
        help="to draw, the last ones (default: %(default)s)")  # fmt: skip
    add("--out", type=local_path, metavar="DIR", help="folder for the pictures")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    out = options.out or options.runs[0]
    make_folder(out)
    if len(options.runs) > _MOST_RUNS:
        raise UsageError(
            f"{len(options.runs)} runs are too many for a picture: at most {_MOST_RUNS}"
        )
    names = names_of(options.runs)
    found = [
        read_forecasts(directory, options.windows)._replace(name=name)
        for directory, name in zip(options.runs, names, strict=True)
    ]
    for other in found[1:]:
        if other.truth.shape != found[0].truth.shape or not np.allclose(
            other.truth, found[0].truth
        ):
            raise UsageError(
                f"{options.runs[0]} and {other.name} do not forecast the same windows: look at "
                "each on its own"
            )
    metrics = [name.replace("_", " ") for name in found[0].metrics]
    rows = [
        (
            each.name,
            str(each.step),
            *(number(*pair) for pair in each.metrics.items()),
            _to_itself(each.attention),
        )
        for each in found
    ]
    print_table("forecasts", rows, ("run", "step", *metrics, "attention to itself"))
    written = [FORECASTS]
    drawn(plot_forecasts, found, out / FORECASTS, options.channels)
    if any(each.attention is not None for each in found):
        written.append(ATTENTION)
        drawn(
            plot_attention, [each for each in found if each.attention is not None], out / ATTENTION
        )
    print(f"in {one_line(out)}: {', '.join(written)}")


def _to_itself(attention: npt.NDArray[np.float64] | None) -> str:
    return "-" if attention is None else f"{attention.diagonal().mean():.1%}"


def read_forecasts(directory: Path, windows: int) -> Forecasts:
    """Evaluate a run's checkpoint, and forecast some windows by it.

    Args:
        directory: Of the run.
        windows: How many, at even distances.

    Raises:
        UsageError: the run is of another task.
        RunDirectoryError, ConfigError, ModelError, DataError, CheckpointError: one line each.
    """
    has_best = read_config(directory).get("early_stopping.metric") is not None
    config, experiment, restored, warnings = open_run(directory, BEST if has_best else None)
    dataset = experiment.dataset
    if dataset.task != "forecasting":
        raise UsageError(f"{directory} is a run of {dataset.task}, not of forecasting")
    for warning in warnings:
        warn(warning)
    params, model_state, *_ = restored.state
    source = dataset.evaluation
    metrics, _ = evaluate(experiment.eval_step, restored.state, experiment.eval_batches())
    chosen = np.linspace(0, len(source) - 1, min(windows, len(source))).astype(int)
    batch = source.batch(chosen)
    predict = jax.jit(lambda x: experiment.model.apply(params, model_state, x, False, None)[0])

    deviation = np.where(dataset.std == CONSTANT, 0, dataset.std)

    def in_units(x: Any) -> npt.NDArray[np.float64]:
        return np.asarray(x, np.float64) * deviation + dataset.mean

    return Forecasts(
        directory.name,
        restored.step,
        dataset.columns,
        metrics,
        in_units(batch["input"]),
        in_units(batch["label"]),
        in_units(predict(batch["input"])),
        _attention(config, experiment.eval_batches(), dataset, {"params": params, **model_state}),
    )


def _attention(
    config: Any, batches: Any, dataset: ds_pipeline.Dataset, variables: Any
) -> npt.NDArray[np.float64] | None:
    """Return the mean attention over batches; None where the model has no such method."""
    module = model.build_model(config, dataset.target_shape[0])
    if not hasattr(module, "attention"):
        return None

    @jax.jit
    def summed(batch: Any) -> jax.Array:
        weights = module.apply(variables, dataset.normalize(batch["input"]), method="attention")
        return (weights * batch["mask"][:, None, None]).sum(0)

    total = np.zeros((len(dataset.columns),) * 2)
    for batch in batches:
        total += summed(batch)
    return total / len(dataset.evaluation)


def plot_forecasts(runs: Sequence[Forecasts], path: Path, channels: int) -> None:
    """Draw a row for each window and a column for each of the last channels.

    Args:
        runs: Of the same windows.
        path: The PNG to write; replaced whole.
        channels: At most so many are drawn.

    Raises:
        OSError: it cannot be written.
    """
    first = runs[0]
    windows, horizon = first.truth.shape[:2]
    shown = range(max(0, len(first.columns) - channels), len(first.columns))
    ahead = np.arange(horizon)
    with picture(path, (3.2 * len(shown) + 0.5, 2.1 * windows + 0.6)) as figure:
        axes = figure.subplots(windows, len(shown), squeeze=False, sharex=True)
        for row, window in zip(axes, range(windows), strict=True):
            for axis, channel in zip(row, shown, strict=True):
                past = first.past[window, -2 * horizon :, channel]
                axis.plot(np.arange(-len(past), 0), past, color=GRAY, linestyle="-", linewidth=0.8)
                axis.plot(ahead, first.truth[window, :, channel], color="black", linestyle="-",
                          linewidth=0.8, label="truth")  # fmt: skip
                for each, color in zip(runs, COLORS, strict=False):
                    axis.plot(ahead, each.forecast[window, :, channel], color=color,
                              linestyle="-", linewidth=1.2, label=each.name)  # fmt: skip
        for axis, channel in zip(axes[0], shown, strict=True):
            axis.set_title(first.columns[channel])
        for axis in axes[-1]:
            axis.set_xlabel("rows from the start of the forecast")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names))


def plot_attention(runs: Sequence[Forecasts], path: Path) -> None:
    """Draw the mean attention of each run, from 0 to 1.

    Args:
        runs: Each with attention.
        path: The PNG to write; replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    with picture(path, (3.4 * len(runs) + 0.8, 3.9)) as figure:
        axes = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
        for axis, each in zip(axes, runs, strict=True):
            assert each.attention is not None
            image = axis.imshow(each.attention, cmap="viridis", vmin=0, vmax=1)
            axis.grid(False)
            axis.set_title(f"{each.name}\nto itself {_to_itself(each.attention)}", fontsize=9)
            ticks = range(len(each.columns)) if len(each.columns) <= 32 else []
            names = [each.columns[i] for i in ticks]
            axis.set_xticks(ticks, names, rotation=90, fontsize=8)
            axis.set_yticks(ticks, names, fontsize=8)
        figure.colorbar(image, ax=axes, label="weight")


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main())
