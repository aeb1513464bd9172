"""Ranks and clusters the archives of many anchors: bucketed by size, in chunks of one shape.

An anchor's bucket depends on its own lists alone, and a chunk always has the same shape, so an
annotation has the same bits whatever else is annotated with it and on however many devices.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Array, Float, Float16, Int

from cocu_jax.curation.cluster import cluster_archives, gram_matrix
from cocu_jax.curation.index import Entries
from cocu_jax.curation.ragged import Ragged, item_positions
from cocu_jax.curation.rank import rank_archives

_CHUNK = 256
_BUCKETS = (4, 8, 12, 16, 24, 32, 48, 64)


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
    """Ranking and clustering against one gallery, whose arrays are kept on every local device."""

    def __init__(
        self,
        concept_embeddings: Float16[np.ndarray, "g d"],
        capacity: int,
        clusters: bool,
        seed: int,
    ):
        """Args: unit-norm embeddings, concepts kept per archive, whether to cluster, the seed."""
        self._capacity, self._clusters, self._seed = capacity, clusters, seed
        self._devices = jax.local_devices()
        self._embeddings = [jax.device_put(concept_embeddings, d) for d in self._devices]
        self._grams = [gram_matrix(embeddings) for embeddings in self._embeddings]

    def annotate(
        self,
        entries: Entries,
        neighbours: int,
        anchors: Float16[np.ndarray, "n d"],
        first: int,
    ) -> Annotations:
        """Annotates anchors that follow each other in their corpus.

        Args:
            entries: concepts of each neighbour of the first anchor, then of the second, ….
            neighbours: how many each anchor has.
            anchors: unit-norm embeddings.
            first: number of the first anchor in its corpus; seeds its clusters.
        """
        of_anchors = Ragged(entries.concepts.values, entries.concepts.starts[::neighbours])
        entries = dataclasses.replace(entries, concepts=of_anchors)
        shape = (len(anchors), self._capacity)
        result = Annotations(
            concepts=np.full(shape, -1, np.int32),
            scores=np.zeros(shape, np.float32),
            clusters=np.full(shape, -1, np.int32),
            found=np.zeros(len(anchors), np.int32),
        )
        self._rank(entries, anchors, result)
        if self._clusters:
            self._cluster(first, result)
        return result

    def _rank(self, entries: Entries, anchors: np.ndarray, result: Annotations) -> None:
        def rank_chunk(rows: np.ndarray, width: int, device: int) -> None:
            concepts, similarities, in_caption = _padded(entries, rows, width)
            ranking = rank_archives(
                *jax.device_put((concepts, similarities, in_caption), self._devices[device]),
                jax.device_put(_fill(anchors[rows]), self._devices[device]),
                self._embeddings[device],
                capacity=min(width, self._capacity),
            )
            ranked = min(width, self._capacity)
            result.concepts[rows, :ranked] = _unfill(ranking.concepts, rows)
            result.scores[rows, :ranked] = _unfill(ranking.scores, rows)
            result.found[rows] = _unfill(ranking.found, rows)

        self._run(rank_chunk, entries.concepts.lengths, at_least=1)

    def _cluster(self, first: int, result: Annotations) -> None:
        def cluster_chunk(rows: np.ndarray, width: int, device: int) -> None:
            width = min(width, self._capacity)
            concepts = _fill(result.concepts[rows, :width])
            concepts[len(rows) :] = -1
            labels = cluster_archives(
                jax.device_put(concepts, self._devices[device]),
                self._grams[device],
                self._seed,
                jax.device_put(_fill(np.int32(first + rows)), self._devices[device]),
            )
            result.clusters[rows, :width] = _unfill(labels, rows)

        sizes = np.minimum(result.found, self._capacity)
        self._run(cluster_chunk, sizes, at_least=3)

    def _run(
        self, work: Callable[[np.ndarray, int, int], None], sizes: np.ndarray, at_least: int
    ) -> None:
        """Calls `work(rows, bucket, device)` for all chunks, the devices taking turns."""
        workers = max(len(self._devices), os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            pending = [
                pool.submit(work, rows, width, i % len(self._devices))
                for i, (rows, width) in enumerate(_chunks(sizes, at_least))
            ]
            for chunk in pending:
                chunk.result()


def _chunks(sizes: Int[np.ndarray, "n"], at_least: int) -> Iterator[tuple[np.ndarray, int]]:
    """(rows, bucket width) of chunks of rows of like size; sizes below `at_least` are left out."""
    largest = int(sizes.max(initial=0))
    widths = list(_BUCKETS)
    while widths[-1] < largest:
        widths.append(2 * widths[-1])
    bucket = np.searchsorted(widths, sizes)
    for b, width in enumerate(widths):
        rows = np.flatnonzero((bucket == b) & (sizes >= at_least))
        for start in range(0, len(rows), _CHUNK):
            yield rows[start : start + _CHUNK], width


def _padded(
    entries: Entries, rows: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concept ids, similarities and caption flags of some lists, [_CHUNK, width] each."""
    lengths = entries.concepts.lengths[rows]
    source = item_positions(entries.concepts.starts[rows], lengths)
    target = item_positions(np.arange(len(rows)) * width, lengths)
    concepts = np.full(_CHUNK * width, -1, np.int32)
    similarities = np.zeros(_CHUNK * width, np.float32)
    in_caption = np.zeros(_CHUNK * width, bool)
    concepts[target] = entries.concepts.values[source]
    similarities[target] = entries.similarities[source]
    in_caption[target] = entries.in_caption[source]
    return tuple(part.reshape(_CHUNK, width) for part in (concepts, similarities, in_caption))


def _fill(rows: np.ndarray) -> np.ndarray:
    """Zero rows up to a whole chunk."""
    return np.pad(rows, [(0, _CHUNK - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def _unfill(rows: Array, kept: np.ndarray) -> np.ndarray:
    return np.asarray(rows)[: len(kept)]
