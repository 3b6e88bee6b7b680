"""Images a second on several devices and in several processes.

    python -m gnp.bench.scaling [--model NAME] [--batch_size N] [--devices N ...]
        [--processes N ...] [--dtype float32|bfloat16] [--runs N] [--out FILE]

Strong scaling splits one batch of N images over all devices; weak scaling gives each device a
batch of N. Each layout has processes of its own, which are started first and then asked in turn,
run after run. On the CPU they have as many host devices as asked for (XLA's
--xla_force_host_platform_device_count); on accelerators they take the first ones. Several
processes with a device each find one another by jax.distributed on this machine.

"speed" is the images a second over those of one device in one process, the median of the ratios
within a run; "efficiency" is that over the number of devices. Host devices share the cores of one
machine: there speed can at best be 1, what is missing is what splitting costs, and the efficiency
says nothing more.
"""

import contextlib
import math
import os
import socket
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from gnp.bench.measure import (
    AskedProcess,
    Table,
    about_this_machine,
    check_models,
    command,
    half_spread,
    in_turn,
    paired_ratio,
    positive,
    write_json,
)
from gnp.main import runtime
from model import PRECISIONS

STEPS = ("plain", "penalized")
_DEVICE_COUNT = "--xla_force_host_platform_device_count"


class Layout(NamedTuple):
    """The processes and devices that compute a batch.

    Attributes:
        processes: how many.
        devices: of each process.
        batch_size: over all devices.
    """

    processes: int
    devices: int
    batch_size: int

    @property
    def total(self) -> int:
        """Devices of all processes."""
        return self.processes * self.devices


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        scaling: "strong" or "weak".
        step: "plain" or "penalized".
        processes: how many.
        devices: over all processes.
        batch_size: likewise.
        images_per_second: median over the runs.
        spread: half the distance between the quartiles.
        speed: over one device in one process.
        efficiency: speed over devices.
    """

    scaling: str
    step: str
    processes: int
    devices: int
    batch_size: int
    images_per_second: float
    spread: float
    speed: float
    efficiency: float


class Team:
    """The processes of a layout, which wait to be asked.

    Args:
        name: of the model.
        layout: theirs.
        dtype: of the model's computation.

    Raises:
        SystemExit: one of them ended.
    """

    def __init__(self, name: str, layout: Layout, dtype: str) -> None:
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if _DEVICE_COUNT not in f]
        environment = {
            **os.environ,
            "XLA_FLAGS": " ".join([*flags, f"{_DEVICE_COUNT}={layout.devices}"]),
            # The processes of all layouts are there at once, and share the first GPUs.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        runtime.set_flags(environment)
        address = f"localhost:{_free_port()}"
        self._members = [
            AskedProcess(
                [sys.executable, "-m", "gnp.bench.scaling_step", name, dtype,
                 *map(str, layout), address, str(rank)],
                f"process {rank + 1} of {layout.processes}, {layout.devices} devices,",
                environment=environment,
            )
            for rank in range(layout.processes)
        ]  # fmt: skip
        self._layout = layout

    def wait(self) -> None:
        """Wait until all of them have compiled their steps."""
        for member in self._members:
            member.answer()

    def images_per_second(self, step: str) -> float:
        """Measure all together, over as many steps as fill a fifth of a second, or one."""
        for member in self._members:
            member.ask(step)
        seconds = max(float(member.answer()) for member in self._members)
        return self._layout.batch_size / seconds

    def close(self) -> None:
        """End the processes."""
        for member in self._members:
            member.leave()
        for member in self._members:
            member.close()


def layouts(
    batch_size: int, devices: Sequence[int], processes: Sequence[int]
) -> dict[str, list[Layout]]:
    """Return what is measured: one device, then several of one process, then several processes.

    Args:
        batch_size: of one device, and of all in strong scaling.
        devices: numbers of devices in one process.
        processes: numbers of processes with a device each.

    Example:
        >>> layouts(8, [2], [])["weak"][1]
        Layout(processes=1, devices=2, batch_size=16)
    """
    shapes = dict.fromkeys([(1, 1), *((1, n) for n in devices), *((n, 1) for n in processes)])
    return {
        "strong": [Layout(*shape, batch_size) for shape in shapes],
        "weak": [Layout(*shape, batch_size * math.prod(shape)) for shape in shapes],
    }


def bench(name: str, wanted: dict[str, list[Layout]], dtype: str, runs: int) -> dict[str, Any]:
    """Measure every layout, print the table, and return what --out holds.

    Args:
        name: of the model.
        wanted: scaling -> layouts, the first of which is one device.
        dtype: of the model's computation.
        runs: measurements of each.
    """
    distinct = dict.fromkeys(layout for group in wanted.values() for layout in group)
    rates: dict[tuple[Layout, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        teams: dict[Layout, Team] = {}
        for layout in distinct:
            teams[layout] = Team(name, layout, dtype)
            stack.callback(teams[layout].close)
            teams[layout].wait()
        for step in STEPS:
            for team in teams.values():
                team.images_per_second(step)  # not counted: it settles how many steps to take
            measures: dict[str, Callable[[], float]] = {
                str(number): partial(team.images_per_second, step)
                for number, team in enumerate(teams.values())
            }
            measured = in_turn(measures, runs).values()
            rates |= {
                (layout, step): values for layout, values in zip(teams, measured, strict=True)
            }
    rows = [
        _row(scaling, step, layout, rates[layout, step], rates[group[0], step])
        for scaling, group in wanted.items()
        for step in STEPS
        for layout in group
    ]
    print(table(rows).text())
    return {
        **about_this_machine(),
        "model": name,
        "dtype": dtype,
        "runs": runs,
        "rows": [row._asdict() for row in rows],
    }


def _row(
    scaling: str, step: str, layout: Layout, rates: Sequence[float], alone: Sequence[float]
) -> Row:
    speed = paired_ratio(rates, alone)
    return Row(
        scaling,
        step,
        layout.processes,
        layout.total,
        layout.batch_size,
        statistics.median(rates),
        half_spread(rates),
        speed,
        speed / layout.total,
    )


def table(rows: Sequence[Row]) -> Table:
    """Return the rows.

    Example:
        >>> print(table([Row("weak", "plain", 1, 2, 128, 95.0, 1.0, 0.95, 0.475)]).text())
        scaling  step   processes  devices  batch  images/s   +-  speed  efficiency
        weak     plain          1        2    128      95.0  1.0  0.950       0.475
    """
    head = (
        "scaling", "step", "processes", "devices", "batch", "images/s", "+-", "speed", "efficiency"
    )  # fmt: skip
    lines = [
        (
            row.scaling,
            row.step,
            str(row.processes),
            str(row.devices),
            str(row.batch_size),
            f"{row.images_per_second:,.1f}",
            f"{row.spread:,.1f}",
            f"{row.speed:.3f}",
            f"{row.efficiency:.3f}",
        )
        for row in rows
    ]
    return Table(head, lines, 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write the JSON file."""
    parser = command("scaling", __doc__, runs=7)
    parser.add_argument("--model", default="WideResNet_16_4")
    parser.add_argument("--batch_size", type=positive, default=64)
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32")
    parser.add_argument("--devices", type=positive, nargs="*", default=[2, 4])
    parser.add_argument("--processes", type=positive, nargs="*", default=[2, 4])
    options = parser.parse_args(arguments)
    check_models(parser, [options.model], PRECISIONS[options.dtype])
    for count in (*options.devices, *options.processes):
        if options.batch_size % count:
            parser.error(f"--batch_size={options.batch_size} cannot be split in {count}")
    wanted = layouts(options.batch_size, options.devices, options.processes)
    write_json(options.out, "scaling", bench(options.model, wanted, options.dtype, options.runs))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
