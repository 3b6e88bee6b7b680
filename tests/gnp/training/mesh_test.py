"""The mesh: its axes, the order of its devices, and where arrays are."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gnp.training import mesh
from gnp.training.mesh import build_mesh, split_spec


@pytest.fixture
def devices(monkeypatch):
    """Makes devices of the processes it is given, which no jax has."""

    def near(shape, names, types, devices):
        return SimpleNamespace(devices=np.array(devices).reshape(shape))

    monkeypatch.setattr(jax, "make_mesh", near)
    monkeypatch.setattr(mesh, "Mesh", lambda devices, names, types: devices)
    return lambda processes: [
        SimpleNamespace(process_index=p, id=10 - i) for i, p in enumerate(processes)
    ]


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (1, -1, (1, 8)), (-1, 4, (2, 4)), (4, -1, (4, 2)), (2, 4, (2, 4))],
)
def test_axes(devices, data, fsdp, shape):
    assert build_mesh(data, fsdp, devices([0] * 8)).shape == shape


def test_axes_that_are_not_of_the_devices():
    """A library's caller; a config is checked before (tests/config/load_test.py)."""
    with pytest.raises(ValueError, match="devices"):
        build_mesh(3, 1, jax.devices()[:1])


def test_the_devices_of_a_process_are_adjacent(devices):
    """As its rows of a batch are; within a process they keep the order of their connections."""
    found = build_mesh(3, 2, devices([0, 1, 0, 1, 2, 2]))
    assert found.shape == (3, 2)
    assert [(d.process_index, d.id) for d in found.flat] == [
        (0, 10), (0, 8), (1, 9), (1, 7), (2, 6), (2, 5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "shards", "axis"),
    [
        ((3, 3, 64, 128), 4, 3),
        ((3, 3, 128, 64), 4, 2),  # the longest
        ((64, 64), 4, 1),  # of equal ones the last
        ((66, 65), 2, 0),  # that can be divided
        ((65, 67), 2, None),
        ((4096,), 2, 0),
        ((4094,), 2, None),  # few elements
        ((), 2, None),
        ((64, 64), 1, None),
    ],
)
def test_what_is_split(shape, shards, axis):
    expected = PartitionSpec(*("fsdp" if i == axis else None for i in range(len(shape))))
    assert split_spec(shape, shards) == (PartitionSpec() if axis is None else expected)
