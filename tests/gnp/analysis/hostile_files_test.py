"""Whatever the files of a run directory hold, a reader takes it, or says in one line what is wrong.

Each test damages one kind of file in many ways, and reads it as the commands do.
"""

import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import config as configs
import ds_pipeline
from config import rules
from gnp.analysis import evolution
from gnp.analysis.report import __main__ as report
from gnp.training.checkpoint import CheckpointError, read_checkpoint
from gnp.training.files import FileFormatError
from gnp.training.run_directory import RunDirectoryError, read_config, read_data
from tests.data_sets import write_image_folder
from tests.marks import quick_first

SHARP = [
    {"step": step, "hessian_eigenvalues": [4.0, 1.0], "hessian_trace": 9.0, "sam_sharpness": None,
     "density_width": 0.1, "parameters": 500, "sam_radius": 0.05, "examples": 60,
     "regularized": True}
    for step in (5, 15)
]  # fmt: skip
LINE = np.linspace(-1, 1, 5)
CURVES = {
    "step": np.int64(15), "density_points": LINE, "density": np.exp(-(LINE**2)),
    "gradient_distances": LINE, "gradient_losses": 1 + LINE**2, "random_distances": LINE,
    "random_losses": np.stack([1 + LINE**2, 2 + LINE**2]), "contour_distances": LINE,
    "contour_losses": 1 + np.add.outer(LINE**2, LINE**2),
}  # fmt: skip


# Ways to damage a file.


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return the bytes with a few of them changed, left out, or put in between."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(6):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << draw.randrange(8)
            case 1:
                changed[place : place + draw.choice((1, 4, 100))] = b""
            case 2:
                changed[place:place] = draw.choice((b"\0", b"\xff\xfe", b"[", b'"', b"\n\n", b"9"))
            case 3:
                changed[place:place] = draw.randbytes(draw.choice((1, 8, 500)))
            case 4 if draw.random() < 0.3:
                del changed[place:]
            case 5:
                other = draw.randrange(len(changed) + 1)
                changed[place : place + 20] = changed[other : other + 20]
    return bytes(changed)


# None: the text says it, in ways that JSON's own writer does not.
VALUES = (
    None, True, -1, 0, 1, 2.5, -0.0, 1e308, -1e308, 5e-324, 10**18, 10**30, 2**63, float("nan"),
    float("inf"), "", "x", "../../x", "/etc/passwd", "\x1b[2J\r\n", "\ud800", "ö" * 300,
    "=1+1", "<script>",
    [], {}, [[]], [1, "x"], [None], {"a": 1}, [0.5] * 3,
)  # fmt: skip
TEXTS = ("[" * 100_000, '{"a":' * 50_000, "1" * 5000, "1e999", "-", "{", '"\\ud800"', "\0")


def damaged_json(data: bytes, draw: random.Random) -> bytes:
    """Return JSON, or lines of it, with a value of another kind somewhere in it."""
    lines = data.decode().splitlines() if data.count(b"\n{") else [data.decode()]
    number = draw.randrange(len(lines))
    value = json.loads(lines[number])
    places = list(containers(value))
    holder, key = draw.choice(places) if places else (None, None)
    match draw.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice((str(key) + "x", "", "\x1b[2J", "step", "epoch"))] = holder.pop(key)
        case 2:
            value = draw.choice(VALUES)
        case 3:
            mark = "a mark that is nowhere else"
            holder[key] = mark
            lines[number] = json.dumps(value).replace(f'"{mark}"', draw.choice(TEXTS))
            return "\n".join(lines).encode()
        case _:
            holder[key] = draw.choice(VALUES)
    lines[number] = json.dumps(value)
    return "\n".join(lines).encode(errors="surrogatepass")


