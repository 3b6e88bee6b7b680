"""Set up jax before it looks for devices: XLA's flags, and where compiled programs are kept.

What the user has set stays. Nothing here has been measured on an accelerator yet.
"""

import hashlib
import importlib.util
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from absl import logging as absl_logging

# XLA ends a program that gives it an unknown flag, so: few, and documented ones.
GPU_FLAGS = (
    # The gradients' sums over GPUs run while the next layer's gradient is computed; off by
    # default, without effect on one GPU (docs.jax.dev: GPU performance tips).
    "--xla_gpu_enable_latency_hiding_scheduler=true",
)
# Where several slices are connected by a network: inside one, libtpu's defaults do this already.
TPU_SLICES_FLAGS = (
    # The gradients' sums over slices run while the next layer's gradient is computed
    # (docs.jax.dev: XLA compiler flags).
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    # The same for sums of unlike sizes, as those of layers are.
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)
# Programs that took so many seconds to compile are kept; jax's own 1 leaves many small ones out.
_MIN_COMPILE_SECONDS = "0.1"


def set_flags(environment: MutableMapping[str, str]) -> None:
    """Add the flags for the accelerators that jax is going to use; none on the CPU.

    Args:
        environment: of this process, changed in place; its own flags win.

    Example:
        >>> environment = {"JAX_PLATFORMS": "cpu"}
        >>> set_flags(environment)
        >>> environment
        {'JAX_PLATFORMS': 'cpu'}
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    if (not platforms or re.search("cuda|gpu", platforms)) and _has(*plugins):
        _add(environment, "XLA_FLAGS", GPU_FLAGS)
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    if (not platforms or "tpu" in platforms) and _has("libtpu") and slices != "1":
        _add(environment, "LIBTPU_INIT_ARGS", TPU_SLICES_FLAGS)


def keep_compiled(environment: MutableMapping[str, str]) -> None:
    """Have jax keep compiled programs in ~/.cache/gnp/xla, a folder a kind of processor.

    Args:
        environment: of this process, changed in place, before jax is imported; where
            JAX_COMPILATION_CACHE_DIR is set, also to nothing, it says where.
    """
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _MIN_COMPILE_SECONDS)
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    try:
        home = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "gnp" / "xla" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home: compiled anew each time
        return
    if os.access(folder, os.W_OK):
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def quiet_libraries() -> None:
    """Leave out what libraries log of an error that they also raise, and false alarms."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # An entry that a killed process left half written is compiled again; one that a full disk does
    # not take, next time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    sys.unraisablehook = _without_closed_event_loops


def _without_closed_event_loops(unraisable: Any) -> None:
    """Report it, unless it comes from TensorStore's threads after a checkpoint was not written."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _processor() -> str:
    """Return a name of this kind of processor.

    Machines may share a home, and one must not be given a program of another's instructions.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = platform.processor()
    instructions = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    digest = hashlib.sha256((instructions[0] if instructions else text).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"


def _has(*modules: str) -> bool:
    return any(importlib.util.find_spec(module) for module in modules)


def _add(environment: MutableMapping[str, str], variable: str, flags: tuple[str, ...]) -> None:
    given = environment.get(variable, "")
    names = {word.partition("=")[0] for word in given.split()}
    added = [flag for flag in flags if flag.partition("=")[0] not in names]
    if added:
        environment[variable] = " ".join([given, *added]).strip()
