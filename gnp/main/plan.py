"""--mode=plan: what a run costs on devices that need not be here, without computing anything."""

import dataclasses
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import NamedSharding
from tqdm import tqdm

import config as configs
import ds_pipeline
from config import rules
from gnp.analysis.program import Program, read_program
from gnp.analysis.results import print_table
from gnp.experiment import DeviceError, Experiment, build_experiment
from gnp.terminal import warn
from gnp.training.files import first_line
from gnp.training.mesh import BATCH
from gnp.training.tasks import TASKS
from gnp.training.topology import LOCAL, Chip, chip_of, find_devices

PLAIN, PENALIZED, EVALUATION = "plain step", "penalized step", "evaluation step"
# Not known of a GPU that is not here; its libraries' workspaces would be results, too.
_UNCOUNTED = (
    "MB read and written",
    "MB of results",
    "  with padding",
    "  of them copies",
    "ms at least, memory",
)
_GIB = 2**30
_EFFORT = "exec_time_optimization_effort"


def run(config: ml_collections.ConfigDict, topology: str | None = None) -> int:
    """Compile the steps of a run for a topology; print what they take, as tables and a JSON line.

    Args:
        config: Complete, each key checked.
        topology: See `gnp.training.topology`; None: the devices that jax finds.

    Raises:
        DeviceError: a step does not fit; one line, which says what would.
    """
    topology = topology or LOCAL
    devices = find_devices(topology)
    config = configs.with_group_size(config, {}, len(devices))
    rules.check(config, devices=len(devices))
    dataset = read_dataset(config)
    facts = {"task": dataset.task, "losses": TASKS[dataset.task].losses}
    rules.check(config, devices=len(devices), examples=len(dataset.train), **facts)
    experiment = build_experiment(config, dataset, devices)

    chip = chip_of(devices)
    programs: dict[str, Program] = {}
    calls = abstract_calls(config, experiment)
    for name in tqdm(calls, desc="compiling", leave=False, disable=None):
        programs[name] = compile_for(experiment, name, *calls[name], config, chip)

    shown = f"{topology}: {len(devices)} x {devices[0].device_kind}"
    print_table(
        f"{config.model.model_name}, batch {config.batch_size}, {config.precision}, {shown}",
        step_rows(programs, chip, (config.batch_size, experiment.eval_batch_size)),
        ("on each device", *programs, "penalized / plain"),
        numbers=(*programs, "penalized / plain"),
    )
    if said := collective_rows(programs):
        print_table(
            "what the devices say to one another, in one step",
            said,
            ("from", "what", "bytes", *programs),
            numbers=("bytes", *programs),
        )
    if advice := local_batch_advice(config, programs, len(devices)):
        print(advice)
    whole = run_costs(config, experiment, programs, chip)
    print_table("the whole run", [(key, _figure(value)) for key, value in whole.items()])
    if chip is None:
        print(f"no peak figures are known of {devices[0].device_kind}: no times")
    if least_effort(experiment):
        print(
            "compiled with the least effort: JAX_EXEC_TIME_OPTIMIZATION_EFFORT=0 compiles as a run "
            "does, takes several times as long, and shows less memory"
        )
    print(json.dumps(to_json(topology, devices, chip, programs, whole)))
    return 0


def read_dataset(config: ml_collections.ConfigDict) -> ds_pipeline.Dataset:
    """Return the data of a config, or, where they are not here, a stand-in of the same size."""
    try:
        return ds_pipeline.build_dataset(config)
    except ds_pipeline.DataError as error:
        dataset = ds_pipeline.build_dataset(config, stands_in=True)  # or the same error
        warn(f"{first_line(error)}; the plan takes the published size of the data set")
        return dataset


