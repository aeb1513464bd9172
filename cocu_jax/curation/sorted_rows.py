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
from cocu_jax.curation.storage.shard_files import open_arrays

BLOCK_ROWS = 64  # cells are read in blocks of so many rows

_RUN_ROWS = (2**17, 2**20)  # the least and the most

OpenFile = Callable[[epath.Path], dict[str, np.ndarray]]


def run_rows(rows: int) -> int:
    """Rows of the shards that make up one run of so many, unless a shard alone has more."""
    least, most = _RUN_ROWS
    return min(most, max(least, 2 ** (rows // 256).bit_length()))


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

    def cells(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """(embeddings [n, d], row numbers [n]) of cells first to last, the last excluded."""
        cells, starts = np.arange(first, last), self.starts[first : last + 1]
        return self._read(cells, starts[:-1] - starts[0], *2 * [int(starts[-1] - starts[0])])

    def blocks(
        self, cells: Int[np.ndarray, "c"], first: int, count: int, room: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Some of the blocks of some cells.

        Args:
            cells: ascending; each starts a new block.
            first: the first block among theirs.
            count: how many.
            room: how many to return; the others are empty.

        Returns:
            Embeddings [room * BLOCK_ROWS, d], zeros where there is no row, and row numbers, -1
            there.
        """
        starts = starts_of(-(-self.sizes[cells] // BLOCK_ROWS))[:-1]
        places = (starts - first) * BLOCK_ROWS
        return self._read(cells, places, count * BLOCK_ROWS, room * BLOCK_ROWS)

    def positions(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Where rows are among all rows by cell; -1 for rows of zeros."""
        found = np.full(len(rows), -1, np.int64)
        for i, run in enumerate(self._runs):
            asked = np.flatnonzero((rows >= run.offset) & (rows < run.offset + run.length))
            if len(asked):
                place = np.full(run.length, -1, np.int64)
                place[self._open(run.file)["rows"]] = item_positions(
                    self.starts[:-1] + self._before[i], self._counts[i]
                )
                found[asked] = place[rows[asked] - run.offset]
        return found

    def _read(
        self, cells: np.ndarray, places: np.ndarray, stop: int, room: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of some cells, each cell's from its place on: those from 0 to `stop`, of `room`."""
        embeddings = numbers = None
        for i, run in enumerate(self._runs):
            arrays = self._open(run.file)
            if embeddings is None:
                embeddings = np.zeros((room, arrays["embeddings"].shape[1]), np.float16)
                numbers = np.full(room, -1, np.int32)
            counts = self._counts[i, cells]
            to = item_positions(places + self._before[i, cells], counts)
            origin = item_positions(arrays["starts"][cells], counts)
            inside = slice(*np.searchsorted(to, (0, stop)))
            to, origin = to[inside], origin[inside]
            if len(origin) and origin[-1] - origin[0] + 1 == len(origin):  # saves a copy
                origin = slice(origin[0], origin[-1] + 1)
            embeddings[to] = arrays["embeddings"][origin]
            numbers[to] = run.offset + arrays["rows"][origin]
        return embeddings, numbers
