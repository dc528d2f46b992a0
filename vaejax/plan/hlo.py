"""The memory traffic and communication of a compiled program, counted from its HLO text.

XLA's own count of bytes is not used: it counts a loop's body once, and it includes data that stays in a TPU's
fast memory.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from vaejax.plan import collectives

# HLO's name of a data type -> bytes per number.
SIZES = {"f64": 8, "s64": 8, "u64": 8, "c64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2}
SIZES |= {"u16": 2, "s8": 1, "u8": 1, "pred": 1, "f8e4m3fn": 1, "f8e5m2": 1}
# Operations that move no data themselves; loops and calls are counted through the computations they run.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "partition-id"}
FREE |= {"while", "conditional", "call", "after-all", "add-dependency", "opt-barrier", "replica-id"}

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = ")
_LEAF = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO, `name = shape opcode(arguments), rest`.

    Attributes:
      name, shape, opcode, arguments, rest: parts of the line.
      operands: instruction names in the arguments.
      is_root: whether the instruction is the result of its computation.
    """

    name: str
    shape: str
    opcode: str
    arguments: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


@dataclasses.dataclass
class Traffic:
    """The bytes that one chip moves in one run of a program, and the time that a TPU's compiler expects.

    Attributes:
      memory: bytes read from and written to the chip's memory.
      collectives: bytes sent to other chips, by kind of collective.
      crossing: those of these bytes that go to other slices or nodes.
      cycles: sum of libtpu's estimates for all instructions; 0 for other compilers, which give none.
    """

    memory: float = 0.0
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    crossing: float = 0.0
    cycles: float = 0.0

    def add(self, other: "Traffic", times: float = 1.0) -> None:
        """Adds another traffic, multiplied by `times`, in place."""
        self.memory += times * other.memory
        self.crossing += times * other.crossing
        self.cycles += times * other.cycles
        for kind, value in other.collectives.items():
            self.collectives[kind] = self.collectives.get(kind, 0.0) + times * value


def traffic(text: str, slices: Sequence[int] = ()) -> Traffic:
    """The traffic per chip of a program, counted from its text, `jax.stages.Compiled.as_text()`.

    Args:
      text: the program.
      slices: slice or node of each device of the mesh, in its order; () if there is only one.
    """
    computations, entry = _parse(text)
    known: dict[str, Traffic] = {}

    def of(name: str) -> Traffic:
        if name not in known:
            total, shapes = Traffic(), {i.name: i.shape for i in computations[name]}
            seen_channels: set[str] = set()
            for instruction in computations[name]:
                total.add(_alone(instruction, shapes, computations, slices))
                total.cycles += _cycles(instruction)
                total.add(_sent_inside(instruction, computations, seen_channels, slices))
                for callee, times in _called(instruction, computations):
                    total.add(of(callee), times)
            known[name] = total
        return known[name]

    return of(entry)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation by its name, and the name of the entry computation."""
    computations, entry, current = collections.defaultdict(list), "", ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            entry = current if header[1] else entry
        elif (start := _INSTRUCTION.match(line)) and current:
            shape, rest = _balanced(line[start.end() :])
            opcode, _, rest = rest.strip().partition("(")
            arguments, rest = _balanced("(" + rest)
            names = tuple(re.findall(r"%([\w.-]+)", arguments))
            computations[current].append(
                Instruction(start[2], shape, opcode, arguments[1:-1], names, rest, bool(start[1]))
            )
    return computations, entry


def _balanced(text: str) -> tuple[str, str]:
    """Splits off the first word, or the leading group in balanced parentheses; returns it and the rest."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def size(shape: str, anywhere: bool = False) -> int:
    """Bytes of a shape or tuple of shapes, including the padding of TPU tiles.

    Args:
      shape: HLO shape with its layout.
      anywhere: whether to also count arrays in a TPU's fast memory.
    """
    leaves = (leaf for leaf in _LEAF.findall(shape) if leaf[0] in SIZES)
    return sum(_leaf_size(*leaf) for leaf in leaves if anywhere or "S(" not in leaf[2])


def _leaf_size(dtype: str, dims: str, layout: str) -> int:
    lengths = [int(dim) for dim in dims.split(",") if dim]
    tiled = re.match(r"\{([\d,]+):T\(([\d,]+)\)", layout)
    if tiled:
        order, tile = ([int(n) for n in part.split(",")] for part in tiled.groups())
        for dim, unit in zip(order, reversed(tile), strict=False):
            lengths[dim] += -lengths[dim] % unit
    return math.prod(lengths) * SIZES[dtype]


