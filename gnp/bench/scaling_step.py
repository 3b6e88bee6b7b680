"""A process of `gnp.bench.scaling`: one layout's training steps, measured on demand.

    python -m gnp.bench.scaling_step MODEL DTYPE PROCESSES DEVICES BATCH_SIZE ADDRESS RANK

It prints "ready", and then, for each line "plain" or "penalized" that it reads, the seconds a
step. The processes of a layout are asked at the same time.
"""

import os
import sys
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from gnp.bench.measure import (
    MEASUREMENT_SECONDS,
    MOST_STEPS,
    Cycle,
    Trainer,
    base_optimizer,
    first_devices,
    penalized_optimizer,
)
from gnp.training.mesh import build_mesh
from model import PRECISIONS


def start(processes: int, address: str, rank: int) -> None:
    """Make this process one of several; on accelerators it has the device of its rank."""
    if processes > 1:
        jax.distributed.initialize(address, processes, rank, local_device_ids=[rank])


def steps_of(name: str, dtype: str, processes: int, devices: int, batch_size: int) -> list[Cycle]:
    """Return the plain and the penalized step, compiled.

    Args:
        name: of the model.
        dtype: of its computation.
        processes: that jax.distributed has connected.
        devices: of each process.
        batch_size: over all devices.
    """
    # With several processes the mesh has to hold the devices of all of them.
    mesh = build_mesh() if processes > 1 else first_devices(devices)
    if mesh.size != processes * devices:
        sys.exit(f"{processes * devices} devices were asked for, there are {mesh.size}")
    return [
        Trainer(name, batch_size, chain, dtype=PRECISIONS[dtype], mesh=mesh).cycle(penalize)
        for chain, penalize in ((base_optimizer(name), False), (penalized_optimizer(name), True))
    ]


def main(arguments: Sequence[str]) -> None:
    """Answer until there is nothing more to read."""
    # Libraries that connect processes say so on stdout, which is for answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, dtype, *numbers, address, rank = arguments
    processes, devices, batch_size = map(int, numbers)
    start(processes, address, int(rank))
    plain, penalized = steps_of(name, dtype, processes, devices, batch_size)
    steps = {"plain": plain, "penalized": penalized}
    print("ready", file=answers)
    counts: dict[str, int] = {}
    for line in sys.stdin:
        step = line.strip()
        if step not in counts:
            # All processes have to take as many steps: the slowest one's time decides.
            seconds = _largest(steps[step](1))
            counts[step] = max(1, min(MOST_STEPS, round(MEASUREMENT_SECONDS / seconds)))
        print(steps[step](counts[step]), file=answers)


def _largest(value: float) -> float:
    return float(multihost_utils.process_allgather(value).max())


if __name__ == "__main__":
    main(sys.argv[1:])
