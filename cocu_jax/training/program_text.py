"""Reads communication and memory traffic of a compiled program from its HLO text.

The compiler's own "bytes accessed" includes buffers that never leave the chip: a TPU program keeps
most intermediate results in on-chip memory, which the text marks as `S(1)`.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")

# These instructions move nothing: they only name memory.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over groups of one size.

    Attributes:
        kind: such as "all-reduce".
        group: number of chips in each group.
        count: number of collectives.
        bytes: total size of their results on one chip.
        largest: shapes of the largest results, each with the operation that it comes from.
    """

    kind: str
    group: int
    count: int
    bytes: int
    largest: tuple[str, ...]

    @property
    def sent(self) -> float:
        """Bytes that a chip sends if the collectives use ring algorithms."""
        if self.kind == "reduce-scatter":  # its result is 1 / group of its input
            return self.bytes * (self.group - 1)
        share = (self.group - 1) / self.group
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


class Transfer(NamedTuple):
    """All transfers of one kind between slices, over the data-centre network.

    Attributes:
        kind: such as "all-reduce".
        count: number of transfers.
        bytes: total that one device sends in them.
    """

    kind: str
    count: int
    bytes: int


class Instruction(NamedTuple):
    """One line of a program: `%name = type operation(operands), attributes`."""

    name: str
    type: str
    operation: str
    rest: str


class Move(NamedTuple):
    """The main-memory traffic of an instruction.

    Attributes:
        bytes: read and written in all of its executions.
        instruction: the instruction.
        source: name of the JAX operation that it was compiled from.
    """

    bytes: float
    instruction: Instruction
    source: str


def collectives_of(text: str) -> tuple[Collective, ...]:
    """The collectives in a program's text, by kind and group size, most bytes first.

    In TPU programs one transfer may consist of several instructions, which share a channel. A
    reduce-scatter appears as a computation called `all-reduce-scatter` around an `all-reduce`.
    """
    found = collections.defaultdict(list)
    counted = set()  # (kind, channel)
    scattered = None  # result of the `all-reduce-scatter` that contains the current line
    for line in text.splitlines():
        if (header := _COMPUTATION.match(line)) and not line.startswith(" "):
            is_scatter = header.group(2).startswith("all-reduce-scatter")
            scattered = line.split("->")[-1] if is_scatter else None
        instruction = _parse(line)
        kind = instruction and instruction.operation.removesuffix("-start")
        if kind not in _KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", line)
        if scattered:
            kind = "reduce-scatter"
        elif channel and (kind, channel.group(1)) in counted:
            continue
        else:
            counted.add((kind, channel and channel.group(1)))
        arrays = _ARRAY.findall(scattered or instruction.type)
        if instruction.operation.endswith("-start") and kind != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # a start lists its operands before its results
        size = sum(_size(array) for array in arrays)
        dtype, dimensions, _ = max(arrays, key=_size)
        source = re.search(r'op_name="([^"]*)"', line)
        label = f"{dtype}[{dimensions}] {_shorten(source.group(1)) if source else ''}"
        found[kind, _group_size(line)].append((size, label))
    collectives = []
    for (kind, group), items in found.items():
        items.sort(reverse=True)
        total = sum(size for size, _ in items)
        labels = tuple(label for _, label in items[:3])
        collectives.append(Collective(kind, group, len(items), total, labels))
    return tuple(sorted(collectives, key=lambda c: -c.bytes))


def transfers_of(text: str) -> tuple[Transfer, ...]:
    """The transfers between the slices of a program for several slices, most bytes first.

    The compiler divides a collective over all slices into two: within a slice it remains a
    collective; between slices it becomes a `send` to the host's network runtime and a `recv`.
    """
    found = collections.defaultdict(list)
    for line in text.splitlines():
        instruction = _parse(line)
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', line)
        if instruction and instruction.operation == "send" and kind:
            name = kind.group(1).lower().replace("_", "-")
            found[name].append(_size(_ARRAY.search(instruction.type).groups()))
    transfers = [Transfer(kind, len(sizes), sum(sizes)) for kind, sizes in found.items()]
    return tuple(sorted(transfers, key=lambda t: -t.bytes))


