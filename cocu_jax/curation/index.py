"""The embedded images of several corpora as one long table, read from its shard files."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Float16, Int

from cocu_jax.curation.embed import EmbeddedShard
from cocu_jax.curation.ragged import Ragged, item_positions, starts_of
from cocu_jax.curation.rank import matching_concepts, own_similarities
from cocu_jax.curation.shard_files import open_arrays


@dataclasses.dataclass(frozen=True)
class Entries:
    """Concepts of rows of the index, row after row.

    Attributes:
        concepts: ids; `starts` says where each row's begin.
        similarities: cosine of each concept with its row's image.
        in_caption: whether the row's caption has it; False for `match="substring"` matches.
    """

    concepts: Ragged
    similarities: Float[np.ndarray, "e"]
    in_caption: Bool[np.ndarray, "e"]


def shard_arrays(
    shard: EmbeddedShard,
    concept_embeddings: Float16[np.ndarray, "g d"],
    relation: Ragged | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of one shard file.

    Args:
        shard: the embedded images.
        concept_embeddings: of the gallery.
        relation: which other concepts match an image that has a concept; None for exact matches.
    """
    concepts, in_caption = shard.concepts, np.ones(len(shard.concepts.values), bool)
    if relation is not None:
        concepts, in_caption = matching_concepts(concepts, relation)
    rows = np.repeat(np.arange(len(concepts.lengths)), concepts.lengths)
    return {
        "embeddings": shard.embeddings,
        "readable": shard.readable,
        "keys": shard.keys.values,
        "key_starts": shard.keys.starts,
        "concepts": concepts.values,
        "concept_starts": concepts.starts,
        "in_caption": in_caption,
        "similarities": own_similarities(
            shard.embeddings, concept_embeddings, concepts.values, rows
        ),
    }


class Index:
    """Rows of all index corpora, in corpus, shard and file order.

    Nothing is kept in memory but the shards' sizes: every call maps the files it needs and lets go
    of them, so that memory does not grow with the index.
    """

    def __init__(self, files: Sequence[epath.Path], lengths: Sequence[int]):
        """Args: the finished shard files of all corpora and their numbers of rows."""
        self._files = list(files)
        self._starts = starts_of(lengths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def embeddings(self, start: int, stop: int) -> Float16[np.ndarray, "n d"]:
        """Rows start to stop."""
        first = np.searchsorted(self._starts, start, side="right") - 1
        parts = []
        for shard in range(first, len(self._files)):
            offset = int(self._starts[shard])
            if offset >= stop:
                break
            rows = open_arrays(self._files[shard])["embeddings"]
            parts.append(np.array(rows[max(start - offset, 0) : stop - offset]))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def entries(self, rows: Int[np.ndarray, "n"]) -> Entries:
        """Concepts of any rows, in their order; row -1 has none."""
        lengths = np.zeros(len(rows), np.int64)
        for arrays, here, local in self._by_shard(rows):
            lengths[here] = np.diff(arrays["concept_starts"])[local]
        starts = starts_of(lengths)
        concepts = np.empty(starts[-1], np.int32)
        similarities = np.empty(starts[-1], np.float32)
        in_caption = np.empty(starts[-1], bool)
        for arrays, here, local in self._by_shard(rows):
            source = item_positions(arrays["concept_starts"][local], lengths[here])
            target = item_positions(starts[here], lengths[here])
            concepts[target] = arrays["concepts"][source]
            similarities[target] = arrays["similarities"][source]
            in_caption[target] = arrays["in_caption"][source]
        return Entries(Ragged(concepts, starts), similarities, in_caption)

    def keys(self, rows: Int[np.ndarray, "n"]) -> list[bytes]:
        """UTF-8 keys of any rows, in their order; row -1 has an empty one."""
        keys = [b""] * len(rows)
        for arrays, here, local in self._by_shard(rows):
            table = Ragged(arrays["keys"], arrays["key_starts"])
            for position, row in zip(here, local, strict=True):
                keys[position] = table.bytes(row)
        return keys

    def locate(self, row: int) -> tuple[int, int]:
        """(number of the shard file, row within it)."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, int(row - self._starts[shard])

    def _by_shard(
        self, rows: Int[np.ndarray, "n"]
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """(the shard's arrays, positions in `rows` that lie in it, their rows within it)."""
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(shards, kind="stable")
        bounds = np.flatnonzero(np.diff(shards[order])) + 1
        for here in np.split(order, bounds):
            if len(here) and shards[here[0]] >= 0:
                shard = shards[here[0]]
                yield open_arrays(self._files[shard]), here, rows[here] - self._starts[shard]
