"""Where arrays live: batches are split over all devices, everything else is on each of them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def data_mesh() -> Mesh:
    """One axis, `data`, over all devices.

    Example:
        >>> data_mesh().axis_names
        ('data',)
    """
    return Mesh(np.array(jax.devices()), (DATA_AXIS,))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process' rows [b, ...] of a batch onto its devices; returns before they are there."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A pytree onto every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
