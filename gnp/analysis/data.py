r"""Looks at the data set of a config: numbers on the screen and in DIR/data.json, and pictures.

python -m gnp.analysis.data --config=FILE --out=DIR [--split=train|evaluation] [--seconds=N]
    [--config.KEY=VALUE ...]
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# What libraries have to say reaches people as an exception, told in one line below.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ml_collections
import numpy as np
import numpy.typing as npt
from absl import flags

import config as configs
import ds_pipeline
from gnp.analysis import data_pictures as pictures
from gnp.analysis.command_line import UsageError, make_folder, run
from gnp.analysis.data_examples import plot_examples
from gnp.analysis.data_numbers import (
    decoded,
    image_sizes,
    kind,
    label_facts,
    measure,
    size_facts,
    speed,
    statistics_facts,
)
from gnp.analysis.figure_files import drawn
from gnp.analysis.names import dataset_title
from gnp.analysis.results import print_table
from gnp.terminal import one_line, prepare_streams, warn
from gnp.training.files import write_json

USAGE = """\
python -m gnp.analysis.data --config=FILE --out=DIR [--split=SPLIT] [--seconds=N]
                            [--config.KEY=VALUE]...

  --config=FILE         whose data set to look at; config/ holds ready ones
  --out=DIR             where data.json and the pictures are written
  --split=train         what is trained on, augmented (default)
  --split=evaluation    what is evaluated on
  --seconds=5           how long the pipeline's speed is measured; 0: not at all
  --config.KEY=VALUE    any of the config's keys, such as --config.dataset.dataset_name=iris

