"""What a compiled program costs a chip: memory, operations, traffic, and the time they bound."""

import dataclasses

import jax

from cocu_jax.training.hardware import Chip
from cocu_jax.training.program_text import (
    Collective,
    Transfer,
    collectives_of,
    memory_traffic,
    transfers_of,
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs of one execution for one chip.

    Attributes:
        memory: bytes held at once: arguments, results that do not take an argument's place,
            temporaries, and code.
        temporaries: bytes of these.
        flops: operations as the compiler counts them.
        traffic: bytes to and from the chip's main memory; where the program's text cannot be read,
            the compiler's larger count, which includes memory on the chip.
        collectives: communication inside a slice; None where the text cannot be read.
        transfers: communication between slices; None likewise.
    """

    memory: int
    temporaries: int
    flops: float
    traffic: float
    collectives: tuple[Collective, ...] | None
    transfers: tuple[Transfer, ...] | None

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Least time that products, memory and links take each; the largest is the roofline.

        What the network between slices takes depends on the machines and is not counted; nor are
        links of unknown speed.
        """
        seconds = {"compute": self.flops / chip.flops, "memory": self.traffic / chip.bandwidth}
        if chip.link:
            seconds["links"] = sum(c.sent for c in self.collectives or ()) / chip.link
        return seconds


def cost_of(program: jax.stages.Compiled) -> Cost:
    """Reads a compiled program."""
    memory, cost = program.memory_analysis(), program.cost_analysis()
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError:  # libtpu may know instructions that jaxlib does not
        text = None
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return Cost(
        memory=held - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=cost["flops"],
        traffic=memory_traffic(text) if text else cost["bytes accessed"],
        collectives=collectives_of(text) if text else None,
        transfers=transfers_of(text) if text else None,
    )