def _alone(
    instruction: Instruction, shapes: Mapping[str, str], computations, slices: Sequence[int]
) -> Traffic:
    """The traffic of one instruction, excluding what `_sent_inside` and `_called` account for."""
    opcode, kind = instruction.opcode, instruction.opcode.removesuffix("-start")
    if opcode in FREE or opcode.endswith("-done"):
        return Traffic()
    if kind in collectives.KINDS:
        sent, operands = _sent(instruction, shapes, slices)
        sent.memory = 2 * operands
        return sent
    if opcode == "copy-start":  # shape (to, from, token); `size` omits the array that is in fast memory
        return Traffic(size(instruction.shape))
    if opcode == "slice-start":  # shape ((from), to, token); only the slice `to` moves
        return Traffic(size(_balanced(instruction.shape[1:])[1], anywhere=True))
    if opcode in ("slice", "dynamic-slice", "gather"):
        return Traffic(2 * size(instruction.shape))
    if opcode == "dynamic-update-slice":
        return Traffic(2 * size(shapes.get(instruction.operands[1], "")))
    inner = _fused(instruction, computations)
    read = sum(
        min(size(shapes.get(name, "")), _read_inside(inner, i)) for i, name in enumerate(instruction.operands)
    )
    return Traffic(read + min(size(instruction.shape), _written_inside(inner)))


def _cycles(instruction: Instruction) -> int:
    """The cycles that libtpu expects one instruction to take, from its backend configuration."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    return int(found[1]) if found else 0


def _sent(collective: Instruction, shapes: Mapping[str, str], slices: Sequence[int]) -> tuple[Traffic, int]:
    """The traffic of a collective to other chips, and the bytes of its operands."""
    kind, text = collective.opcode.removesuffix("-start"), collective.rest
    operands = sum(size(shapes.get(name, ""), anywhere=True) for name in collective.operands)
    sent = {kind: operands * collectives.sent(kind, text)}
    return Traffic(0, sent, operands * collectives.crossing(kind, text, slices)), operands


def _sent_inside(
    instruction: Instruction, computations, seen_channels: set[str], slices: Sequence[int]
) -> Traffic:
    """The communication of the collectives inside a fusion.

    On TPUs a collective is spread over several fusions: its start, its end, and computations between them.
    Each of these fusions contains the collective, with the same channel, so each channel is counted once.

    Args:
      instruction: any instruction; if it is not a fusion, the traffic is 0.
      computations: instructions of the program, by computation.
      seen_channels: channels already counted in the instruction's computation; updated in place.
      slices: see `traffic`.
    """
    total, inner = Traffic(), _fused(instruction, computations)
    shapes = {i.name: i.shape for i in inner}
    for one in inner:
        if one.opcode.removesuffix("-start") in collectives.KINDS:
            channel = re.search(r"channel_id=(\d+)", one.rest)
            if channel and channel[1] not in seen_channels:
                seen_channels.add(channel[1])
                total.add(_sent(one, shapes, slices)[0])
        total.add(_sent_inside(one, computations, seen_channels, slices))
    return total


def _fused(instruction: Instruction, computations) -> list[Instruction]:
    """The instructions inside a fusion; [] for any other instruction."""
    called = re.search(r"calls=%?([\w.-]+)", instruction.rest) if instruction.opcode == "fusion" else None
    return computations.get(called[1], []) if called else []


def _read_inside(fusion: list[Instruction], number: int) -> float:
    """Bytes that a fusion reads of parameter `number` if it only reads or overwrites slices of the parameter.

    Otherwise infinity, and the caller counts the whole operand.
    """
    for parameter in fusion:
        if parameter.opcode == "parameter" and parameter.arguments == str(number):
            names, read = {parameter.name}, 0.0
            for user in fusion:
                if not names & set(user.operands):
                    continue
                if user.opcode == "bitcast":
                    names.add(user.name)
                elif user.opcode in ("slice", "dynamic-slice"):
                    read += size(user.shape, anywhere=True)
                elif user.opcode != "dynamic-update-slice" or user.operands[0] not in names:
                    return math.inf
            return read
    return math.inf


def _written_inside(fusion: list[Instruction]) -> float:
    """Bytes that a fusion writes if it only updates a slice of its output.

    Otherwise infinity, and the caller counts the whole output.
    """
    by_name = {instruction.name: instruction for instruction in fusion}
    root = next((instruction for instruction in fusion if instruction.is_root), None)
    while root and root.opcode == "bitcast":
        root = by_name.get(root.operands[0])
    if root and root.opcode == "dynamic-update-slice" and root.operands[1] in by_name:
        return size(by_name[root.operands[1]].shape, anywhere=True)
    return math.inf


def _called(instruction: Instruction, computations) -> Iterator[tuple[str, float]]:
    """The computations that a loop, branch or call runs, and how often; branches count as equally likely."""
    if instruction.opcode == "while":
        names = dict(re.findall(r"(condition|body)=%?([\w.-]+)", instruction.rest))
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
        bounds = [int(i.arguments) for i in computations[names["condition"]] if _is_count(i)]
        yield names["body"], int(trips[1]) if trips else max(bounds, default=1)
    elif instruction.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        names = re.findall(r"%?([\w.-]+)", branches[1]) if branches else []
        names += re.findall(r"(?:true|false)_computation=%?([\w.-]+)", instruction.rest)
        for name in names:
            yield name, 1 / len(names)
    elif instruction.opcode == "call":
        for name in re.findall(r"to_apply=%?([\w.-]+)", instruction.rest):
            yield name, 1.0


def _is_count(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.shape.startswith("s32[]")
