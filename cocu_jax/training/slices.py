"""TPU slices, by the names used in Google Cloud, as compile targets on a machine without TPUs."""

import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from cocu_jax.errors import UserError
from cocu_jax.training.hardware import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Generation:
    """Names and layout of the slices of one TPU generation.

    Attributes:
        kind: key of its chip in `hardware.CHIPS`.
        accelerator: prefix of Google's accelerator type.
        topology: prefix of libtpu's topology name.
        cores_per_chip: the size in a slice's name divided by its number of chips; slices of v4, v5p
            and tpu7x are named by cores, two per chip.
        axes: number of axes of the torus or mesh of chips.
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
    "tpu7x": Generation("TPU7x", "tpu7x", "tpu7x", 2, 3),  # each core is a device of its own
}


@dataclasses.dataclass(frozen=True)
class Slices:
    """A compile target: one slice, or several that are joined by the data-centre network.

    Attributes:
        name: such as "v5e-256", "v5p:4x4x6" or "2xv5e-256".
        generation: generation of the chips.
        shape: number of chips along each axis of a slice.
        count: number of slices.
    """

    name: str
    generation: Generation
    shape: tuple[int, ...]
    count: int = 1

    @property
    def chip(self) -> Chip:
        """Peak figures of one device."""
        return CHIPS[self.generation.kind]

    def devices(self) -> list[jax.Device]:
        """Devices that programs can be compiled for, but not run on.

        Raises:
            UserError: the `libtpu` package is missing or does not support the slice.
        """
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no chip is used, so no lock is needed
        size = math.prod(self.shape) * self.generation.cores_per_chip
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{self.generation.accelerator}-{size}"
        topology = f"{self.generation.topology}:{'x'.join(map(str, self.shape))}"
        options = {"num_slices": self.count} if self.count > 1 else {}
        if self.generation.topology == "v4":
            options |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
        try:
            return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
        except Exception as error:  # libtpu raises exceptions of many types
            reason = str(error).strip().split("\n")[0][:150]
            raise UserError(
                f"--compile_for={self.name}: no topology {topology} ({reason}); "
                "it needs the TPU compiler: pip install 'jax[tpu]'"
            ) from None


def parse_slices(name: str) -> Slices:
    """Parses the name of a slice or several: "v5e-256", "tpu7x-128", "v5p:4x4x6", "2xv5e-256".

    Raises:
        UserError: no such generation or size.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    generation = GENERATIONS.get(match.group(2)) if match else None
    if generation is None or match.group(1) == "0":
        known = ", ".join(f"{generation}-N" for generation in GENERATIONS)
        raise UserError(
            f"--compile_for={name}: not a TPU slice; use one of {known}, a topology such as "
            "v5p:4x4x6, or several slices such as 2xv5e-256"
        )
    if match.group(4):
        shape = tuple(int(length) for length in match.group(4).split("x"))
        if len(shape) != generation.axes:
            raise UserError(
                f"--compile_for={name}: a topology of {match.group(2)} has {generation.axes} axes"
            )
    else:
        chips, rest = divmod(int(match.group(3)), generation.cores_per_chip)
        shape = None if rest else _shape(chips, generation.axes)
        if shape is None:
            times_three = ", or three times one" if generation.axes == 3 else ""
            raise UserError(
                f"--compile_for={name}: the number of chips must be a power of two of at least 4"
                f"{times_three}; the name counts {generation.cores_per_chip} per chip"
            )
    return Slices(name, generation, shape, int(match.group(1) or 1))


def _shape(chips: int, axes: int) -> tuple[int, ...] | None:
    """Chips along each axis, as equal as possible: 4x4x8, 16x16, 4x4x6; 2x2x1 for four chips.

    None unless `chips` is a power of two of at least 4 or, in three dimensions, three times one.
    """
    threes = 3 if axes == 3 and chips % 3 == 0 else 1
    rest = chips // threes
    if rest < 4 or rest & (rest - 1):
        return None
    doublings = rest.bit_length() - 1
    shape = [2 ** ((doublings + i) // axes) for i in range(axes)]
    if threes == 1:
        return tuple(shape[::-1] if rest < 2**axes else shape)
    shape[0] *= threes
    return tuple(sorted(shape))
