"""Finished units become the shards of one split, without the keys that an earlier unit has."""

import json

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import write_file
from cocu_jax.progress import progress
from cocu_jax.stopping import Stopped, StopRequest
from data_prep.image_text.finished_units import FinishedUnits
from data_prep.image_text.records import (
    copy_records,
    framed_sizes,
    starts_of,
    unit_files,
    writing,
)
from data_prep.image_text.reports import UnitReport, summary, totals
from data_prep.image_text.shuffle import write_shuffled
from data_prep.image_text.work import Workers

REPORT_FILE = "report.json"


def assemble(
    units: FinishedUnits,
    template: tfds.core.ShardedFileTemplate,
    repeated_key: str,
    shuffled: bool,
    workers: Workers,
) -> tfds.core.SplitInfo:
    """Brings the records of all units to their final places and writes the report there.

    A unit's index and its report stay until the caller removes them, so that each call plans the
    same shards; what an earlier one has finished stays.

    Args:
        units: what there is.
        template: where the shards go, how they are named, and the name of the split.
        repeated_key: what `units.first_repeated_key` gave before any unit was moved.
        shuffled: whether the records are to be in the order of their keys' hashes, in shards of
            equal length, rather than in that of the sources.
        workers: who writes the shards of a shuffle.

    Raises:
        UserError: nothing is left of any unit.
        Stopped: an interrupt was requested.
    """
    reports = _reports(units, repeated_key)
    if not len(units.kept):
        raise UserError(f"no pair is left to write; {summary(reports)}")
    if shuffled:
        lengths = write_shuffled(units, template, workers)
    else:
        lengths = _move_all(units, template)
    write_file(template.data_dir / REPORT_FILE, json.dumps(totals(reports), indent=1))
    return tfds.core.SplitInfo(
        name=template.split,
        shard_lengths=lengths,
        num_bytes=sum(report.bytes for report in reports),
        filename_template=template,
    )


def _reports(units: FinishedUnits, repeated_key: str) -> list[UnitReport]:
    """The units' reports, where records with keys that came before count as dropped."""
    reports = []
    columns = units.is_repeated(), units.of_each(units.lengths), units.of_each(units.captions)
    for target, repeated, lengths, captions in zip(units.targets, *columns, strict=True):
        report = UnitReport.load(unit_files(target)[2])
        if repeated.any():
            place = f"{report.unit}: {repeated_key}"  # only that of the first unit is told
            report.drop("duplicate key", place, int(captions[repeated].sum()))
            report.kept = int((~repeated).sum())
            report.captions = int(captions[~repeated].sum())
            report.bytes = int(lengths[~repeated].sum())
        reports.append(report)
    return reports


def _move_all(units: FinishedUnits, template: tfds.core.ShardedFileTemplate) -> list[int]:
    """Moves units to their final names: each is renamed once, which in a bucket is one copy.

    Returns:
        Number of records of every shard; units of which nothing is left have none.
    """
    repeated, lengths = units.is_repeated(), units.of_each(units.lengths)
    filled = [number for number, known in enumerate(repeated) if not known.all()]
    there = {path.name for path in template.data_dir.iterdir()}
    with StopRequest() as stop:
        moves = progress(enumerate(filled), "Moving shards", len(filled), "shards")
        for position, number in moves:
            if stop.requested:
                raise Stopped(
                    f"stopped after moving {position} of {len(filled)} shards; "
                    "run the same command to continue"
                )
            place = template.sharded_filepath(shard_index=position, num_shards=len(filled))
            if place.name not in there:
                _move(units.targets[number], lengths[number], repeated[number], place)
            unit_files(units.targets[number])[0].unlink(missing_ok=True)
    return [int((~repeated[number]).sum()) for number in filled]


def _move(target: epath.Path, lengths: np.ndarray, repeated: np.ndarray, place: epath.Path) -> None:
    """Brings a unit's shard to its place, without the repeated examples."""
    shard = unit_files(target)[0]
    if not shard.exists():
        raise UserError(f"{place}: is gone; remove {target.parent} to prepare it again")
    if not repeated.any() and "://" in str(place):
        shard.copy(place, overwrite=True)  # which is what a bucket does to rename
        return
    if not repeated.any():
        shard.replace(place)
        return
    sizes = framed_sizes(lengths)
    with shard.open("rb") as records, writing(place) as file:
        copy_records(records, file, starts_of(sizes)[~repeated], sizes[~repeated])