def containers(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (list or dict, key) of everything in a JSON value."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from containers(value[key])


def damaged_array(array: np.ndarray, draw: random.Random) -> np.ndarray:
    """Return an array of another type or shape, or with other values."""
    match draw.randrange(7):
        case 0:
            return array.reshape(-1) if array.ndim != 1 else array[None]
        case 1:
            return array[:0] if array.ndim else np.zeros((0, 3))
        case 2:
            return np.concatenate([np.atleast_1d(array)] * 2)
        case 3:
            kinds = ("U5", "S3", "O", "c16", "i1", "u8", "f2", "f8", "g", "?", "M8[s]")
            kind = draw.choice(kinds)
            with np.errstate(all="ignore"):
                return (
                    np.zeros(array.shape, kind)
                    if kind in kinds[:4]
                    else array.astype(kind)
                    if array.dtype.kind in "iuf" and kind != "M8[s]"
                    else np.ones(array.shape, kind)
                )
        case 4:
            return np.float32(draw.choice((-1, 0, 3e38, 1e-45))) * np.ones(array.shape, np.float32)
        case 5:
            return np.full(array.shape, draw.choice((np.nan, np.inf, -np.inf, 1e308, -1.0)))
        case _:
            return np.array(draw.choice((1, "x\x1b[2J", 2.5, -7)))


def damaged_npz(data: bytes, draw: random.Random) -> bytes:
    """Return an .npz with other arrays."""
    arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
    name = draw.choice(sorted(arrays))
    match draw.randrange(5):
        case 0:
            del arrays[name]
        case 1:
            arrays[draw.choice(("../x", "\x1b[2J", "x", name + "/0"))] = arrays.pop(name)
        case _:
            arrays[name] = damaged_array(arrays[name], draw)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def damaged_npy(data: bytes, draw: random.Random) -> bytes:
    file = io.BytesIO()
    np.save(file, damaged_array(np.load(io.BytesIO(data)), draw))
    return file.getvalue()


# The files, and what reads them.


class Reading:
    """A run directory of which a file is damaged, and what may be said of it.

    Attributes:
        directory: the run's.
        folder: holds it, and an undamaged one.
        experiment: of the run.
    """

    def __init__(self, folder: Path, out: Path, capsys: Any, experiment: Any) -> None:
        self.directory, self.folder, self.out = folder / "bad", folder, out
        self._capsys, self.experiment = capsys, experiment

    def command(self, code: Callable[[], int], allowed: tuple[int, ...]) -> None:
        """Run a command; check its exit code, and that it says no more than it should."""
        status = code()
        said = self._capsys.readouterr()
        assert status in allowed, said.err
        lines = said.err.splitlines()
        if status:
            assert len(lines) == 1 and lines[0].startswith("gnp: "), said.err
        for line in lines + said.out.splitlines():
            assert line.isprintable() and len(line) < 2000, line

    def refused_or_taken(self, read: Callable[[], Any], *errors: type[Exception]) -> None:
        """Read; check that what may be raised is one line."""
        try:
            read()
        except errors as error:
            text = str(error)
            lines = [text] if not isinstance(error, configs.ConfigError) else text.splitlines()
            assert text and all("\n" not in line and len(line) < 2000 for line in lines), text

    def report(self) -> None:
        self.command(lambda: report.main([str(self.folder), f"--out={self.out}"]), (0,))

    def config(self) -> None:
        self.report()
        flat: dict[str, Any] = {}
        self.refused_or_taken(lambda: flat.update(read_config(self.directory)), RunDirectoryError)
        if flat:
            self.refused_or_taken(lambda: self._check(flat), configs.ConfigError)

    def _check(self, flat: dict[str, Any]) -> None:
        """Check a stored config as eval and sharpness do."""
        config = configs.on_devices(configs.from_flat(flat), 1)
        rules.check(config, devices=1, training=False)

    def dataset(self) -> None:
        """Go on with the data that it names, and evaluate on them."""
        config = configs.from_flat(read_config(self.directory))
        here = ds_pipeline.identity(ds_pipeline.build_dataset(config))

        def compare() -> None:
            known = read_data(self.directory)
            assert isinstance(ds_pipeline.identity_problems(known, here), list)
            ds_pipeline.build_dataset(config, known=known)

        self.refused_or_taken(compare, RunDirectoryError, ds_pipeline.DataError)

    def evolution(self) -> None:
        words = [str(self.directory), f"--out={self.out}"]
        self.command(lambda: evolution.main(words), (0, 1))

    def recorded(self) -> None:
        shutil.rmtree(self.directory / "gradients", ignore_errors=True)
        self.report()
        self.evolution()

    def checkpoint(self) -> None:
        self.refused_or_taken(
            lambda: read_checkpoint(self.directory, self.experiment.abstract_state),
            CheckpointError, FileFormatError, OSError,
        )  # fmt: skip

    def images(self) -> None:
        keys = {"dataset.dataset_name": "image_folder", "dataset.image_size": "16",
                "dataset.data_dir": str(self.folder / "photos")}  # fmt: skip
        config = configs.load_config(DEFAULT, list(keys.items()))
        dataset = ds_pipeline.build_dataset(config, self.directory)
        assert len(dataset.train) == 8  # the index is made anew


DEFAULT = str(Path(__file__).resolve().parents[3] / "config" / "default.py")
FILES: dict[str, tuple[Callable[[bytes, random.Random], bytes], Callable[[Reading], None]]] = {
    "config.json": (damaged_json, Reading.config),
    "dataset.json": (damaged_json, Reading.dataset),
    "metrics.jsonl": (damaged_json, Reading.report),
    "sharpness.json": (damaged_json, Reading.report),
    "sharpness.npz": (damaged_npz, Reading.report),
    "evolution/epoch_00002.npz": (damaged_npz, Reading.recorded),
    "gradients/index.json": (damaged_json, Reading.evolution),
    "gradients/000_*.npy": (damaged_npy, Reading.evolution),
    "checkpoints/*/sha256.json": (damaged_json, Reading.checkpoint),
    "checkpoints/*/progress/metadata": (damaged_json, Reading.checkpoint),
    "image_folder_train.npz": (damaged_npz, Reading.images),
}


@pytest.fixture(scope="module")
def whole(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a run directory with every kind of file in it, and its experiment."""
    directory = tmp_path_factory.mktemp("whole")
    done = small_run(directory / "run", record__gradients="true", record__steps="true")
    (directory / "run" / "sharpness.json").write_text(json.dumps(SHARP))
    np.savez_compressed(directory / "run" / "sharpness.npz", **CURVES)
    write_image_folder(directory / "photos", n_train=4, n_test=2)
    return directory, done.experiment


@pytest.fixture
def reading(
    whole: tuple[Path, Any], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> Reading:
    """Return a copy of the run, beside another one; without the pictures, which take seconds."""
    source, experiment = whole
    for name in ("norms", "highest_elements", "animation", "loss", "loss_and_metrics"):
        monkeypatch.setattr(evolution, f"plot_{name}", lambda *_: None)
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")  # 4.5 MB in every page
    folder = tmp_path / "runs"
    shutil.copytree(source / "run", folder / "bad")
    for name in ("config.json", "metrics.jsonl"):
        (folder / "good").mkdir(exist_ok=True)
        shutil.copy(source / "run" / name, folder / "good" / name)
    shutil.copytree(source / "photos", folder / "photos")
    return Reading(folder, tmp_path / "out", capsys, experiment)


def damage(reading: Reading, name: str, trials: int) -> None:
    change, read = FILES[name]
    if name.startswith("image_folder"):
        reading.images()
    found = sorted(reading.directory.glob(name))
    if not found:
        pytest.skip(f"this version writes no {name}")
    file, data = found[-1], found[-1].read_bytes()
    read(reading)
    before = reading.folder.parent / "before"
    shutil.copytree(reading.directory, before)
    for trial in range(trials):
        draw = random.Random(f"{name} {trial}")
        file.write_bytes((damaged_bytes if trial % 3 == 0 else change)(data, draw))
        try:
            read(reading)
        except BaseException as error:
            error.add_note(f"{name}, trial {trial}: {file.read_bytes()[:500]!r}")
            raise
        if not file.parent.exists():  # set aside or removed
            shutil.rmtree(reading.directory)
            shutil.copytree(before, reading.directory)


@pytest.mark.parametrize("name", quick_first(tuple(FILES), 4))
def test_a_damaged_file_is_taken_or_refused_in_one_line(reading: Reading, name: str) -> None:
    damage(reading, name, 6 if "checkpoints" in name or name == "config.json" else 20)  # slow ones


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_hundreds_of_damages_of_each_kind_of_file(reading: Reading, name: str) -> None:
    damage(reading, name, 60 if "checkpoints" in name else 250)  # slow ones


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "empty", "missing"])
def test_what_is_no_file(reading: Reading, name: str, kind: str) -> None:
    """Damage it as the system can; a pipe must not hang its reader."""

    def end(*_: Any) -> None:
        raise AssertionError(f"a reader waits for {name}, a {kind}")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    if name.startswith("image_folder"):
        reading.images()
    found = sorted(reading.directory.glob(name))
    if not found:
        pytest.skip(f"this version writes no {name}")
    found[-1].unlink()
    match kind:
        case "pipe":
            os.mkfifo(found[-1])
        case "folder":
            found[-1].mkdir()
        case "loop":
            found[-1].symlink_to(found[-1].name)
        case "empty":
            found[-1].write_bytes(b"")
    try:
        FILES[name][1](reading)
    finally:
        signal.alarm(0)
