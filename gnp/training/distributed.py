"""Several processes that train one model: connect them, agree, stop, and end together.

In a program of one process each function does at once what is to be done.
"""

import importlib.util
import ipaddress
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from gnp import terminal
from gnp.training.files import first_line

START_SECONDS = 300
# A process that gives no sign of life for so long is taken for lost, and jax ends the others.
_HEARTBEAT_SECONDS = 30
# The others wait for process 0, which draws pictures at the end.
_FINISH_SECONDS = 1800
# Under these a scheduler and its launcher may both send the signal that one of them means.
_LAUNCHERS = ("SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE")


class ProcessError(RuntimeError):
    """The processes of a run cannot be started; one line."""


def is_launched() -> bool:
    """Return whether a launcher started this process as one of several that jax can connect.

    Raises:
        ProcessError: it started several, but does not say how they find one another.
    """
    environment = os.environ
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 4 sets it
            raise ProcessError(
                f"mpirun started {environment['OMPI_COMM_WORLD_SIZE']} processes, and this version "
                "of Open MPI does not tell jax where they are: use recipe/cluster/openmpi.sh, or "
                "give --coordinator_address, --num_processes and --process_id"
            )
        return True
    # The tasks of the step: a shell that srun opened is one, in a job that may have more.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    # jax asks Kubernetes for the other pods, through a package that it does not bring.
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return importlib.util.find_spec("kubernetes") is not None
    # GKE names a slice's machines. Elsewhere a Cloud TPU is found over the network alone, which
    # takes seconds on a machine that is none: recipe/cluster/tpu_pod.sh says so instead.
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    return "," in hosts or environment.get("GNP_DISTRIBUTED") == "1"


def check_address(address: str, index: int, timeout: float = START_SECONDS) -> str | None:
    """Check the coordinator's address: process 0 can listen there, the others are answered.

    Args:
        address: as HOST:PORT.
        index: of this process.
        timeout: seconds until process 0 must listen.

    Returns:
        Where process 0 is to listen: at that address alone, as the coordinator asks nobody for a
        password; None: at all of its machine's, as the others may know it by one that is not its.

    Raises:
        ProcessError: says what is wrong with it.

    Example:
        >>> check_address("localhost", index=0)
        Traceback (most recent call last):
        ...
        gnp.training.distributed.ProcessError: --coordinator_address=localhost: HOST:PORT is ...
    """
    name = f"--coordinator_address={address}"
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise ProcessError(
            f"{name}: HOST:PORT is needed, a port of 1 to 65535, such as 10.0.0.1:8476"
        )
    place = (host.strip("[]"), int(port))
    try:
        found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ProcessError(f"{name}: no such host ({error.strerror})") from error
    # In both cases jax would end the process with a stack of C++ functions.
    if index == 0:
        own = [each for each in found if _is_own(place[0], *each)]
        family, there = (own[0][0], own[0][4]) if own else (socket.AF_INET, ("", place[1]))
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(there)
            except OSError as error:
                raise ProcessError(
                    f"{name}: process 0 cannot listen there ({error.strerror}); choose another port"
                ) from error
        return address if own else None
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(place, timeout=5).close()
            return None
        except OSError as error:
            if time.monotonic() > end:
                raise ProcessError(
                    f"{name}: process 0 was not there within {timeout:g} s ({error}); start all "
                    "processes together, with the same address"
                ) from error
        time.sleep(0.5)


def _is_own(host: str, family: int, kind: int, _: int, __: str, place: tuple[Any, ...]) -> bool:
    """Return whether what a host's name was resolved to is this machine's, for others too.

    Behind a load balancer or a translation of addresses it is not. What is the loopback may be so
    for this machine alone, whose /etc/hosts names it.
    """
    if host not in ("localhost", place[0]) and ipaddress.ip_address(place[0]).is_loopback:
        return False
    with socket.socket(family, kind) as probe:
        try:
            probe.bind((place[0], 0, *place[2:]))
        except OSError:
            return False
    return True


def initialize(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    timeout: int = START_SECONDS,
    *,
    stoppable: bool = True,
) -> None:
    """Connect the processes of a run, before anything touches a device.

    Args:
        address: of the coordinator, which is process 0, as HOST:PORT; None: jax asks the cluster.
        count: processes.
        index: of this one, from 0.
        timeout: seconds until the others must have come.
        stoppable: `Interrupt` says when SIGTERM came; False: it ends the process, as usual.

    Raises:
        ProcessError: they cannot be connected.
    """
    listens_at = None
    if address is not None and index is not None:
        listens_at = check_address(address, index, timeout)
    jax.config.update("jax_enable_preemption_service", stoppable)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            cluster_detection_method="deactivate" if address else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_FINISH_SECONDS,
            coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", listens_at),
        )
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"the processes cannot be connected: {first_line(error)}; give "
            "--coordinator_address, --num_processes and --process_id"
        ) from error
    try:
        jax.device_count()
    except (RuntimeError, AssertionError) as error:  # jax asserts that there is a default one
        raise ProcessError(f"jax finds no device to run on: {first_line(error)}") from error
    # On CPUs gloo waits 30 s for the others, but only the first time: now, as all have just come.
    sync("initialize")


