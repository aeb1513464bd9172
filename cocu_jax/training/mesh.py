"""The device mesh, and how the arrays of a training step are sharded over it.

The mesh has two axes. `data` splits the batch. `fsdp` splits the batch, and also the parameters
with everything that has their shape (moments, average). Parameters are gathered when a step begins
and gradients are scattered when it ends, so `fsdp` reduces the memory per device, not the
communication. On request (`StepSettings.split_update`) the moments and the average, which only the
update needs, are split over `data` as well.
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

# Elements. Splitting smaller arrays costs a collective each and saves next to nothing.
_SMALLEST_SPLIT = 2**16


def make_mesh(data: int, fsdp: int, batch_size: int, devices: Sequence | None = None) -> Mesh:
    """A mesh over all devices, arranged so that neighbours on an axis are linked.

    Of several slices (TPU slices joined by the data-centre network, or GPU hosts) `data` extends
    over the network and `fsdp` stays within a slice; an `fsdp` larger than a slice spans whole
    slices.

    Args:
        data: size of the axis that splits only the batch; -1: number of devices / `fsdp`.
        fsdp: size of the axis that also splits parameters.
        batch_size: size of the global batch, which must be a multiple of the number of devices.
        devices: default: all of them.

    Raises:
        UserError: the product of the sizes is not the number of devices, the devices do not divide
            the batch, `fsdp` does not fit the slices, or the processes have different numbers of
            devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    if fsdp < 1 or count % fsdp or data not in (-1, count // fsdp):
        raise UserError(
            f"config.mesh data={data} fsdp={fsdp}: there are {count} devices; "
            "data x fsdp must be that number (data=-1 is computed from fsdp)"
        )
    if batch_size % count:
        raise UserError(
            f"config.batch_size={batch_size} is not a multiple of the {count} devices; change it"
        )
    shares = set(collections.Counter(device.process_index for device in devices).values())
    if len(shares) > 1:
        raise UserError(
            f"the processes have {min(shares)} to {max(shares)} devices each; give all of them the "
            "same number, because each reads an equal share of every batch"
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
    """Number of slices (TPU slices, or GPU hosts) that the devices belong to."""
    return len(set(map(_slice_of, devices)))


def _slice_of(device) -> int:
    """Index of the device's slice; CPUs and the devices of a single slice may have none."""
    return getattr(device, "slice_index", None) or 0


def _axes_in_slices(count: int, fsdp: int, devices: Sequence) -> tuple[tuple[int, int], ...]:
    """Sizes of (data, fsdp) within a slice, and across the slices.

    Raises:
        UserError: slices differ in size, or `fsdp` is neither a divisor nor a multiple of it.
    """
    sizes = collections.Counter(map(_slice_of, devices))
    slices, size = len(sizes), count // len(sizes)
    if set(sizes.values()) != {size}:
        raise UserError(f"slices of different sizes ({sorted(sizes.values())} devices)")
    if size % fsdp and fsdp % size:
        raise UserError(
            f"config.mesh.fsdp={fsdp}: it must divide the {size} devices of a slice (or host), or "
            "be a multiple of that number"
        )
    within = math.gcd(fsdp, size)
    return (size // within, within), (slices * within // fsdp, fsdp // within)


def state_shardings(mesh: Mesh, state, axes: Sequence[str] = ("fsdp",)):
    """A sharding for each leaf of a tree of shapes.

    Each of the mesh's `axes` in turn splits the longest array axis that its size divides. An array
    axis may be split by several of them. Small arrays are replicated.
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


def replicate(tree, mesh: Mesh):
    """Constrains every array of a tree to be whole on every device; for use inside `jax.jit`."""
    sharding = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)


def make_gather(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """The function that replicates an array whose first axis is split like the batch.

    Its gradient is summed and split by example again: only the device that holds an example needs
    the example's part.
    """
    batch = NamedSharding(mesh, BATCH)

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return replicate(x, mesh)

    def backward(_, gradient: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(gradient, batch),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays, split by example, of the examples that this process has read.

    Each of its devices takes an equal part, in the mesh's order. That order follows the links, so
    the examples of a process need not be adjacent in the global array. The order of examples within
    a batch has no meaning; all arrays have the same one. Non-numeric arrays (`key`) are left out.
    """
    batch = {name: values for name, values in batch.items() if values.dtype.kind in "iuf"}
    return jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), batch)
