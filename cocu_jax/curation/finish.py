"""The last step, done by one process: dataset metadata, summary and page."""

import json

from cocu_jax.curation.annotations import metadata_files
from cocu_jax.curation.gallery_page import write_page
from cocu_jax.curation.plan import Plan
from cocu_jax.curation.shard_output import finished_report
from cocu_jax.curation.summary import add_counts, as_text, summarise
from cocu_jax.curation.waiting import wait_for
from cocu_jax.files import remove_temporaries, write_file
from cocu_jax.stopping import StopRequest


def finish(plan: Plan, stop: StopRequest) -> dict:
    """Waits for all shards, then makes them a dataset.

    Returns:
        The summary.
    """
    reports, counts = {}, {}

    def is_finished(shard: int) -> bool:
        report = finished_report(plan, shard)
        if report:
            add_counts(counts, report.pop("counts"))  # the bulk of a report
            reports[shard] = report
        return report is not None

    wait_for(range(plan.corpus.num_shards), is_finished, "Wait for annotations", stop)
    ordered = [reports[shard] for shard in range(plan.corpus.num_shards)]
    unreadable = [key for report in ordered for key in report["unreadable"]]
    summary = summarise(counts, unreadable, plan.gallery)
    recalls = [report["recall"] for report in ordered if report["recall"] is not None]
    if recalls:
        summary["measured_recall"] = sum(recalls) / len(recalls)
    write_file(plan.workdir / "summary.json", json.dumps(summary, indent=1).encode())
    write_file(plan.workdir / "summary.txt", as_text(summary).encode())
    if plan.config.page_images:
        write_page(plan, ordered)
    for directory in ("annotations", "parquet", "reports"):
        remove_temporaries(plan.workdir / directory)
    provenance = dict(plan.provenance)
    if recalls:
        provenance["measured_recall"] = summary["measured_recall"]
    num_bytes = sum(report["bytes"] for report in ordered)
    files = metadata_files(plan.corpus.split, plan.corpus.shard_lengths, num_bytes, provenance)
    for name, content in files.items():
        write_file(plan.workdir / "annotations" / name, content)
    return summary
