"""Look at the data set of a config: tables on the screen, all numbers in data.json, and pictures.

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

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What libraries have to say reaches people as an exception, told in one line below.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ml_collections
from absl import flags

import config as configs
import ds_pipeline
from gnp.analysis import data_numbers
from gnp.analysis import data_pictures as pictures
from gnp.analysis.command_line import UsageError, make_folder, run
from gnp.analysis.data_examples import plot_examples
from gnp.analysis.figure_files import drawn
from gnp.analysis.names import dataset_title
from gnp.analysis.results import print_table
from gnp.terminal import one_line, prepare_streams, warn
from gnp.training.files import write_json

_MOST_ROWS = 30
FILES = ("data.json", "class_counts.png", "targets.png", "sizes.png", "examples.png")


def main(arguments: Sequence[str]) -> int:
    """Run a command line, without the program's name, and return the exit code."""

    def command() -> None:
        if any(argument in ("-h", "--help", "-help") for argument in arguments):
            print(__doc__)
            return
        config, out, options = parse(arguments)
        try:
            look(config, out, options.split, options.seconds)
        except MemoryError as error:
            raise ds_pipeline.DataError("out of memory; try a smaller dataset.subset") from error

    return run(command, (configs.ConfigError,), (ds_pipeline.DataError,))


def parse(arguments: Sequence[str]) -> tuple[ml_collections.ConfigDict, Path, flags.FlagValues]:
    """Return the config, checked and complete, the folder to write to, and the other flags.

    Raises:
        UsageError: what is wrong, a line each.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "config file", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write to", flag_values=values)
    flags.DEFINE_enum("split", "train", ["train", "evaluation"], "which", flag_values=values)
    flags.DEFINE_float("seconds", 5.0, "of measurement", lower_bound=0, flag_values=values)
    overrides, wrong = configs.read_flags(values, arguments)
    if not values.out:
        wrong.append("--out=DIR is missing, where the pictures and data.json are written")
    if not values.config:
        wrong.append("--config=FILE is missing, such as --config=config/digits.py")
    try:
        out = configs.local_path(values.out or ".")
    except ValueError as error:
        wrong.append(f"--out={values.out} {error}")
    try:
        if values.config:
            config, problems = configs.read_config(values.config, overrides)
            wrong += problems
    except configs.ConfigError as error:
        wrong += str(error).splitlines()
    if wrong:
        raise UsageError("\n".join(wrong))
    return config, out, values


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
    dataset, keys = ds_pipeline.build_dataset(config), config.dataset
    make_folder(out)
    for file in FILES:  # those of a look at other data
        (out / file).unlink(missing_ok=True)
    source = dataset.train if split == "train" else dataset.evaluation
    name = "train" if split == "train" else dataset.evaluation_name
    labels, classes = source.labels(), dataset.class_names
    is_forecast = dataset.task == "forecasting"
    title = one_line(dataset_title(keys.dataset_name, keys.data_dir))
    title += f", {name}: {len(source):,} examples"
    for warning in dataset.warnings:
        warn(warning)
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "split": name,
        "examples": len(source),
        "input": data_numbers.kind(dataset, source),
        "shape": list(dataset.shape),
        "task": dataset.task,
        "augmentation": {
            "image_level": keys.image_level_augmentations,
            "batch_level": keys.batch_level_augmentations,
        },
        "warnings": list(dataset.warnings),
        **({} if is_forecast else data_numbers.label_facts(labels, classes)),
    }
    _print_overview(facts)
    if classes:
        counts = [each["examples"] for each in facts["classes"]]
        _print_classes(facts["classes"], counts)
        drawn(pictures.plot_class_counts, classes, counts, title, out / "class_counts.png")
    elif not is_forecast:
        drawn(pictures.plot_targets, labels, title, out / "targets.png")
    if facts["input"] == "encoded images":
        sizes = data_numbers.image_sizes(source)
        facts["sizes"] = data_numbers.size_facts(sizes)
        _print_sizes(facts["sizes"])
        if len(facts["sizes"]["counts"]) > 1:
            part = f"; {len(sizes):,} of them" if len(sizes) < len(source) else ""
            drawn(pictures.plot_sizes, sizes, title + part, out / "sizes.png")
    values = data_numbers.rows_of_series(source, dataset) if is_forecast else source
    facts["statistics"] = data_numbers.statistics_facts(values, dataset)
    _print_statistics(facts)
    changes = [name for name in facts["augmentation"].values() if name != "none"]
    title += f"; {', '.join(changes)}" if split == "train" and changes else ""
    drawn(plot_examples, dataset, source, split, config.seeds, title, out / "examples.png")
    if seconds > 0:
        facts["speed"] = data_numbers.speed(
            dataset, split, config.batch_size, config.seeds, seconds
        )
        _print_speed(facts["speed"], "images" if "images" in facts["input"] else "examples")
    write_json(out / "data.json", facts)
    print(f"in {one_line(out)}: {', '.join(file for file in FILES if (out / file).exists())}")


def _print_overview(facts: Mapping[str, Any]) -> None:
    rows = [
        ("examples", f"{facts['examples']:,}"),
        ("input", f"{facts['input']}, {' x '.join(map(str, facts['shape']))}"),
        ("task", facts["task"]),
    ]
    for level, name in facts["augmentation"].items():
        rows.append((f"{level.replace('_', ' ')} augmentation", name))
    for name, value in facts.get("target", {}).items():
        rows.append((f"target, {name}", f"{value:.6g}"))
    print_table(f"{facts['dataset']}, {facts['split']}", rows)


def _print_classes(classes: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> None:
    low, high, total = min(counts), max(counts), sum(counts)
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
        shown = ", ".join(f"{sizes[side][key]:g}" for key in ("min", "median", "max"))
        rows.append((f"{side}, least, median, most", shown))
    titles = ("width x height", "images")
    print_table(f"image sizes ({sizes['examined']:,} read)", rows, titles, titles)


def _print_statistics(facts: Mapping[str, Any]) -> None:
    what = "column" if facts["input"] == "vectors" else "channel"
    each, examined = facts["statistics"]["each"], facts["statistics"]["examined"]
    all_of_them = "all" if examined == facts["examples"] else f"{examined:,}"
    numbers = ("mean", "deviation", "min", "max", "normalized by mean", "and deviation")
    rows = []
    for number, values in enumerate(each[:_MOST_ROWS], 1):
        shown = [f"{value:.5g}" for key, value in values.items() if key != "name"]
        rows.append((values.get("name", str(number)), *shown))
    if len(each) > _MOST_ROWS:
        rows.append((f"and {len(each) - _MOST_ROWS:,} more, in data.json", *[""] * len(numbers)))
    title = f"raw values of {all_of_them} examples, by {what}"
    print_table(title, rows, (what, *numbers), numbers)


def _print_speed(measured: Mapping[str, Any], noun: str) -> None:
    print(
        f"{measured['examples_per_second']:,.0f} {noun}/s in batches of {measured['batch_size']}, "
        f"{measured['workers']} workers, over {measured['seconds']:.1f} s; the first batch took "
        f"{measured['first_batch_seconds']:.2f} s"
    )


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
