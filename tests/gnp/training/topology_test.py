"""Names of topologies, and the figures of their chips."""

import importlib.util
from types import SimpleNamespace

import jax
import pytest

from gnp.training import topology


@pytest.mark.parametrize(
    "name", ["v5e:2x2", "v6e:16x16", "v4:2x2x1", "v5p:8x8x8", "h100:1", "h200:64", "cpu", "local"]
)
def test_names_that_are_allowed(name):
    assert topology.is_topology(name)


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e:", "v5e:3x3", "v5e:0x2", "v5e:2x2x2", "v5e:32x32", "v5p:2x2", "v3:2x2",
     "v5e:2x2 ", "tpu", "v5e:-2x2", "v5p:16x16x48", "h100", "h100:0", "h100:12", "v100:8"],
)  # fmt: skip
def test_names_that_are_not(name):
    assert not topology.is_topology(name)


def test_without_libtpu_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(topology.TopologyError, match="GNP_JAX=tpu bash recipe/setup.sh"):
        topology.find_devices("v5e:2x2")
    with pytest.raises(topology.TopologyError, match="GNP_JAX=cuda13 bash recipe/setup.sh"):
        topology.find_devices("h100:8")
    assert topology.find_devices("local") == jax.devices()


def test_a_chip_of_two_cores_is_two_devices_of_half_its_figures():
    cores = [SimpleNamespace(device_kind="TPU v4", core_on_chip=core) for core in (0, 1)] * 4
    assert topology.chip_count(cores) == 4
    whole, half = topology.CHIPS["TPU v4"], topology.chip_of(cores)
    assert half == tuple(figure / 2 for figure in whole)


def test_a_device_that_is_not_listed_has_no_figures():
    assert topology.chip_of(jax.devices("cpu")) is None
