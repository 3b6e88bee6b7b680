"""Read what a compiled program holds, computes, and says to other devices, as XLA knows it."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

Shape = tuple[int, ...]

_BITS = re.compile(r"\d+")
_COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
# `%name = (f32[16]{0}, f32[16]{0}) all-reduce(...), replica_groups=..., metadata={op_name="..."}`;
# of an asynchronous one, the start says it all.
_INSTRUCTION = re.compile(rf" = (.*?) ({_COLLECTIVES})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
# `%name = bf16[64,32]{1,0:T(8,128)(2,1)} fusion(...)`: where the axes are named from the innermost
# outwards, and on TPUs the tiles that the innermost ones are filled up to.
_RESULT = re.compile(r" = (\(.*?\)|\S+) ([\w\-]+)\(")
_LAYOUT = re.compile(_ARRAY.pattern + r"(?:\{([\d,]*)(?::T\(([\d,]+)\))?)?")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_NAMES = r"%?[\w.\-]+(?:, *%[\w.\-]+)*"
_CALLED = re.compile(rf"\b(body|calls|to_apply|(?:branch|true|false)_computations?)=\{{?({_NAMES})")
# Of a loop, a call or a choice, what is called writes.
_NOTHING_WRITTEN = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
    + ("while", "call", "conditional")
)
_COPIES = ("copy", "copy-done", "transpose")
_INSIDE = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_WRAPPER = re.compile(r"^(?:jit|pjit|jvp|vmap|transpose|shard_map|checkpoint|remat)\b.*$")


class Collective(NamedTuple):
    """Something that all devices compute together.

    Attributes:
        kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
        bytes: Of its result on one device (of a reduce-scatter: of its operand), each time.
        arrays: How many it takes at once.
        devices: That take part together.
        source: Where it comes from, a path of layers such as `group_1_block_1/norm_1`.
        backward: It belongs to the derivative of that.
        times: How often, in one step.
    """

    kind: str
    bytes: int
    arrays: int
    devices: int
    source: str
    backward: bool
    times: int

    @property
    def sent(self) -> float:
        """Bytes that each device has to send at least, all times together.

        With n devices and B bytes: 2 B (n - 1) / n for a sum that all get, B for a permutation, and
        B (n - 1) / n for the others.
        """
        n = self.devices
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


class Results(NamedTuple):
    """Hold what the operations of a program write, one by one; those inside a fusion do not.

    What stays on the chip counts, too. Where an operation writes a part of an array in place, as
    loops do, all of it counts; of a choice, all that can be chosen.

    Attributes:
        bytes: Of the numbers.
        padded: As they lie in memory: TPUs fill up the two innermost axes of the layout to tiles
            such as 8 x 128.
        copied: Of numbers that are only laid out in another way, or elsewhere.
    """

    bytes: int
    padded: int
    copied: int


class Program(NamedTuple):
    """A program on one device.

    Attributes:
        arguments: Bytes of its inputs.
        outputs: Bytes of its results.
        donated: Bytes of results that take the place of inputs.
        temporaries: Bytes in between.
        code: Bytes of the program itself.
        flops: Floating-point operations.
        bytes: Read and written by each operation; what stays on the chip counts, too.
        collectives: In the order of the program.
        results: Of its operations.
    """

    arguments: int
    outputs: int
    donated: int
    temporaries: int
    code: int
    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    results: Results

    @property
    def peak(self) -> int:
        """Bytes that the device needs."""
        held = self.arguments + self.outputs - self.donated
        return held + self.temporaries + self.code

    @property
    def sent(self) -> float:
        """Bytes that the device sends."""
        return sum(each.sent for each in self.collectives)


def read_program(compiled: Any, jaxpr: core.Jaxpr | None = None, devices: int = 1) -> Program:
    """Read a compiled program.

    Args:
        compiled: Of `jax.jit(f).lower(...).compile()`.
        jaxpr: What it was made of. XLA counts the body of a loop once: operations and bytes are
            multiplied by what the loops of matrix products and convolutions in it amount to.
            There are at least as many operations as those take, where XLA counts less: in loops
            that it makes itself to send while it computes; nothing for a GPU that is not here.
        devices: That share them.

    Example:
        >>> import jax
        >>> program = read_program(jax.jit(lambda x: x @ x).lower(jax.numpy.ones((4, 4))).compile())
        >>> program.arguments, program.collectives
        (64, ())
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    factor, products = 1.0, 0.0
    if jaxpr is not None and (once := product_flops(jaxpr, in_loops=False)):
        products = product_flops(jaxpr)
        factor = products / once
    return Program(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=max(factor * cost.get("flops", 0.0), products / devices),
        bytes=factor * cost.get("bytes accessed", 0.0),
        collectives=tuple(read_collectives(text, devices)),
        results=read_results(text),
    )


