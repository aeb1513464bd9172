"""A global shuffle on disk: every shard collects its records from all units.

A record's place follows from a hash of the seed and its key, so neither the order of the sources
nor the number of workers matters. Units lie in the order of these hashes, so a shard takes one
range of each. Memory is that of a shard; the units are a second copy of the data on the disk.
"""

import collections
import concurrent.futures
import math
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import write_file
from data_prep.image_text.finished_units import FinishedUnits
from data_prep.image_text.records import framed_sizes, unit_files, unit_target, writing
from data_prep.image_text.work import STOP_FILE, Work, Workers, do_work

_SHARD_BYTES = 128 << 20  # of a mean shard
_READERS = 8  # threads that read ranges of units: buckets and network disks are slow to answer
# Of every record of a shard, in its order: number of the unit, and where it is in there.
_PLAN = np.dtype([("unit", np.uint32), ("start", np.int64), ("size", np.int64)])


def write_shuffled(
    units: FinishedUnits, template: tfds.core.ShardedFileTemplate, workers: Workers
) -> list[int]:
    """Writes the shards that are not there yet.

    Args:
        units: records in the order of their keys' hashes.
        template: where the shards go.
        workers: who writes them, if these are on other machines. Otherwise this process does: it is
            as fast as the disk.

    Returns:
        Number of records of every shard; they differ by one at most.

    Raises:
        Stopped: an interrupt was requested.
        UserError: a unit is damaged.
    """
    scratch = units.targets[0].parent
    size = int(framed_sizes(units.lengths[units.kept]).sum())
    shards = min(len(units.kept), math.ceil(size / _SHARD_BYTES))
    places = [template.sharded_filepath(shard_index=i, num_shards=shards) for i in range(shards)]
    cuts = np.arange(shards + 1) * len(units.kept) // shards
    plans = _write_plans(units, cuts, places)
    work = Work(
        title="Shuffling",
        noun="shards",
        make=_shard_writer,
        tasks=[
            (str(scratch), str(plan), str(place)) for plan, place in zip(plans, places, strict=True)
        ],
        folder=template.data_dir,
        files=[(place.name,) for place in places],
    )
    do_work(work, workers if workers.are_elsewhere else Workers(), scratch / STOP_FILE)
    return np.diff(cuts).tolist()


def write_shard(scratch: str, plan: str, place: str) -> None:
    """Writes one shard, whole or not at all.

    Args:
        scratch: folder of the units.
        plan: file that names the shard's records.
        place: the shard's file.

    Raises:
        UserError: a unit is shorter than its index says.
    """
    with epath.Path(plan).open("rb") as file:
        records = np.load(file)
    units, starts, sizes = records["unit"], records["start"], records["size"]
    ends = np.cumsum(sizes)
    shard = bytearray(int(ends[-1]))
    by_unit = np.lexsort((starts, units))
    groups = np.split(by_unit, np.flatnonzero(np.diff(units[by_unit])) + 1)

    def collect(group: np.ndarray) -> None:
        """Reads the range of one unit and deals its records out."""
        first, last = group[0], group[-1]
        length = int(starts[last] + sizes[last] - starts[first])
        unit = unit_files(unit_target(epath.Path(scratch), int(units[first])))[0]
        with unit.open("rb") as file:
            file.seek(int(starts[first]))
            content = memoryview(file.read(length))
        if len(content) < length:
            raise UserError(f"{unit}: is cut; remove {scratch} to prepare it again")
        columns = starts[group] - starts[first], sizes[group], ends[group]
        for start, size, place_end in zip(*map(np.ndarray.tolist, columns), strict=True):
            shard[place_end - size : place_end] = content[start : start + size]

    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        collections.deque(readers.map(collect, groups), maxlen=0)
    write_file(place, shard)


def _shard_writer() -> Callable[[str, str, str], None]:
    return write_shard


def _write_plans(
    units: FinishedUnits, cuts: np.ndarray, places: list[epath.Path]
) -> list[epath.Path]:
    """A file for every shard that is not there, which tells where its records are."""
    sizes = framed_sizes(units.lengths)
    first = np.cumsum(units.counts) - units.counts  # record of every unit
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    there = {path.name for path in places[0].parent.iterdir()}
    plans = []
    for number, place in enumerate(places):
        plans.append(units.targets[0].parent / f"plan-{number:05d}.npy")
        if place.name in there:
            continue
        records = units.kept[cuts[number] : cuts[number + 1]]
        plan = np.empty(len(records), _PLAN)
        plan["unit"] = np.searchsorted(first, records, side="right") - 1
        plan["start"] = bytes_before[records] - bytes_before[first[plan["unit"]]]
        plan["size"] = sizes[records]
        with writing(plans[-1]) as file:
            np.save(file, plan)
    return plans
