"""Devices as clouds have them, for meshes that no test machine has: names and places only."""

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What `jax.Device` tells about a device: attributes have JAX's names."""

    id: int
    process_index: int
    slice_index: int
    device_kind: str
    platform: str
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def tpu_devices(
    kind: str,
    shape: tuple[int, int, int],
    host: tuple[int, int, int] = (2, 2, 1),
    cores: int = 1,
    slices: int = 1,
) -> list[FakeDevice]:
    """The devices of TPU slices, in the order of `jax.devices()`: by process, then by place.

    Args:
        kind: JAX's name of the chip.
        shape: chips along x, y and z.
        host: chips of a host along each axis.
        cores: JAX devices of a chip.
        slices: how many slices of that shape.
    """
    hosts = [-(-length // part) for length, part in zip(shape, host, strict=True)]
    per_slice = hosts[0] * hosts[1] * hosts[2]
    places = []
    for z, y, x, core in itertools.product(*map(range, (*shape[::-1], cores))):
        cell = x // host[0] + hosts[0] * (y // host[1] + hosts[1] * (z // host[2]))
        places.append((cell, (x, y, z), core))
    places.sort(key=lambda place: place[0])
    return [
        FakeDevice(
            id=100_000 * (index + 1) + number,
            process_index=index * per_slice + cell,
            slice_index=index,
            device_kind=kind,
            platform="tpu",
            coords=coords,
            core_on_chip=core,
        )
        for index in range(slices)
        for number, (cell, coords, core) in enumerate(places)
    ]


def gpu_devices(hosts: int, gpus: int = 8, processes: int = 1) -> list[FakeDevice]:
    """GPUs of several hosts; JAX gives every host a slice of its own.

    Args:
        hosts: how many.
        gpus: of each host.
        processes: of each host.
    """
    return [
        FakeDevice(
            id=host * gpus + gpu,
            process_index=host * processes + gpu * processes // gpus,
            slice_index=host,
            device_kind="NVIDIA H100 80GB HBM3",
            platform="gpu",
        )
        for host in range(hosts)
        for gpu in range(gpus)
    ]
