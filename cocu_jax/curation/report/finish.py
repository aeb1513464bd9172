"""The last step, done by one process: dataset metadata, summary and page.

Reports are taken in as shards finish, and their sums saved block by block (see `tally`), so that
the step may be stopped anywhere and never holds more than the sums.
"""

import json

from cocu_jax.curation.plan import Plan
from cocu_jax.curation.report.examples_page import write_page
from cocu_jax.curation.report.summary import add_counts, as_text, summarise
from cocu_jax.curation.storage.annotations import metadata_files
from cocu_jax.curation.storage.shard_output import finished_report, output_files, report_file
from cocu_jax.curation.storage.tally import BLOCK, LISTED, Tally, tallies
from cocu_jax.curation.storage.waiting import names_in, wait_for
from cocu_jax.files import remove_temporaries, write_file
from cocu_jax.stopping import StopRequest


def finish(plan: Plan, stop: StopRequest) -> dict:
    """Waits for all shards, then makes them a dataset.

    Returns:
        The summary.

    Raises:
        Stopped: on request; the same command goes on.
    """
    blocks = tallies(plan)
    _wait_for_shards(plan, blocks, stop)
    counts, recalls, keys, samples = {}, [], [], []
    num_bytes = unreadable = 0
    for block in blocks:
        tally = block.read()
        add_counts(counts, tally["counts"])
        recalls += tally["recalls"]
        num_bytes += tally["bytes"]
        unreadable += tally["unreadable"]
        keys += tally["keys"][: LISTED - len(keys)]
        samples += tally["samples"]
    summary = summarise(counts, keys, unreadable, plan.gallery)
    if recalls:
        summary["measured_recall"] = sum(recalls) / len(recalls)
    write_file(plan.workdir / "summary.json", json.dumps(summary, indent=1))
    write_file(plan.workdir / "summary.txt", as_text(summary))
    if plan.config.page_images:
        write_page(plan, samples, stop)
    for directory in ("annotations", "parquet", "reports", "neighbours", "searches"):
        remove_temporaries(plan.workdir / directory)
    provenance = dict(plan.provenance)
    if recalls:
        provenance["measured_recall"] = summary["measured_recall"]
    files = metadata_files(plan.corpus.split, plan.corpus.shard_lengths, num_bytes, provenance)
    for name, content in files.items():
        write_file(plan.workdir / "annotations" / name, content)
    return summary


def _wait_for_shards(plan: Plan, blocks: list[Tally], stop: StopRequest) -> None:
    """Returns when every shard is finished and every block saved."""

    def look() -> set[int]:
        """Shards whose files are all listed."""
        folders = {report_file(plan, 0).parent, *(path.parent for path in output_files(plan, 0))}
        listed = {folder: names_in(folder) for folder in folders}

        def seen(shard: int) -> bool:
            files = (report_file(plan, shard), *output_files(plan, shard))
            return all(file.name in listed[file.parent] for file in files)

        return set(filter(seen, range(plan.corpus.num_shards)))

    def is_finished(shard: int) -> bool:
        block = blocks[shard // BLOCK]
        if shard not in block:
            report = finished_report(plan, shard, verify=False)
            if report is None:
                return False
            block.add(shard, report)
        return True

    wait_for(range(plan.corpus.num_shards), look, is_finished, "Wait for annotations", stop)
