"""bash recipe/sweep.sh CONFIG KEY=VALUE,VALUE... [--config.KEY=VALUE ...]: a grid of runs.

CONFIG is a name in config/, such as digits or evolution:mnist, or a config file. Every combination
of the values is a run, in a directory named after them: DIR/gnp.alpha=0.8,seeds=1. The same command
goes on: finished runs are skipped, one that was stopped resumes, one that failed is tried again; a
longer list of values adds the runs that are missing.

    bash recipe/sweep.sh digits gnp.alpha=0,0.8 seeds=0,1,2

KEY=VALUE,VALUE      any config key. `seeds` sets init_seeds too, unless that is given itself
KEY,KEY=(A,B),(C,D)  keys that go together: one run with A and B, another with C and D
--working_dir=DIR    where; default: runs/CONFIG-sweep in the checkout
--jobs=N             runs at a time, or JOBS=N; the GPUs are shared out evenly, and where there
                     are more jobs than GPUs, each GPU's memory too, unless
                     XLA_CLIENT_MEM_FRACTION says what each takes.
                     Default: as many as there are GPUs, 1 without any
--config.KEY=VALUE   handed to every run

Commas separate values, but not inside (), [], {} or quotes, and quotes around a whole value are
taken off. The shell wants its own around those:

    'lr_schedule_params.boundaries=(60,120),(30,60)'   'dataset.data_dir="a,b",c'

All configs are checked before the first run starts. A run that fails ends no other; it is named at
the end. DIR/logs/NAME.log has what a run printed, DIR/report the report over all of DIR.
Ctrl-C or SIGTERM stops the runs, which save; a second one ends them at once.

Exit codes: 0 all finished, or stopped by SIGTERM with everything saved; 1 a run failed; 2 the
command line or a config is wrong; 130 Ctrl-C.
"""

import argparse
import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple
from urllib.parse import quote

import ml_collections
from tqdm import tqdm

import config as configs
from config import ConfigError, default
from config.load import split_overrides
from gnp.analysis.command_line import Parser, UsageError
from gnp.analysis.report.runs import read_run
from gnp.main import command_line
from gnp.main.main import USAGE_ERRORS
from gnp.terminal import fail, prepare_streams
from gnp.training.files import FileFormatError
from gnp.training.run_directory import read_config, refuse_other_config

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-P", "-m", "gnp.main.main")
# A seed is both, as SEEDS of recipe/experiment.sh is.
SEEDS, _ALSO = "seeds", "init_seeds"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_LONGEST_NAME = 200  # a file's name may have 255 bytes
_POLL_SECONDS = 0.1
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# What tells jax how much of a GPU's memory to take, and its older name; jax refuses both together.
_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_SHARED = 0.8  # of a GPU's memory; each process needs some outside jax's part as well


class SweepError(RuntimeError):
    """A failure of a sweep that was asked for correctly; one line."""


class Axis(NamedTuple):
    """Keys that change together, and the texts that each of their values gives them."""

    keys: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


class Run(NamedTuple):
    """One point of the grid: the name of its directory and log, and gnp.main.main's arguments."""

    name: str
    directory: Path
    arguments: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Run a sweep and return the exit code."""
    try:
        options, constants = _parse(arguments)
        axes = read_axes(options.grid, [key for key, _ in constants])
        file, directory = _locate(options.config, options.working_dir)
        runs = plan(file, directory, axes, constants)
        check(runs)
        return _sweep(runs, directory, options.jobs)
    except (UsageError, ConfigError) as error:
        return fail(error, 2)
    except (SweepError, OSError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted", 130)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Return the options and the keys that every run is given."""
    rest, constants, wrong = split_overrides(arguments)
    if wrong:
        raise UsageError("\n".join(wrong))
    parser = Parser("bash recipe/sweep.sh", __doc__)
    parser.allow_abbrev = False
    parser.usage = argparse.SUPPRESS  # the description has it
    hidden = argparse.SUPPRESS
    parser.add_argument("config", help=hidden)
    parser.add_argument("grid", nargs="*", help=hidden)
    parser.add_argument("--working_dir", help=hidden)
    parser.add_argument("--jobs", default=os.environ.get("JOBS") or None, help=hidden)
    options = parser.parse_intermixed_args(rest)
    if options.jobs is not None:
        if not re.fullmatch(r"0*[1-9]\d*", options.jobs):
            raise UsageError(f"--jobs={options.jobs}: allowed is a whole number >= 1")
        options.jobs = int(options.jobs)
    return options, constants


