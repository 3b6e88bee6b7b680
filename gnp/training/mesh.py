"""The mesh, and where arrays live on it: batches are split over it, the state in part or not.

The mesh has two axes. A batch is split over both. Parameters, and what has their shapes
(gradients, momentum, averages), are the same along the axis `data` and split along the axis `fsdp`,
by one rule on the shape of each array. The computation of the model sees them whole.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gnp.training.state import TrainState

DATA, FSDP = "data", "fsdp"
AXES = (DATA, FSDP)
WHOLE = PartitionSpec()  # on each device
BATCH = PartitionSpec(AXES)  # arrays [b, ...]
# Arrays of fewer elements are not split: sending them would cost more than the memory is worth.
SMALLEST = 4096


def build_mesh(data: int = -1, fsdp: int = 1, devices: Any = None) -> Mesh:
    """Return the two-axis mesh, in which the devices of a process are adjacent along the batch.

    Args:
        data: Length of the axis over which parameters are replicated; -1: all the rest.
        fsdp: Length of the axis over which they are split; -1: all the rest. One of both is given.
        devices: None: all.

    Raises:
        ValueError: the product of the lengths is not the number of devices.

    Example:
        >>> build_mesh().axis_names
        ('data', 'fsdp')
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // fsdp if data == -1 else data
    fsdp = len(devices) // data if fsdp == -1 else fsdp
    # In the order that suits how they are connected; sorting is stable and leaves one process' own.
    near = jax.make_mesh((data, fsdp), AXES, (AxisType.Auto,) * 2, devices=devices).devices
    # The rows of a process are one block of the batch.
    ordered = sorted(near.flat, key=lambda device: device.process_index)
    return Mesh(np.array(ordered).reshape(data, fsdp), AXES, (AxisType.Auto,) * 2)


def split_spec(shape: tuple[int, ...], shards: int) -> PartitionSpec:
    """Return how an array of the state is split: along its longest axis that `shards` divides.

    Of axes of one length the last one, which is a kernel's outputs. An array with no such axis, or
    with fewer than SMALLEST elements, is whole on each device.

    Args:
        shape: Of the array.
        shards: Length of the axis `fsdp`.

    Example:
        >>> tuple(split_spec((3, 3, 64, 64), 4)), tuple(split_spec((64,), 4))
        ((None, None, None, 'fsdp'), ())
    """
    axes = [axis for axis, length in enumerate(shape) if length % shards == 0]
    if shards == 1 or not axes or math.prod(shape) < SMALLEST:
        return WHOLE
    axis = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(FSDP if each == axis else None for each in range(len(shape))))


def abstract(initialize: Callable[[jax.Array], TrainState], mesh: Mesh) -> TrainState:
    """Return shapes, dtypes and shardings of the state that a function of a key initializes.

    Batch statistics are whole on each device, the rest is split as `split_spec` says.
    """
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: initialize(jax.random.key(0)))
    shards = mesh.shape[FSDP]
    specs = jax.tree.map(lambda x: split_spec(x.shape, shards), shapes)
    specs = specs._replace(model_state=jax.tree.map(lambda _: WHOLE, shapes.model_state))
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        shapes,
        specs,
    )


def _fsdp() -> int:
    """Length of the axis `fsdp` of the mesh that is set; 1 where none is."""
    shards: int = jax.sharding.get_abstract_mesh().shape.get(FSDP, 1)
    return shards


def gather(tree: Any) -> Any:
    """Make parameters whole on each device of the mesh that is set; inside jit."""
    return tree if _fsdp() == 1 else jax.lax.with_sharding_constraint(tree, WHOLE)


def split(tree: Any) -> Any:
    """Split gradients over the mesh that is set as the parameters are; inside jit.

    They are whole before that, which XLA turns into one sum whose parts go where they stay. Asked
    for the parts alone, it takes each product apart and hands pieces on from device to device.
    """
    shards = _fsdp()
    if shards == 1:
        return tree
    specs = jax.tree.map(lambda x: split_spec(x.shape, shards), tree)
    return jax.lax.with_sharding_constraint(gather(tree), specs)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Send this process' rows of a batch to its devices; return before they are there.

    Args:
        batch: Arrays [b, ...].
        mesh: The devices.
    """
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def shard(tree: Any, shardings: Any) -> Any:
    """Send a pytree that each process holds whole to the devices.

    Args:
        tree: Arrays, the same in each process; or global ones.
        shardings: A pytree of them, of the same structure.
    """

    def put(x: Any, sharding: NamedSharding) -> Any:
        is_global = isinstance(x, jax.Array) and not x.is_fully_addressable
        if jax.process_count() == 1 or is_global:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Send a pytree to every device, whole."""
    return shard(tree, jax.tree.map(lambda _: NamedSharding(mesh, WHOLE), tree))
