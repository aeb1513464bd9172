"""What a compiled program costs a chip: memory, operations, traffic, and the time they bound."""

import collections
import dataclasses
import math
import re

import jax

from cocu_jax.training.hardware import Chip

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind over groups of one size.

    Attributes:
        kind: such as "all-reduce".
        group: chips that take part in each.
        count: instructions.
        bytes: of all results on one chip.
        largest: shapes of the largest results, with where they come from in the program.
    """

    kind: str
    group: int
    count: int
    bytes: int
    largest: tuple[str, ...]

    @property
    def sent(self) -> float:
        """Bytes that a chip sends with ring algorithms."""
        share = (self.group - 1) / self.group
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs of one execution for one chip.

    Attributes:
        memory: bytes held at once: arguments, results that do not take an argument's place,
            temporaries, and code.
        temporaries: bytes of these.
        flops: operations as the compiler counts them.
        traffic: bytes to and from memory as the compiler counts them.
        collectives: communication.
    """

    memory: int
    temporaries: int
    flops: float
    traffic: float
    collectives: tuple[Collective, ...]

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Least time that products, memory and links take each; the largest is the roofline."""
        return {
            "compute": self.flops / chip.flops,
            "memory": self.traffic / chip.bandwidth,
            "links": sum(c.sent for c in self.collectives) / chip.link,
        }


def cost_of(program: jax.stages.Compiled) -> Cost:
    """Reads a compiled program."""
    memory, cost = program.memory_analysis(), program.cost_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return Cost(
        memory=held - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=cost["flops"],
        traffic=cost["bytes accessed"],
        collectives=collectives_of(program.as_text()),
    )


def collectives_of(text: str) -> tuple[Collective, ...]:
    """The communication in a program's text, by kind and group size, most bytes first."""
    found = collections.defaultdict(list)
    instruction = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
    for line in text.splitlines():
        if match := instruction.search(line):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", match.group(1))
            if match.group(3) and match.group(2) != "all-reduce":
                shapes = shapes[len(shapes) // 2 :]  # a start also lists what goes in
            size = sum(_size(*shape) for shape in shapes)
            largest = max(shapes, key=lambda shape: _size(*shape))
            source = re.search(r'op_name="([^"]*)"', line)
            label = f"{largest[0]}[{largest[1]}] {_shorten(source.group(1)) if source else ''}"
            found[match.group(2), _group_size(line)].append((size, label))
    collectives = []
    for (kind, group), items in found.items():
        items.sort(reverse=True)
        total = sum(size for size, _ in items)
        labels = tuple(label for _, label in items[:3])
        collectives.append(Collective(kind, group, len(items), total, labels))
    return tuple(sorted(collectives, key=lambda c: -c.bytes))


def _size(dtype: str, dimensions: str) -> int:
    lengths = [int(n) for n in dimensions.split(",") if n]
    return _BYTES.get(dtype, 4) * math.prod(lengths)


def _group_size(line: str) -> int:
    """Chips per group: `replica_groups=[groups,size]<=...` or `{{0,1,...},...}`; 2 if pairs."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match.group(2))
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match.group(1).split(","))
    return 2


def _shorten(op_name: str) -> str:
    """The informative end of an operation's path."""
    return op_name.split("/", 1)[-1][-70:]
