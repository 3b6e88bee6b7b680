"""Prepares data sets, or says what to download by hand; run by prepare_data.sh.

    python recipe/prepare_data.py [--data_dir=DIR] NAME... [DIR]

Exit codes: 0 everything is there; 1 something failed or is still to be downloaded by hand; 2 a name
or the folder is wrong; 130 Ctrl-C. With --without_tensorflow 75 where TensorFlow is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fcntl
import logging
import math
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

# The sets that recipes train on and that TFDS downloads by itself: what `all` stands for.
RECIPES = ("mnist", "cifar10", "cifar100", "svhn_cropped", "horses_or_humans", "iris")
SCIKIT_LEARN = ("digits", "iris", "wine", "breast_cancer", "diabetes")
BY_HAND = ("FordA", "ucr", "boston_housing", "image_folder", "imagenet2012", "forecast")

MIB = 2**20
# Sizes of the prepared sets, from TFDS' catalog; the downloads' are in TFDS itself.
PREPARED_BYTES = {
    "mnist": 21.00 * MIB,
    "cifar10": 132.40 * MIB,
    "cifar100": 132.03 * MIB,
    "svhn_cropped": 1.09 * 1024 * MIB,
    "horses_or_humans": 153.53 * MIB,
    "imagenet2012": 155.84 * 1024 * MIB,
}

# Terms that TFDS does not state itself, as the sets' home pages give them.
LICENSES = {
    "mnist": "CC BY-SA 3.0",
    "fashion_mnist": "MIT",
    "svhn_cropped": "non-commercial use only",
    "imagenet2012": "non-commercial research and education only",
}

NEEDS_TENSORFLOW = 75

UCR = """\
{name}: download it by hand from the UCR Time Series Archive,
  https://www.cs.ucr.edu/~eamonn/time_series_data_2018 (all 128 sets in one archive; its
  page says how to open it), or as one set from https://www.timeseriesclassification.com
  (take the .ts files; gnp reads .tsv, too, with the label first).
  FordA alone, as Keras' time-series example takes it:
  https://raw.githubusercontent.com/hfawaz/cd-diagram/master/FordA/FordA_TRAIN.tsv
  https://raw.githubusercontent.com/hfawaz/cd-diagram/master/FordA/FordA_TEST.tsv
  Those who use the archive are asked to cite it: Dau et al., The UCR Time Series
  Archive, 2019.
  Then put it there: {data_dir}/{set}/{set}_TRAIN.tsv (or .ts) and {set}_TEST.tsv
  and give the same command again."""
BOSTON = """\
{name}: download the table by hand, 506 rows of 13 columns and medv, such as
  https://raw.githubusercontent.com/selva86/datasets/master/BostonHousing.csv
  (the original, in another layout: http://lib.stat.cmu.edu/datasets/boston).
  It has a known ethical problem: its column b was made on the assumption that racial
  self-segregation raises house prices. scikit-learn removed it in 1.2 and advises
  against using it but to teach about that; a substitute without a download is
  --config.dataset.dataset_name=diabetes.
  Then put it there: {data_dir}/boston_housing.csv
  and give the same command again."""
FORECAST = """\
{name}: download the series by hand, CSV files with a time column:
  ETTh1, ETTh2, ETTm1, ETTm2 (transformers; CC BY-ND 4.0):
    https://github.com/zhouhaoyi/ETDataset, folder ETT-small
  Electricity (370 consumers, every 15 minutes; CC BY 4.0):
    https://archive.ics.uci.edu/dataset/321/electricityloaddiagrams20112014
  Exchange (8 rates by the day), and Electricity and Traffic by the hour as papers have
  them; no license is stated:
    https://github.com/laiguokun/multivariate-time-series-data
  Traffic (862 roads by the hour; its site states the terms): https://pems.dot.ca.gov
  Weather (21 values every 10 minutes; its site states the terms):
    https://www.bgc-jena.mpg.de/wetter
  gnp reads CSV in UTF-8: a header, a time column (2016-07-01 00:00:00), commas, decimal
  points; bring other files to that. Remove duplicate rows, such as Weather's of
  2020-05-12 06:00:00; where rows are missing: --config.dataset.allow_gaps=True
  Then put them there: {data_dir}/ETTh1.csv
  and give the same command again."""
IMAGE_FOLDER = """\
{name}: no folders train and val (or test) in {data_dir}. Put images there:
  {data_dir}/train/CLASS/*.JPEG (also .jpg, .png)
  {data_dir}/val/CLASS/*.JPEG, with the same classes
  and give the same command again."""
IMAGENET = """\
{name}: register on https://image-net.org/download-images (non-commercial
  research and education only) and download ILSVRC2012_img_train.tar (137.7 GiB)
  and ILSVRC2012_img_val.tar (6.3 GiB) by hand. Then either put both into
  {data_dir}/downloads/manual
  and give the same command again: TFDS writes 155.8 GiB more; or unpack them to
  DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, which is read as it is, with
  --config.dataset.dataset_name=image_folder --config.dataset.data_dir=DIR"""


class Wrong(Exception):
    """A name or a folder that cannot be used, in one line, and the exit code."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """Takes what is wrong for a Wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        usage = "bash recipe/prepare_data.sh [--data_dir=DIR] NAME... [DIR]"
        raise Wrong(f"{message}; usage: {usage}")


def main() -> int:
    """Prepare what is named and return the exit code."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_dir")
    parser.add_argument("--without_tensorflow", action="store_true")
    parser.add_argument("words", nargs="+", metavar="NAME")
    try:
        arguments = parser.parse_args()
        if "" in arguments.words:
            parser.error("an empty word")
        offline = arguments.without_tensorflow
        names, data_dir = names_and_folder(arguments.words, arguments.data_dir, offline)
        by_hand = [name for name in names if is_by_hand(name, data_dir)]
        automatic = [name for name in names if name not in by_hand]
        if automatic and offline:
            return NEEDS_TENSORFLOW
        for name in automatic:
            if base_name(name) not in known_names():
                hint = nearest(name) or "; see www.tensorflow.org/datasets/catalog"
                raise Wrong(f"unknown TFDS data set '{name}'{hint}")
        if automatic:
            check_folder(data_dir)
        missing = [name for name in by_hand if not is_in_place(name, data_dir)]
        broken = []
        if automatic:
            with locked(data_dir):
                broken = prepare_all(automatic, data_dir)
    except Wrong as error:
        return failed(str(error), error.code)
    except KeyboardInterrupt:
        return failed("stopped; the same command goes on where it was", 130)
    for name, reason in broken:
        failed(f"'{name}' was not prepared: {reason}", 1)
    if missing:
        failed(f"to be downloaded by hand, as said above: {', '.join(missing)}", 1)
    return 1 if broken or missing else 0


def names_and_folder(
    words: Sequence[str], data_dir: str | None, offline: bool
) -> tuple[list[str], Path]:
    """Return data sets and folder: the last word is the folder where it is no known name."""
    names = list(words)
    if data_dir is None and len(names) > 1 and is_folder(names[-1], offline):
        data_dir = names.pop()
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    names = [part for name in names for part in (RECIPES if name == "all" else (name,))]
    for name in names:
        if name in SCIKIT_LEARN and name not in RECIPES:
            raise Wrong(f"'{name}' comes with scikit-learn and needs no preparation")
    # By its file, as the package needs what is not installed here.
    paths = runpy.run_path(str(Path(__file__).parents[1] / "config" / "paths.py"))
    try:
        return list(dict.fromkeys(names)), paths["local_path"](data_dir)
    except ValueError as error:
        raise Wrong(f"the data folder {data_dir} {error}") from error


def is_folder(word: str, offline: bool) -> bool:
    """Tell whether the last word is the folder of the data."""
    if word.startswith((".", "/", "~")):
        return True
    if base_name(word) in ("all", *BY_HAND, *RECIPES, *SCIKIT_LEARN):
        return False
    if offline or (base_name(word) not in known_names() and Path(word).is_dir()):
        return True
    if hint := nearest(word, cutoff=0.8):
        raise Wrong(f"'{word}' is no data set{hint} If it is to be the folder: --data_dir={word}")
    return base_name(word) not in known_names()


def base_name(name: str) -> str:
    """Return a set's name without version and config."""
    return re.split("[/:]", name.removeprefix("tfds/"))[0]


def known_names() -> list[str]:
    """Return the names that TFDS knows."""
    import tensorflow_datasets as tfds

    return list(tfds.list_builders(with_community_datasets=False))


def nearest(name: str, cutoff: float = 0.6) -> str:
    """Return `; did you mean 'x'?` with the name nearest to one that TFDS does not know."""
    base = base_name(name).lower()
    known = known_names()
    matches = base not in known and difflib.get_close_matches(base, known, n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def check_folder(data_dir: Path) -> None:
    """Create the folder of the data; raise Wrong where it cannot hold any."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Wrong(f"the data folder {data_dir} cannot be created: {error.strerror}") from error
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise Wrong(f"the data folder {data_dir} is not writable")


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Keep a second preparation out of a folder; raise Wrong where one is at work there."""
    folder = os.open(data_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            line = f"another prepare_data is at work in {data_dir}; wait for its end"
            raise Wrong(line, 1) from error
        except OSError as error:
            raise Wrong(f"{data_dir} cannot be locked: {error.strerror}", 1) from error
        yield
    finally:
        os.close(folder)


def prepare_all(names: Sequence[str], data_dir: Path) -> list[tuple[str, str]]:
    """Prepare the sets that are not there yet; return (name, reason) of each that failed."""
    import tensorflow_datasets as tfds

    interrupted: list[int] = []

    def on_interrupt(number: int, _: object) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    # By these TFDS tells of a set, the network or the disk; others are bugs.
    reported = (
        OSError,  # those of requests among them
        ValueError,  # no such config
        AssertionError,  # no such version, files that are to be downloaded by hand
        RuntimeError,
        ImportError,  # a package that this set alone needs
        tfds.download.DownloadError,
        tfds.core.download.download_manager.NonMatchingChecksumError,
        tfds.core.download.extractor.ExtractError,
        tfds.core.download.extractor.UnsafeArchiveError,
    )
    builders, broken = {}, []
    for name in names:
        try:
            builders[name] = find_builder(name, data_dir)
        except reported as error:
            broken.append((name, one_line(error)))
    todo = {name: builder for name, builder in builders.items() if not is_prepared(builder)}
    if builders:
        print_table(list(builders.values()), data_dir)
    if not sys.stderr.isatty() and todo:
        tfds.disable_progress_bar()
    # A line for each of ten attempts says no more than the error at the end.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if todo:
        print("a server that does not answer is tried again for some 4 minutes", flush=True)
    for number, (name, builder) in enumerate(todo.items(), 1):
        print(f"[{number}/{len(todo)}] {name}", flush=True)
        try:
            prepare(name, builder, data_dir, interrupted)
        except reported as error:
            broken.append((name, one_line(error)))
            print(f"'{name}' failed: {broken[-1][1]}", flush=True)
    return broken


def find_builder(name: str, data_dir: Path) -> Any:
    """Return TFDS' builder of a set, before anything is downloaded."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(
        name.removeprefix("tfds/"), data_dir=data_dir, file_format="array_record"
    )
    folder = Path(builder.data_dir)
    if folder.exists() and not is_prepared(builder):
        raise RuntimeError(f"{folder} has no dataset_info.json: an incomplete copy; remove it")
    return builder


def is_prepared(builder: Any) -> bool:
    """Tell whether a set is there already."""
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def prepare(name: str, builder: Any, data_dir: Path, interrupted: Sequence[int]) -> None:
    """Download and write a set; what is downloaded already is not downloaded again."""
    import tensorflow_datasets as tfds

    folder = Path(builder.data_dir)
    # TFDS writes into such a folder and renames it at the end; one is left by a killed process.
    for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(left)
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=settings, file_format="array_record")
    finally:
        if interrupted:  # which TFDS may have wrapped into an error of its own
            raise KeyboardInterrupt
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    print(f"'{name}' is prepared in {folder}: {counts}", flush=True)
    own = name.removeprefix("tfds/")
    print(
        f"in gnp: --config.dataset.dataset_name={f'tfds/{own}' if own in SCIKIT_LEARN else own} "
        f"--config.dataset.data_dir={shlex.quote(str(data_dir))}"
    )


def print_table(builders: Sequence[Any], data_dir: Path) -> None:
    """Print what is about to be done: sizes, time, terms, and whether the disk has room."""
    rows = [("data set", "state", "download", "prepared", "time", "license")]
    needed = todo = 0
    for builder in builders:
        info, done = builder.info, is_prepared(builder)
        urls = builder.url_infos.values()
        download = int(info.download_size or sum(url.size for url in urls))
        prepared = int(info.dataset_size or PREPARED_BYTES.get(builder.name, 0))
        stated = info.redistribution_info.license if info.redistribution_info else ""
        at_most = "at most " if builder.builder_configs and download else ""
        license = stated or LICENSES.get(builder.name) or "not stated by TFDS; see the home page"
        state, time = ("there, skipped", "-") if done else ("to prepare", time_class(download))
        sizes = at_most + size(download), size(prepared)
        rows.append((info.full_name, state, *sizes, time, license))
        needed += 0 if done else download + prepared
        todo += not done
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    for builder in builders:
        print(f"{builder.name}: {builder.info.homepage or 'no home page stated'}")
    free = shutil.disk_usage(data_dir).free
    print(
        f"total: {todo} to prepare, {size(needed)}; free in {data_dir}: {size(free)}; times are a "
        "rule of thumb, without the download"
    )
    if needed > free:
        print("WARNING: that may not be enough; prepare some at a time, or elsewhere (--data_dir)")
    sys.stdout.flush()


def size(count: float) -> str:
    """Return bytes as people read them: `162.2 MiB`."""
    if not count:
        return "not known"
    power = min(int(math.log(count, 1024)), 3)
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def time_class(download: int) -> str:
    """Estimate how long writing a set takes, by the size of its download."""
    for limit, text in ((1, "not known"), (64 * MIB, "seconds"), (16 * 1024 * MIB, "minutes")):
        if download < limit:
            return text
    return "hours"


def is_by_hand(name: str, data_dir: Path) -> bool:
    """Tell whether no program can download a set, or gnp reads its files itself."""
    if name == "imagenet2012":
        files = [f"ILSVRC2012_img_{part}.tar" for part in ("train", "val")]
        is_there = all((data_dir / "downloads" / "manual" / file).is_file() for file in files)
        return not is_there and not any(data_dir.glob("imagenet2012/*/dataset_info.json"))
    return name in BY_HAND[2:] or name == "FordA" or name.startswith("ucr/")


def is_in_place(name: str, data_dir: Path) -> bool:
    """Print the command that trains on a set where its files are, else what to download."""
    series = name.removeprefix("ucr/")
    settings: dict[str, object] = {"data_dir": data_dir}
    if name == "imagenet2012":
        text, config, there = IMAGENET, "", False
    elif name == "boston_housing":
        files = [data_dir / table for table in ("boston_housing.csv", "BostonHousing.csv")]
        found = [file for file in files if file.is_file()]
        text, config, there = BOSTON, "boston", bool(found)
        settings["data_dir"] = (found or files)[0]
    elif name == "forecast":
        files = sorted(data_dir.glob("*.csv"))
        text, config, there = FORECAST, "samformer", bool(files)
        settings["data_dir"] = files[0] if files else data_dir
    elif name == "image_folder":
        splits = [split for split in ("train", "val", "test") if (data_dir / split).is_dir()]
        text, config = IMAGE_FOLDER, "imagenet_folder"
        there = "train" in splits and len(splits) > 1
    else:
        text, config, settings = UCR, "ucr", {"dataset_name": f"ucr/{series}", **settings}
        folders, suffixes = (data_dir / series, data_dir), (".tsv", ".ts")
        there = all(
            any((f / f"{series}_{part}{s}").is_file() for f in folders for s in suffixes)
            for part in ("TRAIN", "TEST")
        )
    if not there:
        print(text.format(name=name, set=series, data_dir=data_dir), flush=True)
        return False
    words = [f"--config=config/{config}.py", f"--working_dir=runs/{config}"]
    words += [f"--config.dataset.{key}={value}" for key, value in settings.items()]
    command = "python -m gnp.main.main " + " ".join(shlex.quote(word) for word in words)
    print(f"{name} is in place. To train, which checks it:\n  {command}", flush=True)
    return True


def one_line(error: BaseException) -> str:
    """Return type and first line of an exception, without what TFDS puts before it."""
    lines = str(error).strip().splitlines() or [""]
    reason = re.sub(r'^Failed to construct dataset .*?}": ', "", lines[0])
    if reason.startswith("File format is already set"):
        return "it is there in a format other than array_record; give another DATA_DIR"
    return f"{type(error).__name__}: {reason}"


def failed(message: str, code: int) -> int:
    """Print the message as the last line and return the code."""
    sys.stdout.flush()
    print(f"prepare_data: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
