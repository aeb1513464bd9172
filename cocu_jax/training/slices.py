"""TPU slices by the names clouds sell them under, as compile targets on a machine without TPUs."""

import dataclasses
import os
import re

import jax
from jax.experimental import topologies

from cocu_jax.errors import UserError
from cocu_jax.training.hardware import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Generation:
    """How slices of one TPU generation are named and built.

    Attributes:
        kind: its chip in `hardware.CHIPS`.
        accelerator: prefix of Google's accelerator type.
        topology: prefix of libtpu's topology name.
        cores_per_chip: slices of v4 and v5p are named by cores, two per chip.
        axes: of the torus or mesh of chips.
    """

    kind: str
    accelerator: str
    topology: str
    cores_per_chip: int
    axes: int


GENERATIONS = {
    "v4": Generation("TPU v4", "v4", "v4", 2, 3),
    "v5e": Generation("TPU v5 lite", "v5litepod", "v5e", 1, 2),
    "v5p": Generation("TPU v5", "v5p", "v5p", 2, 3),
    "v6e": Generation("TPU v6 lite", "v6e", "v6e", 1, 2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice to compile for.

    Attributes:
        name: such as "v5e-256".
        generation: of its chips.
        shape: chips along each axis.
    """

    name: str
    generation: Generation
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """Peaks of one chip."""
        return CHIPS[self.generation.kind]

    def devices(self) -> list[jax.Device]:
        """Devices that can be compiled for, not computed on.

        Raises:
            UserError: the `libtpu` package is missing or does not know the slice.
        """
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        size = self.name.split("-")[1]
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{self.generation.accelerator}-{size}"
        topology = f"{self.generation.topology}:{'x'.join(map(str, self.shape))}"
        options = {}
        if self.generation.topology == "v4":
            options = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
        try:
            return topologies.get_topology_desc(topology, "tpu", **options).devices
        except Exception as error:  # libtpu raises what it likes
            reason = str(error).strip().split("\n")[0][:150]
            raise UserError(
                f"--compile_for={self.name}: no topology {topology} ({reason}); "
                "it needs the TPU compiler: pip install 'jax[tpu]'"
            ) from None


def parse_slice(name: str) -> Slice:
    """The slice called `name`, such as "v5e-256" or "v5p-128".

    Raises:
        UserError: no such generation, or a size that is no power of two chips.
    """
    match = re.fullmatch(r"(v\w+)-(\d+)", name)
    generation = GENERATIONS.get(match.group(1)) if match else None
    if generation is None:
        known = ", ".join(f"{generation}-N" for generation in GENERATIONS)
        raise UserError(f"--compile_for={name}: not a TPU slice; use one of {known}")
    chips, rest = divmod(int(match.group(2)), generation.cores_per_chip)
    if rest or chips < 4 or chips & (chips - 1):
        raise UserError(f"--compile_for={name}: no power of two of at least four chips")
    return Slice(name, generation, _shape(chips, generation.axes))


def _shape(chips: int, axes: int) -> tuple[int, ...]:
    """Chips along each axis, as even as powers of two allow: 4x4x8, 16x16; 2x2x1 for four."""
    doublings = chips.bit_length() - 1
    shape = tuple(2 ** ((doublings + i) // axes) for i in range(axes))
    return shape[::-1] if chips < 2**axes else shape