def read_collectives(text: str, devices: int = 1) -> Iterator[Collective]:
    """Find the collectives of a program in XLA's text of it.

    Args:
        text: Of an optimized module.
        devices: That run it.

    Example:
        >>> text = '''ENTRY %main (x: f32[8]) -> f32[8] {
        ...   ROOT %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add,
        ... }'''
        >>> [(each.kind, each.bytes, each.devices, each.sent) for each in read_collectives(text)]
        [('all-reduce', 32, 2, 32.0)]
    """
    bodies = _computations(text)
    calls = _calls(bodies)
    seen = set()
    for name, lines in bodies.items():
        for line in lines:
            match = _INSTRUCTION.search(line)
            if match is None:
                continue
            # A sum of which each device keeps its part is a computation of that name on TPUs.
            is_scatter = name.startswith("all-reduce-scatter")
            # One that runs beside other operations is written into each of them.
            channel = re.search(r"channel_id=\d+", line)
            if channel is not None and not is_scatter:
                if channel[0] in seen:
                    continue
                seen.add(channel[0])
            callers = [line, *(caller for _, _, caller in calls.get(name, []))]
            size = _group_size(line, devices)
            yield _collective(match, callers, is_scatter, size, _times(name, calls))


def read_results(text: str) -> Results:
    """Add up what a program writes, in XLA's text of it.

    Args:
        text: Of an optimized module.

    Example:
        >>> read_results("  %x = f32[2,3]{1,0:T(8,128)} copy(%y)")
        Results(bytes=24, padded=4096, copied=24)
    """
    bodies = _computations(text)
    calls = _calls(bodies)
    # What a fusion or a sum is made of writes nothing; what is called, as CPUs call loops, does.
    lines = [line for line in text.splitlines() if " call(" not in line]
    inside = {name for line in lines for name in _INSIDE.findall(line)}
    size = padded = copied = 0
    for name in bodies.keys() - inside:
        times = _times(name, calls)
        for line in bodies[name]:
            match = _RESULT.search(line)
            if match is None or match[2] in _NOTHING_WRITTEN or match[2].endswith("-start"):
                continue
            fused = _INSIDE.search(line) if match[2] == "fusion" else None
            is_copy = _only_copies(bodies.get(fused[1], [])) if fused else match[2] in _COPIES
            for array in _LAYOUT.findall(match[1]):
                one, filled = _sizes(*array)
                size += times * one
                padded += times * filled
                copied += times * one * is_copy
    return Results(size, padded, copied)


def _only_copies(lines: Sequence[str]) -> bool:
    """Tell whether a computation does nothing but lay its parameters out in another way."""
    kinds = {match[2] for match in map(_RESULT.search, lines) if match}
    return bool(kinds & set(_COPIES)) and kinds <= {*_COPIES, "parameter", "bitcast"}


