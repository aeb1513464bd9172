"""The embedded images of several corpora as one long table, read from its shard files."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float16, Int

from cocu_jax.curation.embed import EmbeddedShard
from cocu_jax.curation.ragged import Ragged, starts_of
from cocu_jax.curation.rank import matching_concepts, own_similarities
from cocu_jax.curation.storage.shard_files import open_arrays

# Bits of a float16: comparing them takes NumPy a tenth of the time of `isfinite` and `!= 0`.
_MAGNITUDE, _INFINITE = np.uint16(0x7FFF), np.uint16(0x7C00)


@dataclasses.dataclass(frozen=True)
class Entries:
    """What the index says of some of its rows.

    Attributes:
        keys: UTF-8 keys.
        concepts: ids.
        similarities: cosine of each concept with its row's image.
        in_caption: whether the row's caption has it; False for `match="substring"` matches.
    """

    keys: Ragged
    concepts: Ragged
    similarities: Ragged
    in_caption: Ragged

    def between(self, first: int, last: int) -> "Entries":
        """Of rows first to last, the last excluded."""
        return Entries(*(part.between(first, last) for part in vars(self).values()))


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
    readable = shard.readable & usable(shard.embeddings)
    embeddings = np.where(readable[:, None], shard.embeddings, np.float16(0))
    concepts, in_caption = shard.concepts, np.ones(len(shard.concepts.values), bool)
    if relation is not None:
        concepts, in_caption = matching_concepts(concepts, relation)
    rows = np.repeat(np.arange(len(concepts.lengths)), concepts.lengths)
    return {
        "embeddings": embeddings,
        "readable": readable,
        "keys": shard.keys.values,
        "key_starts": shard.keys.starts,
        "concepts": concepts.values,
        "concept_starts": concepts.starts,
        "in_caption": in_caption,
        "similarities": own_similarities(embeddings, concept_embeddings, concepts.values, rows),
    }


def usable(embeddings: Float16[np.ndarray, "n d"]) -> np.ndarray:
    """Rows that have a direction: all their values finite, and not all zero.

    Any other embedding cannot be compared; its image counts as unreadable.
    """
    largest = (embeddings.view(np.uint16) & _MAGNITUDE).max(1, initial=0)
    return (largest > 0) & (largest < _INFINITE)


class Index:
    """Rows of all index corpora, in corpus, shard and file order.

    Nothing is kept in memory but the shards' sizes: every call maps the files it needs and lets go
    of them, so that memory does not grow with the index.
    """

    def __init__(
        self,
        files: Sequence[epath.Path],
        lengths: Sequence[int],
        open_file: Callable[[epath.Path], dict[str, np.ndarray]] = open_arrays,
    ):
        """Args: the finished shard files of all corpora, their numbers of rows, how to map one."""
        self._files, self._open = list(files), open_file
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
            rows = self._open(self._files[shard])["embeddings"]
            parts.append(np.array(rows[max(start - offset, 0) : stop - offset]))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def take(self, rows: Int[np.ndarray, "n"]) -> Float16[np.ndarray, "n d"]:
        """Embeddings of any rows, in their order. Maps each file once."""
        parts = list(self._by_shard(rows))
        found = np.concatenate([arrays["embeddings"][local] for arrays, _, local in parts])
        return found[np.argsort(np.concatenate([here for _, here, _ in parts]))]

    def entries(self, rows: Int[np.ndarray, "n"]) -> Entries:
        """What is known of any rows, in their order; row -1 has nothing. Maps each file once."""
        nothing = np.flatnonzero(rows < 0)
        visited, found = [nothing], [_no_entries(len(nothing))]
        for arrays, here, local in self._by_shard(rows):
            per_concept = ("concepts", "similarities", "in_caption")
            keys = Ragged(arrays["keys"], arrays["key_starts"])
            columns = [Ragged(arrays[name], arrays["concept_starts"]) for name in per_concept]
            visited.append(here)
            found.append(Entries(*(column.take(local) for column in (keys, *columns))))
        back = np.argsort(np.concatenate(visited))
        columns = zip(*(vars(part).values() for part in found), strict=True)
        return Entries(*(Ragged.join(parts).take(back) for parts in columns))

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
                yield self._open(self._files[shard]), here, rows[here] - self._starts[shard]


def _no_entries(rows: int) -> Entries:
    starts = np.zeros(rows + 1, np.int64)
    kinds = (np.uint8, np.int32, np.float32, np.bool_)
    return Entries(*(Ragged(np.zeros(0, kind), starts) for kind in kinds))
