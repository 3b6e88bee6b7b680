"""Names of topologies, and the figures of their chips."""

import importlib.util

import jax
import pytest

from gnp.training import topology


@pytest.mark.parametrize(
    "name",
    [
        "v5e:2x2",
        "v5e:1x1",
        "v6e:16x16",
        "v4:2x2x1",
        "v5p:8x8x8",
        "h100:1",
        "h200:64",
        "cpu",
        "local",
    ],
)
def test_names_that_are_allowed(name):
    assert topology.is_topology(name)


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v4:1x1x1", "v5e:1x2", "v5e:", "v5e:3x3", "v5e:0x2", "v5e:2x2x2", "v5e:32x32",
     "v5p:2x2", "v3:2x2", "v5e:2x2 ", "tpu", "v5e:-2x2", "v5p:16x16x48", "h100", "h100:0",
     "h100:12", "v100:8"],
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


@pytest.mark.parametrize("name", ["local", "cpu"])
def test_no_device_is_told_in_one_line(monkeypatch, name):
    def devices(*_):
        raise RuntimeError("Unknown backend")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(topology.TopologyError, match="jax finds no such device: Unknown backend"):
        topology.find_devices(name)


def test_a_device_that_is_not_listed_has_no_figures():
    assert topology.chip_of(jax.devices("cpu")) is None
