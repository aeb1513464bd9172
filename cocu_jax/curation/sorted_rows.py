"""Embeddings sorted by cell, in files that are each sorted on their own ("runs").

A cell's rows are contiguous in every run, and a cell is its rows of the first run, then those of
the second, …: in the order of their numbers. Sorting so needs no more memory than one run, and
reading neighbouring cells takes one stretch of every run.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float16, Int

from cocu_jax.curation.ragged import item_positions, starts_of
from cocu_jax.curation.shard_files import open_arrays

RUN_ROWS = 2**17  # of the shards that make up one run, unless a shard alone has more
BLOCK_ROWS = 64  # cells are read in blocks of so many rows

OpenFile = Callable[[epath.Path], dict[str, np.ndarray]]


def run_arrays(
    embeddings: Float16[np.ndarray, "n d"], cells: Int[np.ndarray, "n"], count: int
) -> dict[str, np.ndarray]:
    """The arrays of a run's file; rows of zeros are left out.

    Args:
        embeddings: of the rows, in their order.
        cells: of each row.
        count: number of cells.
    """
    there = np.flatnonzero((embeddings != 0).any(1))
    order = there[np.argsort(cells[there], kind="stable")]
    return {
        "embeddings": embeddings[order],
        "rows": order.astype(np.int32),
        "starts": starts_of(np.bincount(cells[there], minlength=count)),
    }


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's file, the number of its first row in the table it belongs to, and its rows."""

    file: epath.Path
    offset: int
    length: int


class SortedRows:
    """All rows of some runs, by cell; only their counts are kept in memory.

    Attributes:
        sizes: rows of each cell.
        starts: where each cell starts, plus the total at the end.
    """

    def __init__(self, runs: Sequence[Run], open_file: OpenFile = open_arrays):
        """Args: finished runs in the order of their rows, and how to map a file."""
        self._runs, self._open = list(runs), open_file
        starts = [open_file(run.file)["starts"] for run in runs]
        self._counts = np.stack([np.diff(s) for s in starts]).astype(np.int32)
        self._before = np.cumsum(self._counts, axis=0, dtype=np.int32) - self._counts
        self.sizes = self._counts.sum(0, dtype=np.int64)
        self.starts = starts_of(self.sizes)

    @property
    def block_starts(self) -> Int[np.ndarray, "c1"]:
        """The first block of each cell, plus their number at the end."""
        return starts_of(-(-self.sizes // BLOCK_ROWS))

    def cells(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """(embeddings [n, d], row numbers [n]) of cells first to last, the last excluded."""
        start, stop = self.starts[first], self.starts[last]
        return self._read(first, last, self.starts, start, stop, stop)

    def blocks(self, first: int, last: int, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks first to last, the last excluded, and empty ones up to `room`.

        Returns:
            Embeddings [room, BLOCK_ROWS, d], zeros where there is no row, and row numbers
            [room, BLOCK_ROWS], -1 there.
        """
        starts = self.block_starts
        cell = int(np.searchsorted(starts, first, side="right")) - 1
        end = int(np.searchsorted(starts, last, side="left"))
        window = first * BLOCK_ROWS, (first + room) * BLOCK_ROWS
        limit = last * BLOCK_ROWS
        rows, numbers = self._read(cell, end, starts * BLOCK_ROWS, *window, limit)
        return rows.reshape(room, BLOCK_ROWS, -1), numbers.reshape(room, BLOCK_ROWS)

    def positions(self, first: int, last: int) -> Int[np.ndarray, "n"]:
        """Where rows first to last are among all rows by cell; -1 for rows of zeros."""
        found = np.full(last - first, -1, np.int64)
        for i, run in enumerate(self._runs):
            if run.offset < last and run.offset + run.length > first:
                numbers = run.offset + self._open(run.file)["rows"].astype(np.int64)
                asked = (numbers >= first) & (numbers < last)
                places = item_positions(self.starts[:-1] + self._before[i], self._counts[i])
                found[numbers[asked] - first] = places[asked]
        return found

    def _read(
        self, first: int, last: int, places: np.ndarray, start: int, stop: int, limit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of cells whose cell c is placed at places[c]: what lies from start to limit."""
        embeddings = numbers = None
        for i, run in enumerate(self._runs):
            arrays = self._open(run.file)
            if embeddings is None:
                width = arrays["embeddings"].shape[1]
                embeddings = np.zeros((stop - start, width), np.float16)
                numbers = np.full(stop - start, -1, np.int32)
            counts = self._counts[i, first:last]
            places_here = item_positions(places[first:last] + self._before[i, first:last], counts)
            low, high = np.searchsorted(places_here, (start, limit))
            source = arrays["starts"][first]
            to, origin = places_here[low:high] - start, slice(source + low, source + high)
            embeddings[to] = arrays["embeddings"][origin]
            numbers[to] = run.offset + arrays["rows"][origin]
        return embeddings, numbers