def _locate(config: str, working_dir: str | None) -> tuple[str, Path]:
    """Return the config file and the directory of the sweep."""
    path, _, argument = config.partition(":")
    is_file = path.endswith(".py") or os.sep in path
    file = path if is_file else str(ROOT / "config" / f"{path.replace('-', '_')}.py")
    name = "-".join([Path(file).stem, *re.findall(r"\w+", argument)]).replace("_", "-")
    directory = ROOT / "runs" / f"{name}-sweep"
    if working_dir:
        try:
            directory = configs.local_path(working_dir)
        except ValueError as error:
            raise UsageError(f"--working_dir={working_dir} {error}") from error
    if (directory / "config.json").exists():
        raise UsageError(
            f"--working_dir={directory} is a run directory; choose another for a sweep"
        )
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--working_dir={directory} is a file; a directory is needed")
    return f"{file}:{argument}" if argument else file, directory


def read_axes(words: Sequence[str], constants: Sequence[str] = ()) -> list[Axis]:
    """Read what varies, from `KEY=VALUE,VALUE` and `KEY,KEY=(A,B),(C,D)`.

    Args:
        words: one for each axis of the grid.
        constants: keys that every run is given.

    Raises:
        UsageError: a line for each word that cannot be read and each key that is there twice.

    Example:
        >>> read_axes(["gnp.r,gnp.alpha=(0,0),(0.05,0.8)"])
        [Axis(keys=('gnp.r', 'gnp.alpha'), values=(('0', '0'), ('0.05', '0.8')))]
    """
    axes, wrong = [], []
    for word in words:
        try:
            axes.append(_read_axis(word))
        except ValueError as error:
            wrong.append(str(error))
    names = [*constants, *(key for axis in axes for key in axis.keys)]
    varied = dict.fromkeys(key for axis in axes for key in axis.keys)
    wrong += [f"{key} is given {names.count(key)} times" for key in varied if names.count(key) > 1]
    if not words:
        wrong = ["nothing to sweep over: name keys and values, such as gnp.alpha=0,0.8 seeds=0,1"]
    if wrong:
        raise UsageError("\n".join(wrong))
    return axes


def _read_axis(word: str) -> Axis:
    """Read one word of the grid; a ValueError says in one line what is wrong with it."""
    left, equals, right = word.partition("=")
    keys = tuple(key.strip() for key in left.split(","))
    if not equals or not all(keys) or left.startswith("-"):
        raise ValueError(f"{word!r} is neither KEY=VALUE,VALUE nor an option; --help shows both")
    try:
        texts = split_values(right)
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from None
    if not all(texts):
        what = "a value is empty" if right.strip() else "no value"
        raise ValueError(f"{word}: {what}; write {left}=VALUE,VALUE, and '' for an empty text")
    if len(keys) == 1:
        return Axis(keys, tuple((_unquoted(text),) for text in texts))
    values = []
    for text in texts:
        parts = split_values(text[1:-1]) if text[0] + text[-1] in ("()", "[]") else [text]
        if len(parts) != len(keys) or not all(parts):
            raise ValueError(
                f"{word}: {text} is no value for {len(keys)} keys; put one for each in brackets, "
                "such as 'gnp.r,gnp.alpha=(0,0),(0.05,0.8)'"
            )
        values.append(tuple(_unquoted(part) for part in parts))
    return Axis(keys, tuple(values))


def split_values(text: str) -> list[str]:
    """Split at the commas inside neither brackets nor quotes, each of which needs a partner.

    Example:
        >>> split_values("(60,120), 'a,b', 3")
        ['(60,120)', "'a,b'", '3']
    """
    parts: list[str] = [""]
    open_ones: list[str] = []  # what will close them
    for character in text:
        quoted = bool(open_ones) and open_ones[-1] in "'\""
        if open_ones and character == open_ones[-1]:
            open_ones.pop()
        elif not quoted and character in "'\"":
            open_ones.append(character)
        elif not quoted and character in _BRACKETS:
            open_ones.append(_BRACKETS[character])
        elif not quoted and character in _BRACKETS.values():
            open_ones.append("")
            break
        elif character == "," and not open_ones:
            parts.append("")
            continue
        parts[-1] += character
    if open_ones:
        raise ValueError("a bracket or a quote has no partner; put a value that has such in quotes")
    return [part.strip() for part in parts]


