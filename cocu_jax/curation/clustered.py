"""Nearest neighbours among the rows of the cells that lie near a query.

The queries of a cell look in the same cells, so that the work is products of dense blocks. Rows of
the index come from disk in chunks of neighbouring cells, each once per call; a chunk is on every
device, and every device takes some of the query blocks. A task is one block of queries against
`tile_rows` of the chunk that it asks for; all tasks have one shape, and what a block finds does not
depend on where, when and with which others it is computed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float16, Int

from cocu_jax.curation.products import inner_products
from cocu_jax.curation.ragged import item_positions, starts_of
from cocu_jax.curation.search import top
from cocu_jax.curation.sorted_rows import BLOCK_ROWS, SortedRows

_TASKS = 128  # of a device between two looks at a stop request
_NO_ROW = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class ClusteredSettings:
    """How the work is cut up.

    Attributes:
        neighbours: L, how many rows of the index each query gets.
        tile_rows: index rows per product; rounded up to a multiple of `BLOCK_ROWS`.
        chunk_rows: index rows that are in memory at a time.
    """

    neighbours: int = 8
    tile_rows: int = 2048
    chunk_rows: int = 2**18


def query_blocks(
    cells: Int[np.ndarray, "n"], second: Int[np.ndarray, "n"], rows: int
) -> tuple[Int[np.ndarray, "k q"], Int[np.ndarray, "k"]]:
    """Queries of one cell in blocks of like ones.

    Args:
        cells: of the queries, ascending.
        second: the cell each query is nearest to but for its own: those who share it stay together.
        rows: q, queries per block.

    Returns:
        Numbers of the queries in each block, -1 for none, and the block's cell.
    """
    order = np.lexsort((second, cells))
    here, lengths = np.unique(cells, return_counts=True)
    counts = -(-lengths // rows)
    blocks = np.full(counts.sum() * rows, -1, np.int64)
    blocks[item_positions(starts_of(counts)[:-1] * rows, lengths)] = order
    return blocks.reshape(-1, rows), np.repeat(here, counts)


def search_cells(
    queries: Float16[np.ndarray, "k q d"],
    probes: tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]],
    index: SortedRows,
    settings: ClusteredSettings,
    devices: Sequence[jax.Device] | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Int[np.ndarray, "k q l"]:
    """The rows of largest inner product in the cells that each block of queries looks in.

    Args:
        queries: unit-norm embeddings in blocks.
        probes: pairs (block, cell), in ascending order.
        index: the rows by cell.
        settings: sizes.
        devices: where to compute; all local devices by default.
        on_rows: called with the number of query block x index block pairs that are done.

    Returns:
        Row numbers, best first, -1 where fewer than L rows were met and for queries of zeros. Of
        equal products the lower row comes first.
    """
    devices = tuple(devices or jax.local_devices())
    run = _runner(devices)
    placed = _share_out(queries, devices)
    best = _no_rows(placed.shape[:3], settings.neighbours, devices)
    for chunk, tasks in _chunks(probes, index, settings, len(queries), len(devices)):
        chunk = jax.tree.map(
            lambda x: _put(np.broadcast_to(x, (len(devices), *x.shape)), devices), chunk
        )
        for number, blocks, count, pairs in tasks:
            best = run(best, placed, chunk, number, blocks, count)
            jax.block_until_ready(best)
            on_rows(pairs)
    rows, _ = jax.tree.map(np.asarray, best)
    rows = rows.swapaxes(0, 1).reshape(-1, *rows.shape[2:])[: len(queries)]
    return np.where((rows == _NO_ROW) | ~queries.any(-1, keepdims=True), -1, rows)


def _chunks(
    probes: tuple[np.ndarray, np.ndarray],
    index: SortedRows,
    settings: ClusteredSettings,
    blocks: int,
    devices: int,
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], Iterator]]:
    """The chunks that anyone asks for, each with the tasks on it."""
    tile = -(-settings.tile_rows // BLOCK_ROWS)
    starts = index.block_starts
    room = max(1, min(-(-settings.chunk_rows // BLOCK_ROWS), int(starts[-1])))
    block, cell = probes
    for first in range(0, int(starts[-1]), room):
        last = min(first + room, int(starts[-1]))
        low, high = np.maximum(starts[cell], first), np.minimum(starts[cell + 1], last)
        asked = np.flatnonzero(high > low)
        if not len(asked):
            continue
        lengths = (high - low)[asked]
        wanted = item_positions(low[asked] - first, lengths)
        by_query = np.bincount(block[asked], weights=lengths, minlength=blocks).astype(np.int64)
        rows, numbers = index.blocks(first, last, room + 1)  # one more, which stays empty
        yield (rows, numbers), _tasks(wanted, by_query, tile, room, devices)


def _tasks(
    wanted: Int[np.ndarray, "w"],
    by_query: Int[np.ndarray, "k"],
    tile: int,
    empty: int,
    devices: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Tasks in portions: per device (query block, [tile] index blocks) and how many there are.

    Args:
        wanted: the index blocks that the query blocks want, one query block after the other.
        by_query: how many each wants.
        tile: index blocks of a task.
        empty: number of an index block without rows.
        devices: number of devices; each has every n-th query block.
    """
    counts = -(-by_query // tile)
    blocks = np.full(counts.sum() * tile, empty, np.int32)
    blocks[item_positions(starts_of(counts)[:-1] * tile, by_query)] = wanted
    blocks, query = blocks.reshape(-1, tile), np.repeat(np.arange(len(counts)), counts)
    own = [np.flatnonzero(query % devices == device) for device in range(devices)]
    for start in range(0, max(map(len, own)), _TASKS):
        portion = [tasks[start : start + _TASKS] for tasks in own]
        number = np.zeros((devices, _TASKS), np.int32)
        asked = np.full((devices, _TASKS, tile), empty, np.int32)
        for device, tasks in enumerate(portion):
            number[device, : len(tasks)] = query[tasks] // devices
            asked[device, : len(tasks)] = blocks[tasks]
        yield (
            number,
            asked,
            np.array([len(p) for p in portion], np.int32),
            int((asked != empty).sum()),
        )


@functools.lru_cache
def _runner(devices: tuple[jax.Device, ...]) -> Callable:
    return jax.pmap(_run_tasks, devices=devices, donate_argnums=0)


def _run_tasks(
    best: tuple[Int[Array, "k q l"], Float[Array, "k q l"]],
    queries: Float16[Array, "k q d"],
    chunk: tuple[Float16[Array, "b r d"], Int[Array, "b r"]],
    number: Int[Array, "n"],
    blocks: Int[Array, "n t"],
    count: Int[Array, ""],
) -> tuple[Int[Array, "k q l"], Float[Array, "k q l"]]:
    """`best` updated with the first `count` tasks."""
    embeddings, numbers = chunk
    width = queries.shape[-1]

    def run(i: Int[Array, ""], best: tuple) -> tuple:
        tile = embeddings[blocks[i]].reshape(-1, width)
        rows = numbers[blocks[i]].reshape(-1)
        products = jnp.where(rows >= 0, inner_products(queries[number[i]], tile), -jnp.inf)
        scores, found = top(products, min(best[0].shape[-1], len(rows)))
        found = jnp.where(jnp.isneginf(scores), _NO_ROW, rows[found])
        best_rows, best_scores = (part[number[i]] for part in best)
        keys = -jnp.concatenate([best_scores, scores], 1), jnp.concatenate([best_rows, found], 1)
        ordered = jax.lax.sort(keys, dimension=1, num_keys=2)
        scores, rows = (part[:, : best_rows.shape[1]] for part in ordered)
        return best[0].at[number[i]].set(rows), best[1].at[number[i]].set(-scores)

    return jax.lax.fori_loop(0, count, run, best)


def _share_out(queries: np.ndarray, devices: tuple[jax.Device, ...]) -> Array:
    """Query blocks [devices, k, q, d], every n-th on a device; k in steps: fewer compilations."""
    own = -(-len(queries) // len(devices))
    step = max(1, 2 ** (own.bit_length() - 3))
    own = -(-own // step) * step
    padded = np.zeros((own * len(devices), *queries.shape[1:]), np.float16)
    padded[: len(queries)] = queries
    return _put(padded.reshape(own, len(devices), *queries.shape[1:]).swapaxes(0, 1), devices)


def _no_rows(shape: tuple[int, ...], neighbours: int, devices: tuple[jax.Device, ...]) -> tuple:
    rows = np.full((*shape, neighbours), _NO_ROW, np.int32)
    return _put(rows, devices), _put(np.full(rows.shape, -np.inf, np.float32), devices)


def _put(array: np.ndarray, devices: tuple[jax.Device, ...]) -> Array:
    sharding = NamedSharding(Mesh(np.array(devices), ("device",)), PartitionSpec("device"))
    return jax.device_put(array, sharding)
