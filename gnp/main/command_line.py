"""The command line: its flags, what is wrong with them, and the config that they name."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
from absl import flags

import config as configs
from config import default
from gnp.experiment import name_problems
from gnp.training.checkpoint import run_of
from gnp.training.early_stopping import BEST
from gnp.training.topology import ALLOWED, is_topology

USAGE = """\
python -m gnp.main.main --config=FILE --working_dir=DIR [--mode=MODE] [--config.KEY=VALUE]...

  --config=FILE         what to run; config/ holds ready ones, some with an argument, FILE:ARGUMENT
  --working_dir=DIR     the run directory: everything is written there; the same command resumes
  --mode=train          train, evaluate, log, checkpoint (default)
  --mode=eval           evaluate a checkpoint of DIR; --config may be left out, also where
                        --config.dataset.data_dir says where the data are now. Where DIR has none,
                        or is left out: the weights of --config.model.pretrained
  --mode=plan           compile the steps of --config for --topology, and print memory, operations,
                        what devices say to one another, and hours at least; computes nothing
  --mode=inspect        print config, layers and parameters, of --config or of DIR; computes nothing
  --checkpoint=STEP     eval, inspect: which checkpoint (default: the newest); best: that of the
                        best epoch, eval's default where early_stopping.metric says which it is; a
                        path of one is allowed too, RUN/checkpoints/STEP, or RUN for its newest
  --values=REGEX        inspect: print the checkpoint's arrays whose paths REGEX finds
  --topology=NAME       plan: devices that need not be here: v5e:AxB, v6e:AxB, v4:AxBxC, v5p:AxBxC
                        (TPUs), a100:N, h100:N, h200:N (GPUs); cpu; local (default)
  --profile=FIRST:LAST  train: write an xprof trace of these steps, counted from 1, to DIR/profile
  --config.KEY=VALUE    any of the keys below

Several processes find one another under SLURM, Open MPI, Kubernetes, and on Cloud TPUs where
GNP_DISTRIBUTED=1 is set (recipe/cluster/tpu_pod.sh sets it); elsewhere:
  --coordinator_address=HOST:PORT  where process 0 runs, and a free port there
  --num_processes=COUNT            how many there are
  --process_id=INDEX               which one this is, from 0

