"""The device mesh, and where every array of a training step lives on it.

Two axes: `data` splits the batch; `fsdp` splits the batch and the parameters with everything that
has their shape (moments, average). Parameters are gathered when a step begins and gradients are
scattered when it ends, so `fsdp` divides what is kept, not what is sent. Moments and average, which
only the update needs, are split over `data` as well (`StepSettings.split_update`).
"""

import collections
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cocu_jax.errors import UserError

BATCH = PartitionSpec(("data", "fsdp"))
REPLICATED = PartitionSpec()

# Splitting small arrays costs a collective each and saves nothing.
_SMALLEST_SPLIT = 2**16


def make_mesh(data: int, fsdp: int, batch_size: int, devices: Sequence | None = None) -> Mesh:
    """A mesh over all devices, laid out along their links.

    Where there are several slices (TPU slices joined by the data-centre network, or GPU hosts)
    `data` goes over the network and `fsdp` stays inside a slice; an `fsdp` larger than a slice
    takes whole slices.

    Args:
        data: size of the axis that splits only the batch; -1 takes all devices that `fsdp` leaves.
        fsdp: size of the axis that also splits parameters.
        batch_size: global batch, checked to be a multiple of the number of devices.
        devices: default all of them.

    Raises:
        UserError: the sizes do not multiply to the number of devices, do not divide the batch, or
            do not fit the slices; or the processes have different numbers of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    if fsdp < 1 or count % fsdp or data not in (-1, count // fsdp):
        raise UserError(
            f"config.mesh data={data} fsdp={fsdp}: there are {count} devices; "
            "data x fsdp must be that number (data=-1 fills in)"
        )
    if batch_size % count:
        raise UserError(
            f"config.batch_size={batch_size} is no multiple of the {count} devices; change it"
        )
    shares = set(collections.Counter(device.process_index for device in devices).values())
    if len(shares) > 1:
        raise UserError(
            f"the processes have {min(shares)} to {max(shares)} devices each; all must have as "
            "many, for each reads an equal share of every batch"
        )
    inside, between = _axes_in_slices(count, fsdp, devices)
    if math.prod(between) == 1:
        grid = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, between, devices, allow_split_physical_axes=True
        )
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def count_slices(devices: Iterable) -> int:
    """How many slices (TPU slices, or GPU hosts) the devices are of."""
    return len(set(map(_slice_of, devices)))


def _slice_of(device) -> int:
    """CPUs, and a slice that is alone, may have no number."""
    return getattr(device, "slice_index", None) or 0


def _axes_in_slices(count: int, fsdp: int, devices: Sequence) -> tuple[tuple[int, int], ...]:
    """Sizes of (data, fsdp) inside a slice, and over the slices.

    Raises:
        UserError: slices differ in size, or `fsdp` is neither part of one nor whole ones.
    """
    sizes = collections.Counter(map(_slice_of, devices))
    slices, size = len(sizes), count // len(sizes)
    if set(sizes.values()) != {size}:
        raise UserError(f"slices of different sizes ({sorted(sizes.values())} devices)")
    if size % fsdp and fsdp % size:
        raise UserError(
            f"config.mesh.fsdp={fsdp} must divide the {size} devices of a slice (or host), or be "
            "a multiple of them"
        )
    within = math.gcd(fsdp, size)
    return (size // within, within), (slices * within // fsdp, fsdp // within)


def state_shardings(mesh: Mesh, state, axes: Sequence[str] = ("fsdp",)):
    """A sharding for each leaf of a tree of shapes.

    Each of the mesh's `axes` in turn splits what is then the longest axis of those it divides; more
    axes split further what fewer do.
    """

    def sharding(leaf) -> NamedSharding:
        if math.prod(leaf.shape) < _SMALLEST_SPLIT:
            return NamedSharding(mesh, REPLICATED)
        lengths, parts = list(leaf.shape), [()] * len(leaf.shape)
        for axis in axes:
            size = mesh.shape[axis]
            divided = [i for i, length in enumerate(lengths) if length % size == 0]
            if size > 1 and divided:
                longest = max(divided, key=lengths.__getitem__)
                lengths[longest] //= size
                parts[longest] += (axis,)
        while parts and not parts[-1]:
            parts.pop()
        return NamedSharding(mesh, PartitionSpec(*(part or None for part in parts)))

    return jax.tree.map(sharding, state)


def row_gatherer(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """A function that puts rows, split over the mesh, whole on every device.

    Its gradient is summed and split by rows again, for only the owner of a row goes on with it.
    """
    everywhere, rows = NamedSharding(mesh, REPLICATED), NamedSharding(mesh, BATCH)

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, everywhere)

    def backward(_, gradient: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(gradient, rows),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays, split by rows, of the rows that this process has read.

    Each of its devices takes an equal part, in the mesh's order. That order follows the links, so
    the rows of a process need not be neighbours in the global array; a batch is a set, and its
    rows keep together. Names of rows (`key`, bytes) stay behind.
    """
    batch = {name: rows for name, rows in batch.items() if rows.dtype.kind in "iuf"}
    return jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), batch)
