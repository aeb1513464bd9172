"""Meshes of the machines that runs are meant for: `python -m benchmarks.meshes`.

For each machine and each size of `mesh.fsdp`: the mesh is made, every process feeds as many rows as
its devices hold, no row is held twice, `fsdp` stays inside a slice where it fits into one, and the
published batch and `data.lanes` are accepted. TPU slices are libtpu's own topologies where it is
installed (`pip install "jax[tpu]"`), else devices that carry the same facts; GPU hosts are such
devices. Prints JSON lines, or with `--markdown` the table of docs/pretraining.md.
"""

import argparse
import collections
import dataclasses
import importlib.util
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
from jax.sharding import NamedSharding

from benchmarks.fake_devices import gpu_devices, tpu_devices
from benchmarks.figures import print_figure
from cocu_jax.errors import UserError
from cocu_jax.input.pipeline import batch_lanes
from cocu_jax.training.mesh import BATCH, make_mesh
from cocu_jax.training.slices import Slices, parse_slices
from configs import cocu

TPUS = ("v4-8", "v4-128", "v4-256", "v5e-4", "v5e-16", "v5e-256", "v5p-8", "v5p-128", "v5p-192")
TPUS += ("v5p-256", "v6e-4", "v6e-16", "v6e-256", "tpu7x-8", "tpu7x-128", "tpu7x-384", "tpu7x-512")
SLICES = (1, 2, 4)
GPU_HOSTS = (1, 2, 16, 32)
FSDP = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found on one machine with one size of `fsdp`.

    Attributes:
        fsdp: the size.
        batch: rows of the global batch.
        lanes: virtual readers that deal it.
        fault: empty if all is well.
    """

    fsdp: int
    batch: int
    lanes: int
    fault: str


def main() -> None:
    """Prints a JSON line per machine and size, or the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="the table instead of JSON")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if arguments.markdown:
        titles = "machine", "how many", "devices", "processes", "`fsdp`", "batch", "lanes", "good"
        print(f"| {' | '.join(titles)} |\n{'| --- ' * len(titles)}|")
    for name, counts in machines(importlib.util.find_spec("libtpu") is not None):
        found = {
            count: [check(devices, fsdp) for fsdp in FSDP if len(devices) % fsdp == 0]
            for count, devices in counts.items()
        }
        if arguments.markdown:
            print(_table_row(name, counts, found))
            continue
        for count, rows in found.items():
            for row in rows:
                metric = f"mesh of {count} x {name}, fsdp {row.fsdp}"
                metric += f": {row.fault}" if row.fault else ""
                print_figure(metric, not row.fault, "good", goal=1.0)


def machines(has_libtpu: bool) -> Iterator[tuple[str, dict[int, Sequence]]]:
    """(name, devices by number of slices) of every machine, at most 256 processes."""
    for name in TPUS:
        counts = {}
        for count in SLICES:
            slices = parse_slices(f"{count}x{name}")
            devices = slices.devices() if has_libtpu else imitated(slices)
            if processes_of(devices) <= 256:
                counts[count] = devices
        yield name, counts
    for processes, owner in ((1, "host"), (8, "GPU")):
        yield (
            f"host of 8 GPUs, a process per {owner}",
            {hosts: gpu_devices(hosts, processes=processes) for hosts in GPU_HOSTS},
        )


def imitated(slices: Slices) -> list:
    """Devices that carry what those of the slices carry."""
    shape = (*slices.shape, 1)[:3]
    cores = 2 if slices.generation.kind == "TPU7x" else 1
    return tpu_devices(slices.generation.kind, shape, cores=cores, slices=slices.count)


def processes_of(devices: Sequence) -> int:
    """How many processes the devices belong to."""
    return len({device.process_index for device in devices})


def check(devices: Sequence, fsdp: int) -> Row:
    """Makes the mesh, deals the batch, and looks where its rows are."""
    config = cocu.get_config("cc3m_cc12m_yfcc14m")
    batch, processes = math.lcm(config.batch_size, len(devices)), processes_of(devices)
    try:
        mesh = make_mesh(-1, fsdp, batch, devices)
        lanes = batch_lanes(config.data.lanes, batch, processes)
    except UserError as error:
        return Row(fsdp, batch, 0, str(error))
    held = collections.defaultdict(list)
    for device, (rows, _) in NamedSharding(mesh, BATCH).devices_indices_map((batch, 1)).items():
        held[device.process_index] += range(rows.start, rows.stop)
    slices = collections.Counter(getattr(d, "slice_index", None) or 0 for d in devices)
    split = [{getattr(d, "slice_index", None) or 0 for d in group} for group in mesh.devices]
    faults = {
        "a process feeds another number of rows than its devices hold": any(
            len(rows) != batch // processes for rows in held.values()
        ),
        "a row is held twice or not at all": sorted(sum(held.values(), [])) != [*range(batch)],
        "fsdp leaves a slice": fsdp <= min(slices.values()) and max(map(len, split)) > 1,
    }
    return Row(fsdp, batch, lanes, "; ".join(name for name, there in faults.items() if there))


def _table_row(name: str, counts: dict[int, Sequence], found: dict[int, list[Row]]) -> str:
    rows = sum(found.values(), [])
    cells = (
        name,
        _each(counts),
        _each(len(devices) for devices in counts.values()),
        _each(processes_of(devices) for devices in counts.values()),
        _each(sorted({row.fsdp for row in rows})),
        _each(sorted({row.batch for row in rows})),
        _each(sorted({row.lanes for row in rows})),
        f"{sum(not row.fault for row in rows)} of {len(rows)}",
    )
    return f"| {' | '.join(cells)} |"


def _each(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


if __name__ == "__main__":
    main()