def _sizes(dtype: str, shape: str, order: str, tile: str) -> tuple[int, int]:
    """Return the bytes of an array, and with its innermost axes filled up to whole tiles."""
    lengths = [int(length) for length in shape.split(",") if length]
    padded = list(lengths)
    axes = [int(axis) for axis in order.split(",") if axis]
    for axis, multiple in zip(axes, reversed(tile.split(",")), strict=False):
        if multiple:
            padded[axis] = -(-lengths[axis] // int(multiple)) * int(multiple)
    return _size(dtype, shape), _size(dtype, ",".join(map(str, padded)))


def _computations(text: str) -> dict[str, list[str]]:
    """Return name -> lines of each computation of a module."""
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[1]
        bodies.setdefault(name, []).append(line)
    return bodies


def _collective(
    match: re.Match[str], lines: Sequence[str], is_scatter: bool, devices: int, times: int
) -> Collective:
    """Return a collective of its instruction, and of those that call the computation it is in."""
    kind = "reduce-scatter" if is_scatter else match[2]
    arrays = [_size(*each) for each in _ARRAY.findall(match[1])]
    if match[3] and kind == "collective-permute":  # its operand, its result, and what it counts by
        arrays = arrays[1:2]
    elif match[3] and kind != "all-reduce":  # its result holds the operands, too, in front
        arrays = arrays[len(arrays) // 2 :]
    scale = devices if match[2] == "reduce-scatter" else 1
    paths = filter(None, (re.search(r'op_name="([^"]*)"', line) for line in lines))
    parts = next((path[1].split("/") for path in paths), [])
    return Collective(
        kind=kind,
        bytes=scale * sum(arrays),
        arrays=len(arrays),
        devices=devices,
        source="/".join(part for part in parts[:-1] if not _WRAPPER.match(part)),
        backward=any(part.startswith("transpose(") for part in parts),
        times=times,
    )


def _size(dtype: str, shape: str) -> int:
    bits = _BITS.search(dtype)
    width = int(bits[0]) if bits else 8
    return math.prod(int(length) for length in shape.split(",") if length) * width // 8


def _group_size(line: str, devices: int) -> int:
    """Return how many devices take part together: as a collective says, else all."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] *\{(.*?)\}", line):
        lengths = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(lengths[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    return devices


def _calls(bodies: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, int, str]]]:
    """Return computation -> (who calls it, how often each time, the instruction) of each call."""
    calls: dict[str, list[tuple[str, int, str]]] = {}
    for name, lines in bodies.items():
        for line in lines:
            for kind, names in _CALLED.findall(line):
                loops = _rounds(line, bodies) if kind == "body" else 1
                for each in names.split(","):
                    call = name, loops, line
                    calls.setdefault(each.strip().lstrip("%"), []).append(call)
    return calls


def _rounds(line: str, bodies: Mapping[str, Sequence[str]]) -> int:
    """Return how often the body of a `while` runs: as XLA says, else as its condition compares."""
    if match := re.search(r'known_trip_count[^\d]*"?(\d+)', line):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    text = "\n".join(bodies.get(condition[1], ())) if condition else ""
    limits = re.findall(r"\b[su]32\[\]\S* constant\((\d+)\)", text)
    return int(limits[0]) if len(limits) == 1 else 1


def _times(name: str, calls: Mapping[str, Sequence[tuple[str, int, str]]]) -> int:
    """Return how often a computation runs: the body of a loop as often as XLA knows it to."""
    callers = calls.get(name, [])
    return max((loops * _times(caller, calls) for caller, loops, _ in callers), default=1)


def product_flops(jaxpr: core.Jaxpr, in_loops: bool = True) -> float:
    """Count the operations of matrix products and convolutions: two for each product of numbers.

    Args:
        jaxpr: Of the global arrays; inside a shard_map all devices' count.
        in_loops: The body of a scan counts as often as it runs; else once.

    Example:
        >>> import jax
        >>> product_flops(jax.make_jaxpr(lambda x: x @ x)(jax.numpy.ones((4, 4))).jaxpr)
        128.0
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            both: list[Any] = [*equation.invars, *equation.outvars]
            left, right, result = (each.aval.shape for each in both)
            count = _dot_products if name == "dot_general" else _conv_products
            total += 2.0 * count(left, right, result, params)
        times = params["length"] if in_loops and name == "scan" else 1
        times *= params["mesh"].size if name == "shard_map" else 1  # what each device does
        total += times * sum(product_flops(each, in_loops) for each in _jaxprs(params.values()))
    return total


def _dot_products(left: Shape, right: Shape, result: Shape, params: Mapping[str, Any]) -> int:
    """Return how many products of numbers a matrix product takes."""
    return math.prod(result) * math.prod(left[axis] for axis in params["dimension_numbers"][0][0])


def _conv_products(left: Shape, right: Shape, result: Shape, params: Mapping[str, Any]) -> int:
    """Return how many products a convolution takes; those with zeros in between or around are none.

    Such zeros are padding, and what strides of a convolution put in between in its gradient.
    """
    numbers = params["dimension_numbers"]
    batch, features = (result[axis] for axis in numbers.out_spec[:2])
    products = batch * features * right[numbers.rhs_spec[1]]
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    windows = zip(*(params[name] for name in names), strict=True)
    for axis, (stride, (before, _), spread, step) in enumerate(windows, start=2):
        starts = np.arange(result[numbers.out_spec[axis]])[:, None] * stride - before
        at = starts + np.arange(right[numbers.rhs_spec[axis]]) * step
        last = (left[numbers.lhs_spec[axis]] - 1) * spread
        products *= int(((at >= 0) & (at <= last) & (at % spread == 0)).sum())
    return products


def _jaxprs(values: Iterable[Any]) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple):
            yield from _jaxprs(value)
