"""Several processes that train one model: how they start, agree, and end together.

jax.distributed connects them; what is here goes through its key-value store, and so needs no
device. In a program of one process each function does what is to be done at once.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, TypeVar

import jax
from jax._src import distributed  # jax.distributed shows neither client nor process number

T = TypeVar("T")

START_SECONDS = 300
# A process is taken for lost after so long without a sign of life.
HEARTBEAT_SECONDS = 30
# The others wait for process 0, which draws pictures at the end.
_FINISH_SECONDS = 1800
_INTERVAL = 0.5
_LOST = "another process was lost"
_ONE_AGAIN = "the same command goes on from the last checkpoint"


class ProcessError(RuntimeError):
    """The processes of a run cannot be started, or one was lost; one line."""


def several() -> bool:
    """Whether this run has other processes."""
    return bool(_groups)


def is_first() -> bool:
    """Whether this is process 0, which decides, writes and prints.

    Example:
        >>> is_first()
        True
    """
    return not _groups or _groups[0].index == 0


def check_address(address: str, listen: bool = False) -> None:
    """Whether an address can be the coordinator's.

    Args:
        address: as HOST:PORT.
        listen: by this process: whether the port is free, too.

    Raises:
        ProcessError: it cannot.

    Example:
        >>> check_address("localhost")
        Traceback (most recent call last):
        ...
        gnp.training.processes.ProcessError: --coordinator_address=localhost: HOST:PORT is ...
    """
    name = f"--coordinator_address={address}"
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ProcessError(
            f"{name}: HOST:PORT is needed, a port of 1 to 65535, such as 10.0.0.1:8476"
        )
    try:
        socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ProcessError(f"{name}: no such host ({error.strerror})") from error
    if not listen:
        return
    with socket.socket() as probe:  # jax 0.10 and 0.11 crash where the port is taken
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise ProcessError(
                f"{name}: process 0 cannot listen there ({error.strerror}); choose another port"
            ) from error


def start(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    timeout: int = START_SECONDS,
) -> None:
    """Connects the processes of a run; before anything touches a device.

    Args:
        address: of the coordinator, which is process 0, as HOST:PORT; None: jax knows the cluster.
        count: processes.
        index: of this one, from 0.
        timeout: seconds until the others must have come.

    Raises:
        ProcessError: they cannot be connected.
    """
    if address is not None:
        check_address(address, listen=index == 0)
    # It would take SIGTERM away from gnp.training.interrupt.
    jax.config.update("jax_enable_preemption_service", False)
    crash = _Crash(timeout)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            cluster_detection_method="deactivate" if address else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # jax raises several types
        raise ProcessError(f"the processes cannot be connected: {first_line(error)}") from error
    state = distributed.global_state
    group = _Group(state.client, state.process_id, state.num_processes, crash)
    group.thread.start()
    _groups.append(group)


def detect() -> bool:
    """Whether jax finds a cluster that started this process as one of several.

    Raises:
        ProcessError: it started several, but does not say how they find one another.
    """
    from jax._src.clusters import ClusterEnv

    environment = os.environ.get
    tasks = environment("SLURM_STEP_NUM_TASKS")
    for cluster in ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or (
            cluster.__name__ == "K8sCluster" and not _in_indexed_job()
        ):
            continue
        try:
            if cluster.is_env_present():
                # A shell that srun opened has one task, in a job that may have more.
                alone = cluster.name == "slurm" and tasks == "1"
                return not alone and cluster.get_process_count() > 1
        except Exception as error:  # each cluster has its own ones
            raise ProcessError(
                f"jax sees a {cluster.__name__}, which does not say where the other processes "
                f"are: {first_line(error)}; give --coordinator_address, --num_processes and "
                "--process_id"
            ) from error
    size = environment("OMPI_COMM_WORLD_SIZE", "1")
    if size != "1":
        raise ProcessError(
            f"mpirun started {size} processes, and this version of Open MPI does not tell jax "
            "where they are: use recipe/cluster/openmpi.sh, or give --coordinator_address, "
            "--num_processes and --process_id"
        )
    return False


def _in_indexed_job() -> bool:
    """Whether jax may ask Kubernetes: elsewhere it warns that the package is missing."""
    return "JOB_COMPLETION_INDEX" in os.environ and bool(importlib.util.find_spec("kubernetes"))


def decide(make: Callable[[], T]) -> T:
    """What process 0 makes, for all processes; where it fails there, all end.

    Args:
        make: called by process 0 alone; what it returns can be written as JSON.

    Example:
        >>> decide(lambda: [1, 2])
        [1, 2]
    """
    if not _groups:
        return make()
    group = _groups[0]
    group.decisions += 1
    key = f"gnp/decision/{group.decisions}"
    if group.index == 0:
        value = make()
        group.client.key_value_set(key, json.dumps(value))
        return value
    decided: T = json.loads(group.wait_for(key))
    return decided


def ask_to_stop(number: signal.Signals) -> None:
    """Notes a signal, which the others are told of; may be called by a handler of signals."""
    for group in _groups:
        group.asked = number.name


def stops_here() -> signal.Signals | None:
    """The signal at which all processes stop, at the same call of this one; None: they go on.

    All call it at the same places. It waits for nothing but, once, for the agreement.
    """
    return _groups[0].stops_here() if _groups else None


def bounded(call: Callable[[], Any], seconds: float = 5.0) -> None:
    """Calls what may wait for other processes, which may be gone; then for some seconds only."""
    if not _groups:
        call()
        return

    def quietly() -> None:
        with contextlib.suppress(Exception):  # the error that led here is the one to tell
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


def is_lost(error: BaseException) -> bool:
    """Whether an error of the device may come from another process that is gone."""
    return several() and bool(_CONNECTION.search(str(error)))


_CONNECTION = re.compile(
    r"gloo|nccl|connection (reset|closed|refused)|socket closed|heartbeat|coordination service|"
    r"unhealthy|^(UNAVAILABLE|DEADLINE_EXCEEDED)",
    re.IGNORECASE,
)


def lost_line(reason: str) -> str:
    """What to say where another process is gone."""
    return f"{_LOST}, or the network to it: {reason}; {_ONE_AGAIN}"


def fail(text: str, code: int) -> NoReturn:
    """Ends all processes of several; each line of the text is printed once.

    Args:
        text: what went wrong here.
        code: of the exit, of all processes.
    """
    _groups[0].fail(text, code)


def finish(code: int) -> int:
    """Waits for the others, which end too, and lets go of them; returns the code."""
    for group in _groups:
        # Its thread goes on meanwhile: an error of another, which may still draw, ends this one.
        group.client.wait_at_barrier("gnp/finish", 1000 * _FINISH_SECONDS)
    while _groups:
        group = _groups.pop()
        group.closed.set()
        group.thread.join()
        jax.distributed.shutdown()
    return code


def first_line(error: BaseException) -> str:
    """The first line of an error, at most 300 characters of it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class _Group:
    """This process among the others; a thread of it looks for what they have to say."""

    def __init__(self, client: Any, index: int, count: int, crash: "_Crash") -> None:
        self.client, self.index, self.count = client, index, count
        self.decisions = 0
        self.asked: str | None = None
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="processes", daemon=True)
        self._told = False
        self._failing = False
        self._lock = threading.Lock()
        self._calls = 0
        self._stop: tuple[int, str] | None = None
        self._crash = crash
        crash.group = self

    @property
    def name(self) -> str:
        return f"process {self.index} of {self.count}"

    def wait_for(self, key: str) -> str:
        """A value of the store; signals are noticed meanwhile."""
        while not self.closed.is_set():
            try:
                return str(self.client.blocking_key_value_get(key, 1000))
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        raise ProcessError("this process has finished")  # of its thread, which then ends

    def stops_here(self) -> signal.Signals | None:
        with self._lock:
            self._calls += 1
            if self._stop is None or self._calls < self._stop[0]:
                return None
            return signal.Signals[self._stop[1]]

    def fail(self, text: str, code: int) -> NoReturn:
        self._failing = True
        lines = text.splitlines()
        if self.index > 0 or text.startswith(_LOST):  # others may say something else
            lines = [f"{self.name}: {line}" for line in lines]
        if not self._crash.said:
            notice = json.dumps({"text": text, "code": code})
            with contextlib.suppress(Exception):  # the coordinator may be what is lost
                self.client.key_value_set(f"gnp/notices/failed/{self.index}", notice)
                if self.index > 0:
                    time.sleep(2 * _INTERVAL)
                    first = self._notices().get("failed/0")
                    if first is None or json.loads(first)["text"] != text:
                        self._crash.say(lines)
                    end(code)
                else:
                    self._crash.say(lines)
                    time.sleep(3 * _INTERVAL)  # who leaves before it was heard is taken for lost
            self._crash.say(lines)
        end(code)

    def _watch(self) -> None:
        while not self.closed.wait(_INTERVAL):
            try:
                if self.asked and not self._told:
                    self._told = True
                    self.client.key_value_set(f"gnp/notices/stop/{self.index}", self.asked)
                notices = self._notices()
                if not self._failing:
                    self._end_with(notices)
                stops = [name for key, name in sorted(notices.items()) if key.startswith("stop/")]
                if stops and self._stop is None:
                    self._agree(stops[0])
            except Exception:  # jax ends the process, see _Crash
                return

    def _notices(self) -> dict[str, str]:
        found = self.client.key_value_dir_get("gnp/notices/")
        return {key.partition("gnp/notices/")[2]: value for key, value in found}

    def _end_with(self, notices: dict[str, str]) -> None:
        failed = [key for key in sorted(notices) if key.startswith("failed/")]
        if not failed:
            return
        notice = json.loads(notices[failed[0]])
        if self.index == 0:
            who = f"process {failed[0].partition('/')[2]} of {self.count}"
            self._crash.say(f"{who}: {line}" for line in notice["text"].splitlines())
            time.sleep(3 * _INTERVAL)
        self._crash.said = True
        end(notice["code"])

    def _agree(self, name: str) -> None:
        """All stop where the one that is furthest asks next whether to stop.

        Meanwhile none asks, so that none is further when the answer is there. The loops of the
        others may wait for this one's next step, their threads do not.
        """
        with self._lock:
            key = "gnp/calls"
            self.client.key_value_set(f"{key}/{self.index}", json.dumps([self._calls, name]))
            told = [json.loads(self.wait_for(f"{key}/{i}")) for i in range(self.count)]
            self._stop = 1 + max(calls for calls, _ in told), min(name for _, name in told)


