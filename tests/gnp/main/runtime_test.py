"""Flags and the cache that jax is told of before it looks for devices."""

import os
import subprocess
import sys

import pytest

from gnp.main import runtime


@pytest.fixture
def accelerators(monkeypatch):
    """Have all builds of jax at once."""
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name)


def test_a_gpu_gets_its_flags_once_and_the_users_win(accelerators):
    name = "--xla_gpu_enable_latency_hiding_scheduler"
    environment = {"XLA_FLAGS": "--xla_dump_to=/x"}
    runtime.set_flags(environment)
    assert environment["XLA_FLAGS"] == f"--xla_dump_to=/x {name}=true"
    before = dict(environment)
    runtime.set_flags(environment)
    assert environment == before
    environment = {"XLA_FLAGS": f"{name}=false"}
    runtime.set_flags(environment)
    assert environment == {"XLA_FLAGS": f"{name}=false"}


def test_tpu_slices_get_theirs_and_a_single_one_none(accelerators):
    environment = {"JAX_PLATFORMS": "tpu", "MEGASCALE_NUM_SLICES": "2"}
    runtime.set_flags(environment)
    assert "XLA_FLAGS" not in environment
    for flag in runtime.TPU_SLICES_FLAGS:
        assert flag in environment["LIBTPU_INIT_ARGS"].split()
    environment = {"JAX_PLATFORMS": "tpu"}
    runtime.set_flags(environment)
    assert environment == {"JAX_PLATFORMS": "tpu"}


@pytest.mark.slow
def test_jaxlib_knows_the_gpu_flags():
    flags = " ".join(runtime.GPU_FLAGS)
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, check=False, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_where_compiled_programs_are_kept(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    runtime.keep_compiled(environment)
    folder = environment["JAX_COMPILATION_CACHE_DIR"]
    assert folder.startswith(str(tmp_path / "gnp" / "xla"))
    assert os.path.isdir(folder)
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0.1"


@pytest.mark.parametrize("folder", ["", "/somewhere"])
def test_a_cache_that_the_user_names_stays(folder):
    environment = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7",
    }
    before = dict(environment)
    runtime.keep_compiled(environment)
    assert environment == before


def test_without_a_home_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    runtime.keep_compiled(environment)
    assert "JAX_COMPILATION_CACHE_DIR" not in environment