def _unquoted(text: str) -> str:
    """Take off the quotes around a whole value."""
    match = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"", text)
    return text if match is None else match[1] or match[2] or ""


def plan(
    file: str,
    directory: Path,
    axes: Sequence[Axis],
    constants: Sequence[tuple[str, str]],
) -> list[Run]:
    """Return every combination of the values; the last axis varies fastest.

    Args:
        file: the config file.
        directory: the sweep's.
        axes: what varies.
        constants: (key, text) pairs of all runs.

    Example:
        >>> axes = read_axes(["gnp.r=0.1,0.2", "seeds=3"])
        >>> [run.name for run in plan("config/digits.py", Path("runs"), axes, [])]
        ['gnp.r=0.1,seeds=3', 'gnp.r=0.2,seeds=3']
    """
    given = {key for key, _ in constants} | {key for axis in axes for key in axis.keys}
    runs = []
    for values in itertools.product(*(axis.values for axis in axes)):
        point = {
            key: text
            for axis, texts in zip(axes, values, strict=True)
            for key, text in zip(axis.keys, texts, strict=True)
        }
        pairs = [*constants, *point.items()]
        if SEEDS in point and _ALSO not in given:
            pairs.append((_ALSO, point[SEEDS]))
        name = run_name(point)
        arguments = [f"--config={file}", *(f"--config.{key}={text}" for key, text in pairs)]
        own = directory / name
        runs.append(Run(name, own, (*arguments, f"--working_dir={own}")))
    return runs


def run_name(point: Mapping[str, str]) -> str:
    """Return `KEY=VALUE,KEY=VALUE` as a file's name, whatever order the keys came in; seeds last.

    Example:
        >>> run_name({"seeds": "1", "dataset.dataset_name": "tfds/mnist", "base_lr": "0.1"})
        'base_lr=0.1,dataset.dataset_name=tfds%2Fmnist,seeds=1'
    """
    keys = sorted(point, key=lambda key: (key == SEEDS, key))
    name = ",".join(f"{quote(key)}={quote(point[key], safe='+,()=')}" for key in keys)
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}~{digest}"


def check(runs: Sequence[Run]) -> None:
    """Check every run as it will check itself; raise UsageError with a line for each problem."""
    wrong: list[str] = []
    seen: dict[str, str] = {}
    for run in tqdm(runs, "checking", disable=None, delay=1.0, leave=False):
        try:
            config = _checked(run)
        except (*USAGE_ERRORS, UsageError) as error:
            wrong += str(error).splitlines()
            continue
        text = json.dumps(configs.as_json(config), sort_keys=True)
        if text in seen:
            wrong.append(f"{seen[text]} and {run.name} are the same run; leave one out")
        seen.setdefault(text, run.name)
    if wrong:
        raise UsageError("\n".join(dict.fromkeys(wrong)))


def _checked(run: Run) -> ml_collections.ConfigDict:
    """Return the config of a run, checked as the run itself will do."""
    line = command_line.parse(run.arguments)
    if line is None or line.config is None:
        raise UsageError(f"{run.name}: no config")
    if line.config.retrain:
        raise UsageError(
            "retrain=True does not go with a sweep, which goes on where it was; to start a run "
            "over, remove its directory"
        )
    if (run.directory / "config.json").is_file():
        stored = read_config(run.directory)
        # Where the size of groups is open it is the stored one: jax is not asked for its devices.
        resolved = configs.with_group_size(line.config, stored, devices=1)
        refuse_other_config(
            run.directory,
            configs.as_json(resolved),
            default.FREE_KEYS,
            configs.as_json(default.get_config()),
            advice="choose another directory for the sweep, or remove this one",
        )
    return line.config