class _Crash:
    """jax ends a process whose peers are gone from inside C++, with a stack and abort().

    Instead there is one line, and exit code 1. What C++ prints goes through a pipe, and on to
    standard error until the first line of such an end; how gloo counts its peers is dropped.
    """

    def __init__(self, timeout: int) -> None:
        self.group: _Group | None = None
        self.said = False
        self._timeout = timeout
        self._fatal: list[str] = []
        self._saying = threading.Lock()
        if int(os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0")) >= 3:
            self._redirect()
        # abort() calls this in the thread that failed, as a function: Python can run in it.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._handler)

    def say(self, lines: Any) -> None:
        """Prints, unless there was something to say before."""
        with self._saying:
            if not self.said:
                self.said = True
                for line in lines:
                    print(f"gnp: {line}", file=sys.stderr, flush=True)

    def _redirect(self) -> None:
        read, write = os.pipe()
        sys.stdout, sys.stderr = _elsewhere(sys.stdout, 1), _elsewhere(sys.stderr, 2)
        for descriptor in (1, 2):
            os.dup2(write, descriptor)
        os.close(write)
        os.set_blocking(read, False)
        self._read, self._seen = read, sys.stderr.fileno()
        self._begun = b""
        self._reading = threading.Lock()
        threading.Thread(target=self._copy, name="stderr", daemon=True).start()

    def _copy(self) -> None:
        while True:
            select.select([self._read], [], [])
            self._take()

    def _take(self) -> None:
        with self._reading:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(self._read, 1 << 16):
                    self._begun += part
            *lines, self._begun = self._begun.split(b"\n")
            for line in lines:
                text = line.decode(errors="backslashreplace")
                if self._fatal or _FATAL.match(text):
                    self._fatal.append(text)
                elif text and not _GLOO.search(text):
                    os.write(self._seen, line + b"\n")

    def _aborted(self, _: int) -> None:
        if hasattr(self, "_read"):
            self._take()
        self.say([self._line()])
        os._exit(1)

    def _line(self) -> str:
        text = "\n".join(self._fatal)
        state = distributed.global_state
        if self.group is None:
            if state.process_id == 0:
                return f"not all processes came to process 0 within {self._timeout} s"
            where = state.coordinator_address
            return (
                f"process {state.process_id}: the coordinator, process 0 at {where}, was not there "
                f"within {self._timeout} s, or not all processes were"
            )
        unhealthy = re.search(r"stopped sending heartbeats\):\n([0-9, ]+)", text)
        task = re.search(r"[Tt]ask:? ([0-9]+)", text)
        if unhealthy:
            lost = f"process {unhealthy[1].strip()} was lost"
        elif "leader task" in text or "Socket closed" in text:
            lost = "process 0 was lost"
        elif task and "heartbeat" in text:
            lost = f"process {task[1]} was lost"
        else:
            status = text.partition("absl::Status: ")[2] or text or "abort() was called"
            lost = f"{_LOST}: {status.splitlines()[0][:300]}"
        return f"{self.group.name}: {lost}; {_ONE_AGAIN}"


def _elsewhere(stream: TextIO, descriptor: int) -> TextIO:
    """The same stream under another descriptor."""
    stream.flush()
    line_buffered = descriptor == 2 or stream.isatty()
    return os.fdopen(
        os.dup(descriptor),
        "w",
        buffering=1 if line_buffered else -1,
        encoding=stream.encoding,
        errors=stream.errors,
    )


# Its threads write at once, so that a line may be cut in two.
_GLOO = re.compile(r"\[Gloo\] Rank|is connected to [0-9]+ peer ranks")
_FATAL = re.compile(r"F[0-9]{4} |terminate called|\*\*\* Check failure")
_groups: list[_Group] = []  # of this process, at most one


def end(code: int) -> NoReturn:
    """Ends the process without the wait for others that jax would begin."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
