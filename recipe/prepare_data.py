"""Prepares a TFDS data set as array_record files; run by prepare_data.sh, in its environment.

    python recipe/prepare_data.py NAME DATA_DIR

Exit codes: 0 prepared (or already there), 1 it failed, 2 the name or the folder is wrong.
"""

import argparse
import difflib
import logging
import os
import re
import sys
from pathlib import Path

import tensorflow_datasets as tfds

# Terms that TFDS does not state itself, as the sets' home pages give them.
LICENCES = {
    "mnist": "CC BY-SA 3.0",
    "fashion_mnist": "MIT",
    "svhn_cropped": "non-commercial use only",
    "imagenet2012": "non-commercial research and education only; you download it yourself",
}


def main() -> int:
    """Prepares the set and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="NAME, NAME/CONFIG or NAME:VERSION of a TFDS set")
    parser.add_argument("data_dir", type=Path, help="where prepared sets lie")
    arguments = parser.parse_args()
    name, data_dir = arguments.name, arguments.data_dir
    problem = name_problem(name) or folder_problem(data_dir)
    if problem:
        return failed(problem, 2)
    try:
        return prepare(name, data_dir)
    except KeyboardInterrupt:
        return failed(f"stopped; the same command again prepares '{name}'", 130)
    except Exception as error:
        return failed(f"'{name}' was not prepared: {one_line(error)}", 1)


def prepare(name: str, data_dir: Path) -> int:
    """Downloads and writes the set, unless it is there."""
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    folder = Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        print(f"'{name}' is already prepared in {folder}: nothing to do", flush=True)
        return 0
    describe(builder, folder)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # A line for each of ten attempts says no more than the error at the end.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    print("a server that does not answer is tried again for some 4 minutes", flush=True)
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=settings, file_format="array_record")
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    print(f"'{name}' is prepared in {folder}: {counts}", flush=True)
    return 0


def describe(builder: tfds.core.DatasetBuilder, folder: Path) -> None:
    """Prints what is about to be downloaded, and under whose terms."""
    info = builder.info
    stated = info.redistribution_info.license if info.redistribution_info else ""
    licence = stated or LICENCES.get(builder.name) or "not stated by TFDS; see the home page"
    print(f"{info.full_name} -> {folder}")
    print(f"  download: {download_size(builder)}; then the prepared set takes about as much again")
    print(f"  licence: {licence}")
    print(f"  home page: {info.homepage or 'not stated'}", flush=True)


def download_size(builder: tfds.core.DatasetBuilder) -> str:
    """The size of what TFDS' checksums list, such as `162.2 MiB`; of all configs, if it has any."""
    total = builder.info.download_size or sum(url.size for url in builder.url_infos.values())
    if not total:
        return "size not known beforehand"
    at_most = "at most " if builder.builder_configs else ""
    return f"{at_most}{total / 2**20:.1f} MiB"


def name_problem(name: str) -> str | None:
    """What is wrong with a data set's name, in one line, or None."""
    if name == "digits":
        return "'digits' comes with scikit-learn and needs no preparation"
    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    if base in known:
        return None
    matches = difflib.get_close_matches(base.lower(), known, n=1)
    hint = f"; did you mean '{matches[0]}'?" if matches else ""
    return f"unknown TFDS data set '{name}'{hint or '; see www.tensorflow.org/datasets/catalog'}"


def folder_problem(data_dir: Path) -> str | None:
    """What is wrong with the place for the data, in one line, or None; creates it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"the data folder {data_dir} cannot be created: {error.strerror}"
    if not os.access(data_dir, os.W_OK | os.X_OK):
        return f"the data folder {data_dir} is not writable"
    return None


def one_line(error: BaseException) -> str:
    """Type and first line of an exception, without what TFDS puts before it."""
    lines = str(error).strip().splitlines() or [""]
    reason = re.sub(r'^Failed to construct dataset .*?}": ', "", lines[0])
    if reason.startswith("File format is already set"):
        return "it is there in a format other than array_record; give another DATA_DIR"
    return f"{type(error).__name__}: {reason}"


def failed(message: str, code: int) -> int:
    """Prints the message as the last line and returns the code."""
    sys.stdout.flush()
    print(f"prepare_data: {message}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