def is_finished(run: Run) -> bool:
    """Tell whether the last epoch of a run is done and saved."""
    try:
        found = read_run(run.directory)
    except (FileFormatError, OSError):
        return False  # none, or damaged: the run itself says so
    checkpoints = run.directory / "checkpoints"
    return found.is_finished and (checkpoints / str(found.rows[-1]["step"])).is_dir()


def _sweep(runs: Sequence[Run], directory: Path, jobs: int | None) -> int:
    """Run what is not finished, and report."""
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    with _lock(directory) as lock:
        waiting = [run for run in runs if not is_finished(run)]
        shares = _shares(jobs, len(waiting))
        done = len(runs) - len(waiting)
        also = f", {done} of them finished before" if done else ""
        at_once = f", {len(shares)} at a time" if len(shares) > 1 else ""
        print(f"{_count(len(runs))} in {directory}{also}{at_once}", flush=True)
        with _catch_signals() as signals:
            failures = run_all(waiting, len(runs), shares, directory / "logs", signals, lock)
    status = 0 if signals else _report(runs, directory)
    if failures:
        fail(f"{len(failures)} of {_count(len(runs))} failed; the same command tries again:", 1)
    for failure in failures:
        fail(failure, 1)
    if signals:
        finished = sum(is_finished(run) for run in runs)
        print(
            f"stopped by {signals[0].name}: {finished} of {_count(len(runs))} finished; the same "
            "command goes on",
            file=sys.stderr,
        )
        if signals[0] == signal.SIGINT:
            return 128 + signal.SIGINT
    return 1 if failures else status


def run_all(
    runs: Sequence[Run],
    total: int,
    shares: Sequence[Mapping[str, str]],
    logs: Path,
    signals: Sequence[signal.Signals],
    lock: int,
) -> list[str]:
    """Run each in a process of its own, as many at a time as there are shares of the devices.

    Args:
        runs: what to run.
        total: of the sweep, for the bar.
        shares: the environment variables that give each process that may run its devices.
        logs: the folder of the logs.
        signals: grows when a signal comes: it is handed on, and no other run is started.
        lock: open file, kept by the processes too.

    Returns:
        A line for each that did not finish, unless a signal stopped it.
    """
    waiting, free = list(runs), list(shares)
    running: list[Process] = []
    failures: list[str] = []
    done = total - len(runs)
    bar = tqdm(total=total, initial=done, unit="run", disable=None, dynamic_ncols=True)
    handed_on = 0
    try:
        while running or (waiting and not signals):
            while waiting and free and not signals:
                running.append(Process(waiting.pop(0), free.pop(0), logs, lock))
            for number in signals[handed_on:]:
                handed_on += 1
                for process in running:  # of a terminal that went, SIGTERM
                    process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
            for process in [process for process in running if process.poll() is not None]:
                running.remove(process)
                free.append(process.share)
                reason = process.failure(bool(signals))
                if reason:
                    failures.append(f"{process.run.name}: {reason}; see {process.log}")
                elif signals and not is_finished(process.run):
                    continue
                done += 1
                bar.update()
                what = f"failed: {reason}" if reason else "done"
                seconds = f"{time.monotonic() - process.started:.0f} s"
                tqdm.write(f"[{done}/{total}] {process.run.name}: {seconds}, {what}")
                sys.stdout.flush()
            bar.set_postfix_str(f"{len(running)} running, {len(failures)} failed", refresh=False)
            bar.refresh()
            time.sleep(_POLL_SECONDS)
    finally:
        bar.close()
        for process in running:  # only where something here went wrong
            process.terminate()
            process.wait()
    return failures


