"""Finished units become the shards of one split, without the keys that an earlier unit has."""

import collections
import json
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.files import write_file
from cocu_jax.progress import progress
from cocu_jax.stopping import Stopped, StopRequest
from data_prep.image_text.units import UnitReport, shard_files

REPORT_FILE = "report.json"


def assemble(
    targets: Sequence[epath.Path], template: tfds.core.ShardedFileTemplate, split: str
) -> tfds.core.SplitInfo:
    """Moves units to their final names, where a stopped call goes on, and writes the report there.

    A unit's file of keys and its report stay beside it until the caller removes them, so that each
    call plans the same moves. Every shard is renamed once, which in a bucket is one copy.

    Args:
        targets: the finished units, in order: the first with a key keeps it.
        template: where the shards go and how they are named.
        split: name of the split.

    Returns:
        The split; units of which nothing is left have no shard.

    Raises:
        UserError: nothing is left of any unit.
        Stopped: an interrupt was requested.
    """
    reports = [UnitReport.load(shard_files(target)[2]) for target in targets]
    repeated = _repeated(targets)
    filled = [number for number, known in enumerate(repeated) if not known.all()]
    with StopRequest() as stop:
        moves = progress(enumerate(filled), "Moving shards", len(filled), "shards")
        for position, number in moves:
            if stop.requested:
                raise Stopped(
                    f"stopped after moving {position} of {len(filled)} shards; "
                    "run the same command to go on"
                )
            place = template.sharded_filepath(shard_index=position, num_shards=len(filled))
            reports[number] = _move(targets[number], reports[number], repeated[number], place)
    for number in set(range(len(targets))).difference(filled):
        if len(repeated[number]):
            reports[number] = _without(targets[number], reports[number], repeated[number])
    if not filled:
        raise UserError(f"no pair is left to write; {summary(reports)}")
    write_file(template.data_dir / REPORT_FILE, json.dumps(totals(reports), indent=1))
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[reports[number].kept for number in filled],
        num_bytes=sum(report.bytes for report in reports),
        filename_template=template,
    )


def totals(reports: Sequence[UnitReport]) -> dict:
    """Sums over all units, and the damaged ones by name."""
    dropped, places = collections.Counter(), {}
    for report in reports:
        dropped.update(report.dropped)
        places = report.places | places
    return {
        "units": len(reports),
        "kept": sum(report.kept for report in reports),
        "captions": sum(report.captions for report in reports),
        "bytes": sum(report.bytes for report in reports),
        "dropped": dict(dropped.most_common()),
        "first dropped": places,
        "damaged units": [report.damage for report in reports if report.damage],
    }


def summary(reports: Sequence[UnitReport]) -> str:
    """The totals in one line."""
    total = totals(reports)
    dropped = ", ".join(
        f"{count:,} {reason} (first: {total['first dropped'][reason]})"
        for reason, count in total["dropped"].items()
    )
    damaged = len(total["damaged units"])
    line = (
        f"{total['kept']:,} images kept ({total['bytes'] / 1e6:,.1f} MB); dropped: {dropped or '0'}"
    )
    return f"{line}; {damaged} of {total['units']} files damaged" if damaged else line


def _repeated(targets: Sequence[epath.Path]) -> list[np.ndarray]:
    """For every unit, which of its examples have a key that came before: 8 bytes an example."""
    hashes = []
    for target in targets:
        with shard_files(target)[1].open("rb") as file:
            hashes.append(np.load(file))
    repeated = np.ones(sum(map(len, hashes)), bool)
    repeated[np.unique(np.concatenate(hashes), return_index=True)[1]] = False
    return np.split(repeated, np.cumsum([len(part) for part in hashes])[:-1])


def _move(
    target: epath.Path, report: UnitReport, repeated: np.ndarray, place: epath.Path
) -> UnitReport:
    """Brings a unit's shard to its place, unless it is there, without the repeated examples.

    Returns:
        The report of what is at the place.
    """
    shard = shard_files(target)[0]
    wanted = shard
    if repeated.any():
        report = _without(target, report, repeated)
        wanted = _files_without(target)[0]
    if wanted.exists():
        wanted.replace(place)
    elif not place.exists():
        raise UserError(f"{place}: is gone; remove {target.parent} to prepare it again")
    shard.unlink(missing_ok=True)
    return report


def _without(target: epath.Path, report: UnitReport, repeated: np.ndarray) -> UnitReport:
    """Writes a unit anew without the repeated examples, and a report; both only once."""
    fewer, report_file = _files_without(target)
    if report_file.exists():
        return UnitReport.load(report_file)
    report.kept, report.captions, report.bytes = 0, 0, 0
    with tf.io.TFRecordWriter(str(fewer)) as writer:
        records = tf.data.TFRecordDataset(str(shard_files(target)[0])).as_numpy_iterator()
        for record, known in zip(records, repeated, strict=True):
            example = tf.train.Example.FromString(record).features.feature
            captions = len(example["caption_lengths"].int64_list.value)
            if known:
                key = example["key"].bytes_list.value[0].decode()
                report.drop("duplicate key", f"{report.unit}: {key}", captions)
                continue
            report.captions += captions
            writer.write(record)
            report.kept += 1
            report.bytes += len(record)
    report.save(report_file)
    return report


def _files_without(target: epath.Path) -> tuple[epath.Path, epath.Path]:
    """A unit's examples without the repeated ones, and the report that they are all written."""
    return tuple(target.parent / f"{target.name}.fewer.{end}" for end in ("tfrecord", "json"))