Exit codes: 0 done, or stopped by SIGTERM with everything saved; 2 the command line or a config
value is wrong by itself; 1 anything that data, files or devices show, and a bug, with its
traceback; 130 Ctrl-C.
"""


_MODES = {
    "checkpoint": ("eval", "inspect"),
    "values": ("inspect",),
    "profile": ("train",),
    "topology": ("plan",),
}
_PROCESS_FLAGS = ("coordinator_address", "num_processes", "process_id")


class UsageError(ValueError):
    """A command line that cannot be run; each line of the message is one problem."""


class CommandLine(NamedTuple):
    """A parsed command line.

    Attributes:
        mode: train, eval, inspect or plan.
        config: checked and complete; None in eval and inspect without --config.
        working_dir: the run directory; that of the checkpoint where it is not given; None:
            neither is needed.
        checkpoint: the step, or the path, of the one to read, or BEST; None: the default.
        overrides: (key, text) pairs for the directory's own config, in eval without --config.
        values: inspect: a regular expression of the arrays to print; None: none.
        profile: the first and the last step to trace, counted from 1; None: none.
        topology: plan: the devices to compile for; None: those that are here.
        processes: the coordinator's address, how many there are, and which one this is; None: not
            said here.
    """

    mode: str
    config: ml_collections.ConfigDict | None
    working_dir: Path | None
    checkpoint: int | Path | str | None
    overrides: tuple[tuple[str, str], ...] = ()
    values: str | None = None
    profile: tuple[int, int] | None = None
    topology: str | None = None
    processes: tuple[str, int, int] | None = None


def parse(arguments: Sequence[str]) -> CommandLine | None:
    """Return the command line, checked; None where help was asked for.

    Args:
        arguments: without the program's name.

    Raises:
        UsageError, ConfigError: what is wrong, a line each.

    Example:
        >>> parse(["--mode=inspect", "--config=config/digits.py"]).mode
        'inspect'
    """
    if any(argument in ("-h", "--help", "-help") for argument in arguments):
        return None
    values = _define_flags()
    overrides, wrong = configs.read_flags(values, arguments)
    wrong += _flag_problems(values)
    config = None
    if values.config:
        try:
            config, problems = configs.read_config(values.config, overrides)
            wrong += problems
            # The names are looked up in a config whose model and optimizer can be built.
            needed = ("model.", "opt.", "precision", "config key")
            if not any(line.startswith(needed) for line in problems):
                wrong += name_problems(config, checked=not problems)
            evaluates_weights = values.mode == "eval" and not _has_run(values)
            if evaluates_weights and not problems and config.model.pretrained is None:
                wrong.append(
                    "--mode=eval needs --working_dir=DIR, the run directory, or weights to "
                    "evaluate, --config.model.pretrained=FILE"
                )
        except configs.ConfigError as error:
            wrong += str(error).splitlines()
    elif overrides:
        wrong += _problems_without_file(values.mode, overrides)
    if wrong:
        raise UsageError("\n".join(wrong))
    processes = (values.coordinator_address, values.num_processes, values.process_id)
    checkpoint = _checkpoint(values.checkpoint)
    directory = run_of(checkpoint)[0] if isinstance(checkpoint, Path) else None
    return CommandLine(
        values.mode,
        config,
        _directory(values.working_dir) if values.working_dir else directory,
        checkpoint,
        () if values.config else tuple(overrides),
        values.values,
        _steps(values.profile or ""),
        values.topology,
        None if None in processes else processes,
    )


def _flag_problems(values: flags.FlagValues) -> list[str]:
    wrong = []
    has_run = _has_run(values)
    # In eval, the config may name weights to evaluate.
    needs_run = values.mode == "train" or (values.mode == "eval" and not values.config)
    if needs_run and not has_run:
        wrong.append(f"--mode={values.mode} needs --working_dir=DIR, the run directory")
    elif values.checkpoint is not None and not has_run:
        wrong.append(f"--checkpoint={values.checkpoint} needs --working_dir=DIR, the run directory")
    for name, read in (("working_dir", _directory), ("checkpoint", _checkpoint)):
        text = values[name].value
        try:
            read(text)
        except ValueError as error:
            wrong.append(f"--{name}={text} {error}")
        if any("\ud800" <= c <= "\udfff" for c in text or ""):
            # Bytes that Python's locale does not read, and that the library of checkpoints refuses.
            wrong.append(
                f"--{name}={text} is no text in UTF-8; name another directory, or set PYTHONUTF8=1"
            )
    if not values.config and (values.mode in ("train", "plan") or not has_run):
        wrong.append("--config=FILE is missing, such as --config=config/digits.py")
    if values.topology is not None and not is_topology(values.topology):
        wrong.append(f"--topology={values.topology} is none of those allowed: {ALLOWED}")
    if values.profile is not None and _steps(values.profile) is None:
        wrong.append(
            f"--profile={values.profile}: FIRST:LAST is needed, two step numbers from 1 on, "
            "the first not above the last, such as --profile=20:25"
        )
    if values.values is not None and not has_run:
        wrong.append(
            f"--values={values.values} needs --working_dir=DIR or --checkpoint=RUN/checkpoints/STEP"
        )
    try:
        re.compile(values.values or "")
    except (re.error, OverflowError, RecursionError) as error:
        wrong.append(f"--values={values.values} is no regular expression: {error}")
    for name, modes in _MODES.items():
        if values[name].value is not None and values.mode not in modes:
            only = " or ".join(f"--mode={mode}" for mode in modes)
            wrong.append(f"--{name}={values[name].value} goes with {only} only")
    given = {name: values[name].value for name in _PROCESS_FLAGS}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        there = next(f"--{name}={value}" for name, value in given.items() if value is not None)
        wrong.append(f"{there} needs {' and '.join(missing)} beside it, or none of the three")
    elif not missing and values.process_id >= values.num_processes:
        wrong.append(
            f"--process_id={values.process_id} is out of range: "
            f"--num_processes={values.num_processes} has 0 to {values.num_processes - 1}"
        )
    return wrong


def _has_run(values: flags.FlagValues) -> bool:
    """Return whether a run is named, by its directory or by the path of a checkpoint."""
    names_step = values.checkpoint in (None, BEST) or values.checkpoint.isdecimal()
    return bool(values.working_dir) or not names_step


def _directory(text: str | None) -> Path:
    return configs.local_path(text or ".")


def _checkpoint(text: str | None) -> int | Path | str | None:
    """Return the step, or the whole path, of a checkpoint, or BEST.

    Raises:
        ValueError: it is neither; the message goes behind the flag.
    """
    if text is None or text == BEST:
        return text
    if text.isdecimal():
        return int(text)
    path = configs.local_path(text).absolute()
    if not os.path.isdir(path):
        raise ValueError(
            "is neither a step, nor best, nor a folder; RUN/checkpoints/STEP is needed, or RUN for "
            "its newest"
        )
    return path


def _steps(text: str) -> tuple[int, int] | None:
    """Return the first and the last step of `20:25`."""
    match = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    return (first, last) if 1 <= first <= last else None


def _problems_without_file(mode: str, overrides: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is wrong with keys that are given without a config file."""
    if mode != "eval":
        return [f"--config.{overrides[0][0]} needs --config=FILE"]
    known = [key.name for key in default.KEYS]
    fixed = [name for name, _ in overrides if name in known and name not in default.FREE_KEYS]
    wrong = [
        f"--config.{name} needs --config=FILE: without it the run's own config is taken, in which "
        f"only {', '.join(default.FREE_KEYS)} can be changed"
        for name in fixed
    ]
    return wrong or configs.apply_overrides(default.get_config(), overrides)[1]


def usage() -> str:
    """Return the text of --help: usage and every config key."""
    keys = [
        f"  {key.name} = {key.default!r}\n      {key.meaning} ({key.kind.allowed})"
        for key in default.KEYS
    ]
    return USAGE + "\nConfig keys, with their defaults:\n\n" + "\n".join(keys)


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    names = ("config", "working_dir", "checkpoint", "values", "profile", "topology")
    for name in (*names, "coordinator_address"):
        flags.DEFINE_string(name, None, "", flag_values=values)  # USAGE has the help
    for name, lowest in (("num_processes", 1), ("process_id", 0)):
        flags.DEFINE_integer(name, None, "", lower_bound=lowest, flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "eval", "inspect", "plan"], "", flag_values=values)
    return values
