"""Prepares data sets, or says what to download by hand; run by prepare_data.sh.

    python recipe/prepare_data.py [--data_dir=DIR] NAME... [DIR]

Exit codes: 0 everything is there; 1 something failed or is still to be downloaded by hand; 2 a name
or the folder is wrong; 130 Ctrl-C. With --without_tensorflow 75 where TensorFlow is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
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
from typing import Any, NamedTuple

# The sets that recipes train on and that TFDS downloads by itself: what `all` stands for.
RECIPES = ("mnist", "cifar10", "cifar100", "svhn_cropped", "horses_or_humans", "iris")
SCIKIT_LEARN = ("digits", "iris", "wine", "breast_cancer", "diabetes")
IMAGENET_FILES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")

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
NOT_STATED = "not stated by TFDS; see the home page"

NEEDS_TENSORFLOW = 75


class Set(NamedTuple):
    """A TFDS set to prepare.

    Attributes:
        name: as it was asked for.
        builder: TFDS' builder.
        download: bytes; 0: not known.
        prepared: bytes, as an estimate where the catalog's figure is not in this file; 0: not
            known.
        done: whether it is there already.
    """

    name: str
    builder: Any
    download: int
    prepared: int
    done: bool


class Wrong(Exception):
    """A name or a folder that cannot be used; one line."""


def main() -> int:
    """Prepare what is named and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir")
    parser.add_argument("--without_tensorflow", action="store_true")
    parser.add_argument("words", nargs="+")
    arguments = parser.parse_args()
    try:
        names, data_dir = names_and_folder(
            arguments.words, arguments.data_dir, offline=arguments.without_tensorflow
        )
        by_hand = [name for name in names if is_by_hand(name, data_dir)]
        automatic = [name for name in names if name not in by_hand]
        if automatic and arguments.without_tensorflow:
            return NEEDS_TENSORFLOW
        for name in automatic:
            check_name(name)
        if automatic:
            check_folder(data_dir)
    except Wrong as error:
        return failed(str(error), 2)
    missing = [name for name in by_hand if not by_hand_is_there(name, data_dir)]
    try:
        broken = prepare_all(automatic, data_dir) if automatic else []
    except Wrong as error:
        return failed(str(error), 1)
    except KeyboardInterrupt:
        return failed("stopped; the same command goes on where it was", 130)
    for name, reason in broken:
        failed(f"'{name}' was not prepared: {reason}", 1)
    if missing:
        failed(f"to be downloaded by hand, as said above: {', '.join(missing)}", 1)
    return 1 if broken or missing else 0


# ---------------------------------------------------------------------------- the command line


def names_and_folder(
    words: Sequence[str], data_dir: str | None, *, offline: bool
) -> tuple[list[str], Path]:
    """Return data sets and folder: the last word is the folder where it is no known name."""
    names = list(words)
    if data_dir is None and len(names) > 1 and is_folder(names[-1], offline=offline):
        data_dir = names.pop()
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    names = [part for name in names for part in (RECIPES if name == "all" else (name,))]
    for name in names:
        if name in SCIKIT_LEARN and name not in RECIPES:
            raise Wrong(f"'{name}' comes with scikit-learn and needs no preparation")
    # By its file, as the package needs what is not installed here.
    local_path = runpy.run_path(str(Path(__file__).parents[1] / "config" / "paths.py"))[
        "local_path"
    ]
    try:
        return list(dict.fromkeys(names)), local_path(data_dir)
    except ValueError as error:
        raise Wrong(f"the data folder {data_dir} {error}") from error


def is_folder(word: str, *, offline: bool) -> bool:
    """Tell whether the last word is the folder of the data."""
    if word.startswith((".", "/", "~")):
        return True
    if is_name(word, offline=offline):
        return False
    if Path(word).is_dir() or offline:
        return True
    matches = difflib.get_close_matches(word.lower(), known_names(), n=1, cutoff=0.8)
    if matches:
        raise Wrong(
            f"'{word}' is no data set; did you mean '{matches[0]}'? If it is to be the folder: "
            f"--data_dir={word}"
        )
    return True


