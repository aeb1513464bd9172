"""Costs of a compiled program on a chip: memory, operations, traffic, and a bound on its time."""

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
    """Costs of one execution on one chip.

    Attributes:
        memory: bytes allocated at once: arguments, results that do not reuse a donated argument,
            temporaries, and code.
        temporaries: bytes of the temporaries.
        flops: operations as counted by the compiler.
        traffic: bytes to and from the chip's main memory; if the program's text cannot be read, the
            compiler's larger count, which includes accesses to on-chip memory.
        collectives: communication within a slice; None if the text cannot be read.
        transfers: communication between slices; None if the text cannot be read.
    """

    memory: int
    temporaries: int
    flops: float
    traffic: float
    collectives: tuple[Collective, ...] | None
    transfers: tuple[Transfer, ...] | None

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Lower bounds of the time for compute, memory and links; the largest is the roofline.

        The network between slices is not counted, because its speed depends on the machines; links
        of unknown speed are not counted either.
        """
        seconds = {"compute": self.flops / chip.flops, "memory": self.traffic / chip.bandwidth}
        if chip.link:
            seconds["links"] = sum(c.sent for c in self.collectives or ()) / chip.link
        return seconds


def cost_of(program: jax.stages.Compiled) -> Cost:
    """The costs of a compiled program."""
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