def is_first() -> bool:
    """Return whether this is process 0, which decides, writes and prints.

    Example:
        >>> is_first()
        True
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def broadcast(value: Any) -> Any:
    """Return process 0's value in all processes.

    Args:
        value: can be written as JSON; that of other processes is not looked at.

    Example:
        >>> broadcast({"steps": [1, 2]})
        {'steps': [1, 2]}
    """
    text = json.dumps(value) if is_first() else ""
    if jax.distributed.is_initialized():
        content = np.frombuffer(text.encode(), np.uint8)
        size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
        if not is_first():
            content = np.zeros(size, np.uint8)  # only its shape counts
        text = multihost_utils.broadcast_one_to_all(content).tobytes().decode()
    return json.loads(text)


def on_first(decide: Callable[[], Any], error: type[Exception]) -> Any:
    """Return in all processes what process 0 decides; where it cannot, all raise, and can say so.

    Args:
        decide: What it returns can be written as JSON.
        error: Of this kind are the errors that it may raise, beside OSError, and what is raised.

    Example:
        >>> on_first(lambda: 3, ValueError)
        3
    """
    found, problem = None, ""
    if is_first():
        try:
            found = decide()
        except (error, OSError) as raised:
            if isinstance(raised, error) and not jax.distributed.is_initialized():
                raise
            problem = terminal.describe(raised)
    found, problem = broadcast((found, problem))
    if problem:
        raise error(problem)
    return found


def sync(name: str) -> None:
    """Wait until all processes are here."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(name)


class Interrupt:
    """Remember the signal that ends a run, and agree with the other processes on where.

    Attributes:
        signal: None until the run must stop.

    Example:
        >>> Interrupt().reached(step=1)
        False
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._ctrl_c = False
        self._asked = 0

    def ask_all(self, ctrl_c: bool) -> None:
        """Have all processes stop because this one had a signal, in whose handler this may run."""
        self._ctrl_c = ctrl_c
        os.kill(os.getpid(), signal.SIGTERM)  # which jax's preemption service takes to the others

    def reached(self, step: int) -> bool:
        """Return whether the run must stop after `step` steps; the same in all processes.

        Args:
            step: steps taken so far, those of earlier runs included.
        """
        if self.signal is None and jax.distributed.is_initialized():
            # At a signal, jax agrees on the number after the highest that any process has asked
            # about, and says yes to that number alone: so none may be left out, not even those
            # before a resumed run's first step, since a signal may come before it.
            numbers = range(self._asked + 1, step + 1)
            stop = [multihost_utils.reached_preemption_sync_point(number) for number in numbers]
            self._asked = step
            if any(stop):
                ctrl_c = multihost_utils.process_allgather(np.int32(self._ctrl_c))
                self.signal = signal.SIGINT if ctrl_c.any() else signal.SIGTERM
        return self.signal is not None


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Note the first signal within it only; let a second one end the process at once.

    SIGTERM, SIGINT and, when the terminal is closed, SIGHUP, unless it is ignored (nohup).

    With several processes, and where a launcher started this one, the second is ignored, since a
    scheduler and its launcher may both send the one that they mean. They end the process with
    SIGKILL where it takes too long.

    Must be entered in the main thread.
    """
    interrupt = Interrupt()
    several = jax.distributed.is_initialized()
    # With several, SIGTERM is caught by jax, whose handler Python could not put back.
    caught = [signal.SIGINT, *([] if several else [signal.SIGTERM])]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    launched = several or any(name in os.environ for name in _LAUNCHERS)

    def note(number: int, _: FrameType | None) -> None:
        # The second signal is the system's to handle: it need not wait for a compilation to end.
        for each in caught:
            signal.signal(each, signal.SIG_IGN if launched else signal.SIG_DFL)
        if number == signal.SIGHUP:
            terminal.let_go()
        if several:
            interrupt.ask_all(ctrl_c=number == signal.SIGINT)
        else:
            interrupt.signal = signal.Signals(number)

    before = {each: signal.signal(each, note) for each in caught}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def finish() -> None:
    """Wait for all processes to come to their end, and let go of them."""
    jax.distributed.shutdown()


def end(code: int) -> NoReturn:
    """End the process without waiting for the others, which jax then ends.

    Args:
        code: of the exit.
    """
    if jax.distributed.is_initialized():
        time.sleep(1)  # who fails for the same reason can still say so
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or on a full disk
            stream.flush()
    os._exit(code)
