"""Ranks and clusters the archives of many anchors: bucketed by size, in chunks of one shape.

An anchor's bucket depends on its own lists alone, and the chunks of a bucket have one shape, so
an annotation has the same bits whatever else is annotated with it and on however many devices.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float16, Int

from cocu_jax.curation.cluster import cluster_archives, gram_matrix
from cocu_jax.curation.ragged import Ragged, item_positions
from cocu_jax.curation.rank import Archives, build_archives, rank_archives
from cocu_jax.curation.storage.index import Entries

_BUCKETS = (4, 8, 12, 16, 24, 32, 48, 64)
_CHUNK = 256  # rows
_WIDE, _WIDE_CHUNK = 32, 64  # archives so wide are few and slow to cluster: less to fill up


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Ranked concepts of n images, padded to the capacity.

    Attributes:
        concepts: [n, c] ids, best first, -1 beyond the archive.
        scores: [n, c] descending, 0 beyond the archive.
        clusters: [n, c] labels; -1 beyond the archive and where there are no clusters.
        found: [n] size of each archive before it was cut to the capacity.
    """

    concepts: Int[np.ndarray, "n c"]
    scores: Float[np.ndarray, "n c"]
    clusters: Int[np.ndarray, "n c"]
    found: Int[np.ndarray, "n"]


class Annotator:
    """Ranking and clustering against one gallery, whose arrays are kept on a device.

    One device is enough: writing the annotations takes longer than computing them.
    """

    def __init__(
        self,
        concept_embeddings: Float16[np.ndarray, "g d"],
        capacity: int,
        clusters: bool,
        seed: int,
    ):
        """Args: unit-norm embeddings, concepts kept per archive, whether to cluster, the seed."""
        self._capacity, self._clusters, self._seed = capacity, clusters, seed
        self._embeddings = jnp.asarray(concept_embeddings, jnp.float32)
        self._gram = gram_matrix(self._embeddings)

    def annotate(
        self,
        entries: Entries,
        neighbours: int,
        anchors: Float16[np.ndarray, "n d"],
        first: int,
    ) -> Annotations:
        """Annotates anchors that follow each other in their corpus.

        Args:
            entries: of each neighbour of the first anchor, then of the second, ….
            neighbours: how many each anchor has.
            anchors: unit-norm embeddings.
            first: number of the first anchor in its corpus; seeds its clusters.
        """
        of_anchors = Ragged(entries.concepts.values, entries.concepts.starts[::neighbours])
        padded = np.full((len(anchors), self._capacity), -1, np.int32)
        result = Annotations(
            concepts=padded,
            scores=np.zeros(padded.shape, np.float32),
            clusters=padded.copy(),
            found=np.zeros(len(anchors), np.int32),
        )
        archives = self._build(of_anchors, entries)
        self._rank(archives, anchors, first, result)
        return result

    def _build(self, concepts: Ragged, entries: Entries) -> Archives:
        """Archives of all anchors, on the host, bucketed by number of concepts met."""
        anchors = len(concepts.lengths)
        padded = np.full((anchors, self._capacity), -1, np.int32)
        archives = Archives(
            concepts=padded,
            support=np.zeros(padded.shape, np.int32),
            total=np.zeros(padded.shape, np.float32),
            largest=np.zeros(anchors, np.float32),
            found=np.zeros(anchors, np.int32),
        )

        def build_chunk(rows: np.ndarray, width: int) -> None:
            capacity = min(width, self._capacity)
            lists = _padded(concepts, entries, rows, width)
            for field, part in vars(build_archives(*lists, capacity=capacity)).items():
                column = getattr(archives, field)
                target = column[:, :capacity] if column.ndim == 2 else column
                target[rows] = np.asarray(part)[: len(rows)]

        _run(build_chunk, concepts.lengths, lambda width: _CHUNK)
        return archives

    def _rank(
        self, archives: Archives, anchors: np.ndarray, first: int, result: Annotations
    ) -> None:
        """Ranks and clusters archives, bucketed by their own size."""
        result.found[:] = archives.found

        def rank_chunk(rows: np.ndarray, width: int) -> None:
            count = _rank_rows(width)
            part = jax.tree.map(
                lambda x: _fill(x[rows, :width] if x.ndim == 2 else x[rows], count), archives
            )
            found = rank_archives(part, _fill(anchors[rows], count), self._embeddings)
            if self._clusters:
                numbers = _fill(np.int32(first + rows), count)
                found += (cluster_archives(found[0], self._gram, self._seed, numbers),)
            targets = result.concepts, result.scores, result.clusters
            for target, found_part in zip(targets, found, strict=False):
                target[rows, :width] = np.asarray(found_part)[: len(rows)]

        _run(rank_chunk, np.minimum(archives.found, self._capacity), _rank_rows)


def _rank_rows(width: int) -> int:
    return _WIDE_CHUNK if width >= _WIDE else _CHUNK


def _run(
    work: Callable[[np.ndarray, int], None], sizes: np.ndarray, rows_of: Callable[[int], int]
) -> None:
    """Calls `work(rows, bucket width)` for all chunks, several at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(work, *chunk) for chunk in _chunks(sizes, rows_of)]:
            done.result()


def _chunks(
    sizes: Int[np.ndarray, "n"], rows_of: Callable[[int], int]
) -> Iterator[tuple[np.ndarray, int]]:
    """(rows, bucket width) of chunks of rows of like size; rows of size 0 are left out.

    `rows_of` gives the most rows of a chunk, by width.
    """
    largest = int(sizes.max(initial=0))
    widths = list(_BUCKETS)
    while widths[-1] < largest:
        widths.append(2 * widths[-1])
    bucket = np.searchsorted(widths, sizes)
    for b, width in enumerate(widths):
        rows = np.flatnonzero((bucket == b) & (sizes > 0))
        for start in range(0, len(rows), rows_of(width)):
            yield rows[start : start + rows_of(width)], width


def _padded(
    concepts: Ragged, entries: Entries, rows: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concept ids, similarities and caption flags of some anchors, [_CHUNK, width] each."""
    lengths = concepts.lengths[rows]
    source = item_positions(concepts.starts[rows], lengths)
    target = item_positions(np.arange(len(rows)) * width, lengths)
    ids = np.full(_CHUNK * width, -1, np.int32)
    similarities = np.zeros(_CHUNK * width, np.float32)
    in_caption = np.zeros(_CHUNK * width, bool)
    ids[target] = concepts.values[source]
    similarities[target] = entries.similarities.values[source]
    in_caption[target] = entries.in_caption.values[source]
    return tuple(part.reshape(_CHUNK, width) for part in (ids, similarities, in_caption))


def _fill(rows: np.ndarray, count: int) -> np.ndarray:
    """Zero rows up to a whole chunk."""
    filled = np.zeros((count, *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    return filled