Exit codes: 0 done; 2 the command line or a config value is wrong by itself; 1 anything that data
or files show; 130 Ctrl-C.
"""

_MOST_ROWS = 30
FILES = ("data.json", "class_counts.png", "targets.png", "sizes.png", "examples.png")


class CommandLine(NamedTuple):
    """A parsed command line.

    Attributes:
        config: checked and complete.
        out: the folder to write to.
        split: train or evaluation.
        seconds: for the measurement of the speed.
    """

    config: ml_collections.ConfigDict
    out: Path
    split: str
    seconds: float


def main(arguments: Sequence[str]) -> int:
    """Run a command line and return the exit code.

    Args:
        arguments: without the program's name.

    Example:
        >>> main(["--split=train"])
        2
    """

    def command() -> None:
        line = parse(arguments)
        if line is None:
            print(USAGE)
            return
        try:
            look(line.config, line.out, line.split, line.seconds)
        except MemoryError as error:
            raise ds_pipeline.DataError("out of memory; try a smaller dataset.subset") from error

    return run(command, (configs.ConfigError,), (ds_pipeline.DataError,))


def parse(arguments: Sequence[str]) -> CommandLine | None:
    """Return the checked command line; None where help was asked for.

    Args:
        arguments: without the program's name.

    Raises:
        UsageError, ConfigError: what is wrong, a line each.

    Example:
        >>> parse(["--config=config/digits.py", "--out=pictures"]).split
        'train'
    """
    if any(argument in ("-h", "--help", "-help") for argument in arguments):
        return None
    values = _define_flags()
    overrides, wrong = configs.read_flags(values, arguments)
    out = Path()
    if not values.out:
        wrong.append("--out=DIR is missing, where the pictures and data.json are written")
    else:
        try:
            out = configs.local_path(values.out)
        except ValueError as error:
            wrong.append(f"--out={values.out} {error}")
    if not values.config:
        wrong.append("--config=FILE is missing, such as --config=config/digits.py")
    loaded = None
    if values.config:
        try:
            loaded, problems = configs.read_config(values.config, overrides)
            wrong += problems
        except configs.ConfigError as error:
            wrong += str(error).splitlines()
    if wrong or loaded is None:
        raise UsageError("\n".join(wrong))
    return CommandLine(loaded, out, values.split, values.seconds)


def look(config: ml_collections.ConfigDict, out: Path, split: str, seconds: float) -> None:
    """Print what a data set holds and write it to a folder.

    Args:
        config: checked and complete.
        out: created; gets data.json, class_counts.png (targets.png for a regression),
            examples.png, and sizes.png where encoded images differ in size.
        split: train or evaluation.
        seconds: for the measurement of the speed; 0: none.

    Raises:
        DataError: the data are missing or damaged.
        OSError: the folder cannot be written to.
    """
    dataset = ds_pipeline.build_dataset(config)
    make_folder(out)
    for file in FILES:  # those of a look at other data
        (out / file).unlink(missing_ok=True)
    source = dataset.train if split == "train" else dataset.evaluation
    name = "train" if split == "train" else dataset.evaluation_name
    labels, column_names = source.labels(), dataset.columns
    keys = config.dataset
    title = one_line(dataset_title(keys.dataset_name, keys.data_dir))
    title += f", {name}: {len(source):,} examples"
    for warning in dataset.warnings:
        warn(warning)
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "split": name,
        "examples": len(source),
        "input": kind(dataset, source),
        "shape": list(dataset.shape),
        "task": "regression" if dataset.is_regression else "classification",
        "augmentation": {
            "image_level": config.dataset.image_level_augmentations,
            "batch_level": config.dataset.batch_level_augmentations,
        },
        "warnings": list(dataset.warnings),
        **label_facts(labels, dataset.class_names),
    }
    _print_overview(facts)
    _plot_labels(labels, dataset.class_names, title, out)
    if facts["input"] == "encoded images":
        sizes = image_sizes(source)
        facts["sizes"] = size_facts(sizes)
        _print_sizes(facts["sizes"])
        if len(facts["sizes"]["counts"]) > 1:
            part = f"; {len(sizes):,} of them" if len(sizes) < len(source) else ""
            drawn(pictures.plot_sizes, sizes, title + part, out / "sizes.png")
    statistics = measure(decoded(source, dataset.shape))
    facts["statistics"] = statistics_facts(statistics, dataset, column_names)
    _print_statistics(facts)
    changes = [name for name in facts["augmentation"].values() if name != "none"]
    if split == "train" and changes:
        title += f"; {', '.join(changes)}"
    drawn(
        plot_examples, dataset, source, split, config.seeds, title, column_names,
        out / "examples.png",
    )  # fmt: skip
    if seconds > 0:
        facts["speed"] = speed(dataset, split, config.batch_size, config.seeds, seconds)
        _print_speed(facts)
    write_json(out / "data.json", facts)
    print(f"in {one_line(out)}: {', '.join(file for file in FILES if (out / file).exists())}")


def _plot_labels(
    labels: npt.NDArray[Any], class_names: Sequence[str], title: str, out: Path
) -> None:
    if class_names:
        counts = np.bincount(labels, minlength=len(class_names)).tolist()
        drawn(pictures.plot_class_counts, class_names, counts, title, out / "class_counts.png")
    else:
        drawn(pictures.plot_targets, labels, title, out / "targets.png")


def _print_overview(facts: Mapping[str, Any]) -> None:
    shape = " x ".join(map(str, facts["shape"]))
    rows = [
        ("examples", f"{facts['examples']:,}"),
        ("input", f"{facts['input']}, {shape}"),
        ("task", facts["task"]),
    ]
    for level, name in facts["augmentation"].items():
        rows.append((f"{level.replace('_', ' ')} augmentation", name))
    for name, value in facts.get("target", {}).items():
        rows.append((f"target, {name}", f"{value:.6g}"))
    print_table(f"{facts['dataset']}, {facts['split']}", rows)
    if "classes" in facts:
        _print_classes(facts["classes"], facts["examples"])


def _print_classes(classes: Sequence[Mapping[str, Any]], total: int) -> None:
    counts = [each["examples"] for each in classes]
    low, high = min(counts), max(counts)
    each_of = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    rows = [
        (str(number), each["name"], f"{each['examples']:,}", f"{each['examples'] / total:.2%}")
        for number, each in enumerate(classes[:_MOST_ROWS])
    ]
    if len(classes) > _MOST_ROWS:
        rows.append(("", f"and {len(classes) - _MOST_ROWS:,} more, in data.json", "", ""))
    numbers = ("class", "examples", "share")
    title = f"{len(classes):,} classes of {each_of} example{'s' * (high != 1)}"
    print_table(title, rows, ("class", "name", "examples", "share"), numbers)


def _print_sizes(sizes: Mapping[str, Any]) -> None:
    counts = sizes["counts"]
    rows = [(f"{each['width']} x {each['height']}", f"{each['examples']:,}") for each in counts[:8]]
    for side in ("width", "height") if len(counts) > 1 else ():
        low, middle, high = (sizes[side][key] for key in ("min", "median", "max"))
        rows.append((f"{side}, least, median, most", f"{low:g}, {middle:g}, {high:g}"))
    titles = ("width x height", "images")
    print_table(f"image sizes ({sizes['examined']:,} read)", rows, titles, titles)


def _print_statistics(facts: Mapping[str, Any]) -> None:
    what = "column" if facts["input"] == "vectors" else "channel"
    each = facts["statistics"]["each"]
    examined = facts["statistics"]["examined"]
    all_of_them = "all" if examined == facts["examples"] else f"{examined:,}"
    numbers = ("mean", "deviation", "min", "max", "normalized by mean", "and deviation")
    rows = []
    for number, values in enumerate(each[:_MOST_ROWS], 1):
        shown = [f"{value:.5g}" for key, value in values.items() if key != "name"]
        rows.append((values.get("name", str(number)), *shown))
    if len(each) > _MOST_ROWS:
        rows.append((f"and {len(each) - _MOST_ROWS:,} more, in data.json", *[""] * 6))
    title = f"raw values of {all_of_them} examples, by {what}"
    print_table(title, rows, (what, *numbers), numbers)


def _print_speed(facts: Mapping[str, Any]) -> None:
    measured = facts["speed"]
    noun = "images" if "images" in facts["input"] else "examples"
    print(
        f"{measured['examples_per_second']:,.0f} {noun}/s in batches of {measured['batch_size']}, "
        f"{measured['workers']} workers, over {measured['seconds']:.1f} s; the first batch took "
        f"{measured['first_batch_seconds']:.2f} s"
    )


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "config file", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_enum("split", "train", ["train", "evaluation"], "which", flag_values=values)
    flags.DEFINE_float("seconds", 5.0, "of measurement", lower_bound=0, flag_values=values)
    return values


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
