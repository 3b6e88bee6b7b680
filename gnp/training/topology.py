"""Find the devices to compile a program for: those that are here, or TPUs and GPUs that are not.

libtpu and jax's plugin for CUDA compile on any machine (jax.experimental.topologies).
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from gnp.training.files import first_line


class Chip(NamedTuple):
    """Peak figures of an accelerator, as its maker gives them.

    Attributes:
        flops: Of products of dense matrices in bfloat16, a second.
        memory: In bytes.
        bandwidth: Of the memory, bytes a second.
        interconnect: To the other chips over all links together, one way, bytes a second.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# TPUs: https://docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, where the interconnect is given
# both ways, or in bits; that of v4 is six links of 50 GB/s (Jouppi et al., 2023,
# https://arxiv.org/abs/2304.01433, table 4). GPUs: NVIDIA's data sheets of the SXM modules, dense.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9),
    "TPU v5 lite": Chip(197e12, 16e9, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95e9, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 32e9, 1638e9, 400e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),
}
# What XLA has to know of a GPU that is not here, beside CHIPS: its name there, compute capability,
# multiprocessors, GHz, bytes of the L2 cache, of shared memory of a multiprocessor and of a block.
# The rest is the same for all of these.
_GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * 2**20, 167_936, 166_912),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * 2**20, 233_472, 232_448),
    "h200": ("NVIDIA H200", (9, 0), 132, 1.98, 50 * 2**20, 233_472, 232_448),
}
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {block}
  shared_memory_per_core: {shared} core_count: {cores} fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} device_memory_size: {memory} l2_cache_size: {cache}
  clock_rate_ghz: {clock} cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""
_GPUS_PER_HOST = 8
LOCAL, CPU = "local", "cpu"
ALLOWED = (
    "v5e:AxB or v6e:AxB, A and B even and A B at most 256, such as v5e:4x4, or 1x1; v4:AxBxC or "
    "v5p:AxBxC, A and B even, such as v5p:4x4x4; a100:N, h100:N or h200:N, N at most 8 or a "
    "multiple of it; cpu; local, the devices that jax finds"
)
# Generation -> (number of axes, most chips), from the pages above.
_GENERATIONS = {"v4": (3, 4096), "v5e": (2, 256), "v5p": (3, 6144), "v6e": (2, 256)}


class TopologyError(RuntimeError):
    """No program can be compiled for these devices here; one line."""


def is_topology(text: str) -> bool:
    """Return whether a text names devices to compile for, one of `ALLOWED`.

    Example:
        >>> is_topology("v5e:4x4"), is_topology("v5e:3x3"), is_topology("cpu")
        (True, False, True)
    """
    if text in (LOCAL, CPU):
        return True
    gpus = re.fullmatch(r"(\w+):([1-9]\d{0,4})", text)
    if gpus and gpus[1] in _GPUS:
        return int(gpus[2]) <= _GPUS_PER_HOST or int(gpus[2]) % _GPUS_PER_HOST == 0
    match = re.fullmatch(r"(v\w+):(\d{1,4}(?:x\d{1,4})*)", text)
    if not match or match[1] not in _GENERATIONS:
        return False
    axes, most = _GENERATIONS[match[1]]
    sizes = [int(size) for size in match[2].split("x")]
    is_even = all(size > 0 and size % 2 == 0 for size in sizes[:2])
    is_one = axes == 2 and sizes == [1, 1]
    return len(sizes) == axes and (is_even or is_one) and 0 < math.prod(sizes) <= most


def find_devices(topology: str) -> Sequence[Any]:
    """Return the devices of a topology, as `jax.make_mesh` takes them.

    Args:
        topology: As `is_topology` allows it.

    Raises:
        TopologyError: libtpu or the plugin is missing, or refuses it.
    """
    if topology in (LOCAL, CPU):
        try:
            return jax.devices() if topology == LOCAL else jax.devices("cpu")
        except (RuntimeError, AssertionError) as error:  # jax asserts that there is a default one
            raise TopologyError(
                f"--topology={topology}: jax finds no such device: {first_line(error)}"
            ) from error
    kind, _, size = topology.partition(":")
    module, build = ("jax_cuda13_plugin", "cuda13") if kind in _GPUS else ("libtpu", "tpu")
    if importlib.util.find_spec(module) is None:
        raise TopologyError(
            f"--topology={topology} needs {module}, which compiles for it on any machine: "
            f"GNP_JAX={build} bash recipe/setup.sh"
        )
    asked: dict[str, Any]
    if kind in _GPUS:
        hosts, each = max(1, int(size) // _GPUS_PER_HOST), min(int(size), _GPUS_PER_HOST)
        shape = {"topology": f"1x{hosts}x{each}", "target_config": _gpu(kind)}
        asked = {"platform": "cuda", "topology_name": "", **shape}
    else:
        asked = {"platform": "tpu", "topology_name": topology}
        if kind == "v4":  # the two cores of a chip are one device, as in a run
            asked["chip_config_name"] = "megacore"
        if size == "1x1":
            asked["chips_per_host_bounds"] = (1, 1, 1)
        # libtpu looks for the chips of this machine, unless it is told that there is nothing to
        # ask, and for other processes that use them, of which several may only compile.
        quiet = {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        for name, value in quiet.items():
            os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(**asked).devices
    except NotImplementedError as error:  # the plugin did not start, which jax has said
        raise TopologyError(
            f"--topology={topology}: {module} does not start here; without a GPU, "
            "JAX_PLATFORMS=cpu or JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 lets it"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(f"--topology={topology}: {module} says {first_line(error)}") from error


def _gpu(kind: str) -> str:
    """Return XLA's description of a GPU."""
    name, (major, minor), cores, clock, cache, shared, block = _GPUS[kind]
    return _GPU.format(
        name=name, major=major, minor=minor, cores=cores, clock=clock, cache=cache, shared=shared,
        block=block, memory=int(CHIPS[name].memory), bandwidth=int(CHIPS[name].bandwidth),
    )  # fmt: skip


def chip_of(devices: Sequence[Any]) -> Chip | None:
    """Return the figures of one of these devices; None: they are not known."""
    return CHIPS.get(devices[0].device_kind)
