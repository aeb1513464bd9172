"""Finished units become the shards of one split, without the keys that an earlier unit has."""

import collections
import json
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress
from data_prep.image_text.units import UnitReport, shard_files

REPORT_FILE = "report.json"


def assemble(
    targets: Sequence[epath.Path], template: tfds.core.ShardedFileTemplate, split: str
) -> tfds.core.SplitInfo:
    """Moves units to where TFDS looks for them and writes the report beside them.

    Args:
        targets: the finished units, in order: the first with a key keeps it.
        template: where the shards go and how they are named.
        split: name of the split.

    Returns:
        The split; units of which nothing is left have no shard.

    Raises:
        UserError: nothing is left of any unit.
    """
    reports = [UnitReport.load(shard_files(target)[2]) for target in targets]
    for target, report, repeated in zip(targets, reports, _repeated(targets), strict=True):
        if repeated.any():
            _remove(target, report, repeated)
    filled = [pair for pair in zip(targets, reports, strict=True) if pair[1].kept]
    if not filled:
        raise UserError(f"no pair is left to write; {summary(reports)}")
    moves = progress(enumerate(filled), "Moving shards", len(filled), "shards")
    for number, (target, _) in moves:
        place = template.sharded_filepath(shard_index=number, num_shards=len(filled))
        shard_files(target)[0].rename(place)
    template.data_dir.joinpath(REPORT_FILE).write_text(json.dumps(totals(reports), indent=1))
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[report.kept for _, report in filled],
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


def _remove(target: epath.Path, report: UnitReport, repeated: np.ndarray) -> None:
    """Writes a unit anew without the repeated examples."""
    shard, keys, report_file = shard_files(target)
    fewer = shard.with_suffix(".fewer")
    report.kept, report.captions, report.bytes = 0, 0, 0
    with tf.io.TFRecordWriter(str(fewer)) as writer:
        records = tf.data.TFRecordDataset(str(shard)).as_numpy_iterator()
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
    with keys.open("rb") as file:
        left = np.load(file)[~repeated]
    # In this order an interruption leaves at worst a unit that has to be prepared again.
    report_file.unlink()
    fewer.replace(shard)
    with keys.open("wb") as file:
        np.save(file, left)
    report.save(report_file)