def is_name(word: str, *, offline: bool) -> bool:
    """Tell whether a word names a data set that this script knows."""
    base = re.split("[/:]", word.removeprefix("tfds/"))[0]
    own = ("all", "FordA", "ucr", "boston_housing", "image_folder", "imagenet2012")
    if base in (*own, *RECIPES, *SCIKIT_LEARN):
        return True
    return not offline and base in known_names()


def known_names() -> list[str]:
    """Return the names that TFDS knows."""
    import tensorflow_datasets as tfds

    return list(tfds.list_builders(with_community_datasets=False))


def check_name(name: str) -> None:
    """Check that TFDS knows a data set.

    Raises:
        Wrong: it does not; with the nearest name.
    """
    known = known_names()
    base = re.split("[/:]", name.removeprefix("tfds/"))[0]
    if base in known:
        return
    matches = difflib.get_close_matches(base.lower(), known, n=1)
    hint = f"; did you mean '{matches[0]}'?" if matches else ""
    raise Wrong(
        f"unknown TFDS data set '{name}'{hint or '; see www.tensorflow.org/datasets/catalog'}"
    )


def check_folder(data_dir: Path) -> None:
    """Create the folder of the data.

    Raises:
        Wrong: it cannot hold data.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Wrong(f"the data folder {data_dir} cannot be created: {error.strerror}") from error
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise Wrong(f"the data folder {data_dir} is not writable")


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Keep a second preparation out of a folder while one is at work there.

    Raises:
        Wrong: one is.
    """
    folder = os.open(data_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(folder)
        raise Wrong(f"another prepare_data is at work in {data_dir}; wait for its end") from error
    try:
        yield
    finally:
        os.close(folder)


# ------------------------------------------------------------------------------ TFDS data sets


def prepare_all(names: Sequence[str], data_dir: Path) -> list[tuple[str, str]]:
    """Prepare the sets that are not there yet, whatever TFDS tells of the others.

    Returns:
        (name, reason) of each that could not be prepared.

    Raises:
        Wrong: another process prepares sets in the same folder.
    """
    interrupted: list[int] = []

    def on_interrupt(number: int, _: object) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    with locked(data_dir):
        return _prepare_all(names, data_dir, interrupted)


def _prepare_all(
    names: Sequence[str], data_dir: Path, interrupted: Sequence[int]
) -> list[tuple[str, str]]:
    sets, broken = [], []
    reported = reported_errors()
    for name in names:
        try:
            sets.append(look_at(name, data_dir))
        except reported as error:
            broken.append((name, one_line(error)))
    if sets:
        print_table(sets, data_dir)
    todo = [each for each in sets if not each.done]
    if not sys.stderr.isatty() and todo:
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
    # A line for each of ten attempts says no more than the error at the end.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if todo:
        print("a server that does not answer is tried again for some 4 minutes", flush=True)
    for number, each in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {each.name}", flush=True)
        try:
            prepare(each, data_dir, interrupted)
        except reported as error:
            broken.append((each.name, one_line(error)))
            print(f"'{each.name}' failed: {broken[-1][1]}", flush=True)
    return broken


def reported_errors() -> tuple[type[Exception], ...]:
    """Return the errors by which TFDS tells of a set, the network or the disk; others are bugs."""
    import tensorflow_datasets as tfds

    return (
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


def look_at(name: str, data_dir: Path) -> Set:
    """Return what TFDS knows of a set before anything is downloaded."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(
        name.removeprefix("tfds/"), data_dir=data_dir, file_format="array_record"
    )
    folder = Path(builder.data_dir)
    done = (folder / "dataset_info.json").is_file()
    if folder.exists() and not done:
        raise RuntimeError(f"{folder} has no dataset_info.json: an incomplete copy; remove it")
    download = int(
        builder.info.download_size or sum(url.size for url in builder.url_infos.values())
    )
    prepared = builder.info.dataset_size or PREPARED_BYTES.get(builder.name, 0)
    return Set(name, builder, download, int(prepared), done)


def prepare(each: Set, data_dir: Path, interrupted: Sequence[int]) -> None:
    """Download and write a set; what is downloaded already is not downloaded again."""
    import tensorflow_datasets as tfds

    folder = Path(each.builder.data_dir)
    # TFDS writes into such a folder and renames it at the end; one is left by a killed process.
    for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(left)
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        each.builder.download_and_prepare(download_config=settings, file_format="array_record")
    finally:
        if interrupted:  # which TFDS may have wrapped into an error of its own
            raise KeyboardInterrupt
    counts = {split: info.num_examples for split, info in each.builder.info.splits.items()}
    print(f"'{each.name}' is prepared in {folder}: {counts}", flush=True)
    own = each.name.removeprefix("tfds/")
    settings = {
        "dataset_name": f"tfds/{own}" if own in SCIKIT_LEARN else own,
        "data_dir": shlex.quote(str(data_dir)),
    }
    print("in gnp:", *(f"--config.dataset.{key}={value}" for key, value in settings.items()))


def print_table(sets: Sequence[Set], data_dir: Path) -> None:
    """Print what is about to be done: sizes, time, terms, and whether the disk has room."""
    rows: list[tuple[str, ...]] = [("data set", "state", "download", "prepared", "time", "license")]
    for each in sets:
        info = each.builder.info
        stated = info.redistribution_info.license if info.redistribution_info else ""
        rows.append(
            (
                info.full_name,
                "there, skipped" if each.done else "to prepare",
                size(each.download, at_most=bool(each.builder.builder_configs)),
                size(each.prepared),
                "-" if each.done else time_class(each.download),
                stated or LICENSES.get(each.builder.name) or NOT_STATED,
            )
        )
    todo = [each for each in sets if not each.done]
    download, prepared = sum(s.download for s in todo), sum(s.prepared for s in todo)
    if todo:
        rows.append(("total", f"{len(todo)} to prepare", size(download), size(prepared)))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(6)]
    for row in rows:
        line = "  ".join(
            cell.rjust(width) if i in (2, 3) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        print(line.rstrip())
    for each in sets:
        print(f"{each.builder.name}: {each.builder.info.homepage or 'no home page stated'}")
    free = shutil.disk_usage(data_dir).free
    print(f"free in {data_dir}: {size(free)}; times are a rule of thumb, without the download")
    if todo and download + prepared > free:
        print("WARNING: that may not be enough; prepare some at a time, or elsewhere (--data_dir)")
    sys.stdout.flush()


def size(count: float, *, at_most: bool = False) -> str:
    """Return bytes as people read them: `162.2 MiB`."""
    if not count:
        return "not known"
    power = min(int(math.log(count, 1024)), 3) if count >= 1 else 0
    text = f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
    return f"at most {text}" if at_most else text


def time_class(download: int) -> str:
    """Estimate how long writing a set takes, by the size of its download."""
    for limit, text in ((64 * MIB, "seconds"), (16 * 1024 * MIB, "minutes")):
        if download < limit:
            return text if download else "not known"
    return "hours"


# ------------------------------------------------------------------- data sets put there by hand


def is_by_hand(name: str, data_dir: Path) -> bool:
    """Tell whether no program can download a set, or gnp reads its files itself."""
    if name == "imagenet2012":
        manual = data_dir / "downloads" / "manual"
        prepared = any(data_dir.glob("imagenet2012/*/dataset_info.json"))
        return not prepared and not all((manual / file).is_file() for file in IMAGENET_FILES)
    return name in ("FordA", "boston_housing", "image_folder") or name.startswith("ucr/")


def by_hand_is_there(name: str, data_dir: Path) -> bool:
    """Say what to download, or, where the files are in place, how to train on them."""
    look, instructions = {
        "boston_housing": (look_at_boston, boston_instructions),
        "image_folder": (look_at_folder, folder_instructions),
        "imagenet2012": (None, imagenet_instructions),
    }.get(name, (look_at_series, series_instructions))
    try:
        found = look(name, data_dir) if look else None
    except (OSError, ValueError) as error:
        print(f"{name}: {one_line(error)}")
        found = None
    if found is None:
        print(instructions(name, data_dir), flush=True)
        return False
    description, config, settings = found
    print(f"{name} is in place: {description}. To train:\n{command(config, settings)}", flush=True)
    return True


def command(config: str, settings: Sequence[str]) -> str:
    """Return the command that trains with a config of config/ and these settings."""
    words = [f"--config=config/{config}.py", f"--working_dir=runs/{config}"]
    words += [f"--config.{setting}" for setting in settings]
    return "  python -m gnp.main.main " + " ".join(shlex.quote(word) for word in words)


def look_at_series(name: str, data_dir: Path) -> tuple[str, str, list[str]] | None:
    """Return what is in the two files of a UCR set; None: they are not there."""
    name = name.removeprefix("ucr/")
    files = [p / f"{name}_TRAIN{e}" for p in (data_dir / name, data_dir) for e in (".tsv", ".ts")]
    train = next((file for file in files if file.is_file()), None)
    if train is None:
        return None
    lengths, counts = set(), []
    for part in ("TRAIN", "TEST"):
        path = train.with_name(f"{name}_{part}{train.suffix}")
        with path.open() as file:
            rows = channels(file) if path.suffix == ".ts" else numbers(file, path, "\t")
            sizes = [len(row) - 1 for row in rows]
        counts.append(len(sizes))
        lengths |= set(sizes)
    if not all(counts) or len(lengths) != 1:
        raise ValueError(f"{train.parent}: empty files, or series of different lengths")
    text = f"{counts[0]} series to train on and {counts[1]} to test, {lengths.pop()} values each"
    settings = [f"dataset.dataset_name=ucr/{name}", f"dataset.data_dir={data_dir}"]
    return text, "ucr", settings


def channels(lines: Iterator[str]) -> Iterator[Sequence[object]]:
    """Yield the label and the values of each series' first channel in a .ts file."""
    for line in lines:
        first, colon, rest = line.partition(":")
        if colon and line[0] not in "@#%":
            yield [rest.rpartition(":")[2], *first.split(",")]


def look_at_boston(_: str, data_dir: Path) -> tuple[str, str, list[str]] | None:
    """Return the rows of the table; None: it is not there."""
    path = next((p for p in boston_files(data_dir) if p.is_file()), None)
    if path is None:
        return None
    with path.open(newline="") as file:
        header = [cell.strip().strip('"') for cell in file.readline().split(",")]
        rows = list(numbers(file, path, ","))
    target = next((column for column in header if column.lower() == "medv"), None)
    if target is None or len(header) != 14:
        raise ValueError(f"{path}: 14 columns are needed, with medv among them, not {header}")
    if any(len(row) != 14 for row in rows):
        raise ValueError(f"{path}: a row has not as many numbers as the header has names")
    settings = [f"dataset.data_dir={path}", f"dataset.target={target}"]
    return f"{path}, {len(rows)} rows", "boston", settings


def numbers(lines: Iterator[str], path: Path, delimiter: str) -> Iterator[Sequence[float]]:
    """Return the rows of a table of numbers; ValueError names the line that is none."""
    for number, row in enumerate(csv.reader(lines, delimiter=delimiter), 1):
        try:
            yield [float(cell) for cell in row]
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error


def look_at_folder(_: str, data_dir: Path) -> tuple[str, str, list[str]] | None:
    """Return the classes of an image folder; None: it has no two splits."""
    splits = [s for s in ("train", "val", "test") if (data_dir / s).is_dir()]
    if "train" not in splits or len(splits) < 2:
        return None
    classes = sorted(p.name for p in (data_dir / "train").iterdir() if p.is_dir())
    empty = [name for name in classes if not has_image(data_dir / "train" / name)]
    if not classes or empty:
        raise ValueError(f"{data_dir / 'train'}: no image in {', '.join(empty) or 'any folder'}")
    description = f"{', '.join(splits)} in {data_dir}, {len(classes)} classes"
    return description, "imagenet_folder", [f"dataset.data_dir={data_dir}"]


def has_image(folder: Path) -> bool:
    """Tell whether a folder holds a JPEG or PNG."""
    return any(p.suffix.lower() in IMAGE_ENDINGS for p in folder.iterdir())


def boston_files(data_dir: Path) -> list[Path]:
    """Return where the table may lie."""
    return [data_dir / name for name in ("boston_housing.csv", "BostonHousing.csv")]


def series_instructions(name: str, data_dir: Path) -> str:
    """Say where a UCR set is, and where it goes."""
    name = name.removeprefix("ucr/")
    lines = [
        f"ucr/{name}: download it by hand from the UCR Time Series Archive,",
        "  https://www.cs.ucr.edu/~eamonn/time_series_data_2018 (all 128 sets in one archive; its",
        "  page says how to open it), or as one set from https://www.timeseriesclassification.com",
        "  (take the .ts files; gnp reads .tsv, too, with the label first).",
    ]
    if name == "FordA":
        lines += [
            "  FordA alone, as Keras' time-series example takes it:",
            "  https://raw.githubusercontent.com/hfawaz/cd-diagram/master/FordA/FordA_TRAIN.tsv",
            "  https://raw.githubusercontent.com/hfawaz/cd-diagram/master/FordA/FordA_TEST.tsv",
        ]
    return "\n".join(
        [
            *lines,
            "  Those who use the archive are asked to cite it: Dau et al., The UCR Time Series",
            "  Archive, 2019.",
            f"  Then put it there: {data_dir / name / name}_TRAIN.tsv (or .ts) and {name}_TEST.tsv",
            "  and give the same command again, which checks them.",
        ]
    )


def boston_instructions(_: str, data_dir: Path) -> str:
    """Say where the table is, what is wrong with it, and where it goes."""
    return "\n".join(
        [
            "boston_housing: download the table by hand, 506 rows of 13 columns and medv, such as",
            "  https://raw.githubusercontent.com/selva86/datasets/master/BostonHousing.csv",
            "  (the original, in another layout: http://lib.stat.cmu.edu/datasets/boston).",
            "  It has a known ethical problem: its column b was made on the assumption that racial",
            "  self-segregation raises house prices. scikit-learn removed it in 1.2 and advises",
            "  against using it but to teach about that; a substitute without a download is",
            "  --config.dataset.dataset_name=diabetes.",
            f"  Then put it there: {boston_files(data_dir)[0]}",
            "  and give the same command again, which checks it.",
        ]
    )


def folder_instructions(_: str, data_dir: Path) -> str:
    """Say what a folder of images has to look like."""
    return "\n".join(
        [
            f"image_folder: no folders train and val (or test) in {data_dir}. Put images there:",
            f"  {data_dir / 'train'}/CLASS/*.JPEG (also .jpg, .png)",
            f"  {data_dir / 'val'}/CLASS/*.JPEG, with the same classes",
            "  and give the same command again, which checks them.",
        ]
    )


def imagenet_instructions(_: str, data_dir: Path) -> str:
    """Say what to register for, and the two ways to read it."""
    return "\n".join(
        [
            "imagenet2012: register on https://image-net.org/download-images (non-commercial",
            f"  research and education only) and download {IMAGENET_FILES[0]} (137.7 GiB)",
            f"  and {IMAGENET_FILES[1]} (6.3 GiB) by hand. Then either put both into",
            f"  {data_dir / 'downloads' / 'manual'}",
            "  and give the same command again: TFDS writes 155.8 GiB more; or unpack them to",
            "  DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, which is read as it is, with",
            "  --config.dataset.dataset_name=image_folder --config.dataset.data_dir=DIR",
        ]
    )


# ------------------------------------------------------------------------------------- messages


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
