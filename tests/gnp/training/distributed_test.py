"""Finding and connecting processes, and signals."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from gnp.training import distributed
from gnp.training.distributed import ProcessError, catch_signals
from tests.marks import quick_first

FIRST = """
import signal, sys
from gnp.training.distributed import catch_signals

with catch_signals() as interrupt:
    signal.raise_signal(signal.Signals[sys.argv[1]])
    assert interrupt.signal == signal.Signals[sys.argv[1]]
    print("noted", flush=True)
    sum(range(10**12))  # as a compilation: no Python handler can run in here
"""


@pytest.mark.parametrize("first", quick_first(["SIGTERM", "SIGINT"]))
@pytest.mark.parametrize("second", quick_first(["SIGTERM", "SIGINT"]))
def test_a_second_signal_ends_at_once(gnp_environment, first, second):
    with subprocess.Popen(
        [sys.executable, "-c", FIRST, first],
        env=gnp_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "noted\n"
            process.send_signal(signal.Signals[second])
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == -signal.Signals[second]
    assert errors == ""


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with catch_signals() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_closed_terminal_is_a_signal_to_save_unless_it_is_ignored():
    with catch_signals() as interrupt:
        signal.raise_signal(signal.SIGHUP)
    assert interrupt.signal == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with catch_signals() as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert interrupt.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_scheduler_and_its_launcher_may_both_send_it(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    with catch_signals() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.reached(1)
        assert interrupt.signal == signal.SIGTERM


@pytest.mark.parametrize("address", ["localhost", "localhost:0", "localhost:70000", ":80", "a:b"])
def test_addresses_without_host_and_port(address):
    with pytest.raises(ProcessError, match="HOST:PORT is needed"):
        distributed.check_address(address, index=0)


def test_a_host_that_is_not_there():
    with pytest.raises(ProcessError, match=r"=nowhere.invalid:80: no such host"):
        distributed.check_address("nowhere.invalid:80", index=0)


def test_a_port_that_is_taken_or_answers():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ProcessError, match=r"cannot listen there.*another port"):
            distributed.check_address(address, index=0)
        distributed.check_address(address, index=1)


LISTENS = """
import os, sys
from gnp.training import distributed

distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
own = {os.readlink(each.path) for each in os.scandir("/proc/self/fd") if os.path.islink(each.path)}
for file in ("tcp", "tcp6"):
    for row in open(f"/proc/self/net/{file}"):
        words = row.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in own:
            print("listens at", words[1].partition(":")[0])
distributed.finish()
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/net/tcp"), reason="asks Linux")
@pytest.mark.parametrize("host", quick_first(["localhost", "127.0.0.1", "[::1]"]))
def test_processes_listen_only_where_they_were_told(gnp_environment, host):
    """A stranger on the network could join, or end, a run."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host.strip("[]"), 0))
        except OSError:
            pytest.skip("there is no IPv6 here")
        address = f"{host}:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LISTENS, address, index],
            env=gnp_environment | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in "01"
    ]
    try:
        ended = [(*each.communicate(timeout=60), each.returncode) for each in started]
    finally:
        for each in started:
            each.kill()
    assert [code for *_, code in ended] == [0, 0], ended
    lines = "".join(out for out, *_ in ended).splitlines()
    places = {line.split()[-1] for line in lines if line.startswith("listens at")}
    assert places and not places & {"0" * 8, "0" * 32}


@pytest.mark.slow  # tests/gnp/main/bad_inputs_test.py has the command
def test_no_device(gnp_environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    program = f"from gnp.training import distributed\ndistributed.initialize({address!r}, 1, 0)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=gnp_environment | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        check=False,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gnp.training.distributed.ProcessError: jax finds no device to run on")


# /etc/hosts names this machine, as Debian's does; a load balancer.
@pytest.mark.parametrize("found", ["127.0.1.1", "203.0.113.77"])
def test_a_name_that_others_know_by_another_address(monkeypatch, found):
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place])
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    assert distributed.check_address(f"node1:{port}", index=0) is None


@pytest.mark.slow
def test_process_0_that_comes_late_or_never():
    with socket.socket() as late:
        late.bind(("", 0))
        address = f"127.0.0.1:{late.getsockname()[1]}"
        with pytest.raises(ProcessError, match=r"process 0 was not there within 0.3 s"):
            distributed.check_address(address, index=1, timeout=0.3)
        threading.Timer(1, late.listen).start()
        distributed.check_address(address, index=1, timeout=20)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "a,b", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0"}  # fmt: skip
OPEN_MPI_4 = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def surroundings(monkeypatch):
    """Sets environment variables, where nothing else says who started this process."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_", "TPU_", "GNP_DIST")):
            monkeypatch.delenv(name)

    def put(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "launched"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7"}, False),  # a script of sbatch, or a shell of salloc
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),  # likewise
        (SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, True),
        (SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, False),  # srun --pty bash
        (OPEN_MPI_4 | {"OMPI_COMM_WORLD_SIZE": "2"}, True),
        (OPEN_MPI_4 | {"OMPI_COMM_WORLD_SIZE": "1"}, False),
        (POD, False),  # a single pod
        (POD | {"JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, True),
        ({"GNP_DISTRIBUTED": "1"}, True),  # recipe/cluster/tpu_pod.sh
    ],
)
def test_which_surroundings_are_a_cluster(monkeypatch, surroundings, variables, launched):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "kubernetes" or None)
    surroundings(variables)
    assert distributed.is_launched() is launched


def test_pods_without_the_package_that_asks_for_the_others(monkeypatch, surroundings):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    surroundings(POD | {"JOB_COMPLETION_INDEX": "0"})
    assert not distributed.is_launched()


def test_open_mpi_that_says_too_little(surroundings):
    surroundings({"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(ProcessError, match=r"use recipe/cluster/openmpi.sh"):
        distributed.is_launched()


def test_one_process_agrees_with_itself():
    assert distributed.is_first()
    assert distributed.broadcast({"a": [1, None, "ü"]}) == {"a": [1, None, "ü"]}
    distributed.sync("here")
    distributed.finish()


AGREE = """
import os, signal, sys, threading, time
from gnp.training import distributed

address, index, who, name, begins = sys.argv[1:]
distributed.initialize(address, 2, int(index))
assert distributed.is_first() is (index == "0")
value = {"text": "ü" * 1000, "index": index}
assert distributed.broadcast(value) == value | {"index": "0"}
assert distributed.broadcast(None) is None
step = 1000  # of a run that is resumed
with distributed.catch_signals() as interrupt:
    if index == who:
        threading.Timer(0.3, os.kill, [os.getpid(), signal.Signals[name]]).start()
    time.sleep(float(begins))
    while not interrupt.reached(step) and step < 1500:
        time.sleep(0.01 if index == "0" else 0.02)
        step += 1
print(step, interrupt.signal.name)
distributed.finish()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "name", "begins"),
    quick_first([(1, "SIGTERM", 3), (1, "SIGTERM", 0), (0, "SIGINT", 0)]),
)
def test_a_signal_to_one_stops_all_after_one_step(gnp_environment, who, name, begins):
    """Also to one that is faster, or slower, or has not begun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", AGREE, address, str(index), str(who), name, str(begins)],
            env=gnp_environment | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        ended = [(*each.communicate(timeout=60), each.returncode) for each in started]
    finally:
        for each in started:
            each.kill()
    assert [code for *_, code in ended] == [0, 0], ended
    first, second = (out.splitlines()[-1].split() for out, *_ in ended)
    assert first == second
    assert first[1] == name
    assert int(first[0]) == 1000 if begins else 1000 < int(first[0]) < 1500
