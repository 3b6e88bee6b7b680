"""Training runs that a benchmark compares: each in a process and a run directory of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import config as configs
from config import default, load_config
from gnp.analysis.report import runs as directories
from gnp.bench.measure import ROOT
from gnp.training.distributed import catch_signals
from gnp.training.run_directory import refuse_other_config


class Run:
    """A config with some keys changed, trained in a run directory of its own.

    Args:
        name: What it is called where it fails.
        file: The config file, with its argument.
        keys: Key -> value.
        directory: The run directory; its log lies beside it.
        out: The benchmark's folder, which keeps the compiled programs of all runs.

    Raises:
        RunDirectoryError: its directory holds another run.
    """

    def __init__(
        self, name: str, file: str, keys: Mapping[str, Any], directory: Path, out: Path
    ) -> None:
        self.name, self.directory, self.out = name, directory, out
        self.log = directory.with_name(f"{directory.name}.log")
        self._file = file
        self._overrides = [(key, str(value)) for key, value in keys.items()]
        self.config = load_config(file, self._overrides)
        if (directory / "config.json").exists():
            values, defaults = map(configs.as_json, (self.config, default.get_config()))
            advice = "choose another --out, or remove that directory"
            refuse_other_config(directory, values, default.FREE_KEYS, defaults, advice)

    def read(self) -> directories.Run | None:
        """Return what its directory holds; None where the run is not finished."""
        if not (self.directory / "config.json").exists():
            return None
        found = directories.read_run(self.directory)
        return found if found.is_finished else None

    def error(self) -> float | None:
        """Return the metric by which such runs are compared; None where it is not finished."""
        found = self.read()
        return directories.final_value(found, found.metric) if found else None

    def start(self) -> "subprocess.Popen[bytes]":
        """Train, or go on, in a process of its own; what it says goes to `log`."""
        arguments = [f"--config.{key}={value}" for key, value in self._overrides]
        # The second: several runs may share a GPU.
        usual = {
            "JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled"),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "gnp.main.main", f"--config={self._file}",
                 f"--working_dir={self.directory}", *arguments],
                env={**usual, **os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,  # a second signal, from the terminal, would end it at once
                stdout=log,
                stderr=log,
            )  # fmt: skip

    def last_words(self) -> str:
        """Return the last line that it has written."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended early"


def train(runs: Sequence[Run], jobs: int) -> list[str]:
    """Train what is not finished; return a line for each run that failed.

    Args:
        runs: In the order in which they start.
        jobs: Processes at a time.

    Raises:
        KeyboardInterrupt: A signal came, and the runs have saved, which a line says.
    """
    waiting = [each for each in runs if each.error() is None]
    running: dict[Run, subprocess.Popen[bytes]] = {}
    failures = []
    bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="runs", disable=None)
    with catch_signals() as interrupt, bar:
        try:
            while (waiting or running) and not interrupt.signal:
                while waiting and len(running) < jobs:
                    each = waiting.pop(0)
                    running[each] = each.start()
                time.sleep(0.1)
                for each in [each for each in running if running[each].poll() is not None]:
                    del running[each]
                    bar.update()
                    if each.error() is None:
                        failures.append(f"{each.name}: {each.last_words()}")
        finally:  # after a signal: they save, and go on there the next time
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    if interrupt.signal:
        print(f"the same command goes on in {runs[0].out}", file=sys.stderr)
        raise KeyboardInterrupt
    return failures
