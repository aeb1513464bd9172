"""Writes one shard's annotations and the report that makes the shard count as finished."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Int

from cocu_jax.curation.annotate import Annotations
from cocu_jax.curation.plan import Plan
from cocu_jax.curation.ragged import Ragged
from cocu_jax.curation.report.summary import shard_counts
from cocu_jax.curation.storage.annotations import parquet_shard, shard_name, tfrecord_shard
from cocu_jax.curation.storage.index import Entries
from cocu_jax.curation.storage.shard_files import checksum_of
from cocu_jax.files import write_file


def write_shard(
    plan: Plan,
    shard: int,
    embedded: Mapping[str, np.ndarray],
    annotations: Annotations,
    neighbours: Int[np.ndarray, "n l"],
    found: Entries,
    recall: float | None,
) -> None:
    """Writes the TFRecord shard, the Parquet part and, last, the report.

    Args:
        plan: the run.
        shard: number of the shard.
        embedded: the arrays of the shard's embedding file.
        annotations: of its images.
        neighbours: rows of the index, -1 for none.
        found: what the index says of the neighbours, image after image.
        recall: of an approximate search, measured with this shard; None if it was not.
    """
    table = Ragged(embedded["keys"], embedded["key_starts"])
    keys = [table.bytes(row) for row in range(len(neighbours))]
    width = neighbours.shape[1]
    near = [
        [found.keys.bytes(i * width + j) for j in np.flatnonzero(rows >= 0)]
        for i, rows in enumerate(neighbours)
    ]
    records, num_bytes = tfrecord_shard(keys, annotations, near)
    contents = [records]
    if plan.config.parquet:
        contents.append(parquet_shard(keys, annotations, near, plan.gallery))
    files = dict(zip(output_files(plan, shard), contents, strict=True))
    for path, content in files.items():
        write_file(path, content)
    unreadable = [keys[row].decode() for row in np.flatnonzero(~embedded["readable"])]
    counts = shard_counts(annotations, _captions(embedded), len(plan.gallery))
    report = {
        "identity": plan.identity,
        "bytes": num_bytes,
        "sha256": [hashlib.sha256(content).hexdigest() for content in files.values()],
        "sizes": [len(content) for content in files.values()],
        "recall": recall,
        "counts": counts,
        "unreadable": unreadable,
        "samples": {str(row): neighbours[row].tolist() for row in sampled_rows(plan, shard)},
    }
    sealed = {"checksum": _report_checksum(report), "report": report}
    write_file(report_file(plan, shard), json.dumps(sealed).encode())


def finished_report(plan: Plan, shard: int, verify: bool) -> dict | None:
    """The report of a shard whose files are all there, else None.

    Args:
        plan: the run.
        shard: number of the shard.
        verify: read the files and compare their hashes, as the owner of a shard does; otherwise
            only their sizes are looked at.
    """
    try:
        sealed = json.loads(report_file(plan, shard).read_bytes())
        report, checksum = sealed["report"], sealed["checksum"]
        if checksum != _report_checksum(report) or report["identity"] != plan.identity:
            return None
        files = output_files(plan, shard)
        if verify:
            whole = report["sha256"] == [checksum_of(path) for path in files]
        else:
            whole = report["sizes"] == [path.stat().length for path in files]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if whole else None


def output_files(plan: Plan, shard: int) -> list[epath.Path]:
    """What a shard's run hands over."""
    files = [annotation_file(plan, shard)]
    if plan.config.parquet:
        files.append(_parquet_file(plan, shard))
    return files


def sampled_rows(plan: Plan, shard: int) -> list[int]:
    """Rows of the shard that may appear on the page: spread evenly over the corpus."""
    lengths = plan.corpus.shard_lengths
    start, images = sum(lengths[:shard]), plan.corpus.num_examples
    rng = np.random.default_rng(plan.config.seed)
    count = min(plan.config.page_images, images)
    chosen = np.sort(rng.choice(images, count, replace=False)) - start
    return chosen[(chosen >= 0) & (chosen < lengths[shard])].tolist()


def annotation_file(plan: Plan, shard: int) -> epath.Path:
    """TFRecord file of a shard."""
    name = shard_name(plan.corpus.split, shard, plan.corpus.num_shards)
    return plan.workdir / "annotations" / name


def report_file(plan: Plan, shard: int) -> epath.Path:
    """Written last, so that a shard with a report is finished."""
    return plan.workdir / "reports" / f"{shard:05d}.json"


def _parquet_file(plan: Plan, shard: int) -> epath.Path:
    return plan.workdir / "parquet" / f"part-{shard:05d}-of-{plan.corpus.num_shards:05d}.parquet"


def _report_checksum(report: Mapping) -> str:
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def _captions(embedded: Mapping[str, np.ndarray]) -> Ragged:
    """The captions' concepts, without those that only match (`match="substring"`)."""
    kept = embedded["in_caption"]
    before = np.concatenate([[0], np.cumsum(kept)])
    return Ragged(embedded["concepts"][kept], before[embedded["concept_starts"]])