def memory_traffic(text: str) -> float:
    """Bytes that a program reads from and writes to the chip's main memory.

    Every operand and result in main memory is counted once per instruction and in full, even if
    only a part of it is accessed.
    """
    return sum(move.bytes for move in moves_of(text))


def moves_of(text: str) -> list[Move]:
    """Main-memory traffic of every instruction of a program, most bytes first."""
    computations, entry = _computations(text)
    return sorted(_moves(entry, computations), key=lambda move: -move.bytes)


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions by computation, and the name of the entry computation."""
    computations, entry, current = {}, "", []
    for line in text.splitlines():
        if (header := _COMPUTATION.match(line)) and not line.startswith(" "):
            current = computations[header.group(2)] = []
            entry = header.group(2) if header.group(1) else entry
        elif instruction := _parse(line):
            current.append(instruction)
    return computations, entry


def _moves(name: str, computations: dict[str, list[Instruction]]) -> list[Move]:
    moves, types = [], {}
    for instruction in computations[name]:
        types[instruction.name] = instruction.type
        operation, rest = instruction.operation, instruction.rest
        if operation in _FREE or operation.endswith("-done") or '"ConcatBitcast"' in rest:
            continue
        inner = [_moves(called, computations) for called in _called(operation, rest)]
        if operation == "while":
            times = _trips(rest, computations)
            moves += [move._replace(bytes=times * move.bytes) for move in inner[0]]
        elif operation in ("call", "conditional"):
            moves += max(inner, key=lambda part: sum(move.bytes for move in part))
        else:
            operands = [types[o] for o in _operands(rest) if o in types]
            if operation in ("copy-start", "slice-start"):
                size = _transfer(instruction.type, operands[0])
            else:
                size = sum(_in_memory(type_) for type_ in (instruction.type, *operands))
            source = re.search(r'op_name="([^"]*)"', rest)
            moves.append(Move(size, instruction, source.group(1) if source else ""))
    return [move for move in moves if move.bytes]


def _trips(rest: str, computations: dict[str, list[Instruction]]) -> int:
    """Trip count of a loop: its annotation, or the constant that its counter is compared with."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    counts = [
        int(instruction.rest.split(")")[0])
        for instruction in computations.get(condition.group(1) if condition else "", ())
        if instruction.operation == "constant" and instruction.type.startswith("s32[]")
    ]
    return counts[0] if len(counts) == 1 else 1


def _called(operation: str, rest: str) -> Iterator[str]:
    """Computations whose instructions are executed separately, not fused into one."""
    if operation == "while":
        yield from re.findall(r"body=%?([\w.\-]+)", rest)
    elif operation == "call":
        yield from re.findall(r"to_apply=%?([\w.\-]+)", rest)
    elif operation == "conditional":
        yield from re.findall(r"%?([\w.\-]+)", re.search(r"branch_computations=\{(.*?)\}", rest)[1])


def _transfer(result: str, operand: str) -> float:
    """Main-memory traffic of an asynchronous copy, whose result lists source and destination."""
    arrays = [a for a in _ARRAY.findall(result) if a[1]]
    source = _ARRAY.findall(operand)[0]
    target = next((a for a in arrays if a != source), source)
    return _size(target) * sum("S(" not in layout for _, _, layout in (source, target))


def _in_memory(type_: str) -> int:
    return sum(_size(array) for array in _ARRAY.findall(type_) if "S(" not in array[2])


def _parse(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    return Instruction(*match.groups()) if match else None


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", rest.split("), ")[0])


def _size(array: tuple[str, str, str]) -> int:
    lengths = [int(n) for n in array[1].split(",") if n]
    return _BYTES.get(array[0], 4) * math.prod(lengths)


def _group_size(line: str) -> int:
    """Chips per group: `mesh['x'=4,'y'=2] {'y'}`, `[groups,size]<=...`, `{{0,1},...}`, or pairs."""
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", match.group(2)))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match.group(2))
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match.group(1).split(","))
    return 2


def _shorten(op_name: str) -> str:
    """The last part of an operation's path, which is the informative one."""
    return op_name.split("/", 1)[-1][-70:]