def abstract_calls(
    config: ml_collections.ConfigDict, experiment: Experiment
) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return name -> (compiled function, its arguments as shapes) of the steps of a run."""
    state, sharding = experiment.abstract_state, NamedSharding(experiment.mesh, BATCH)
    dataset = dataclasses.replace(experiment.dataset, workers=0)  # for two examples

    def batch(rows: Any, size: int) -> Any:
        """Return a batch of `size` examples like those of `rows`."""
        example = next(rows)
        rows.close()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding
            ),
            example,
        )

    two = min(2, len(dataset.train), len(dataset.evaluation))
    train_batch = batch(ds_pipeline.train_batches(dataset, two, 0, 0, 1), config.batch_size)
    held_out = ds_pipeline.evaluation_batches(dataset.evaluation, two)
    eval_batch = batch(held_out, experiment.eval_batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((), "uint32")
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        PLAIN: (experiment.plain_step, (state, train_batch, key, step))
    }
    if config.gnp.r > 0:
        calls[PENALIZED] = (experiment.penalized_step, calls[PLAIN][1])
    evaluated = (state.params, state.model_state, eval_batch)
    calls[EVALUATION] = (experiment.compiled_eval_step, evaluated)
    return calls


def compile_for(
    experiment: Experiment,
    name: str,
    function: Any,
    arguments: tuple[Any, ...],
    config: ml_collections.ConfigDict,
    chip: Chip | None,
) -> Program:
    """Compile one step for the mesh of an experiment, and read what came out.

    Raises:
        DeviceError: it does not fit in the memory of a device.
    """
    with jax.set_mesh(experiment.mesh):
        traced = function.trace(*arguments)
        lowered = traced.lower()

    def attempt(options: dict[str, Any]) -> tuple[Program | None, float, float]:
        """Return the program, None where it does not fit; bytes it needs; bytes there are."""
        try:
            compiled = lowered.compile(compiler_options=options)
            program = read_program(compiled, traced.jaxpr.jaxpr, experiment.mesh.size)
        except jax.errors.JaxRuntimeError as error:
            if (sizes := memory_of(str(error))) is None:
                raise
            return None, *sizes
        there = usable_memory(experiment, chip)
        return (program if program.peak <= there else None), program.peak, there

    least = least_effort(experiment)
    program, needed, there = attempt(least)
    if program is None and least:  # with more of it, memory is saved
        program, needed, there = attempt({})
    if program is None:
        print(json.dumps({"fits": False, "step": name, "needed": needed, "memory": there}))
        ways = what_would_help(name, needed / there, config, experiment.mesh.size)
        raise DeviceError(
            f"the {name} does not fit: it needs {needed / _GIB:.2f} GiB a device, which has "
            f"{there / _GIB:.2f} GiB; what would help: {', '.join(ways)}"
        )
    return program


def memory_of(text: str) -> tuple[float, float] | None:
    """Return the bytes that a program needs and that a TPU has, as libtpu says it, if it does.

    Example:
        >>> memory_of("Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.")
        (22011707392.0, 16911433728.0)
    """
    sizes = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", text) or re.search(
        r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", text
    )
    if sizes is None:
        return None
    unit = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    return float(sizes[1]) * unit[sizes[2]], float(sizes[3]) * unit[sizes[4]]


def usable_memory(experiment: Experiment, chip: Chip | None) -> float:
    """Return the bytes of a device that a program may use; infinite where the compiler decides."""
    platform = experiment.mesh.devices.flat[0].platform
    if chip is None or platform == "tpu":
        return math.inf
    share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75") if platform == "gpu" else 1
    return float(share) * chip.memory


def what_would_help(
    name: str, times: float, config: ml_collections.ConfigDict, devices: int
) -> list[str]:
    """Return what lets a step fit that needs `times` as much memory as there is.

    Args:
        name: Of the step.
        times: More than 1.
        config: Of the run.
        devices: How many there are.
    """
    if name == EVALUATION:
        size = config.eval_batch_size or config.batch_size
        smaller = max(devices, int(size / times) // devices * devices)
        return [f"--config.eval_batch_size={smaller}"]
    ways = ["more chips"]
    share, now = config.batch_size // devices, config.accumulate_steps
    parts = [n for n in range(now + 1, share + 1) if share % n == 0]
    if parts:
        enough = next((n for n in parts if n >= now * times), parts[-1])
        ways.append(f"--config.accumulate_steps={enough}")
    if not config.model.model_params.get("remat"):
        ways.append("--config.model.model_params.remat=True")
    if config.mesh.fsdp == 1 and devices > 1:
        ways.append("--config.mesh.fsdp=-1 --config.mesh.data=1, which splits the state")
    return ways


def least_effort(experiment: Experiment) -> dict[str, float]:
    """Return the compiler's options with which it is done soonest; {}: those of a run.

    For a TPU that takes an eighth of the time, and counts the same operations and collectives.
    """
    if experiment.mesh.devices.flat[0].platform != "tpu" or f"JAX_{_EFFORT.upper()}" in os.environ:
        return {}
    return {_EFFORT: -1.0}


def least_seconds(program: Program, chip: Chip) -> dict[str, float]:
    """Return what bounds the time of a program from below: each alone at its peak.

    What goes to and from the memory is as XLA counts it, results that stay on the chip included,
    so that a program whose arrays are small can be faster than that.

    Example:
        >>> from gnp.analysis.program import Results
        >>> program = Program(0, 0, 0, 0, 0, 1e12, 1e9, (), Results(0, 0, 0))
        >>> least_seconds(program, Chip(1e14, 1e10, 1e12, 1e11))
        {'products': 0.01, 'memory': 0.001, 'interconnect': 0.0}
    """
    return {
        "products": program.flops / chip.flops,
        "memory": program.bytes / chip.bandwidth,
        "interconnect": program.sent / chip.interconnect,
    }


def step_rows(
    programs: Mapping[str, Program], chip: Chip | None, sizes: tuple[int, int]
) -> list[tuple[str, ...]]:
    """Return a row for each figure: its name, its value in each program, penalized over plain."""
    figures: dict[str, dict[str, float]] = {}
    for name, program in programs.items():
        figures[name] = {
            "memory, MiB": program.peak / 2**20,
            "  arguments": program.arguments / 2**20,
            "  temporaries": program.temporaries / 2**20,
            "  saved by donation": program.donated / 2**20,
            **({} if chip is None else {"  of a device's": chip.memory / 2**20}),
            "GFLOP": program.flops / 1e9,
            "MB read and written": program.bytes / 1e6,
            "MB of results": program.results.bytes / 1e6,
            "  with padding": program.results.padded / 1e6,
            "  of them copies": program.results.copied / 1e6,
            "MB sent": program.sent / 1e6,
            "collectives": sum(each.times for each in program.collectives),
        }
        if chip is not None:
            least = least_seconds(program, chip)
            figures[name] |= {f"ms at least, {key}": 1e3 * value for key, value in least.items()}
            size = sizes[1] if name == EVALUATION else sizes[0]
            figures[name]["examples a second at most"] = size / max(least.values())
    rows = []
    counted = any(program.bytes for program in programs.values())  # not those of a GPU
    for key in figures[PLAIN]:
        if key in _UNCOUNTED and not counted:
            continue
        plain, penalized = (figures.get(name, {}).get(key) for name in (PLAIN, PENALIZED))
        ratio = f"{penalized / plain:.2f}" if plain and penalized else ""
        rows.append((key, *(_figure(figures[name][key]) for name in programs), ratio))
    return rows


def collective_rows(programs: Mapping[str, Program]) -> list[tuple[str, ...]]:
    """Return a row for each layer and kind: where from, what, bytes, how often in each program."""
    counts: dict[tuple[str, str, int], Counter[str]] = {}
    for name, program in programs.items():
        for each in program.collectives:
            others = f", and {each.arrays - 1} more" if each.arrays > 2 else ""
            source = (each.source or "the step") + (", backward" if each.backward else "") + others
            counts.setdefault((source, each.kind, each.bytes), Counter())[name] += each.times
    return [
        (source, kind, f"{size:,}", *(str(count[name] or "") for name in programs))
        for (source, kind, size), count in counts.items()
    ]


def local_batch_advice(
    config: ml_collections.ConfigDict, programs: Mapping[str, Program], devices: int
) -> str | None:
    """Return how to normalize each device's examples alone; None: they do not share statistics."""
    sums = [
        each
        for each in programs[PLAIN].collectives
        if each.kind == "all-reduce" and not each.backward and each.source
    ]
    share = config.batch_size // devices // config.accumulate_steps
    if not sums or share * devices * config.accumulate_steps != config.batch_size:
        return None
    return (
        f"batch norm is over the global batch: {sum(each.times for each in sums)} sums over the "
        f"devices in each pass forward; --config.model.model_params.batch_norm_group={share} "
        "is over the examples of one device, with running statistics averaged once a step"
    )


