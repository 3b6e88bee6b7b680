"""Where arrays live: batches are split over all devices, the state over some of them or none.

The mesh has two axes. A batch is split over both. Parameters, and what has their shapes
(gradients, momentum, averages), are the same along the axis `data` and split along the axis `fsdp`,
by one rule on the shape of each array. The computation of the model sees them whole.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

DATA, FSDP = "data", "fsdp"
AXES = (DATA, FSDP)
# Arrays of fewer elements are not split: sending them would cost more than the memory is worth.
SMALLEST = 4096


class MeshError(ValueError):
    """Axes that do not go with the number of devices; one line."""


def mesh_shape(data: int, fsdp: int, devices: int) -> tuple[int, int]:
    """The lengths of both axes.

    Args:
        data: of the axis over which parameters are replicated; -1: all the rest.
        fsdp: of the axis over which they are split; -1: all the rest.
        devices: their product.

    Raises:
        MeshError: both are -1, or they do not multiply to the number of devices.

    Example:
        >>> mesh_shape(-1, 2, 8)
        (4, 2)
    """
    given = f"mesh.data = {data} and mesh.fsdp = {fsdp}"
    if data == fsdp == -1:
        raise MeshError(f"{given}: only one of them can be -1, all the rest")
    if -1 in (data, fsdp):
        known = max(data, fsdp)
        if devices % known:
            allowed = ", ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
            raise MeshError(
                f"{given}: {known} does not divide the number of devices, {devices}: allowed is "
                f"{allowed}"
            )
        rest = devices // known
        return (rest, fsdp) if data == -1 else (data, rest)
    if data * fsdp != devices:
        raise MeshError(
            f"{given} are for {data * fsdp} devices, and there are {devices}: their product must "
            "be that number; -1 in one of them is all the rest"
        )
    return data, fsdp


def build_mesh(data: int = -1, fsdp: int = 1, devices: Any = None) -> Mesh:
    """The two-axis mesh.

    The devices of a process are adjacent along the batch, as its rows are one block of it.

    Args:
        data: see `mesh_shape`.
        fsdp: likewise.
        devices: None: all.

    Raises:
        MeshError: see `mesh_shape`.

    Example:
        >>> build_mesh().axis_names
        ('data', 'fsdp')
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(data, fsdp, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    # In the order that suits how they are connected; sorting is stable and leaves one process' own.
    near = jax.make_mesh(shape, AXES, types, devices=devices).devices
    ordered = sorted(near.flat, key=lambda device: device.process_index)
    return Mesh(np.array(ordered).reshape(shape), AXES, types)


def batch_spec() -> PartitionSpec:
    """Of arrays [b, ...]: the batch is split over both axes."""
    return PartitionSpec(AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def whole_place(tree: Any) -> Sharding:
    """Whole on each of the devices that a pytree of arrays is on."""
    sharding = jax.tree.leaves(tree)[0].sharding
    is_split = isinstance(sharding, NamedSharding)
    return NamedSharding(sharding.mesh, PartitionSpec()) if is_split else sharding


def split_spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """How an array of the state is split over `fsdp`: along its longest axis that parts divides.

    Of axes of one length the last one, which is a kernel's outputs. An array with no such axis, or
    with fewer than SMALLEST elements, is whole on each device.

    Args:
        shape: of the array.
        parts: length of the axis `fsdp`.

    Example:
        >>> tuple(split_spec((3, 3, 64, 64), 4)), tuple(split_spec((64,), 4))
        ((None, None, None, 'fsdp'), ())
    """
    axes = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < SMALLEST:
        return PartitionSpec()
    axis = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(FSDP if each == axis else None for each in range(len(shape))))


def split_shardings(tree: Any, mesh: Mesh) -> Any:
    """The place of each array of a pytree (or of its shapes) by `split_spec`."""
    parts = mesh.shape[FSDP]
    return jax.tree.map(lambda x: NamedSharding(mesh, split_spec(x.shape, parts)), tree)


def gathered(tree: Any, mesh: Mesh | None) -> Any:
    """Inside jit: parameters made whole on each device; None: there is no mesh."""
    if mesh is None or mesh.shape[FSDP] == 1:  # they are whole already
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def split(tree: Any, mesh: Mesh | None) -> Any:
    """Inside jit: gradients split as the parameters are; None: there is no mesh."""
    if mesh is None or mesh.shape[FSDP] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, split_shardings(tree, mesh))


def seeds_first(shardings: Any) -> Any:
    """The places of arrays that have got a leading axis of seeds, which is not split."""
    return jax.tree.map(lambda x: NamedSharding(x.mesh, PartitionSpec(None, *x.spec)), shardings)


def shard_batch(batch: Any, mesh: Mesh, seeds: bool = False) -> Any:
    """This process' rows of a batch onto its devices; returns before they are there.

    Args:
        batch: arrays [b, ...].
        mesh: the devices.
        seeds: the arrays are [seeds, b, ...], and there is one process.
    """
    sharding = NamedSharding(mesh, batch_spec())
    if seeds:
        sharding = seeds_first(sharding)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def place(tree: Any, shardings: Any) -> Any:
    """A pytree that each process holds whole onto the devices.

    Args:
        tree: arrays, the same in each process; or global ones.
        shardings: a pytree like it.
    """

    def put(x: Any, sharding: NamedSharding) -> Any:
        is_global = isinstance(x, jax.Array) and not x.is_fully_addressable
        if jax.process_count() == 1 or is_global:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A pytree onto every device."""
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))
