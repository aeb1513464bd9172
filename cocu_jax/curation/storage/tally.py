"""Sums of the reports of neighbouring shards, so that the last step never holds all reports."""

import hashlib
import json

from etils import epath

from cocu_jax.curation.plan import Plan
from cocu_jax.curation.report.summary import add_counts
from cocu_jax.curation.storage.shard_output import report_file
from cocu_jax.files import write_file

BLOCK = 256  # shards
LISTED = 10_000  # unreadable images of a block that are named; their number is exact


class Tally:
    """What the summary and the page need of a block of shards.

    It is saved as soon as all of the block's shards are in it, and then lets go of them. Reports
    may come in any order; what is saved does not depend on it.
    """

    def __init__(self, plan: Plan, block: int):
        """Opens what an earlier run has saved, if it has."""
        self._plan, self._block = plan, block
        first = block * BLOCK
        self.shards = range(first, min(first + BLOCK, plan.corpus.num_shards))
        self._sums: dict = {}
        self._details: dict[int, dict] = {}
        self.saved = self.read() is not None

    def __contains__(self, shard: int) -> bool:
        return self.saved or shard in self._details

    def add(self, shard: int, report: dict) -> None:
        """Takes a shard's report in; saves the block when it is the last one."""
        add_counts(self._sums, report["counts"])
        kept = ("bytes", "recall", "unreadable", "samples")
        self._details[shard] = {field: report[field] for field in kept}
        if len(self._details) == len(self.shards):
            self._save()

    def read(self) -> dict | None:
        """The saved sums: `counts`, `bytes`, `recalls`, `unreadable` (number), `keys`, `samples`.

        Samples are (shard, row, its neighbours' rows in the index). None if nothing is saved, or
        what is saved is damaged or of another run.
        """
        try:
            sealed = json.loads(self._file.read_bytes())
            tally, checksum = sealed["tally"], sealed["checksum"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = checksum == _checksum(tally) and tally["identity"] == self._identity
        return tally if whole else None

    @property
    def _file(self) -> epath.Path:
        return report_file(self._plan, 0).parent / f"tally-{self._block:05d}.json"

    @property
    def _identity(self) -> list:
        return [self._plan.identity, self._plan.config.page_images, self._plan.config.parquet]

    def _save(self) -> None:
        ordered = [self._details[shard] for shard in self.shards]
        keys = [key for detail in ordered for key in detail["unreadable"]]
        tally = {
            "identity": self._identity,
            "counts": {name: value.tolist() for name, value in self._sums.items()},
            "bytes": sum(detail["bytes"] for detail in ordered),
            "recalls": [d["recall"] for d in ordered if d["recall"] is not None],
            "unreadable": len(keys),
            "keys": keys[:LISTED],
            "samples": [
                (shard, int(row), near)
                for shard, detail in zip(self.shards, ordered, strict=True)
                for row, near in detail["samples"].items()
            ],
        }
        sealed = {"checksum": _checksum(tally), "tally": tally}
        write_file(self._file, json.dumps(sealed))
        self.saved, self._sums, self._details = True, {}, {}


def tallies(plan: Plan) -> list[Tally]:
    """Of all blocks of the corpus, in order."""
    return [Tally(plan, block) for block in range(-(-plan.corpus.num_shards // BLOCK))]


def _checksum(tally: dict) -> str:
    return hashlib.sha256(json.dumps(tally, sort_keys=True).encode()).hexdigest()