def run_costs(
    config: ml_collections.ConfigDict,
    experiment: Experiment,
    programs: Mapping[str, Program],
    chip: Chip | None,
) -> dict[str, float]:
    """Return steps, hours and chip-hours of a run, at least."""
    total = experiment.total_steps
    penalized = 0
    if PENALIZED in programs:  # where norms decide, which nobody knows yet, all that may be
        penalized = sum(map(experiment.step_rule, range(total)))
    dataset, size = experiment.dataset, experiment.eval_batch_size

    def batches(*sources: ds_pipeline.Source | None) -> int:
        return sum(-(-len(source) // size) for source in sources if source is not None)

    evaluated = -(-config.total_epochs // config.evaluate_every_n_epochs)  # and the last one
    evaluations = evaluated * batches(dataset.evaluation, dataset.validation, dataset.mislabeled)
    if config.record.gradients:
        evaluations += config.total_epochs * batches(dataset.train)
    if config.ema_decay is not None:  # the average's parameters, too
        evaluations *= 2
    counts = {
        PLAIN: total - penalized,
        PENALIZED: penalized,
        EVALUATION: evaluations,
    }
    costs: dict[str, float] = {f"{name}s": count for name, count in counts.items()}
    if chip is not None:
        seconds = sum(
            counts[name] * max(least_seconds(program, chip).values())
            for name, program in programs.items()
        )
        hours = seconds / 3600
        costs |= {"hours at least": hours, "chip-hours at least": experiment.mesh.size * hours}
    return costs


def to_json(
    topology: str,
    devices: Sequence[Any],
    chip: Chip | None,
    programs: Mapping[str, Program],
    whole: Mapping[str, float],
) -> dict[str, Any]:
    """Return all that is printed, as JSON values."""
    steps = {
        name: program._asdict()
        | {"peak": program.peak, "sent": program.sent}
        | {"collectives": [each._asdict() for each in program.collectives]}
        | {"results": program.results._asdict()}
        | ({} if chip is None else {"least_seconds": least_seconds(program, chip)})
        for name, program in programs.items()
    }
    return {
        "topology": topology,
        "fits": True,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "memory": None if chip is None else chip.memory,
        "steps": steps,
        "run": dict(whole),
    }


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or value >= 100 else f"{value:.3g}"