class Process(subprocess.Popen[bytes]):
    """A run in a process and a session of its own.

    So Ctrl-C at the terminal reaches the sweep alone, which hands it on once; a run ends at once
    where it comes twice.

    Args:
        run: what it runs.
        share: the environment variables that give it its devices.
        logs: the folder of the logs.
        lock: an open file that it keeps.
    """

    def __init__(self, run: Run, share: Mapping[str, str], logs: Path, lock: int) -> None:
        self.run, self.share = run, share
        self.log = logs / f"{run.name}.log"
        self.started = time.monotonic()
        with open(self.log, "ab") as log:
            self._from = log.tell()
            super().__init__(
                [*PROGRAM, *run.arguments],
                # Unbuffered, so that the last line comes last.
                env={**os.environ, "PYTHONUNBUFFERED": "1", **share},
                pass_fds=[lock],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def failure(self, stopped: bool) -> str:
        """Say why it did not finish; nothing where it did, or was stopped and is to go on."""
        code = self.returncode
        if code == 0:
            return "" if stopped or is_finished(self.run) else "it was stopped before its end"
        if stopped and (code < 0 or code == 128 + signal.SIGINT):
            return ""
        with open(self.log, "rb") as log:
            log.seek(self._from)
            last = last_line(log.read().decode(errors="replace"))
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {last}" if last else how


def last_line(text: str) -> str:
    r"""Return the last line that is not empty, without the program's name.

    Example:
        >>> last_line("epoch 1\ngnp: the loss is not finite\n\n")
        'the loss is not finite'
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("gnp: ") if lines else ""


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[int]:
    """Open a file that belongs to this sweep alone, and to its runs should they survive it."""
    with open(directory / ".lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(
                f"another sweep, or a run that one left behind, is at work in {directory}; wait "
                "for it, end it, or choose another --working_dir"
            ) from None
        yield file.fileno()


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[signal.Signals]]:
    """Only note Ctrl-C, SIGTERM and the end of the terminal."""
    noted: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(signal.Signals(number))

    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        caught.append(signal.SIGHUP)
    before = {each: signal.signal(each, note) for each in caught}
    try:
        yield noted
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _shares(jobs: int | None, runs: int) -> list[dict[str, str]]:
    """Return the environment variables that give each job its devices."""
    if jobs == 1 or runs == 0:
        return [{}]
    return share_out(*_devices(), jobs, runs)


def share_out(
    backend: str, names: Sequence[str], jobs: int | None, runs: int
) -> list[dict[str, str]]:
    """Return the environment variables that give each job an even share of the devices.

    How many GPUs a job has does not depend on how many runs are left: a run that uses another
    number of them may be another run. Jobs on one GPU have a share of its memory each, as jax would
    keep three quarters of it for the first, unless the environment says how much jax takes
    (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).

    Args:
        backend: as jax calls it.
        names: of the devices.
        jobs: how many; None: one a GPU, one in all on anything else.
        runs: how many wait; there are no more shares than that.

    Raises:
        UsageError: more jobs than devices that cannot be shared.

    Example:
        >>> share_out("gpu", ["0", "1", "2", "3"], 2, runs=9)
        [{'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]
    """
    if backend == "cpu":
        return [{}] * min(jobs or 1, runs)
    jobs = jobs or (len(names) if backend == "gpu" else 1)
    if jobs == 1:
        return [{}]
    if backend != "gpu":
        raise UsageError(
            f"--jobs={jobs}: allowed is 1, as a {backend.upper()} belongs to one process"
        )
    share = max(1, len(names) // jobs)
    at_once = min(jobs, runs)
    on_one = math.ceil(at_once / len(names))
    grows = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE") in ("false", "False", "0")
    memory = {}
    if on_one > 1 and not grows and not any(map(os.environ.get, _FRACTIONS)):
        memory[_FRACTIONS[0]] = f"{_SHARED / on_one:.3f}"
    firsts = [job * share % len(names) for job in range(at_once)]
    return [{_VISIBLE: ",".join(names[first : first + share]), **memory} for first in firsts]


def _devices() -> tuple[str, list[str]]:
    """Ask another process, which gives the devices back, for jax's backend and their names."""
    program = "import jax; print(jax.default_backend(), jax.local_device_count())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise SweepError(f"no device can be used: {last_line(done.stderr)}")
    backend, count = done.stdout.split()[-2:]
    named = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",")]
    names = [name for name in named if name] or [str(number) for number in range(int(count))]
    return backend, names[: int(count)]


def _report(runs: Sequence[Run], directory: Path) -> int:
    """Write the report and return its exit code."""
    if not any((run.directory / "config.json").is_file() for run in runs):
        return fail("no run has begun: there is nothing to report", 1)
    from gnp.analysis.report.__main__ import main as report  # late: it needs plotly

    return report([str(directory), f"--out={directory / 'report'}"])


def _count(runs: int) -> str:
    return f"{runs} {'run' if runs == 1 else 'runs'}"


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
